"""The shadow's process: it sends copies to the candidate, compares the answers, and tells the gate what came of them.

A process of its own, so that neither its waiting nor its JSON delays a client, and its death costs none. It ends with
its gate: the end of their socket pair is its own. Of what it is sent it takes no more than it can work on; the rest is
counted, and gone. Called by worker/launch.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections import deque
from typing import Any, Final

import uvloop

from swapd.core.agreement import Answer, Outcome, compare, read_comparison
from swapd.core.shadow_samples import Asked, read_redaction, sample
from swapd.core.throttle import Throttle
from swapd.front.shadow.asking import Answered, Failed, Server
from swapd.front.shadow.decoding import CannotDecode, decoded
from swapd.front.shadow.figures import Figures
from swapd.front.shadow.frames import Frame, FrameReader, report_of
from swapd.front.shadow.settings import Shadow, read_shadow

NICENESS: Final = 10  # clients first
MOST_MEMORY: Final = 1024 * 1024 * 1024  # it has never needed a tenth; past it this process ends, and no other
REPORT_S: Final = 0.25
WAITING_A_SLOT: Final = 4  # copies that wait, for each that is worked on
WAITING_BYTES: Final = 16 * 1024 * 1024
PERIODS: Final = 1024  # of work that is over: a request's frame comes when its answer is whole
MAX_STABLES: Final = 8  # addresses: those of workers that are gone, too


def main(fd: int) -> int:
    """Run until the gate has gone."""
    with contextlib.suppress(ValueError, OSError):  # a sandbox may forbid either
        os.nice(NICENESS)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the gate's business
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    gate = Gate(loop)
    loop.run_until_complete(loop.create_unix_connection(lambda: gate, sock=socket.socket(fileno=fd)))
    loop.run_until_complete(gate.ended)
    sys.stderr.flush()
    os._exit(0)  # whoever is still asked is asked for nobody


class Gate(asyncio.Protocol):
    """The gate's end of the socket pair."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ended: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._frames = FrameReader()
        self._work: Work | None = None
        self._full = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._report()

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            if self._work is not None:
                self._work.take(frame)
            else:
                self._work = Work(self._loop, read_shadow(frame.meta["shadow"]), frame.meta["figures"])
                self._work.throttle.share = frame.meta["share"]

    def _report(self) -> None:
        if self._work is not None and not self._full:
            self._transport.write(report_of(self._work.throttle.share, self._work.figures.report()))
        self._loop.call_later(REPORT_S, self._report)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Work:
    def __init__(self, loop: asyncio.AbstractEventLoop, shadow: Shadow, told: dict[str, Any] | None) -> None:
        redaction = read_redaction(shadow.params["redact"])
        self.figures = Figures(shadow.keep, redaction, replays=shadow.noise > 0.0)
        if told is not None:
            self.figures.restore(told)
        self.throttle = Throttle(shadow.share)
        self._loop = loop
        self._shadow = shadow
        self._redaction = redaction
        self._comparison = read_comparison(shadow.params["compare"])
        self._candidate = Server(loop, shadow.address, shadow.uid, reuse=shadow.reuse)
        self._stables: dict[str, Server] = {}
        self._waiting: deque[Frame] = deque()
        self._waiting_bytes = 0
        self._running: set[asyncio.Task[None]] = set()
        self._working_since: float | None = None
        self._worked: deque[tuple[float, float]] = deque(maxlen=PERIODS)  # in order, without overlap
        self._replays = 0.5

    # --- what comes from the gate ------------------------------------------------------------------------------

    def take(self, frame: Frame) -> None:
        began, ended = frame.meta["began"], frame.meta["ended"]
        self.throttle.observe(ended, ended - began, disturbed=self._working_at(began))
        if frame.meta["kind"] != "copy":
            return
        shadow = self._shadow
        if self.throttle.quiet:
            self.figures.dropped("quiet")
        elif len(self._running) < shadow.concurrency:
            self._begin(frame)
        elif (
            len(self._waiting) < WAITING_A_SLOT * shadow.concurrency
            and self._waiting_bytes + frame.size <= WAITING_BYTES
        ):
            self._waiting.append(frame)
            self._waiting_bytes += frame.size
        else:
            self.figures.dropped("busy")

    def _working_at(self, moment: float) -> bool:
        """Somebody was working on a copy."""
        if self._working_since is not None and self._working_since <= moment:
            return True
        for since, until in reversed(self._worked):
            if until < moment:
                break
            if since <= moment:
                return True
        return False

    def _begin(self, frame: Frame) -> None:
        if self._working_since is None:
            self._working_since = time.monotonic()
        task = self._loop.create_task(self._copy(frame))
        self._running.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if (error := task.exception()) is not None:  # a bug of ours, in one copy
            traceback.print_exception(error)
            self.figures.judged(Outcome(None), "internal")
        while self._waiting and len(self._running) < self._shadow.concurrency:
            frame = self._waiting.popleft()
            self._waiting_bytes -= frame.size
            if self.throttle.quiet:
                self.figures.dropped("quiet")
            else:
                self._begin(frame)
        if not self._running and self._working_since is not None:
            self._worked.append((self._working_since, time.monotonic()))
            self._working_since = None

    # --- one copy ----------------------------------------------------------------------------------------------

    async def _copy(self, frame: Frame) -> None:
        meta, figures = frame.meta, self.figures
        figures.copied()
        status = meta["status"]
        try:
            answered = await self._ask(self._candidate, frame)
        except Failed as failure:
            figures.failed(failure.kind)
            self._keep(frame, Answer(status, frame.answer), None, Outcome(False, 0.0, str(failure)))
            return
        took = (answered.took_s, answered.first_byte_s)
        began = meta["began"]
        stable_took = (max(0.0, meta["ended"] - began), max(0.0, meta["first"] - began))
        figures.answered(answered.head.status, *took, *stable_took)
        if answered.head.status >= 500:
            figures.failed("status")
            outcome = Outcome(False, 0.0, f"it answered {answered.head.status}, the stable {status}")
            self._keep(frame, Answer(status, frame.answer), Answer(answered.head.status, answered.body), outcome)
            return
        if self._judge(frame, answered) and self._replay_this():
            await self._replay(frame)

    async def _ask(self, server: Server, frame: Frame) -> Answered:
        method = frame.meta["method"].encode("latin1")
        asking = server.ask([frame.head, frame.body], method, 2 * self._shadow.max_body)
        try:
            return await asyncio.wait_for(asking, self._shadow.deadline_s)
        except asyncio.TimeoutError:
            raise Failed("timeout", f"it did not answer within {self._shadow.deadline_s:g} s") from None

    def _judge(self, frame: Frame, answered: Answered) -> bool:
        """Compare the candidate's answer with the stable's. False: that cannot be compared with anything."""
        stable = self._stable_answer(frame)
        if isinstance(stable, str):
            self.figures.judged(Outcome(None), stable)
            return False
        candidate, outcome = self._outcome(stable, answered)
        self.figures.judged(outcome, "content")
        if outcome.agreed is False:
            self._keep(frame, stable, candidate, outcome)
        return outcome.agreed is not None

    def _stable_answer(self, frame: Frame) -> Answer | str:
        meta = frame.meta
        try:
            return Answer(meta["status"], decoded(frame.answer, meta["coding"], self._limit), meta["event_stream"])
        except CannotDecode:
            return "coding"

    @property
    def _limit(self) -> int:
        """Of decoded content."""
        return 4 * self._shadow.max_body

    def _outcome(self, stable: Answer, answered: Answered) -> tuple[Answer, Outcome]:
        head = answered.head
        coding = dict(head.headers).get(b"content-encoding", b"").decode("latin1")
        if answered.too_long:
            return Answer(head.status, b""), Outcome(False, 0.0, "its answer is more than twice max_body")
        try:
            body = decoded(answered.body, coding, self._limit)
        except CannotDecode as error:
            return Answer(head.status, b""), Outcome(False, 0.0, f"its answer cannot be read: {error}")
        candidate = Answer(head.status, body, head.event_stream)
        return candidate, compare(self._comparison, stable, candidate)

    def _keep(self, frame: Frame, stable: Answer, candidate: Answer | None, outcome: Outcome) -> None:
        meta = frame.meta
        asked = Asked(time.time(), meta["id"], meta["method"], meta["path"], frame.body)
        self.figures.samples.add(sample(self._redaction, asked, stable, candidate, outcome))

    # --- the stable's own noise --------------------------------------------------------------------------------

    def _replay_this(self) -> bool:
        self._replays += self._shadow.noise
        due = self._replays >= 1.0
        self._replays -= due
        return due

    async def _replay(self, frame: Frame) -> None:
        stable = self._stable_answer(frame)
        assert isinstance(stable, Answer)
        try:
            answered = await self._ask(self._server(frame), frame)
        except Failed:
            self.figures.replayed(None)
            return
        if answered.head.status >= 500:
            self.figures.replayed(None)
        else:
            self.figures.replayed(self._outcome(stable, answered)[1], answered.took_s)

    def _server(self, frame: Frame) -> Server:
        address = frame.meta["stable"]
        if address not in self._stables:
            if len(self._stables) >= MAX_STABLES:
                self._stables.pop(next(iter(self._stables))).close()
            self._stables[address] = Server(self._loop, address, frame.meta["uid"], reuse=frame.meta["reuse"])
        return self._stables[address]
