"""Asking a worker at its private address: is it ready, warm, and right?

Duty: one bounded HTTP/1.1 request to an address, "unix:/path" or "127.0.0.1:port" (h11), and the uses of it: the ready
path polled, the warm-up played, the probes and the golden requests run. `core.readiness` judges the answers. May not
know: what comes before or after.

The answer comes from outside: its size, its speed and its grammar are limited here, and never taken on trust.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import h11

from swapd.core.config import ExpectConfig, GoldenConfig, ProbeConfig, RequestConfig, WarmupConfig
from swapd.core.errors import (
    BAD_REQUEST,
    NOT_READY,
    PROBE_FAILED,
    PROBE_TOO_SLOW,
    TIMEOUT,
    WARMUP_FAILED,
    WORKER_EXITED,
    Problem,
    SwapdError,
)
from swapd.core.golden import summary
from swapd.core.model import Golden
from swapd.core.readiness import check_answer, needs_json, parse_warmup, shown
from swapd.host.deadlines import within

MAX_BODY_BYTES: Final = 4 * 1024 * 1024  # kept of an answer; what is beyond is read and forgotten
MAX_WARMUP_BYTES: Final = 64 * 1024 * 1024  # of the file: representative requests, not a data set
GOLDEN_AT_ONCE: Final = 4  # a candidate that is slower than their rate gets them at its own
_POLL_FIRST_S: Final = 0.02
_POLL_MAX_S: Final = 0.25
# one poll of the ready path; a server that never answers this one may answer the next
_POLL_ANSWER_S: Final = 10.0
_EXIT_NOTICED_S: Final = 0.25  # a dying process closes its sockets a moment before its exit is seen

_Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """A whole answer. `elapsed_s` counts from before the connect to the last byte of the body."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    elapsed_s: float
    truncated: bool = False  # the body was longer than MAX_BODY_BYTES


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """How the answers went, all of them right: of a warm-up or of all probes."""

    answers: int
    slowest_s: float
    elapsed_s: float


def _always() -> bool:
    return True


async def fetch(
    address: str,
    method: str,
    path: str,
    *,
    headers: Sequence[tuple[str, str]] = (),
    body: bytes | None = None,
    deadline_s: float,
) -> HttpAnswer:
    """One request on a connection of its own; `deadline_s` is for all of it, connect included.

    Raises SwapdError: TIMEOUT; NOT_READY when nobody answers, or not in HTTP; BAD_REQUEST when the request
    itself is not HTTP.
    """
    try:
        return await within(deadline_s, _exchange(address, method, path, headers, body))
    except asyncio.TimeoutError:
        message = f"{method} {path}: no complete answer within {deadline_s:g} s"
        raise SwapdError(TIMEOUT, message, {"deadline_s": deadline_s}) from None
    except h11.LocalProtocolError as error:
        raise SwapdError(BAD_REQUEST, f"{method} {path} is not a request that HTTP allows: {error}") from None
    except h11.RemoteProtocolError as error:
        raise SwapdError(NOT_READY, f"{method} {path}: the answer is cut short, or not HTTP ({error})") from None
    except OSError as error:
        where, reason = address.removeprefix("unix:"), error.strerror or str(error)
        raise SwapdError(NOT_READY, f"{method} {path}: nobody answers on {where} ({reason})") from None


async def _exchange(
    address: str, method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes | None
) -> HttpAnswer:
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    named = {name.lower() for name, _ in headers}
    own = [("host", "localhost"), ("user-agent", "swapd"), ("accept", "*/*"), ("connection", "close")]
    if body is not None:
        own.append(("content-length", str(len(body))))
    sent_headers = [pair for pair in own if pair[0] not in named] + list(headers)
    connection = h11.Connection(h11.CLIENT)
    data = connection.send(h11.Request(method=method, target=path, headers=sent_headers)) or b""
    if body:
        data += connection.send(h11.Data(data=body)) or b""
    data += connection.send(h11.EndOfMessage()) or b""

    reader, writer = await _connect(address)
    # Beside the reading: a server may answer without having read a long request, and then wait for us.
    sending = loop.create_task(_send(writer, data))
    try:
        response, kept, truncated = await _receive(connection, reader)
    finally:
        sending.cancel()
        writer.transport.abort()  # at once: there is nothing to flush for, and no answer to wait for
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await sending
    return HttpAnswer(
        status=response.status_code,
        headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in response.headers),
        body=kept,
        elapsed_s=loop.time() - started_s,
        truncated=truncated,
    )


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):  # the reading side says what became of it
        writer.write(data)
        await writer.drain()


