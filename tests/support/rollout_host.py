"""A simulated host for `core.rollout`: it carries out effects, in any order, well or badly.

It keeps its own books of what processes hold (never the ledger's), who owns a service's listeners, where gates point
and through whom requests are in flight, so that a test can see when the decisions would have put more on a device than
there is, a client before a model that had not proved itself, or ended a process that was at work.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

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
    Strategy,
    Swap,
)
from swapd.core.outage import ExpectedTimes
from swapd.core.rollout import step
from swapd.core.states import Phase, WorkerState
from swapd.core.turns import GIVES, TAKES

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
    table: str | None = None  # a gate's
    turns_away: bool = False  # a gate's


@dataclass
class Host:
    total: int = 24 * GIB
    needs: dict[str, int] = field(default_factory=lambda: {"a": 10 * GIB, "b": 10 * GIB, "big": 20 * GIB})
    hooks: frozenset[str] = frozenset()
    reads: bool = False  # its models have weight files
    kind: DeviceKind = DeviceKind.NVML
    state: State = field(default_factory=State)
    now: float = 1000.0
    pending: dict[int, Run] = field(default_factory=dict)
    measures: list[Measure] = field(default_factory=list)
    wake: dict[str, float] = field(default_factory=dict)
    processes: dict[str, Process] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)  # of models' workers, where not DIRECT
    owner: dict[str, str] = field(default_factory=dict)  # service -> the worker that really owns its listeners
    undrained: set[str] = field(default_factory=set)  # fronts that own, or have owned
    at_work: set[tuple[str, str]] = field(default_factory=set)  # (front, worker): requests go, or went, that way
    gave: set[tuple[str, int]] = field(default_factory=set)  # hand-overs of which both fronts know the end
    finished: list[Swap] = field(default_factory=list)
    reached: set[int] = field(default_factory=set)  # swaps whose new revision has answered somebody
    failed: set[str] = field(default_factory=set)  # workers of which an operation failed: they may be ended at once
    begun: list[Op] = field(default_factory=list)
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
                self.look_at(effect.op)
                self.begun.append(effect.op)
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
        assert held <= self.total, f"{held / GIB} GiB held of {self.total / GIB}\n" + "\n".join(self.log[-60:])
        for name, owner in self.owner.items():
            process = self.processes.get(owner)
            assert process is None or process.kind is Kind.GATE or process.verified, f"{name}: {owner} is not verified"
        for service in self.state.services:
            self.check_clients(service.name)
            live = [w for w in self.state.workers_of(service.name) if w.kind is not Kind.GATE and not w.ending]
            assert len({w.revision for w in live}) == len(live), f"two live workers of one revision: {live}"

    def answering(self, service: str) -> str | None:
        """The process that a request which comes now is really answered by."""
        front = self.processes.get(self.owner.get(service, ""))
        if front is None:
            return None
        answering = front.worker if front.kind is not Kind.GATE else front.table
        return answering if answering in self.processes else None

    def turns_away(self, service: str) -> bool:
        """A request that comes now gets 503."""
        front = self.processes.get(self.owner.get(service, ""))
        return front is not None and front.table is None and front.turns_away

    def check_clients(self, name: str) -> None:
        story = "\n".join(self.log[-60:])
        answering = self.answering(name)
        if answering is None:
            return
        front = self.owner[name]
        self.at_work.add((front, answering))
        self.undrained.add(front)
        assert self.processes[answering].verified, f"{answering} answers unverified\n{story}"
        ending = any(r.op.kind is OpKind.STOP and r.op.worker == answering for r in self.pending.values())
        assert not ending or answering in self.failed, f"{answering} is being stopped and answers\n{story}"
        swap, worker = self.state.service(name).swap, self.state.worker(answering)
        if swap is None or worker is None:
            return
        back = swap.phase is Phase.ROLLING_BACK
        if worker.revision == swap.target.number:
            self.reached.add(swap.id)
        elif swap.id in self.reached and not back:
            raise AssertionError(f"{answering} answers again after revision {swap.target.number}\n{story}")

    def look_at(self, op: Op) -> None:
        """Nothing that answers requests is ended, unless it has failed or is beyond asking."""
        if self.kind is DeviceKind.NVML and (op.kind in TAKES or (op.kind in GIVES and not op.force)):
            self._has_its_turn(op)
        if op.worker not in self.processes or op.kind not in (OpKind.STOP, OpKind.PARK) or op.worker in self.failed:
            return
        ways = [(front, worker) for front, worker in self.at_work if op.worker in (front, worker)]
        alive = [way for way in ways if way[0] in self.processes and way[1] in self.processes]
        story = "\n".join(self.log[-60:])
        assert not alive, f"{op.kind.value} of {op.worker} with requests in flight: {alive}\n{story}"
        relaying = [g for g in self.processes.values() if g.table == op.worker and g.worker in self.undrained]
        assert not relaying, f"{op.kind.value} of {op.worker}, to which {relaying} point\n{story}"

    def _has_its_turn(self, op: Op) -> None:
        """Nobody else takes memory of the one device, gives it back, or holds clients until it may."""
        promised = {r.worker_id for r in self.state.reservations}
        ending = {s.name for s in self.state.services if s.leaving or self.state.stopping}
        if op.worker not in promised or op.service in ending:
            return
        beyond = {w.id for w in self.state.workers if w.outlived_kill}  # that may take for ever
        others = [run.op for run in self.pending.values() if run.op.worker in promised - beyond - {op.worker}]
        # Its own service's next worker may wait for just that; and beside what is ended at once nobody measures.
        beside = ending | {op.service} if op.kind in GIVES else set()
        moving = [o for o in others if o.kind in TAKES | GIVES and o.service not in beside]
        assert not moving, f"{op} beside {moving}"
        swaps = {s.name: s.swap for s in self.state.services if s.name not in ending and s.paused is None}
        held = {
            name: swap.id
            for name, swap in swaps.items()
            if swap is not None and swap.strategy is Strategy.IN_PLACE and swap.phase is Phase.PROGRESSING
            if not any(w.revision == swap.target.number and w.warmed for w in self.state.workers_of(name))
        }
        mine = held.pop(op.service, None)
        assert not held or (mine is not None and mine < min(held.values())), f"{op} while {held} hold their clients"

    # --- what the world does ---------------------------------------------------------------------------------

    def reading(self) -> DeviceReading:
        used = tuple((p.worker, p.held) for p in self.processes.values())
        free = self.total - sum(u for _, u in used)
        return DeviceReading("gpu0", self.kind, 0, self.total, free, used)

    def measurement(self, model: str) -> Measurement:
        footprint = Footprint(self.needs[model], FootprintSource.DECLARED)
        kind = self.kinds.get(model, Kind.DIRECT)
        expected = ExpectedTimes(load_s=1.0)
        return Measurement(footprint, (self.reading(),), expected, can_stage=True, kind=kind, reads=self.reads)

    def add(self, service: str, model: str, **settings: object) -> None:
        revision = Revision(1, service, model, "s", model)
        self.send(events.ServiceAdded(self.now, service, ServiceSettings(**settings), model, revision))  # type: ignore[arg-type]

    def remove(self, service: str) -> None:
        self.send(events.ServiceRemoved(self.now, service))

    def reload(self, service: str, **settings: object) -> None:
        known = self.state.service(service)
        if known is None:
            return
        changed = replace(known.settings, **settings)  # type: ignore[arg-type]
        self.send(events.SettingsChanged(self.now, service, changed, known.config_model))

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
        elif op.kind is OpKind.DRAIN:
            self.drain(op)
        elif op.kind is OpKind.POINT:
            process.table, process.turns_away = op.target, op.turn_away
            result = {"quiesced_at": self.now, "started_at": self.now, "turned_away": self.turned_away}
        elif op.kind is OpKind.TARGET_DEAD and (op.service, op.epoch) in self.gave:
            result = {"resumed": False}
        elif op.kind in (OpKind.ADOPT, OpKind.TARGET_DEAD, OpKind.SOURCE_DEAD):
            other = self.owner.get(op.service)
            assert other in (None, op.worker) or op.kind is not OpKind.ADOPT, f"{other} owns already"
            self.owner[op.service] = op.worker
            listen = self.state.service(op.service).settings.listen
            result = {"started_at": self.now, "started": True, "listeners": listen or ("x",), "resumed": True}
            if op.kind is OpKind.ADOPT:
                result["listeners"] = listen
        elif op.kind is OpKind.HAND_OVER:
            if op.target not in self.processes:
                self.pending[op_id] = run  # the source waits for a word on its target
                return
            self.owner[op.service] = op.target
            result = {"quiesced_at": self.now, "started_at": self.now + 0.001, "turned_away": self.turned_away}
        self.send(events.OpDone(self.now, op_id, result))

    def drain(self, op: Op) -> None:
        """What is in flight there ends; where it owns, so does what still comes."""
        if op.force and self.owner.get(op.service) == op.worker:
            del self.owner[op.service]
        self.at_work = {way for way in self.at_work if op.worker not in way}
        self.undrained.discard(op.worker)

    def start_target(self, op_id: int) -> None:
        """The hand-over is done and both fronts know it; the source's report is still on its way."""
        op = self.pending[op_id].op
        assert op.target is not None
        self.owner[op.service] = op.target
        self.gave.add((op.service, op.epoch))

    def fail(self, op_id: int, code: str = errors.LOAD_FAILED) -> None:
        run = self.pending.pop(op_id)
        if run.op.kind is OpKind.DRAIN:
            self.drain(run.op)
        else:
            self.failed.add(run.op.target or "" if run.op.kind is OpKind.HAND_OVER else run.op.worker)
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
        self.at_work = {way for way in self.at_work if worker_id not in way}
        for op_id in [i for i, run in self.pending.items() if run.op.worker == worker_id]:
            del self.pending[op_id]
        for service, owner in list(self.owner.items()):
            if owner == worker_id:
                del self.owner[service]
        if process is not None or self.state.worker(worker_id) is not None:
            self.send(events.WorkerExited(self.now, worker_id, Problem(errors.WORKER_EXITED, f"{worker_id} ended")))

    def hang(self, worker_id: str) -> None:
        """It lives and does nothing, which is noticed where it answers clients."""
        worker = self.state.worker(worker_id)
        if worker is not None and worker.state is WorkerState.SERVING and worker.op is None:
            self.failed.add(worker_id)
        self.send(events.WorkerHung(self.now, worker_id, Problem(errors.WORKER_HUNG, f"{worker_id} hangs")))

    def measure(self) -> None:
        m = self.measures.pop(0)
        service = self.state.service(m.service)
        revision = service.revision(m.revision) if service is not None else None
        gone = Problem(errors.UNKNOWN_SERVICE, f"{m.service} is gone")
        result = self.measurement(revision.model) if revision is not None else gone
        self.send(events.Measured(self.now, m.service, m.revision, result))

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
            ops = [i for i in self.pending if not self._stuck(self.pending[i].op)]
            in_vain = 0 if ops else in_vain + 1
            if in_vain > 60:
                return
            if self.measures:
                self.measure()
            elif ops:
                self.finish(ops[0])
            elif self.wake and until_idle:
                self.pass_time(max(0.0, min(self.wake.values()) - self.now))
            else:
                return
        raise AssertionError(f"does not settle: {self.pending}\n" + "\n".join(self.log[-30:]))

    def _holds(self, worker: str) -> bool:
        return worker in self.processes and self.processes[worker].held > 0

    def _stuck(self, op: Op) -> bool:
        return op.kind is OpKind.HAND_OVER and op.target not in self.processes
