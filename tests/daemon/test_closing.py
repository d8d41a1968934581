"""What clients are told whose service has stopped, while its listener is still open."""

import asyncio
import socket
from types import SimpleNamespace

import pytest

from swapd.core.config import ServiceConfig
from swapd.daemon.closing import Closing

STOPPED = SimpleNamespace(stopping=True, services=[SimpleNamespace(name="chat", owner=None)])


async def told(protocol):
    """All that a client gets."""
    service = ServiceConfig(name="chat", listen=("127.0.0.1:0",), model="a", protocol=protocol)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port = listener.getsockname()[1]
    closing = Closing(SimpleNamespace(services={"chat": service}), {"chat": {f"127.0.0.1:{port}": listener}})
    try:
        closing.look(STOPPED)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer
    finally:
        await closing.close()


@pytest.mark.parametrize(("protocol", "begins"), [("http", b"HTTP/1.1 503 "), ("tcp", b"")])
def test_a_client_is_told_so_in_http_and_let_go_of_without_a_word_in_tcp(protocol, begins):
    try:
        answer = asyncio.run(asyncio.wait_for(told(protocol), 20))
    except ConnectionResetError:  # closed with what it had sent unread
        answer = b""
    assert answer.startswith(begins)
    assert bool(answer) == bool(begins)