async def _receive(connection: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Response, bytes, bool]:
    response: h11.Response | None = None
    kept = bytearray()
    truncated = False
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            room = MAX_BODY_BYTES - len(kept)
            kept += event.data[:room]
            truncated = truncated or len(event.data) > room
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            return response, bytes(kept), truncated
        elif not isinstance(event, h11.InformationalResponse):
            raise h11.RemoteProtocolError("the connection ended without an answer")


async def wait_ready(address: str, path: str, *, deadline_s: float, alive: Callable[[], bool] = _always) -> HttpAnswer:
    """Asks for `path` until it answers 2xx, and returns that answer.

    Raises SwapdError: WORKER_EXITED when `alive` says no; NOT_READY at the deadline, with the last answer in
    it.
    """
    loop = asyncio.get_running_loop()
    until_s = loop.time() + deadline_s
    pause_s = _POLL_FIRST_S
    last = "it was never asked"
    while (left_s := until_s - loop.time()) > 0:
        try:
            answer = await fetch(address, "GET", path, deadline_s=min(left_s, _POLL_ANSWER_S))
        except SwapdError as error:
            if error.code == BAD_REQUEST:
                raise
            last = error.message
        else:
            if 200 <= answer.status < 300:
                return answer
            last = f"it answered {answer.status}: {shown(answer.body)}"
        if not alive():
            raise SwapdError(WORKER_EXITED, f"the worker ended before GET {path} answered 2xx; last: {last}")
        await asyncio.sleep(min(pause_s, max(until_s - loop.time(), 0)))
        pause_s = min(pause_s * 1.5, _POLL_MAX_S)
    message = f"GET {path} did not answer 2xx within {deadline_s:g} s; last: {last}"
    raise SwapdError(NOT_READY, message, {"path": path, "deadline_s": deadline_s})


async def run_warmup(
    address: str,
    warmup: WarmupConfig,
    *,
    alive: Callable[[], bool] = _always,
    progress: _Progress | None = None,
) -> ProbeReport:
    """Plays the file of representative requests, `concurrency` at a time; each must be answered below 500.

    Raises SwapdError: WARMUP_FAILED naming the line; WORKER_EXITED.
    """
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    requests = parse_warmup(await asyncio.to_thread(_read_bounded, warmup.file), warmup.file)
    todo = iter(requests)
    elapsed: list[float] = []

    async def play(todo: Iterator[tuple[int, RequestConfig]]) -> None:
        for line, request in todo:
            left_s = started_s + warmup.timeout_s - loop.time()
            where = f"line {line} of {warmup.file}"
            try:
                answer = await _ask(address, request, left_s)
            except SwapdError as error:
                await _check_alive(alive, f"during the warm-up ({where})")
                message = f"{where}: {error.message}"
                if error.code == TIMEOUT:
                    progressed = f"{len(elapsed)} of {len(requests)} requests done"
                    message = f"the warm-up took over {warmup.timeout_s:g} s: {progressed}, waiting for {where}"
                raise SwapdError(WARMUP_FAILED, message, {"line": line}) from None
            if answer.status >= 500:
                message = f"{where}: {request.method} {request.path} answered {answer.status}: {shown(answer.body)}"
                raise SwapdError(WARMUP_FAILED, message, {"line": line, "status": answer.status})
            elapsed.append(answer.elapsed_s)
            if progress is not None:
                progress(len(elapsed), len(requests))

    players = [loop.create_task(play(todo)) for _ in range(max(1, min(warmup.concurrency, len(requests))))]
    try:
        await asyncio.gather(*players)
    finally:
        for player in players:
            player.cancel()
        await asyncio.gather(*players, return_exceptions=True)
    return ProbeReport(len(elapsed), max(elapsed, default=0.0), loop.time() - started_s)


