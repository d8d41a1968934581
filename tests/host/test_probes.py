"""Requests over a real Unix socket to a server that answers rightly, wrongly, slowly or not at all."""

from __future__ import annotations

import asyncio
import json

import pytest
from support.process_http import RawHttp, ok
from support.process_waiting import DEADLINE_S

from swapd.core.config import ExpectConfig, GoldenConfig, ProbeConfig, RequestConfig, WarmupConfig
from swapd.core.errors import (
    BAD_REQUEST,
    NOT_READY,
    PROBE_FAILED,
    PROBE_TOO_SLOW,
    TIMEOUT,
    WARMUP_FAILED,
    WORKER_EXITED,
    SwapdError,
)
from swapd.host import probes


def with_server(directory, test) -> None:
    async def run():
        async with RawHttp(directory) as server:
            await asyncio.wait_for(test(server), 2 * DEADLINE_S)

    asyncio.run(run())


async def fails(awaitable) -> SwapdError:
    with pytest.raises(SwapdError) as caught:
        await awaitable
    return caught.value


def get(server, path="/", deadline_s=DEADLINE_S):
    return probes.fetch(server.address, "GET", path, deadline_s=deadline_s)


async def hang(reader, writer, head):
    await reader.read()


# --- one request -------------------------------------------------------------------------------------------


def test_fetch_returns_the_whole_answer(tmp_path):
    async def test(server):
        server.answers["/v1"] = ok(b'{"a": 1}', 201, **{"x-swapd-revision": "3"})
        answer = await probes.fetch(
            server.address,
            "POST",
            "/v1",
            headers=[("content-type", "application/json")],
            body=b"{}",
            deadline_s=DEADLINE_S,
        )
        assert (answer.status, answer.body, answer.truncated) == (201, b'{"a": 1}', False)
        assert ("x-swapd-revision", "3") in answer.headers
        assert answer.elapsed_s > 0
        (request,) = server.requests
        assert request.startswith(b"POST /v1 HTTP/1.1\r\n")
        assert request.endswith(b"\r\n\r\n{}")
        for line in (b"host: localhost", b"content-length: 2", b"content-type: application/json", b"connection: close"):
            assert line in request.lower().split(b"\r\n")

    with_server(tmp_path, test)


def test_chunked_informational_and_bodies_until_close_are_understood(tmp_path):
    async def test(server):
        server.answers["/chunked"] = (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        )
        server.answers["/early"] = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" + ok(b"late")
        server.answers["/close"] = b"HTTP/1.0 200 OK\r\n\r\nuntil the end"
        assert (await get(server, "/chunked")).body == b"abcde"
        assert (await get(server, "/early")).body == b"late"
        assert (await get(server, "/close")).body == b"until the end"

    with_server(tmp_path, test)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
        b"\x00\xff" * 5000,
    ],
)
def test_what_is_not_a_whole_answer_is_a_clear_error(tmp_path, answer):
    async def test(server):
        server.answers["/"] = answer
        error = await fails(get(server))
        assert error.code == NOT_READY
        assert "GET /: the answer is cut short, or not HTTP (" in error.message
        assert len(error.message) < 300

    with_server(tmp_path, test)


def test_the_deadline_is_for_the_whole_answer_however_it_trickles(tmp_path):
    async def trickle(reader, writer, head):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        while True:
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.01)

    async def test(server):
        server.answers["/hang"] = hang
        server.answers["/trickle"] = trickle
        for path in ("/hang", "/trickle"):
            error = await fails(get(server, path, deadline_s=0.1))
            assert (error.code, error.message) == (TIMEOUT, f"GET {path}: no complete answer within 0.1 s")

    with_server(tmp_path, test)


def test_a_body_without_end_is_kept_only_in_part(tmp_path):
    size = probes.MAX_BODY_BYTES + 100_000

    async def test(server):
        server.answers["/big"] = ok(b"x" * size)
        answer = await get(server, "/big")
        assert len(answer.body) == probes.MAX_BODY_BYTES
        assert answer.truncated

    with_server(tmp_path, test)


def test_a_long_request_that_is_answered_unread_does_not_deadlock(tmp_path):
    async def refuse(reader, writer, head):
        writer.write(ok(b"too large", 413))
        await writer.drain()
        await reader.read(10)
        await asyncio.sleep(0.05)  # reads no more

    async def test(server):
        server.answers["/"] = refuse
        body = b"x" * 8_000_000
        answer = await probes.fetch(server.address, "POST", "/", body=body, deadline_s=DEADLINE_S)
        assert answer.status == 413

    with_server(tmp_path, test)


