"""Which apps a direct front can serve: every ASGI 3 callable, whatever it is."""

import asyncio
import socket

import pytest
import uvloop

from swapd.front.direct import DirectFront


async def function(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Engine:
    async def app(self, scope, receive, send):
        await function(scope, receive, send)


class Callable:
    async def __call__(self, scope, receive, send):
        await function(scope, receive, send)


class Wrapped:
    """Not a coroutine function, but what it returns can be awaited: as middleware often is."""

    def __call__(self, scope, receive, send):
        return function(scope, receive, send)


@pytest.mark.parametrize("app", [function, Engine().app, Callable(), Wrapped()], ids=lambda app: type(app).__name__)
def test_every_kind_of_asgi_app_is_served(app, tmp_path):
    """uvicorn's own guess takes a bound method for ASGI 2, and every request for an error."""
    path = str(tmp_path / "http.sock")

    async def ask():
        loop = asyncio.get_running_loop()
        private = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        private.setblocking(False)
        private.bind(path)
        front = DirectFront(
            loop,
            app,
            {},
            revision=1,
            health_path="/-/swapd/health",
            keep_alive_s=5.0,
            retry_after_s=5,
            private_socket=private,
        )
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        await front.close()
        return answer

    loop = uvloop.new_event_loop()
    answer = loop.run_until_complete(ask())
    loop.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nok")
