"""What each verb does: checked on the channel's thread, carried out on the loop's.

`request` is called by the channel; it checks parameters, asks the table (`Life`), and schedules. `hello` and
`stats` are answered at once, also while the model blocks the loop. docs/worker-protocol.md describes the verbs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final

import swapd
from swapd.core import states
from swapd.core.errors import (
    BAD_REQUEST,
    CANCELED,
    INTERNAL,
    LOAD_FAILED,
    NOT_SUPPORTED,
    SHUTTING_DOWN,
    UNKNOWN_METHOD,
    Problem,
    SwapdError,
)
from swapd.front.relay.access_log import AccessLog
from swapd.front.relay.routing import read_table
from swapd.front.reports import DrainReport
from swapd.wire import worker as wire
from swapd.worker import params
from swapd.worker.channel import Channel, Link
from swapd.worker.direct import Front, GateFront, build_direct, build_gate
from swapd.worker.engines.asgi import AsgiEngine
from swapd.worker.engines.command import CommandEngine
from swapd.worker.handing import Handing, Order, problem_of, report
from swapd.worker.life import Answer, Life
from swapd.worker.page_cache import bring
from swapd.worker.progress import Progress, progress_of
from swapd.worker.sockets import Descriptors, bind_http
from swapd.worker.spec import WorkerSpec
from swapd.worker.standing import lend, standing_of
from swapd.worker.stopping import stopping

log = logging.getLogger("swapd.worker")

TICK_S: Final = 0.1  # how finely loop_blocked_s is known
FRONT_CLOSE_S: Final = 5.0
STATS_WITHOUT_FRONT: Final[Mapping[str, Any]] = {
    **{"owner": False, "epoch": 0, "connections": 0, "idle": 0, "in_flight": 0, "streams": 0, "upgraded": 0},
    **{"held": 0, "requests": 0, "cut": 0, "oldest_in_flight_s": 0.0, "stragglers": 0, "quiet_s": None},
}


Engine = AsgiEngine | CommandEngine
Step = Callable[[Progress], Awaitable[Mapping[str, Any] | None]]


class Worker:
    """One worker or gate: its front, its engine, and the answers to the daemon."""

    channel: Channel  # set before the channel starts

    def __init__(self, spec: WorkerSpec, loop: asyncio.AbstractEventLoop, engine: Engine | None) -> None:
        self.life = Life(self._is_owner)
        self.exit: asyncio.Future[int] = loop.create_future()
        self.on_stop: Callable[[], None] = lambda: None  # [any thread] main's watchdog
        self._spec = spec
        self._loop = loop
        self._engine = engine
        self._front: Front | None = None
        self._handing = Handing(loop, self.life)
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_tick = time.monotonic()
        self._missed: wire.WorkerEvent | None = None  # needs_successor, until somebody acts on it
        self._start_time = start_time(os.getpid())
        self._verbs: Mapping[str, Callable[[Answer, wire.Request, Descriptors], None]] = {
            wire.ADOPT: self._adopt,
            wire.RECEIVE: self._receive,
            wire.HAND_OVER: self._hand_over,
            wire.SUCCESSOR: self._successor,
            wire.SOURCE_DEAD: self._source_dead,
            wire.TARGET_DEAD: self._target_dead,
            wire.POINT: self._point,
            wire.LEND: self._lend,
            wire.ACCESS_LOG: self._access_log,
            wire.DRAIN: self._drain,
            wire.STATS: self._stats,
            wire.STOP: self._stop,
        }
        self._steps: Mapping[str, Step] = {}
        if engine is not None:
            load = self._load if isinstance(engine, AsgiEngine) else engine.load
            self._steps = {wire.STAGE: engine.stage, wire.LOAD: load, wire.PARK: engine.park, wire.WAKE: engine.wake}
        if isinstance(engine, CommandEngine):  # it has no front, so it has nothing to hand over
            self._verbs = {verb: self._verbs[verb] for verb in (wire.DRAIN, wire.STATS, wire.STOP)}
            engine.on_exit = self.finish

    # --- on the channel's thread (it is the channel's Handler) ---

    def hello(self) -> Mapping[str, Any]:
        front = self._front
        return {
            "protocol": wire.PROTOCOL,
            "min_protocol": wire.MIN_PROTOCOL,
            "worker_id": self._spec.worker_id,
            "nonce": self._spec.nonce,
            "pid": os.getpid(),
            "start_time": self._start_time,
            "version": swapd.__version__,
            "kind": self._spec.kind,
            "state": self.life.state.value,
            "hooks": self._engine.hooks if self._engine is not None else [],
            "address": self._engine.address if isinstance(self._engine, CommandEngine) else "",
            "capabilities": [wire.PAGE_CACHE],
            **standing_of(front),
        }

    def greeted(self, link: Link) -> None:
        if self._missed is not None and self._front is not None and self._front.stats().stragglers:
            self.channel.send(link, self._missed)

    def request(self, link: Link, request: wire.Request, fds: Descriptors) -> None:
        answer = Answer(self.channel, link, request.id)
        if request.verb in self._steps:
            params.descriptors(request.verb, 0, len(fds))
            step = self._steps[request.verb]
            if request.verb == wire.STAGE and (files := params.paths(request.params, "files")) is not None:
                step = partial(bring, files, params.deadline_s(request.params))
            if self.life.begin_step(request.verb, answer):
                self._schedule(self._start_step, request.verb, step)
            return
        if request.verb not in self._verbs:
            known = sorted({wire.HELLO, *self._verbs, *self._steps})
            raise SwapdError(UNKNOWN_METHOD, f"no verb {request.verb!r} here; there are {', '.join(known)}")
        self._verbs[request.verb](answer, request, fds)

    def lost(self, link: Link) -> None:
        self._handing.lost(self._front, link)

    def _adopt(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        epoch = params.epoch(request.params)
        names = params.listener_names(request.params, len(fds))
        self.life.request(states.ADOPT)
        sockets = fds.take_sockets()
        listeners = dict(zip(names, sockets, strict=True))
        self._schedule_answer(
            answer,
            request.verb,
            lambda: {"started_at": self._need_front().adopt(epoch, listeners)},
        )

    def _receive(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        epoch = params.epoch(request.params)
        params.descriptors(request.verb, 1, len(fds))
        self.life.request(states.RECEIVE)
        [peer] = fds.take_sockets()
        self._schedule_answer(answer, request.verb, lambda: self._need_front().receive(epoch, peer))

    def _hand_over(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        epoch = params.epoch(request.params)
        deadline_s = params.deadline_s(request.params)
        params.descriptors(request.verb, 1, len(fds))
        self.life.request(states.HAND_OVER)
        try:
            [peer] = fds.take_sockets()
        except SwapdError:
            self.life.end_hand_over()
            raise
        self._handing.begin(self._need_front(), Order(answer, epoch, peer, deadline_s), self.channel)

    def _successor(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        epoch = params.epoch(request.params)
        params.descriptors(request.verb, 1, len(fds))
        self.life.request(states.SUCCESSOR)
        [peer] = fds.take_sockets()
        self._missed = None
        self._schedule_answer(answer, request.verb, lambda: self._need_front().successor(epoch, peer))

    def _source_dead(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        epoch = params.epoch(request.params)
        self.life.request(states.SOURCE_DEAD)
        self._schedule_answer(answer, request.verb, lambda: report(self._need_front().source_dead(epoch)))

    def _target_dead(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        epoch = params.epoch(request.params)
        self.life.request(states.TARGET_DEAD)
        self._schedule(self._start_task, self._resume(answer, epoch))

    def _point(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        gate = self._need_gate(request.verb)
        try:
            table = read_table(request.params)
        except ValueError as error:
            raise SwapdError(BAD_REQUEST, str(error)) from None
        self.life.request(states.POINT)
        self._schedule_answer(answer, request.verb, lambda: report(gate.point(table)))

    def _lend(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        """Copies of the listeners, for a daemon that has none: sent through the socket that came along."""
        params.descriptors(request.verb, 1, len(fds))
        [peer] = fds.take_sockets()
        with peer:
            answer({"listeners": lend(self._front, peer)})

    def _access_log(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        """To the file that came along, from here on; without one: nowhere."""
        gate = self._need_gate(request.verb)
        query = params.flag(request.params, "query")
        if len(fds) > 1:
            params.descriptors(request.verb, 1, len(fds))
        access_log = AccessLog(fds.take()[0], self._spec.service, query=query) if len(fds) else None
        self._schedule_answer(answer, request.verb, lambda: gate.log_to(access_log))

    def _drain(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        deadline_s = params.deadline_s(request.params)
        and_close = params.flag(request.params, "and_close")
        upstream = params.name(request.params, "upstream")
        if upstream is not None:
            gate = self._need_gate(request.verb)
            self.life.request(states.DRAIN_UPSTREAM)
            self._schedule(self._start_task, self._run_drain(answer, gate.drain(deadline_s, upstream=upstream)))
            return
        self.life.request(states.DRAIN_AND_CLOSE if and_close else states.DRAIN)
        front = self._front
        work = front.drain(deadline_s, and_close) if front is not None else _nothing_to_drain()
        self._schedule(self._start_task, self._run_drain(answer, work))

    def _stats(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        front = self._front
        figures: dict[str, Any]
        if front is not None:
            figures = report(front.stats())
            if isinstance(front, GateFront):
                figures |= front.gate_stats(windows=params.flag(request.params, "windows"))
        else:
            late_s = time.monotonic() - self._last_tick - TICK_S
            figures = {**STATS_WITHOUT_FRONT, "loop_blocked_s": max(0.0, late_s)}
        answer({**figures, "state": self.life.state.value})

    def _stop(self, answer: Answer, request: wire.Request, fds: Descriptors) -> None:
        self.life.request(states.STOP)
        answer({})
        stopping.set()
        self.on_stop()
        self._schedule(self.finish, 0)

    def _schedule(self, function: Callable[..., object], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:  # the loop is closed
            raise SwapdError(SHUTTING_DOWN, "the worker is ending") from None

    def _schedule_answer(self, answer: Answer, verb: str, function: Callable[[], Mapping[str, Any] | None]) -> None:
        """Run `function` on the loop and reply what it returns."""

        def run() -> None:
            try:
                result: dict[str, Any] | Problem = dict(function() or {})
            except Exception as error:
                result = problem_of(error, verb)
            answer(result)

        self._schedule(run)

    # --- on the loop's thread ---

    async def run(self) -> int:
        """Until the worker is to end; the exit status."""
        self._tick()
        return await self.exit

    def finish(self, code: int) -> None:
        if not self.exit.done():
            self.exit.set_result(code)

    async def terminate(self, deadline_s: float) -> None:
        """SIGTERM: accept no more, finish what is in flight within `deadline_s`, end."""
        with contextlib.suppress(SwapdError):
            self.life.request(states.STOP)
        try:
            if self._front is not None:
                self._front.abort_hand_over()
                self._front.stop_accepting()
                await self._front.drain(deadline_s)
        except Exception as error:
            log.warning("worker.drain_failed error=%s", problem_of(error, "drain"))
        self.finish(0)

    async def end(self) -> None:
        """Close the front, shut the model down. Every part is bounded but a hook that blocks: main has a watchdog."""
        for task in list(self._tasks):
            task.cancel()
        front = self._front
        late = front is not None and front.turning_away  # while the model unloads, clients are still told that it does
        if front is not None and not late:
            await _close(front)
        if self._engine is not None:
            await self._engine.unload()
        if front is not None and late:
            await _close(front)

    def _tick(self) -> None:
        """Until there is a front, which measures by itself."""
        self._last_tick = time.monotonic()
        if self._front is None:
            self._loop.call_later(TICK_S, self._tick)

    def begin_gate(self) -> None:
        """A gate has nothing to load: it is ready before it can be asked."""
        self._set_front(build_gate(self._loop, self._spec))
        self.life.request(states.LOAD)
        self.life.end_step(True)

    def _set_front(self, front: Front) -> None:
        front.on_needs_successor = self._needs_successor
        self._front = front

    def _needs_successor(self, epoch: int, count: int) -> None:
        event = wire.WorkerEvent(wire.NEEDS_SUCCESSOR, {"epoch": epoch, "count": count})
        self._missed = event  # a daemon that is away hears of it when it is back
        self.channel.broadcast(event)

    def _is_owner(self) -> bool:
        front = self._front
        return front is not None and bool(front.stats().owner)

    def _need_front(self) -> Front:
        if self._front is None:  # the table allows no verb of the front before `loaded`
            raise SwapdError(INTERNAL, "the worker has no front")
        return self._front

    def _need_gate(self, verb: str) -> GateFront:
        if not isinstance(self._front, GateFront):
            raise SwapdError(NOT_SUPPORTED, f"{verb} of a table or an upstream is for a gate")
        return self._front

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_step(self, verb: str, step: Step) -> None:
        self._start_task(self._run_step(verb, step))

    async def _run_step(self, verb: str, step: Step) -> None:
        began_at = time.monotonic()
        result: dict[str, Any] | Problem = {}
        try:
            result = dict(await step(progress_of(verb, self._tell_progress)) or {})
        except asyncio.CancelledError:
            result = Problem(CANCELED, f"{verb} was given up: the worker was told to stop")
        except Exception as error:
            result = problem_of(error, verb)
        failed = isinstance(result, Problem)
        took_ms = (time.monotonic() - began_at) * 1000
        log.info("worker.step verb=%s result=%s ms=%.0f", verb, result if failed else "ok", took_ms)
        for answer in self.life.end_step(not failed):
            answer(result)
        if self._engine is not None and self._engine.exit_code is not None:
            log.error("worker.model_exit code=%d the model called sys.exit()", self._engine.exit_code)
            self.finish(self._engine.exit_code)

    def _tell_progress(self, event: wire.WorkerEvent) -> None:
        self.channel.broadcast(event, may_be_lost=True)

    async def _load(self, progress: Progress) -> None:
        assert isinstance(self._engine, AsgiEngine)
        app = await self._engine.load(progress)
        try:
            private_socket = bind_http(self._spec.http_path)
        except OSError as error:
            raise SwapdError(LOAD_FAILED, f"cannot open the worker's own HTTP socket: {error}") from None
        state = self._engine.lifespan_state
        self._set_front(build_direct(self._loop, self._spec, app, state, private_socket))

    async def _resume(self, answer: Answer, epoch: int) -> None:
        """Reply once the hand-over has ended here too, so that the next verb finds the worker `serving`."""
        result: dict[str, Any] | Problem
        try:
            front = self._need_front()
            resumed = front.target_dead(epoch)
            if resumed:
                await self._handing.settled()
            result = {"resumed": resumed or front.stats().owner}
        except Exception as error:
            result = problem_of(error, wire.TARGET_DEAD)
        answer(result)

    async def _run_drain(self, answer: Answer, work: Awaitable[DrainReport]) -> None:
        result: dict[str, Any] | Problem
        try:
            result = report(await work)
        except asyncio.CancelledError:
            result = Problem(CANCELED, "drain was given up: the worker was told to stop")
        except Exception as error:
            result = problem_of(error, wire.DRAIN)
        answer(result)


async def _nothing_to_drain() -> DrainReport:
    return DrainReport(0, 0)


async def _close(front: Front) -> None:
    try:
        await asyncio.wait_for(front.close(), FRONT_CLOSE_S)
    except Exception as error:
        log.warning("worker.front_close_failed error=%r", error)


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat, in clock ticks since boot: with the pid it names a process for good."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rsplit(b")", 1)[1].split()[19])
