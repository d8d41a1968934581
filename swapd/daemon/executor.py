"""The executor: carries out the core's operations on the host, and tells the loop what came of them.

One method an operation; each ends within a deadline, in OpDone or OpFailed, unless the worker's next operation voids
it or the worker's end, which is told by itself, says more. It decides nothing: what follows from a failure is the
core's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from swapd.core import errors
from swapd.core.advance import stages
from swapd.core.config import Config, ModelConfig, ServiceConfig
from swapd.core.delivery import Delivery
from swapd.core.errors import Problem, SwapdError
from swapd.core.events import ContentChanged, Measure, Measured, OpDone, OpFailed, Run, TimerFired, WakeAt
from swapd.core.ledger import beyond_plan, most_used, overdrawn
from swapd.core.model import DeviceKind, DeviceReading, Kind, Op, OpKind, Worker
from swapd.core.on_device import not_on_device
from swapd.core.out_of_memory import told_by_its_log
from swapd.core.presets import ready_path
from swapd.daemon.answers import checked
from swapd.daemon.contracts import Contracts
from swapd.daemon.devices import Devices
from swapd.daemon.draining import drain
from swapd.daemon.golden import ask_golden
from swapd.daemon.guard import Guard
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.live import Live
from swapd.daemon.loop import Loop
from swapd.daemon.peaks import Peaks
from swapd.daemon.release import Release
from swapd.daemon.staging import bring_files
from swapd.daemon.transfers import HELLO, REQUEST_S, Transfers
from swapd.daemon.work import course_of
from swapd.daemon.workers import Workers
from swapd.host.clock import wall_s as now
from swapd.host.probes import run_probes, run_warmup, wait_ready

log = logging.getLogger("swapd.executor")


_Then = Callable[[Live, ModelConfig, Mapping[str, Any]], Awaitable[None]]


class Executor:
    def __init__(
        self,
        config: Config,
        workers: Workers,
        devices: Devices,
        knowledge: Knowledge,
        listeners: Mapping[str, Mapping[str, socket.socket]],
        publish: Callable[[str, Mapping[str, Any]], None],
        on_exit: Callable[[], None],
    ) -> None:
        self.loop: Loop  # set by main: the two know each other
        self.config = config
        self._workers = workers
        self._devices = devices
        self._knowledge = knowledge
        self._guard = Guard(lambda: self.loop.state, devices, workers)
        self._release = Release(lambda: self.loop.state, devices, knowledge)
        self.contracts = Contracts(lambda: self.loop.state, knowledge, workers.live)
        self._peaks = Peaks(lambda: self.loop.state, lambda seen: self.loop.take(seen), devices, self._release)
        self._transfers = Transfers(
            self._live, listeners, lambda: self.config.daemon.hand_over_timeout_s, self._settings_of
        )
        self._publish = publish
        self._on_exit = on_exit
        self._tasks: dict[str, asyncio.Task[None]] = {}  # by worker: what it is doing now
        self._owned: set[asyncio.Task[None]] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # --- what the loop asks for ------------------------------------------------------------------------------------

    def run(self, effect: Run) -> None:
        op = effect.op
        before = self._tasks.pop(op.worker, None) if op.kind is not OpKind.SUCCESSOR else None
        task = asyncio.get_running_loop().create_task(
            self._carry_out(effect, before), name=f"{op.kind.value} {op.worker}"
        )
        if op.kind is not OpKind.SUCCESSOR:
            self._tasks[op.worker] = task
            task.add_done_callback(lambda done: self._forget(op.worker, done))
        self._own(task)
        sampling = self._peaks.sample() if op.step is not None else None
        if sampling is not None:
            self._own(sampling)

    def _own(self, task: asyncio.Task[None]) -> None:
        self._owned.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._owned.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("executor.bug task=%r", task.get_name(), exc_info=task.exception())

    def _forget(self, worker_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(worker_id) is task:
            del self._tasks[worker_id]

    def measure(self, effect: Measure) -> None:
        self._own(asyncio.get_running_loop().create_task(self._measure(effect)))

    def wake_at(self, effect: WakeAt) -> None:
        old = self._timers.pop(effect.service, None)
        if old is not None:
            old.cancel()

        def fire() -> None:
            self._timers.pop(effect.service, None)
            self.loop.take(TimerFired(now(), effect.service))

        delay_s = max(0.0, effect.at - now()) + 0.001
        self._timers[effect.service] = asyncio.get_running_loop().call_later(delay_s, fire)

    def exit(self) -> None:
        self._on_exit()

    async def close(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        tasks = list(self._owned)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one operation -------------------------------------------------------------------------------------------

    async def _carry_out(self, effect: Run, before: asyncio.Task[None] | None) -> None:
        op = effect.op
        if before is not None and not before.done():
            before.cancel()  # what the worker was doing is void
            await asyncio.wait({before}, timeout=REQUEST_S)
        try:
            with course_of(swap_id=self._swap_of(op), service=op.service, worker=op.worker, op=op.kind.value):
                result = checked(op, await self._guard.beside(effect, _METHODS[op.kind](self, effect)))
        except SwapdError as error:
            if self._will_be_told(op, error):
                return
            self.loop.take(await asyncio.to_thread(self._failure, op, error.problem))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a bug of ours: the swap fails, the daemon goes on
            log.exception("executor.bug op=%s worker=%s", op.kind.value, op.worker)
            problem = Problem(errors.INTERNAL, f"{op.kind.value}: {type(error).__name__}: {error}")
            self.loop.take(OpFailed(now(), op.id, problem))
        else:
            self.loop.take(OpDone(now(), op.id, result))

    def _swap_of(self, op: Op) -> int | None:
        """The swap that it is a step of."""
        service = self.loop.state.service(op.service)
        return service.swap.id if op.step is not None and service is not None and service.swap is not None else None

    def _failure(self, op: Op, problem: Problem) -> OpFailed:
        """With what the model's log says of it, where it may be the model's own. Blocks."""
        if op.kind not in _BY_THE_MODEL:
            return OpFailed(now(), op.id, problem)
        told = told_by_its_log(problem, self._workers.reasons(op.worker))
        return OpFailed(now(), op.id, told, self._workers.last_lines(op.worker))

    def _will_be_told(self, op: Op, error: SwapdError) -> bool:
        """The worker is gone: WorkerExited says so in a moment, with its exit code and its last words. (A model's own
        error may have that code as well.)"""
        live = self._workers.live.get(op.worker)
        if error.code != errors.WORKER_EXITED or live is None:
            return False
        return live.channel is None or live.channel.closed.is_set() or not live.alive()

    def _live(self, worker_id: str) -> Live:
        live = self._workers.live.get(worker_id)
        if live is None:
            raise SwapdError(errors.WORKER_EXITED, f"{worker_id} is not running.")
        return live

    def _settings_of(self, name: str) -> tuple[Delivery | None, ServiceConfig]:
        service = self.loop.state.service(name)
        swap = service.swap if service is not None else None
        return swap.delivery if swap is not None else None, self._knowledge.service_config(name)

    def _model(self, op: Op) -> ModelConfig:
        worker = self.loop.state.worker(op.worker)
        assert worker is not None
        return self._knowledge.model_of(op.service, worker.revision)

    async def _spawn(self, effect: Run) -> Mapping[str, Any]:
        op = effect.op
        worker = self.loop.state.worker(op.worker)
        assert worker is not None
        model = None if worker.kind is Kind.GATE else self._model(op)
        if model is not None:
            worker = await self._with_its_content(worker, model)
        readings: Sequence[DeviceReading] = ()
        if effect.slot is not None and model is not None:
            readings = await self._devices.read(effect.slot.devices)
            for reading in readings:
                if reading.kind is DeviceKind.NVML and not reading.uuid:  # it would see no GPU, and take the CPU
                    text = f"{reading.name}: {reading.detail}; {op.worker} is not started without its GPU."
                    raise SwapdError(errors.DEVICE_UNKNOWN, text)
        service = self.loop.state.service(op.service)
        revision = service.revision(worker.revision) if service is not None else None
        settings = self._knowledge.service_config(op.service)
        return await self._workers.spawn(worker, settings, model, readings, revision, effect.slot)

    async def _with_its_content(self, worker: Worker, model: ModelConfig) -> Worker:
        """The worker, numbered by what it is about to load: files may have changed since its revision was made."""
        service = self.loop.state.service(worker.service)
        revision = service.revision(worker.revision) if service is not None else None
        fresh = await self._knowledge.revision(worker.service, model)
        service = self.loop.state.service(worker.service)  # after the wait
        if service is None or revision is None or fresh.fingerprint == revision.fingerprint:
            return worker
        log.warning("worker.content_changed worker=%s model=%s revision=%d", worker.id, model.name, revision.number)
        self._knowledge.remember(replace(revision, number=service.last_revision + 1), model)
        self.loop.take(ContentChanged(now(), worker.id, fresh.fingerprint))
        return self.loop.state.worker(worker.id) or worker

    async def _stage(self, effect: Run) -> Mapping[str, Any]:
        """The model's own hook; where it has declared none, its files into the page cache, which may fail nothing."""
        op, slot, worker = effect.op, effect.slot, self.loop.state.worker(effect.op.worker)
        assert slot is not None
        assert worker is not None
        if stages(worker, slot):
            return await self._timed(op, "stage")
        live, model = self._live(op.worker), self._model(op)
        return await bring_files(live, model, partial(_once, live, "stage"))

    async def _load(self, effect: Run) -> Mapping[str, Any]:
        result = await self._timed(effect.op, "load", then=self._at_its_address)
        live = self._live(effect.op.worker)
        live.hello = await live.request("hello", HELLO | {"worker_id": live.id}, deadline_s=REQUEST_S)
        return {**result, "hooks": live.hello.get("hooks", ())}

    async def _at_its_address(self, live: Live, model: ModelConfig, result: Mapping[str, Any]) -> None:
        """A server listens long before its weights are there, so its load lasts until it is ready, and is learned as a
        whole. An app is loaded when `load` returns; its ready path is asked with the warm-up."""
        live.address = result.get("address", live.address)
        if live.kind is Kind.ENGINE:
            await self._ready(live, model)

    async def _ready(self, live: Live, model: ModelConfig) -> None:
        if (path := ready_path(model)) is not None:
            await wait_ready(live.address, path, deadline_s=model.ready.timeout_s, alive=live.alive)
            await self._workers.note_ready(live.id)

    async def _wake(self, effect: Run) -> Mapping[str, Any]:
        return await self._timed(effect.op, "wake")

    async def _park(self, effect: Run) -> Mapping[str, Any]:
        """Clients are held meanwhile, and stopping it instead is always possible: so its time is that of a stop."""
        self._release.begins(effect.op, effect.slot)
        return await self._timed(effect.op, "park", limit=("stop_timeout", self.config.daemon.stop_timeout_s))

    async def _timed(
        self, op: Op, verb: str, limit: tuple[str, float] | None = None, then: _Then | None = None
    ) -> Mapping[str, Any]:
        started_s = asyncio.get_running_loop().time()
        live, model = self._live(op.worker), self._model(op)
        name, limit_s = limit or ("ready.timeout", model.ready.timeout_s)
        try:
            result = await _once(live, verb, limit_s)
        except SwapdError as error:
            if error.code != errors.TIMEOUT:
                raise
            text = f"{model.name} did not finish its {verb} within {name} = {limit_s:g} s"
            raise SwapdError(errors.NOT_READY, text) from None
        if then is not None:
            await then(live, model, result)
        self._knowledge.learn_time(model, verb, asyncio.get_running_loop().time() - started_s)
        return result

    async def _confirm(self, effect: Run) -> Mapping[str, Any]:
        op, slot = effect.op, effect.slot
        assert slot is not None
        return await self._release.confirm(op, slot, self.config.daemon.release_timeout_s + op.deadline_s)

    async def _warm(self, effect: Run) -> Mapping[str, Any]:
        op = effect.op
        live, model = self._live(op.worker), self._model(op)
        started_s = asyncio.get_running_loop().time()
        detail = ""
        if live.kind is not Kind.ENGINE:
            await self._ready(live, model)
        if model.warmup is not None:
            report = await run_warmup(
                live.address, model.warmup, alive=live.alive, progress=self._progress(op, "requests")
            )
            detail = f"{report.answers} requests"
        self._knowledge.learn_time(model, "warm", asyncio.get_running_loop().time() - started_s)
        return {"detail": detail}

    async def _verify(self, effect: Run) -> Mapping[str, Any]:
        op = effect.op
        live, model = self._live(op.worker), self._model(op)
        started_s = asyncio.get_running_loop().time()
        report = await run_probes(live.address, model.probes, alive=live.alive, progress=self._progress(op, "probes"))
        proved = await self.contracts.check(op, live, model)
        self._knowledge.learn_time(model, "verify", asyncio.get_running_loop().time() - started_s)
        progress = self._progress(op, "golden requests")
        proved = await ask_golden(self.loop.state, self._knowledge, op, live, model, proved, progress)
        used, beyond = None, ""
        if effect.slot is not None:
            readings = await self._devices.read(effect.slot.devices)
            self._peaks.see(readings)
            await self._find_on_device(op, model, readings)
            self._knowledge.learn_footprint(op, effect.slot, readings)
            self._knowledge.learn_residues(op.service, readings)
            used = most_used(readings, op.worker)
            beyond = beyond_plan(used, effect.slot.need_bytes)
            for reading in readings:
                problem = overdrawn(reading, self.loop.state.reservations, op.worker)
                if problem is not None:
                    raise SwapdError.of(problem)
        answers = "1 answer" if report.answers == 1 else f"{report.answers} answers"
        detail = f"{answers}, slowest {report.slowest_s * 1000:.0f} ms"
        detail = detail if model.probes else "no probes are configured"
        detail += f"; {proved['golden']['right']} golden requests" if "golden" in proved else ""
        detail += beyond
        return {"detail": detail, "used_bytes": used, **proved}

    async def _find_on_device(self, op: Op, model: ModelConfig, readings: Sequence[DeviceReading]) -> None:
        """A model may load at its first request, so one that was asked nothing is not judged. Raises NOT_ON_DEVICE."""
        free_before = self._release.free_before(op.worker)
        if readings[0].kind is not DeviceKind.NVML or not (model.probes or model.warmup):
            return
        should_hold = await self._knowledge.should_hold_bytes(op, model, readings[0])
        problem = not_on_device(readings, op.worker, should_hold, free_before)
        if problem is not None:
            raise SwapdError.of(problem)

    async def _transfer(self, effect: Run) -> Mapping[str, Any]:
        return await self._transfers.methods[effect.op.kind](effect.op)

    async def _drain(self, effect: Run) -> Mapping[str, Any]:
        return await drain(self._live(effect.op.worker), effect.op, self._workers.live)

    async def _stop(self, effect: Run) -> Mapping[str, Any]:
        model = self._knowledge.model_for(effect.op)  # before it is gone
        self._release.begins(effect.op, effect.slot)
        started_s = asyncio.get_running_loop().time()
        await self._workers.stop(effect.op.worker, force=effect.op.force)
        if model is not None and not effect.op.force:
            self._knowledge.learn_time(model, "stop", asyncio.get_running_loop().time() - started_s)
        return {}

    # --- measurements ------------------------------------------------------------------------------------------------

    async def _measure(self, effect: Measure) -> None:
        result: Any
        try:
            result = await self._knowledge.measure(effect.service, effect.revision)
        except SwapdError as error:
            result = error.problem
        except Exception as error:
            log.exception("executor.bug measuring service=%s", effect.service)
            result = Problem(errors.INTERNAL, f"measuring failed: {type(error).__name__}: {error}")
        self.loop.take(Measured(now(), effect.service, effect.revision, result))

    def _progress(self, op: Op, unit: str) -> Callable[[int, int], None]:
        def tell(done: int, total: int) -> None:
            self.publish_progress(op.worker, {"step": op.kind.value, "done": done, "total": total, "unit": unit})

        return tell

    def publish_progress(self, worker_id: str, params: Mapping[str, Any]) -> None:
        worker = self.loop.state.worker(worker_id)
        service = self.loop.state.service(worker.service) if worker is not None else None
        if service is not None and service.swap is not None:
            body = {k: params.get(k) for k in ("step", "done", "total", "unit")}
            if worker is not None and worker.op is not None and worker.op.step is not None:
                body["step"] = worker.op.step  # as the record calls it, on the way back too
            self._publish(
                "swap.progress", {"swap_id": service.swap.id, "service": service.name, "worker": worker_id, **body}
            )