def test_a_server_on_a_port_is_asked_like_one_on_a_socket():
    async def run():
        async def serve(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(ok(b"here"))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server:
            assert (await probes.wait_ready(address, "/health", deadline_s=DEADLINE_S)).body == b"here"
        error = await fails(probes.fetch(address, "GET", "/health", deadline_s=DEADLINE_S))
        assert (error.code, f"nobody answers on {address}" in error.message) == (NOT_READY, True)

    asyncio.run(run())


def test_nobody_there_is_not_ready(tmp_path):
    async def test(server):
        error = await fails(probes.fetch(f"unix:{tmp_path}/none.sock", "GET", "/health", deadline_s=DEADLINE_S))
        assert error.code == NOT_READY
        assert "nobody answers on" in error.message

    with_server(tmp_path, test)


@pytest.mark.parametrize("path", ["/a b", "/\r\nx: y", ""])
def test_a_request_that_http_forbids_is_the_callers_mistake(tmp_path, path):
    async def test(server):
        assert (await fails(get(server, path))).code == BAD_REQUEST
        assert server.requests == []

    with_server(tmp_path, test)


# --- the ready path ----------------------------------------------------------------------------------------


def test_ready_is_the_first_2xx(tmp_path):
    async def test(server):
        server.answers["/health"] = [ok(b"loading", 503), ok(b"loading", 503), ok(b"", 204)]
        answer = await probes.wait_ready(server.address, "/health", deadline_s=DEADLINE_S)
        assert answer.status == 204
        assert len(server.requests) == 3

    with_server(tmp_path, test)


def test_ready_waits_for_a_socket_that_is_not_there_yet(tmp_path):
    async def run():
        server = RawHttp(tmp_path)
        server.answers["/health"] = ok()
        waiting = asyncio.ensure_future(probes.wait_ready(server.address, "/health", deadline_s=DEADLINE_S))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await server.listen()
        assert (await waiting).status == 200
        await server.__aexit__()

    asyncio.run(run())


def test_never_ready_ends_at_the_deadline_with_the_last_answer(tmp_path):
    async def test(server):
        server.answers["/health"] = ok(b"Loading model", 503)
        error = await fails(probes.wait_ready(server.address, "/health", deadline_s=0.2))
        assert error.code == NOT_READY
        assert "did not answer 2xx within 0.2 s" in error.message
        assert "503: Loading model" in error.message
        server.answers["/health"] = hang
        assert (await fails(probes.wait_ready(server.address, "/health", deadline_s=0.1))).code == NOT_READY

    with_server(tmp_path, test)


def test_a_worker_that_dies_is_not_waited_for(tmp_path):
    async def test(server):
        living = iter([True, True, False])
        server.answers["/health"] = ok(b"loading", 503)
        error = await fails(
            probes.wait_ready(server.address, "/health", deadline_s=DEADLINE_S, alive=lambda: next(living))
        )
        assert error.code == WORKER_EXITED

    with_server(tmp_path, test)


# --- warm-up -----------------------------------------------------------------------------------------------


def warmup(directory, *lines: str, concurrency: int = 2, timeout_s: float = DEADLINE_S) -> WarmupConfig:
    file = directory / "warm.jsonl"
    file.write_text("\n".join(lines) + "\n")
    return WarmupConfig(file=str(file), concurrency=concurrency, timeout_s=timeout_s)


def test_every_request_of_the_warmup_is_played(tmp_path):
    async def test(server):
        server.answers["/v1/embeddings"] = ok(b"{}")
        server.answers["/raw"] = ok(b"bad input", 422)  # below 500: the model has worked
        done = []
        report = await probes.run_warmup(
            server.address,
            warmup(
                tmp_path,
                '{"path": "/v1/embeddings", "json": {"input": "häuser"}, "headers": {"authorization": "Bearer x"}}',
                "",
                '{"method": "PUT", "path": "/raw", "body": "text"}',
                '{"path": "/v1/embeddings"}',
            ),
            progress=lambda *numbers: done.append(numbers),
        )
        assert report.answers == 3
        assert done == [(1, 3), (2, 3), (3, 3)]
        heads = sorted(request.split(b"\r\n")[0] for request in server.requests)
        assert heads == [b"GET /v1/embeddings HTTP/1.1", b"POST /v1/embeddings HTTP/1.1", b"PUT /raw HTTP/1.1"]
        post = next(request for request in server.requests if request.startswith(b"POST"))
        assert json.loads(post.partition(b"\r\n\r\n")[2]) == {"input": "häuser"}
        assert b"content-type: application/json" in post
        assert b"authorization: Bearer x" in post

    with_server(tmp_path, test)


def test_the_warmup_keeps_to_its_concurrency(tmp_path):
    reached = asyncio.Event()

    async def test(server):
        async def together(reader, writer, head):
            if server.open == 3:
                reached.set()
            await asyncio.wait_for(reached.wait(), DEADLINE_S)  # nobody is answered before three are open
            writer.write(ok())

        server.answers["/"] = together
        await probes.run_warmup(server.address, warmup(tmp_path, *['{"path": "/"}'] * 9, concurrency=3))
        assert server.most_open <= 4  # one may still be closing when the next connects

    with_server(tmp_path, test)


def test_one_failed_request_fails_the_warmup_and_stops_the_others(tmp_path):
    async def test(server):
        server.answers["/bad"] = ok(b"CUDA error", 500)
        server.answers["/hang"] = hang
        error = await fails(
            probes.run_warmup(server.address, warmup(tmp_path, '{"path": "/hang"}', "", '{"path": "/bad"}'))
        )
        assert error.code == WARMUP_FAILED
        assert "line 3 of" in error.message
        assert "answered 500: CUDA error" in error.message

    with_server(tmp_path, test)


def test_a_warmup_that_takes_too_long_fails(tmp_path):
    async def test(server):
        server.answers["/hang"] = hang
        error = await fails(probes.run_warmup(server.address, warmup(tmp_path, '{"path": "/hang"}', timeout_s=0.1)))
        assert error.code == WARMUP_FAILED
        assert "took over 0.1 s: 0 of 1 requests done, waiting for line 1 of" in error.message

    with_server(tmp_path, test)


def test_a_warmup_file_that_cannot_be_used_says_why(tmp_path):
    async def test(server):
        error = await fails(probes.run_warmup(server.address, WarmupConfig(file="/nonexistent.jsonl")))
        assert error.code == WARMUP_FAILED
        assert "cannot read the warm-up file /nonexistent.jsonl" in error.message
        error = await fails(probes.run_warmup(server.address, warmup(tmp_path, '{"path": "/"}', '{"path": ')))
        assert error.code == WARMUP_FAILED
        assert "line 2 of" in error.message
        assert server.requests == []

    with_server(tmp_path, test)


def test_an_empty_warmup_file_is_no_error(tmp_path):
    async def test(server):
        assert (await probes.run_warmup(server.address, warmup(tmp_path))).answers == 0

    with_server(tmp_path, test)


def test_death_during_the_warmup_is_told_as_death(tmp_path):
    async def test(server):
        server.answers["/"] = b""
        error = await fails(probes.run_warmup(server.address, warmup(tmp_path, '{"path": "/"}'), alive=lambda: False))
        assert error.code == WORKER_EXITED
        assert "during the warm-up (line 1 of" in error.message

    with_server(tmp_path, test)


# --- probes ------------------------------------------------------------------------------------------------


def probe(path: str, repeat: int = 1, **expect) -> ProbeConfig:
    return ProbeConfig(
        request=RequestConfig(path=path), expect=ExpectConfig(**{"within_s": DEADLINE_S, **expect}), repeat=repeat
    )


def test_every_probe_runs_as_often_as_it_says(tmp_path):
    async def test(server):
        server.answers["/a"] = ok(b'{"choices": [{"text": "hi"}]}')
        server.answers["/b"] = ok(b"", 404)
        done = []
        report = await probes.run_probes(
            server.address,
            [probe("/a", 3, json_pointer="/choices/0/text"), probe("/b", status=404)],
            progress=lambda *numbers: done.append(numbers),
        )
        assert report.answers == 4
        assert done[-1] == (4, 4)
        assert len(server.requests) == 4

    with_server(tmp_path, test)


def test_one_wrong_answer_among_right_ones_fails_the_probe(tmp_path):
    async def test(server):
        server.answers["/a"] = [ok(b'{"label": "cat"}'), ok(b'{"label": "dog"}')]
        error = await fails(probes.run_probes(server.address, [probe("/a", 3, json_contains={"label": "cat"})]))
        assert error.code == PROBE_FAILED
        assert error.message == ('probe 1 (GET /a), run 2 of 3: expected "cat" at \'/label\' of the answer, got "dog"')
        assert (error.details["probe"], error.details["run"]) == (1, 2)

    with_server(tmp_path, test)


def test_a_probe_that_is_not_answered_in_time_is_too_slow(tmp_path):
    async def test(server):
        server.answers["/a"] = hang
        error = await fails(probes.run_probes(server.address, [probe("/a", within_s=0.1)]))
        assert error.code == PROBE_TOO_SLOW
        assert "expected an answer within 0.1 s, got none in that time" in error.message

    with_server(tmp_path, test)


def test_a_broken_answer_fails_the_probe_and_death_is_told_as_death(tmp_path):
    async def test(server):
        server.answers["/a"] = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"
        error = await fails(probes.run_probes(server.address, [probe("/a")]))
        assert error.code == PROBE_FAILED
        living = iter([True, True, False])
        error = await fails(probes.run_probes(server.address, [probe("/a")], alive=lambda: next(living)))
        assert error.code == WORKER_EXITED

    with_server(tmp_path, test)


def test_an_answer_too_long_to_be_checked_fails_only_where_json_is_expected(tmp_path):
    async def test(server):
        server.answers["/a"] = ok(b"[" + b" " * probes.MAX_BODY_BYTES + b"]")
        assert (await probes.run_probes(server.address, [probe("/a")])).answers == 1
        error = await fails(probes.run_probes(server.address, [probe("/a", json_pointer="")]))
        assert error.code == PROBE_FAILED
        assert "over 4 MiB" in error.message

    with_server(tmp_path, test)


# --- golden requests -----------------------------------------------------------------------------------------


def golden(path: str, **expect) -> GoldenConfig:
    return GoldenConfig(request=RequestConfig(path=path), expect=ExpectConfig(**{"within_s": DEADLINE_S, **expect}))


CAT, DOG = ok(b'{"label": "cat"}'), ok(b'{"label": "dog"}')
IS_CAT = {"label": "/label", "label_is": "cat"}


def test_every_golden_answer_is_judged_and_counted_also_after_a_wrong_one(tmp_path):
    async def test(server):
        server.answers["/a"] = [DOG, CAT, CAT]
        server.answers["/b"] = ok(b"", 404)
        done = []
        report = await probes.run_golden(
            server.address,
            [golden("/a", **IS_CAT), golden("/b", status=404), golden("/c", within_s=0.1)],
            repeat=3,
            per_s=200.0,
            progress=lambda *numbers: done.append(numbers),
        )
        assert (report.requests, report.right, report.wrong) == (9, 5, 4)
        assert done[-1] == (9, 9)
        assert len(server.requests) == 9
        assert 'golden 1 (GET /a), run 1: expected "cat" at \'/label\' of the answer, got "dog"' in report.differences
        assert 0 < report.p50_ms <= report.p95_ms <= report.slowest_ms

    with_server(tmp_path, test)


def test_golden_requests_come_no_faster_than_at_their_rate(tmp_path):
    async def test(server):
        server.answers["/a"] = CAT
        begun_s = asyncio.get_running_loop().time()
        await probes.run_golden(server.address, [golden("/a")], repeat=6, per_s=20.0)
        assert asyncio.get_running_loop().time() - begun_s >= 5 / 20

    with_server(tmp_path, test)


def test_where_somebody_waits_one_wrong_answer_is_enough(tmp_path):
    async def test(server):
        server.answers["/a"] = DOG
        report = await probes.run_golden(server.address, [golden("/a", **IS_CAT)], repeat=100, per_s=None)
        assert (report.requests, report.right) == (100, 0)
        assert 1 <= report.wrong <= probes.GOLDEN_AT_ONCE
        assert len(server.requests) == report.wrong

    with_server(tmp_path, test)


def test_death_during_the_golden_requests_is_told_as_death(tmp_path):
    async def test(server):
        server.answers["/a"] = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc"
        error = await fails(
            probes.run_golden(server.address, [golden("/a")], repeat=3, per_s=100.0, alive=lambda: False)
        )
        assert error.code == WORKER_EXITED

    with_server(tmp_path, test)


def test_a_server_on_a_port_is_asked_there(tmp_path):
    async def run():
        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            found = await probes.wait_ready(f"127.0.0.1:{port}", "/health", deadline_s=DEADLINE_S)
            assert found.status == 204

    asyncio.run(run())
