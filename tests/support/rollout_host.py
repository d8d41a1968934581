"""A simulated host for `core.rollout`: it carries out effects, in any order, well or badly.

It keeps its own books of what processes hold (never the ledger's), so that a test can see when the decisions would
have put more on a device than there is, or a client before a model that had not proved itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from swapd.core import errors, events
from swapd.core.errors import Problem
from swapd.core.events import Event, Exit, Measure, Measurement, Publish, Run, WakeAt
from swapd.core.ledger import room_for
from swapd.core.model import (
    DeviceKind,
    DeviceReading,
    Footprint,
    FootprintSource,
    Kind,
    Op,
    OpKind,
    Revision,
    ServiceSettings,
    State,
    Swap,
)
from swapd.core.outage import ExpectedTimes
from swapd.core.rollout import step

GIB = 1 << 30


@dataclass
class Process:
    """What is really on the host, whatever the core believes."""

    worker: str
    kind: Kind
    need: int
    hooks: frozenset[str]
    held: int = 0
    verified: bool = False
    parked: bool = False


@dataclass
class Host:
    total: int = 24 * GIB
    needs: dict[str, int] = field(default_factory=lambda: {"a": 10 * GIB, "b": 10 * GIB, "big": 20 * GIB})
    hooks: frozenset[str] = frozenset()
    kind: DeviceKind = DeviceKind.NVML
    state: State = field(default_factory=State)
    now: float = 1000.0
    pending: dict[int, Run] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    wake: dict[str, float] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    owner: dict[str, str] = field(default_factory=dict)  # service -> the worker that really owns its listeners
    gave: set[tuple[str, int]] = field(default_factory=set)  # hand-overs of which both fronts know the end
    finished: list[Swap] = field(default_factory=list)
    exited: bool = False
    turned_away: int = 0  # what fronts say at a hand-over
    log: list[str] = field(default_factory=list)
    told: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def send(self, event: Event) -> Swap | Problem | None:
        self.log.append(repr(event)[:200])
        outcome = step(self.state, event)
        self.state = outcome.state
        self.finished += outcome.finished
        for effect in outcome.effects:
            if isinstance(effect, Run):
                self.pending[effect.op.id] = effect
                if effect.op.kind is OpKind.LOAD or effect.op.kind is OpKind.WAKE:
                    process = self.processes[effect.op.worker]
                    process.held = process.need  # from the first moment on, at the worst
            elif isinstance(effect, Measure):
                self.measures.append(effect)
            elif isinstance(effect, WakeAt):
                self.wake[effect.service] = effect.at
            elif isinstance(effect, Publish):
                self.told.append((effect.event, dict(effect.body)))
            elif isinstance(effect, Exit):
                self.exited = True
        self.check()
        return outcome.reply

    def check(self) -> None:
        held = sum(p.held for p in self.processes.values())
        assert held <= self.total, f"{held / GIB} GiB held of {self.total / GIB}\n" + "\n".join(self.log[-40:])
        for name, owner in self.owner.items():
            process = self.processes.get(owner)
            assert process is None or process.kind is Kind.GATE or process.verified, f"{name}: {owner} is not verified"
        for service in self.state.services:
            live = [w for w in self.state.workers_of(service.name) if w.kind is Kind.DIRECT and not w.ending]
            assert len({w.revision for w in live}) == len(live), f"two live workers of one revision: {live}"

    # --- what the world does ---------------------------------------------------------------------------------

    def reading(self) -> DeviceReading:
        used = tuple((p.worker, p.held) for p in self.processes.values())
        free = self.total - sum(u for _, u in used)
        return DeviceReading("gpu0", self.kind, 0, self.total, free, used)

    def measurement(self, model: str) -> Measurement:
        footprint = Footprint(self.needs[model], FootprintSource.DECLARED)
        return Measurement(footprint, (self.reading(),), ExpectedTimes(load_s=1.0), can_stage=True)

    def add(self, service: str, model: str, **settings: object) -> None:
        revision = Revision(1, service, model, "s", model)
        self.send(events.ServiceAdded(self.now, service, ServiceSettings(**settings), model, revision))  # type: ignore[arg-type]

    def swap_request(self, service: str, model: str, *, again: bool = False) -> events.SwapRequested:
        candidate = Revision(0, service, model, "s", model)
        measured = self.measurement(model)
        return events.SwapRequested(self.now, service, candidate, measured, None, None, "t", again=again)

    def swap(self, service: str, model: str, *, again: bool = False) -> Swap | Problem | None:
        return self.send(self.swap_request(service, model, again=again))

    def finish(self, op_id: int) -> None:
        """Carry out an operation; CONFIRM and hand-overs look at what is really there."""
        run = self.pending.pop(op_id)
        op = run.op
        result: dict[str, object] = {}
        process = self.processes.get(op.worker)
        if op.kind is OpKind.SPAWN:
            worker = self.state.worker(op.worker)
            if worker is None or worker.ending:
                return
            need = run.slot.need_bytes if run.slot is not None and run.slot.need_bytes else 0
            self.processes[op.worker] = Process(op.worker, worker.kind, need, self.hooks)
            result = {"hooks": sorted(self.hooks)}
        elif op.kind is OpKind.STOP:
            self.exit(op.worker)
            return
        elif process is None:
            return
        elif op.kind is OpKind.CONFIRM:
            problem = room_for(self.reading(), self.state.reservations, op.worker)
            if problem is not None:
                self.send(events.OpFailed(self.now, op_id, problem))
                return
        elif op.kind is OpKind.VERIFY:
            process.verified = True
        elif op.kind is OpKind.PARK:
            process.held, process.verified = 1 * GIB, False
        elif op.kind is OpKind.TARGET_DEAD and (op.service, op.epoch) in self.gave:
            result = {"resumed": False}
        elif op.kind in (OpKind.ADOPT, OpKind.TARGET_DEAD, OpKind.SOURCE_DEAD):
            self.owner[op.service] = op.worker
            result = {"started_at": self.now, "started": True, "listeners": ["x"], "resumed": True}
        elif op.kind is OpKind.HAND_OVER:
            if op.target not in self.processes:
                self.pending[op_id] = run  # the source waits for a word on its target
                return
            self.owner[op.service] = op.target
            result = {"quiesced_at": self.now, "started_at": self.now + 0.001, "turned_away": self.turned_away}
        self.send(events.OpDone(self.now, op_id, result))

    def start_target(self, op_id: int) -> None:
        """The hand-over is done and both fronts know it; the source's report is still on its way."""
        op = self.pending[op_id].op
        assert op.target is not None
        self.owner[op.service] = op.target
        self.gave.add((op.service, op.epoch))

    def fail(self, op_id: int, code: str = errors.LOAD_FAILED) -> None:
        run = self.pending.pop(op_id)
        gave = run.op.kind is OpKind.HAND_OVER and (run.op.service, run.op.epoch) in self.gave  # cannot fail any more
        if gave or run.op.kind in (OpKind.STOP, OpKind.TARGET_DEAD, OpKind.SOURCE_DEAD):
            self.pending[op_id] = run
            self.finish(op_id)
            return
        if run.op.kind is OpKind.HAND_OVER:
            code = errors.HAND_OVER_FAILED
        self.send(events.OpFailed(self.now, op_id, Problem(code, f"{run.op.kind.value} failed")))

    def exit(self, worker_id: str) -> None:
        """The whole process tree is gone, expected or not."""
        process = self.processes.pop(worker_id, None)
        for op_id in [i for i, run in self.pending.items() if run.op.worker == worker_id]:
            del self.pending[op_id]
        for service, owner in list(self.owner.items()):
            if owner == worker_id:
                del self.owner[service]
        if process is not None or self.state.worker(worker_id) is not None:
            self.send(events.WorkerExited(self.now, worker_id, Problem(errors.WORKER_EXITED, f"{worker_id} ended")))

    def measure(self) -> None:
        m = self.measures.pop(0)
        service = self.state.service(m.service)
        assert service is not None
        revision = service.revision(m.revision)
        assert revision is not None
        self.send(events.Measured(self.now, m.service, m.revision, self.measurement(revision.model)))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for service, at in list(self.wake.items()):
            if at <= self.now:
                del self.wake[service]
                self.send(events.TimerFired(self.now, service))

    def settle(self, *, limit: int = 400, until_idle: bool = True) -> None:
        """Let everything go well until nothing is left to do, or only what cannot fit is tried again and again."""
        in_vain = 0
        for _ in range(limit):
            in_vain = 0 if self.pending else in_vain + 1
            if in_vain > 60:
                return
            if self.measures:
                self.measure()
            elif ops := [i for i in self.pending if not self._stuck(self.pending[i].op)]:
                self.finish(ops[0])
            elif self.wake and until_idle:
                self.pass_time(max(0.0, min(self.wake.values()) - self.now))
            else:
                return
        raise AssertionError("does not settle:\n" + "\n".join(self.log[-30:]))

    def _stuck(self, op: Op) -> bool:
        return op.kind is OpKind.HAND_OVER and op.target not in self.processes