# Where each of these ends. One that a daemon began which then died is not begun a second time.
_ENDS: Final = {"stage": "staged", "load": "loaded", "park": "parked", "wake": "loaded"}


async def _once(live: Live, verb: str, limit_s: float, params: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Have the worker take a step, if it has not. One that is under way is waited for: the worker joins the two."""
    hello = await live.request("hello", HELLO | {"worker_id": live.id}, deadline_s=REQUEST_S)
    state = hello.get("state")
    if state == _ENDS[verb]:
        return {"address": hello.get("address") or live.address}
    if state == "failed":
        raise SwapdError(errors.LOAD_FAILED, f"{live.id} has failed its {verb} while no daemon was there to be told.")
    return await live.request(verb, params, deadline_s=limit_s)


# Failures of these are the model's own: its last log lines belong to the report.
_BY_THE_MODEL: Final = frozenset({OpKind.SPAWN, OpKind.STAGE, OpKind.LOAD, OpKind.WARM, OpKind.VERIFY, OpKind.WAKE})

_METHODS: Final[Mapping[OpKind, Callable[[Executor, Run], Coroutine[Any, Any, Mapping[str, Any]]]]] = {
    OpKind.SPAWN: Executor._spawn,
    OpKind.STAGE: Executor._stage,
    OpKind.CONFIRM: Executor._confirm,
    OpKind.LOAD: Executor._load,
    OpKind.WARM: Executor._warm,
    OpKind.VERIFY: Executor._verify,
    OpKind.WAKE: Executor._wake,
    OpKind.ADOPT: Executor._transfer,
    OpKind.HAND_OVER: Executor._transfer,
    OpKind.POINT: Executor._transfer,
    OpKind.SOURCE_DEAD: Executor._transfer,
    OpKind.TARGET_DEAD: Executor._transfer,
    OpKind.SUCCESSOR: Executor._transfer,
    OpKind.DRAIN: Executor._drain,
    OpKind.PARK: Executor._park,
    OpKind.STOP: Executor._stop,
}
