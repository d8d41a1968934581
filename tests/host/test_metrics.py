"""The endpoint, asked over real sockets: rightly, wrongly, slowly, and by too many."""

import asyncio
import contextlib
import socket

import pytest

from swapd.core.metrics import SECONDS, Values
from swapd.host import metrics
from swapd.host.listeners import bind
from swapd.host.metrics import MAX_CONNECTIONS, MetricsServer, render


def some():
    values = Values()
    values.set("swapd_build_info", 1, version='1.0"\n')
    values.count("swapd_requests_total", 3, service="chat", revision=1, model="a", code="2xx")
    spread = values.spread("swapd_request_duration_seconds", service="chat", revision=1, model="a")
    for seconds in (0.02, 0.02, 4000.0):
        spread.add(SECONDS, seconds)
    return values


@contextlib.asynccontextmanager
async def served(read=None, address="127.0.0.1:0"):
    async def text():
        return render(some())

    sock = bind(address)
    where = sock.getsockname()
    server = MetricsServer(sock, read or text)
    await server.start()
    try:
        yield where
    finally:
        await server.close()


async def connect(where):
    return await (asyncio.open_unix_connection(where) if isinstance(where, str) else asyncio.open_connection(*where))


async def ask(where, request=b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
    reader, writer = await connect(where)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def test_the_text_has_types_escaped_labels_and_buckets_that_add_up():
    lines = render(some()).decode().splitlines()
    assert 'swapd_build_info{version="1.0\\"\\n"} 1.0' in lines
    assert "# TYPE swapd_requests_total counter" in lines
    assert 'swapd_requests_total{code="2xx",model="a",revision="1",service="chat"} 3.0' in lines
    where = 'model="a",revision="1",service="chat"}'
    [low, high, last] = [f'swapd_request_duration_seconds_bucket{{le="{b}",{where}' for b in ("0.01", "0.025", "+Inf")]
    assert {f"{low} 0.0", f"{high} 2.0", f"{last} 3.0"} <= set(lines)
    assert f"swapd_request_duration_seconds_count{{{where} 3.0" in lines
    assert not [line for line in lines if "_created" in line or line.startswith("python_")]


@pytest.mark.parametrize("unix", [False, True])
def test_it_answers_get_of_its_one_path(tmp_path, unix):
    async def main():
        async with served(address=f"unix:{tmp_path}/m" if unix else "127.0.0.1:0") as where:
            answer = await ask(where)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
            assert answer.endswith(render(some()))
            head = await ask(where, b"HEAD /metrics HTTP/1.1\r\n\r\n")
            assert head.endswith(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics/../x HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /metrics?name[]=x HTTP/1.1\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b"405"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"\xff\x00 \xfe HTTP/9\r\n\r\n", b"400"),
    ],
)
def test_anything_else_is_refused(request_, status):
    async def main():
        async with served() as where:
            assert (await ask(where, request_)).startswith(b"HTTP/1.1 " + status)

    asyncio.run(main())


def test_a_head_that_is_too_long_or_does_not_come_ends_its_connection(monkeypatch):
    monkeypatch.setattr(metrics, "REQUEST_S", 0.2)

    async def main():
        async with served() as where:
            assert await ask(where, b"GET /metrics HTTP/1.1\r\n") == b""
            with contextlib.suppress(ConnectionError):
                assert await ask(where, b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100_000) == b""
            assert (await ask(where)).startswith(b"HTTP/1.1 200")

    asyncio.run(main())


def test_too_many_connections_are_closed_at_once_and_the_rest_is_served():
    async def main():
        async with served() as where:
            idle = [await connect(where) for _ in range(MAX_CONNECTIONS)]
            with contextlib.suppress(ConnectionError):
                assert await ask(where) == b""
            for _, writer in idle:
                writer.close()

            async def answered():
                with contextlib.suppress(ConnectionError):
                    return await ask(where)
                return b""

            while not (await answered()).startswith(b"HTTP/1.1 200"):
                pass

    asyncio.run(asyncio.wait_for(main(), 20))


def test_an_answer_that_hangs_or_is_not_read_ends_at_its_deadline(monkeypatch):
    monkeypatch.setattr(metrics, "ANSWER_S", 0.2)

    async def hangs():
        await asyncio.sleep(3600)

    async def large():
        return b"x" * 50_000_000

    async def main():
        async with served(hangs) as where:
            assert await ask(where) == b""
        async with served(large) as where:
            with socket.create_connection(where) as sock:
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                await loop.sock_sendall(sock, b"GET /metrics HTTP/1.1\r\n\r\n")
                server_ended = await ask(where, b"GET / HTTP/1.1\r\n\r\n")
                assert server_ended.startswith(b"HTTP/1.1 404")

    asyncio.run(asyncio.wait_for(main(), 20))
