"""Workers that live and do nothing: found by asking those who answer clients, and told to the core.

A worker is alive if its clients have been answered since it was last asked, a part of an answer counting as one: so a
server that is saturated, and streams, is not bothered. Otherwise its channel must answer, and its ready path, if it has
one, with a 2xx. Only a row of failures without any sign of life in between makes it hung (`[models.NAME.liveness]`).
May not know: what is done about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any, Final

from swapd.core.config import LivenessConfig
from swapd.core.errors import NOT_READY, WORKER_EXITED, WORKER_HUNG, Problem, SwapdError
from swapd.core.events import WorkerHung
from swapd.core.model import Kind, Worker
from swapd.core.presets import ready_path
from swapd.core.states import WorkerState
from swapd.daemon.draining import in_flight_through
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.live import Live
from swapd.daemon.loop import Loop
from swapd.daemon.workers import Workers
from swapd.host.clock import wall_s as now
from swapd.host.probes import fetch

log = logging.getLogger("swapd.liveness")

LOOK_S: Final = 0.5  # how soon a worker that has begun to serve is watched
COARSE_S: Final = 0.2  # fronts know the time to a tenth of a second


class Liveness:
    def __init__(self, loop: Loop, workers: Workers, knowledge: Knowledge) -> None:
        self._loop = loop
        self._workers = workers
        self._knowledge = knowledge
        self._watches: dict[str, asyncio.Task[None]] = {}  # by worker

    async def run(self) -> None:
        """Watch whoever answers clients, as long as it does."""
        try:
            while True:
                serving = {w.id for w in self._loop.state.workers if w.state is WorkerState.SERVING}
                for worker_id, watch in list(self._watches.items()):
                    if worker_id not in serving or watch.done():
                        self._end(worker_id)
                for worker_id in serving - self._watches.keys():
                    self._watches[worker_id] = asyncio.get_running_loop().create_task(self._watch(worker_id))
                await asyncio.sleep(LOOK_S)
        finally:
            for watch in self._watches.values():
                watch.cancel()
            await asyncio.gather(*self._watches.values(), return_exceptions=True)

    def _end(self, worker_id: str) -> None:
        """One that has ended by itself had a bug: another takes its place, or nobody would watch that worker again."""
        watch = self._watches.pop(worker_id)
        if watch.done() and not watch.cancelled():
            log.error("liveness.bug worker=%s", worker_id, exc_info=watch.exception())
        watch.cancel()

    async def _watch(self, worker_id: str) -> None:
        clock = asyncio.get_running_loop().time
        failures, asked_at, alive_at = 0, clock(), clock()
        while True:
            settings = self._settings(worker_id)
            await asyncio.sleep(settings.period_s)
            before, asked_at = asked_at, clock()
            try:
                await self._ask(worker_id, settings.timeout_s, asked_at - before + COARSE_S)
            except SwapdError as error:
                failures, problem = failures + 1, error.problem
            else:
                failures, alive_at = 0, clock()
            if settings.failures and failures >= settings.failures:
                failures = 0  # where the core has better to do with it just now, the count begins anew
                await self._tell(worker_id, problem, settings.failures, clock() - alive_at)

    def _settings(self, worker_id: str) -> LivenessConfig:
        """Those of the model that serves, as they are written now: also its gate's."""
        worker = self._loop.state.worker(worker_id)
        service = self._loop.state.service(worker.service) if worker is not None else None
        revision = service.revision(service.stable) if service is not None else None
        model = self._knowledge.config.models.get(revision.model) if revision is not None else None
        return model.liveness if model is not None else LivenessConfig()

    async def _ask(self, worker_id: str, timeout_s: float, since_s: float) -> None:
        """Raises SwapdError for one that gives no sign of life. `since_s`: since it was asked before."""
        worker, live = self._loop.state.worker(worker_id), self._workers.live.get(worker_id)
        if worker is None or live is None or worker.op is not None:  # operations have limits of their own
            return
        try:
            stats = await live.request("stats", deadline_s=timeout_s)
            if worker.kind is Kind.GATE:
                return
            path = self._ready_path(worker)
            if path is None or await self._quiet_s(worker, stats, timeout_s) <= since_s:
                return
            answer = await fetch(live.address, "GET", path, deadline_s=timeout_s)
        except SwapdError as error:
            if error.code != WORKER_EXITED:
                raise
            return  # its end is told by itself
        if not 200 <= answer.status < 300:
            raise SwapdError(NOT_READY, f"GET {path} answered {answer.status}")

    def _ready_path(self, worker: Worker) -> str | None:
        with contextlib.suppress(SwapdError):  # adopted, and its settings are lost: its channel must do
            return ready_path(self._knowledge.model_of(worker.service, worker.revision))
        return None

    async def _quiet_s(self, worker: Worker, own: Mapping[str, Any], timeout_s: float) -> float:
        """Since when it has sent nothing of an answer to its clients: to its own front, or to the gate before it."""
        service = self._loop.state.service(worker.service)
        gate = self._workers.live.get(service.owner or "") if service is not None else None
        figures = [own.get("quiet_s")]
        if gate is not None and gate.id != worker.id:
            figures.append(await _through(gate, worker.id, timeout_s))
        return min((each for each in figures if isinstance(each, (int, float))), default=float("inf"))

    async def _tell(self, worker_id: str, problem: Problem, failures: int, silent_s: float) -> None:
        lines = await asyncio.to_thread(self._workers.last_lines, worker_id)
        text = _text(worker_id, problem, failures, silent_s)
        self._loop.take(WorkerHung(now(), worker_id, Problem(WORKER_HUNG, text, {"failures": failures}), lines))


async def _through(gate: Live, worker_id: str, timeout_s: float) -> object:
    with contextlib.suppress(SwapdError):  # a gate that does not answer is watched itself
        stats = await gate.request("stats", deadline_s=timeout_s)
        return in_flight_through(stats, worker_id).get("quiet_s")
    return None


def _text(worker_id: str, problem: Problem, failures: int, silent_s: float) -> str:
    times = f"{failures} times in a row" if failures > 1 else "once"
    return (
        f"{worker_id} lives and has given no sign of it for {silent_s:.0f} s, {times}: {problem.message.rstrip('.')}."
        f" It is ended and started again. If it was only busy, raise failures or timeout of its [models.NAME.liveness]."
    )