async def run_probes(
    address: str,
    probes: Sequence[ProbeConfig],
    *,
    alive: Callable[[], bool] = _always,
    progress: _Progress | None = None,
) -> ProbeReport:
    """Runs every probe `repeat` times, one after the other. Every answer must be right, and in time.

    Raises SwapdError: PROBE_FAILED or PROBE_TOO_SLOW, with what was expected and what came; WORKER_EXITED.
    """
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    total = sum(probe.repeat for probe in probes)
    elapsed: list[float] = []
    for number, probe in enumerate(probes, start=1):
        request, expect = probe.request, probe.expect
        for run in range(1, probe.repeat + 1):
            where = f"probe {number} ({request.method} {request.path})"
            if probe.repeat > 1:
                where += f", run {run} of {probe.repeat}"
            details = {"probe": number, "run": run}
            try:
                answer = await _ask(address, request, expect.within_s)
            except SwapdError as error:
                await _check_alive(alive, f"during {where}")
                if error.code == TIMEOUT:
                    message = f"{where}: expected an answer within {expect.within_s:g} s, got none in that time"
                    raise SwapdError(PROBE_TOO_SLOW, message, details) from None
                raise SwapdError(PROBE_FAILED, f"{where}: {error.message}", details) from None
            problem = _judge(expect, answer)
            if problem is not None:
                message = f"{where}: {problem.message}"
                raise SwapdError.of(replace(problem, message=message, details={**problem.details, **details}))
            elapsed.append(answer.elapsed_s)
            if progress is not None:
                progress(len(elapsed), total)
    return ProbeReport(len(elapsed), max(elapsed, default=0.0), loop.time() - started_s)


async def run_golden(
    address: str,
    golden: Sequence[GoldenConfig],
    *,
    repeat: int,
    per_s: float | None,
    alive: Callable[[], bool] = _always,
    progress: _Progress | None = None,
) -> Golden:
    """Asks every golden request `repeat` times, `per_s` a second, GOLDEN_AT_ONCE at a time at the most, and judges each
    answer. `per_s` None: somebody waits, so without pauses, and no more once one was wrong. Raises SwapdError:
    WORKER_EXITED."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    asked = [(number, run) for run in range(1, repeat + 1) for number in range(1, len(golden) + 1)]
    todo = iter(enumerate(asked))
    elapsed: list[float] = []
    wrong: list[str] = []

    async def play() -> None:
        for turn, (number, run) in todo:
            if per_s is not None:
                await asyncio.sleep(max(0.0, started_s + turn / per_s - loop.time()))
            elif wrong:
                return
            request, expect = golden[number - 1].request, golden[number - 1].expect
            where = f"golden {number} ({request.method} {request.path})" + (f", run {run}" if repeat > 1 else "")
            try:
                answer = await _ask(address, request, expect.within_s)
            except SwapdError as error:
                await _check_alive(alive, f"during {where}")
                wrong.append(f"{where}: {error.message}")
            else:
                problem = _judge(expect, answer)
                elapsed.append(answer.elapsed_s) if problem is None else wrong.append(f"{where}: {problem.message}")
            if progress is not None:
                progress(len(elapsed) + len(wrong), len(asked))

    players = [loop.create_task(play()) for _ in range(min(GOLDEN_AT_ONCE, len(asked)))]
    try:
        await asyncio.gather(*players)
    finally:
        for player in players:
            player.cancel()
        await asyncio.gather(*players, return_exceptions=True)
    return summary(len(asked), elapsed, wrong)


def _judge(expect: ExpectConfig, answer: HttpAnswer) -> Problem | None:
    if answer.truncated and (expect.text is not None or needs_json(expect)):
        text = f"the answer is over {MAX_BODY_BYTES >> 20} MiB, too long to be compared"
        return Problem(PROBE_FAILED, text)
    return check_answer(expect, status=answer.status, body=answer.body, elapsed_s=answer.elapsed_s)


async def _ask(address: str, request: RequestConfig, deadline_s: float) -> HttpAnswer:
    return await fetch(
        address,
        request.method,
        request.path,
        headers=request.headers,
        body=request.body,
        deadline_s=deadline_s,
    )


async def _check_alive(alive: Callable[[], bool], when: str) -> None:
    """Raises WORKER_EXITED if the failure just seen is the worker's death, which is the better explanation."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + _EXIT_NOTICED_S
    while alive():
        if loop.time() >= until_s:
            return
        await asyncio.sleep(0.01)
    raise SwapdError(WORKER_EXITED, f"the worker ended {when}")


def _read_bounded(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_WARMUP_BYTES + 1)
    except OSError as error:
        raise SwapdError(WARMUP_FAILED, f"cannot read the warm-up file {path}: {error.strerror}") from None
    if len(data) > MAX_WARMUP_BYTES:
        raise SwapdError(WARMUP_FAILED, f"the warm-up file {path} is over {MAX_WARMUP_BYTES >> 20} MiB")
    return data
