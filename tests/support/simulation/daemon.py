"""A simulated daemon: the pure core, and between it and the host all that a crash can cut through.

An operation is begun by the core, then sent, then carried out on the host, then answered, then told to the core: a
daemon that ends takes with it what is not sent, and every answer. What `daemon.executor`, `daemon.transfers` and
`daemon.adoption` do is here in as few words as their order of doing it allows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from support.simulation.journal import Journal
from support.simulation.processes import ENDS, UP, Process, Request

from swapd.core import errors, events
from swapd.core.errors import Problem
from swapd.core.events import Event, Exit, Kept, Measure, Observed, OpDone, OpFailed, Publish, Run, ServiceAdded, WakeAt
from swapd.core.ledger import room_for
from swapd.core.model import Kind, OpKind, Revision, State, Swap
from swapd.core.rollout import step
from swapd.core.states import WorkerState

VERBS = {
    **{OpKind.ADOPT: "adopt", OpKind.POINT: "point", OpKind.SOURCE_DEAD: "source_dead"},
    **{OpKind.TARGET_DEAD: "target_dead", OpKind.SUCCESSOR: "successor"},
}
STEPS = {OpKind.STAGE: "stage", OpKind.LOAD: "load", OpKind.PARK: "park", OpKind.WAKE: "wake"}
FOUND_UP = UP | {WorkerState.PARKED}


class Daemon:
    """One life of it, from its start to its crash. `world` is the host."""

    def __init__(self, world: Any, boot: int, state: State, *, lost: bool = False) -> None:
        self.world = world
        self.boot = boot
        self.state = state
        self.lost = lost  # its journal could not be read
        self.ready = False  # the state is the journal's, not the host's yet
        self.pending: dict[int, Run] = {}
        self.stage: dict[int, str] = {}  # of each pending operation: "" (not sent), or how far it has come
        self.links: dict[int, Any] = {}  # HAND_OVER: what the target was introduced by
        self.measures: list[Measure] = []
        self.wake: dict[str, float] = {}
        self.mail: list[Event] = []  # has happened, is not told yet
        self.live: set[str] = set()
        self.early: list[Event] = []
        self.greeted: dict[str, Observed] = {}
        self.to_greet = sorted(world.left)
        self.patience = 12  # how many looks at hand-overs that are under way
        self.exited = False

    # --- the loop -------------------------------------------------------------------------------------------

    def take(self, event: Event) -> Swap | Problem | None:
        self.world.note(event)
        before = self.state
        outcome = step(before, event)
        if not self.lost:
            self.world.journal.write(outcome.state, outcome.finished)
        self.state = outcome.state
        self.world.decided(before, event, outcome)
        for effect in outcome.effects:
            if isinstance(effect, Run):
                self._begin(effect)
            elif isinstance(effect, Measure):
                self.measures.append(effect)
            elif isinstance(effect, WakeAt):
                self.wake[effect.service] = effect.at
            elif isinstance(effect, Publish):
                self.world.told.append((effect.event, dict(effect.body)))
            elif isinstance(effect, Exit):
                self.exited = True
        return outcome.reply

    def _begin(self, run: Run) -> None:
        if run.op.kind is not OpKind.SUCCESSOR:
            for op_id in [i for i, other in self.pending.items() if other.op.worker == run.op.worker]:
                if self.pending[op_id].op.kind is not OpKind.SUCCESSOR:
                    self.drop(op_id)  # what the worker was doing is void
        self.pending[run.op.id] = run
        self.stage[run.op.id] = ""

    def drop(self, op_id: int) -> None:
        self.pending.pop(op_id, None)
        self.stage.pop(op_id, None)
        self.links.pop(op_id, None)

    def hear(self, event: Event) -> None:
        """Before the state is the host's, events wait."""
        if self.ready:
            self.take(replace(event, at=self.world.now))
        else:
            self.early.append(event)

    # --- operations -----------------------------------------------------------------------------------------

    def go_on(self, op_id: int) -> None:
        """The next that the executor does for an operation."""
        run, stage = self.pending[op_id], self.stage[op_id]
        op = run.op
        process = self.world.living.get(op.worker)
        if op.kind is OpKind.SPAWN:
            self._spawn(run, stage)
        elif op.kind is OpKind.STOP:
            self._stop(op_id, process, stage)
        elif process is None:
            self._gone(op_id)
        elif op.kind is OpKind.CONFIRM:
            problem = room_for(self.world.reading(), self.state.reservations, op.worker)
            if problem is None:
                process.granted = self.world.foreign
                self.done(op_id)
        elif op.kind in (OpKind.WARM, OpKind.VERIFY):
            self._probe(op_id, process, stage)
        elif op.kind in STEPS:
            self._step(op_id, process, STEPS[op.kind], stage)
        elif op.kind is OpKind.HAND_OVER:
            self._hand_over(op_id, process, stage)
        elif op.kind is OpKind.DRAIN:
            self._drain(op_id, process, stage)
        elif stage == "":
            params = {"epoch": op.epoch, "target": op.target, "split": op.split}
            self._ask(process, VERBS[op.kind], op_id, params)

    def _ask(self, process: Process, verb: str, op_id: int, params: dict[str, Any]) -> None:
        self.stage[op_id] = "sent"
        self.world.processes.ask(process, Request(verb, params, op_id, self.boot))

    def _gone(self, op_id: int) -> None:
        """Its end is told by itself, and says more, unless it has been told already."""
        worker = self.pending[op_id].op.worker
        if worker not in self.live:
            self.failed(op_id, errors.WORKER_EXITED, f"{worker} is not running")

    def _spawn(self, run: Run, stage: str) -> None:
        op = run.op
        worker = self.state.worker(op.worker)
        if stage == "":
            if worker is None or worker.ending:
                self.drop(op.id)
                return
            service = self.state.service(op.service)
            revision = service.revision(worker.revision) if service is not None else None
            if revision is not None and worker.kind is not Kind.GATE:
                content = self.world.content(revision.model)
                if content != revision.fingerprint:
                    self.take(events.ContentChanged(self.world.now, op.worker, content))
                    worker = self.state.worker(op.worker)
                    service = self.state.service(op.service)
                    if op.id not in self.pending or worker is None or service is None:
                        return
                    revision = service.revision(worker.revision)
            self.world.spawn(worker, revision, run.slot)
            self.live.add(op.worker)
            self.stage[op.id] = "sent"
        elif op.worker in self.world.living:
            self.done(op.id, hooks=sorted(self.world.living[op.worker].hooks))

    def _stop(self, op_id: int, process: Process | None, stage: str) -> None:
        op = self.pending[op_id].op
        if process is None:
            if op.worker not in self.live:
                self.drop(op_id)
                self.mail.append(events.WorkerExited(self.world.now, op.worker, _ended(op.worker)))
        elif stage == "" and not op.force:
            self.world.about_to_end(process, op)
            self._ask(process, "stop", op_id, {})
        else:
            if stage == "":
                self.world.about_to_end(process, op)
            self.world.end(op.worker)

    def _probe(self, op_id: int, process: Process, stage: str) -> None:
        if process.hung:
            return
        if stage == "":
            self.stage[op_id] = "sent"
        elif process.look() not in UP or not process.fit:
            self.failed(op_id, errors.PROBE_FAILED, f"{process.worker} does not answer as it should")
        else:
            if self.pending[op_id].op.kind is OpKind.VERIFY:
                process.verified = True
            self.done(op_id, used_bytes=process.held)

    def _step(self, op_id: int, process: Process, verb: str, stage: str) -> None:
        """Not a second time, where an earlier daemon has begun it."""
        if stage:
            return
        state = process.look()
        if state.value == ENDS[verb]:
            self.done(op_id, hooks=sorted(process.hooks))
        elif state is WorkerState.FAILED:
            self.failed(op_id, errors.LOAD_FAILED, f"{process.worker} has failed")
        else:
            self.world.about_to_step(process, verb)
            self._ask(process, verb, op_id, {})

    def _hand_over(self, op_id: int, source: Process, stage: str) -> None:
        op = self.pending[op_id].op
        target = self.world.living.get(op.target or "")
        if stage in ("", "received") and target is None:
            self.failed(op_id, errors.HAND_OVER_FAILED, f"{op.target} cannot be handed to")
        elif stage == "":
            self.stage[op_id] = "sent"
            params = {"epoch": op.epoch, "source": op.worker}
            self.world.processes.ask(target, Request("receive", params, op_id, self.boot))
        elif stage == "received":
            self.stage[op_id] = "ordered"
            request = Request("hand_over", {"link": self.links[op_id]}, op_id, self.boot)
            self.world.processes.ask(source, request)

    def _drain(self, op_id: int, process: Process, stage: str) -> None:
        op = self.pending[op_id].op
        if stage == "":
            self._ask(process, "drain and_close" if op.force else "drain", op_id, {})
        elif not process.inbox:
            self.world.drained(process)
            self.done(op_id)

    def answered(self, request: Request, result: Any) -> None:
        """A worker's answer has arrived: the operation goes on, or has ended."""
        op_id = request.op
        if op_id is None or request.boot != self.boot or op_id not in self.pending:
            return
        op = self.pending[op_id].op
        if isinstance(result, Problem):
            open_to = (errors.TIMEOUT, errors.WORKER_EXITED)
            code = (
                errors.HAND_OVER_FAILED if op.kind is OpKind.HAND_OVER and result.code not in open_to else result.code
            )
            if op.kind not in (OpKind.STOP, OpKind.DRAIN):
                self.failed(op_id, code, result.message)
        elif request.verb == "receive":
            if "link" in result:
                self.stage[op_id], self.links[op_id] = "received", result["link"]
            else:
                self.failed(op_id, errors.HAND_OVER_FAILED, "the source is gone")
        elif op.kind not in (OpKind.STOP, OpKind.DRAIN):
            self.done(op_id, **result)

    def done(self, op_id: int, **result: Any) -> None:
        self.drop(op_id)
        self.mail.append(OpDone(self.world.now, op_id, result))

    def failed(self, op_id: int, code: str, text: str) -> None:
        op = self.pending[op_id].op
        self.drop(op_id)
        self.world.has_failed(op)
        self.mail.append(OpFailed(self.world.now, op_id, Problem(code, text)))

    # --- what happens by itself ---------------------------------------------------------------------------------

    def notice(self, worker: str) -> None:
        """A process that it watches has ended."""
        self.live.discard(worker)
        for op_id in [i for i, run in self.pending.items() if run.op.worker == worker]:
            self.drop(op_id)
        self.world.left.discard(worker)
        self.mail.append(events.WorkerExited(self.world.now, worker, _ended(worker)))

    def measure(self) -> None:
        m = self.measures.pop(0)
        service = self.state.service(m.service)
        revision = service.revision(m.revision) if service is not None else None
        gone = Problem(errors.UNKNOWN_SERVICE, f"{m.service} is gone")
        result = self.world.measurement(revision.model) if revision is not None else gone
        self.take(events.Measured(self.world.now, m.service, m.revision, result))

    # --- recovery -------------------------------------------------------------------------------------------

    def greet(self) -> bool:
        """Say hello to one more; then look at hand-overs under way until they are over. False: all has been seen."""
        if self.to_greet:
            self._greet(self.to_greet.pop())
            return True
        moving = [o for o in self.greeted.values() if o.state is WorkerState.HANDING_OVER]
        again = [(o.worker, self._target_of(o.worker)) for o in moving]
        again = [(worker, target) for worker, target in again if target in self.live]
        if not again or self.patience <= 0:
            return False
        self.patience -= 1
        for worker, target in again:
            self._greet(worker)
            self._greet(target)
        return True

    def _target_of(self, worker_id: str) -> str | None:
        worker = self.state.worker(worker_id)
        op = worker.op if worker is not None else None
        return op.target if op is not None and op.kind is OpKind.HAND_OVER else None

    def _greet(self, worker: str) -> None:
        process = self.world.living.get(worker)
        if process is None:
            if worker not in self.live:  # else its watcher tells
                self.world.forget(worker)
                self.greeted[worker] = Observed(worker)
        elif process.mute:
            self.world.excuse(worker)
            self.world.end(worker)
            self.world.forget(worker)
            self.greeted[worker] = Observed(worker, problem=_ended(worker))
        else:
            self.live.add(worker)
            self.greeted[worker] = process.hello()

    def recover(self) -> None:
        unseen = [w.id for w in self.state.workers if w.id not in self.greeted]
        observed = (*self.greeted.values(), *map(Observed, unseen))
        kept, added = [], []
        for name, (settings, model) in self.world.config.items():
            known = self.state.service(name)
            here = [o for o in observed if o.service == name and o.state is not None]
            if known is None:
                added.append(self._added(name, settings, model, here))
                continue
            stable = known.revision(known.stable)
            running = stable.model if stable is not None else model
            up = any(o.kind is not Kind.GATE and o.state in FOUND_UP for o in here)
            fresh = None if up else self.world.revision(name, running)
            kept.append(Kept(name, settings, known.config_model, fresh))
        self.take(events.Recovered(self.world.now, tuple(kept), tuple(added), observed, self.world.crashed))
        self.ready = True
        for name in [s.name for s in self.state.services if s.name not in self.world.config]:
            self.take(events.ServiceRemoved(self.world.now, name))
        for worker in sorted(self.live - {w.id for w in self.state.workers}):  # of a service that nobody knows any more
            self.world.excuse(worker)
            self.world.end(worker)
        early, self.early = self.early, []
        for event in early:
            self.take(replace(event, at=self.world.now))

    def _added(self, name: str, settings: Any, model: str, here: list[Observed]) -> ServiceAdded:
        last = max((o.revision.number for o in here if o.revision is not None), default=0)
        owner = max((o for o in here if o.owner), key=lambda o: o.epoch, default=None)
        if owner is not None and owner.kind is Kind.GATE:
            owner = next((o for o in here if o.worker == owner.points_to), None)
        revision: Revision | None = owner.revision if owner is not None else None
        if revision is None:
            revision = self.world.revision(name, model, number=1 + last)
        return ServiceAdded(self.world.now, name, settings, model, revision, last_revision=last)

    def find_journal(self) -> None:
        journal: Journal = self.world.journal
        stored = journal.read()
        last = tuple((s.name, s.last_revision) for s in stored.services)
        found = events.JournalFound(self.world.now, stored.next_worker, stored.next_swap, last)
        self.lost = False
        self.take(found)


def _ended(worker: str) -> Problem:
    return Problem(errors.WORKER_EXITED, f"{worker} ended")
