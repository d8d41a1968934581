"""One attempt at real receivers: those that take it, and those that fail, hang, drip, or answer garbage."""

import asyncio
import contextlib
import json
import sys

import pytest

from swapd.core.errors import BAD_REQUEST, NOT_READY, SPAWN_FAILED, TIMEOUT, SwapdError
from swapd.host.notify import post, run

BODY = b'{"id":"1"}'


@contextlib.asynccontextmanager
async def receiver(*answers, hang=False, drip=False):
    """Answers each connection with the next bytes; what it was asked is in the list."""
    asked, left, tasks = [], list(answers), set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError), contextlib.closing(writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length")).split()[1])
            asked.append((head, await reader.readexactly(length)))
            writer.write(left.pop(0) if left else b"")
            while hang or drip:
                writer.write(b"x" if drip else b"")
                await asyncio.sleep(0.01)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/in?x=1", asked
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def posted(*answers, deadline_s=20.0, **how):
    """What the receiver was asked, or the error."""

    async def main():
        async with receiver(*answers, **how) as (url, asked):
            try:
                await post(url, {"Authorization": "Bearer t"}, BODY, deadline_s=deadline_s)
            except SwapdError as error:
                return error
            return asked

    return asyncio.run(asyncio.wait_for(main(), 30))


def test_a_2xx_has_it_and_it_is_asked_rightly():
    [(head, body)] = posted(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert body == BODY
    assert head.startswith(b"POST /in?x=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nAuthorization: Bearer t\r\n" in head
    assert b"\r\nContent-Type: application/json\r\n" in head


def test_an_interim_answer_is_not_the_answer():
    assert isinstance(posted(b"HTTP/1.1 100 Continue\r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), list)
    assert posted(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.1 500 Oh\r\n\r\n").code == NOT_READY


@pytest.mark.parametrize(
    ("status", "code"), [(500, NOT_READY), (503, NOT_READY), (429, NOT_READY), (404, BAD_REQUEST), (302, BAD_REQUEST)]
)
def test_other_answers_are_told_apart_by_whether_another_attempt_helps(status, code):
    error = posted(f"HTTP/1.1 {status} X\r\n\r\n".encode())
    assert error.code == code
    assert str(status) in error.message


@pytest.mark.parametrize("garbage", [b"", b"nonsense\r\n", b"\x00\xff\n", b"HTTP/1.1 2", b"x" * 100_000])
def test_garbage_is_no_answer(garbage):
    assert posted(garbage).code == NOT_READY


@pytest.mark.parametrize("how", [{"hang": True}, {"drip": True}])
def test_a_receiver_that_hangs_or_drips_ends_at_the_deadline(how):
    assert posted(b"HTTP/1.1 100 C\r\n" if how.get("drip") else b"", deadline_s=0.3, **how).code in (TIMEOUT, NOT_READY)


def test_nobody_there():
    with pytest.raises(SwapdError) as caught:
        asyncio.run(post("http://127.0.0.1:1/x", {}, BODY, deadline_s=5))
    assert caught.value.code == NOT_READY


def script(tmp_path, text):
    path = tmp_path / "tell.py"
    path.write_text(text)
    return [sys.executable, str(path)]


def test_a_program_gets_the_event_on_its_input_and_no_shell(tmp_path):
    command = script(
        tmp_path, f"import sys; open({str(tmp_path / 'got')!r}, 'w').write(sys.stdin.read() + sys.argv[1])"
    )
    asyncio.run(run([*command, "$HOME; x"], BODY, {}, deadline_s=20))
    got = (tmp_path / "got").read_text()
    assert json.loads(got.partition("}")[0] + "}") == {"id": "1"}
    assert got.endswith("$HOME; x")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("import sys; sys.exit(3)", NOT_READY),
        ("import sys; sys.stdin.close(); sys.exit(1)", NOT_READY),
        ("import time; time.sleep(600)", TIMEOUT),
        ("import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)", TIMEOUT),
    ],
)
def test_a_program_that_fails_or_hangs(tmp_path, text, code):
    with pytest.raises(SwapdError) as caught:
        asyncio.run(run(script(tmp_path, text), BODY * 100_000, {}, deadline_s=2))
    assert caught.value.code == code


def test_a_program_that_is_not_there():
    with pytest.raises(SwapdError) as caught:
        asyncio.run(run(["/nonexistent/tell"], BODY, {}, deadline_s=5))
    assert caught.value.code == SPAWN_FAILED
