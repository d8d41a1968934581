"""The state being built by one step, and the effects that come with it.

Only `core.rollout` and the modules that carry out a step for it use it; outside a step the state is frozen.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from swapd.core.delivery import Split
from swapd.core.errors import Problem
from swapd.core.events import Effect, Outcome, Publish, Run, WakeAt
from swapd.core.ledger import return_of
from swapd.core.model import (
    Kind,
    Op,
    OpKind,
    Reservation,
    Service,
    Slot,
    State,
    StepRecord,
    Swap,
    Worker,
)
from swapd.core.states import SWAP_TABLE, TERMINAL, Phase, WorkerState

# Operations after which somebody else answers the clients: while one is in flight, no other is begun.
TRANSFERS: Final = frozenset({OpKind.ADOPT, OpKind.HAND_OVER, OpKind.POINT, OpKind.SOURCE_DEAD, OpKind.TARGET_DEAD})


class Draft:
    def __init__(self, state: State, at: float) -> None:
        self.at = at
        self.before = state
        self.services = {s.name: s for s in state.services}
        self.workers = {w.id: w for w in state.workers}
        self.reservations = {r.worker_id: r for r in state.reservations}
        self.next_op = state.next_op
        self.next_worker = state.next_worker
        self.next_swap = state.next_swap
        self.stopping = state.stopping
        self.effects: list[Effect] = []
        self.wakes: dict[str, float] = {}
        self.finished_swaps: list[Swap] = []

    def values(self) -> tuple[object, ...]:
        """All that `advance` goes by, for comparison."""
        return dict(self.services), dict(self.workers), dict(self.reservations)

    # --- values ------------------------------------------------------------------------------------------

    def set_service(self, name: str, **changes: Any) -> Service:
        self.services[name] = service = replace(self.services[name], **changes)
        return service

    def set_worker(self, worker_id: str, **changes: Any) -> Worker:
        self.workers[worker_id] = worker = replace(self.workers[worker_id], **changes)
        return worker

    def set_swap(self, name: str, **changes: Any) -> Swap:
        swap = self.services[name].swap
        assert swap is not None
        swap = replace(swap, **changes)
        self.set_service(name, swap=swap)
        return swap

    def workers_of(self, service: str) -> list[Worker]:
        return [w for w in self.workers.values() if w.service == service]

    def worker_of(self, service: str, revision: int) -> Worker | None:
        """The live worker of a revision: there is at most one that is not being stopped."""
        return next((w for w in self.workers_of(service) if w.revision == revision and not w.ending), None)

    def gates_of(self, service: str) -> list[Worker]:
        return [w for w in self.workers_of(service) if w.kind is Kind.GATE and not w.ending]

    def owner_of(self, service: str) -> Worker | None:
        return self.workers.get(self.services[service].owner or "")

    def server_of(self, service: str) -> Worker | None:
        """As `State.server_of`."""
        owner = self.owner_of(service)
        return self.workers.get(owner.points_to or "") if owner is not None and owner.kind is Kind.GATE else owner

    def shuts_down(self, service: str) -> bool:
        return self.stopping or self.services[service].leaving

    def transferring(self, service: str) -> bool:
        return any(w.op is not None and w.op.kind in TRANSFERS for w in self.workers_of(service))

    # --- workers -----------------------------------------------------------------------------------------

    def add_worker(self, service: str, kind: Kind, revision: int, not_before: float) -> Worker:
        name = f"{service}-gate-{self.next_worker}" if kind is Kind.GATE else f"{service}-{self.next_worker}"
        self.next_worker += 1
        worker = Worker(name, service, kind, revision, WorkerState.SPAWNED, not_before=not_before)
        self.workers[name] = worker
        return worker

    def settle_roles(self, service: str) -> None:
        """Who owns the listeners, and who answers behind a gate, serves; who did so before has what is in flight to
        finish."""
        server = self.server_of(service)
        owner = self.owner_of(service)
        split = owner.split if owner is not None else None
        serving = {
            self.services[service].owner,
            server.id if server is not None else None,
            split.worker if split is not None and not split.shadow else None,
        }
        for worker in self.workers_of(service):
            if worker.id in serving and worker.state in (WorkerState.LOADED, WorkerState.QUIESCED):
                self.set_worker(worker.id, state=WorkerState.SERVING, drained=False)
            elif worker.id not in serving and worker.state is WorkerState.SERVING:
                self.set_worker(worker.id, state=WorkerState.QUIESCED, drained=False)

    def reserve(self, worker: Worker, slot: Slot) -> None:
        self.reservations[worker.id] = slot.promise(worker.id, worker.service)
        self.keep_nothing_for_return(worker.service)

    def keep_for_return(self, worker: Worker, slot: Slot, left: Slot | None) -> None:
        """What the revision that made room needs beyond its successor stays promised until the swap has ended, or
        somebody else might take it and the way back would be closed. Settled: it is not about to be taken."""
        if left is None or left.need_bytes is None or slot.need_bytes is None:
            return
        shared = tuple(device for device in left.devices if device in slot.devices)
        alone = tuple(device for device in left.devices if device not in slot.devices)
        for devices, extra in ((shared, left.need_bytes - slot.need_bytes), (alone, left.need_bytes)):
            if devices and extra > 0:
                name = return_of(worker.service, devices if devices is alone else ())
                kept = Reservation(name, worker.service, devices[0], extra, settled=True, others=devices[1:])
                self.reservations[name] = kept

    def keep_nothing_for_return(self, service: str) -> None:
        kept = [r.worker_id for r in self.reservations.values() if r.for_return and r.service == service]
        for name in kept:
            del self.reservations[name]

    def run(
        self,
        kind: OpKind,
        worker: Worker,
        *,
        step: str | None = None,
        target: str | None = None,
        epoch: int = 0,
        deadline_s: float = 0.0,
        force: bool = False,
        turn_away: bool = False,
        split: Split | None = None,
    ) -> None:
        """Begin an operation on a worker; what it was doing before is void."""
        op = Op(self.next_op, kind, worker.service, worker.id, target, epoch, deadline_s, force, step, turn_away, split)
        self.next_op += 1
        service = self.services[worker.service]
        self.effects.append(Run(op, service.slot(worker.revision)))
        if kind is OpKind.SUCCESSOR:  # beside whatever else the worker does; nothing waits for it
            return
        self.set_worker(worker.id, op=op)
        if step is not None:
            self.begin_step(worker.service, step)

    def stop(self, worker: Worker, *, force: bool, step: str | None = None) -> None:
        if worker.ending:
            return
        if not worker.connected and worker.op is None:  # never spawned: nothing on the host to end
            del self.workers[worker.id]
            self.reservations.pop(worker.id, None)
            return
        self.set_worker(worker.id, state=WorkerState.STOPPING)
        self.run(OpKind.STOP, worker, force=force, step=step)

    def wake_at(self, service: str, at: float) -> None:
        """Look at the service again then. There is one timer a service, so the earliest of a step's counts."""
        self.wakes[service] = min(at, self.wakes.get(service, at))

    # --- swaps -------------------------------------------------------------------------------------------

    def begin_step(self, service: str, name: str, detail: str = "") -> None:
        swap = self.services[service].swap
        if swap is None or swap.phase in TERMINAL:
            return
        self.set_swap(service, steps=(*swap.steps, StepRecord(name, "running", self.at, detail=detail)))

    def end_step(self, service: str, name: str | None, status: str, detail: str = "") -> None:
        """Close the newest running step of this name."""
        swap = self.services[service].swap
        if swap is None or name is None:
            return
        steps = list(swap.steps)
        for index in reversed(range(len(steps))):
            if steps[index].name == name and steps[index].status == "running":
                steps[index] = replace(
                    steps[index], status=status, finished_at=self.at, detail=detail or steps[index].detail
                )
                self.set_swap(service, steps=tuple(steps))
                return

    def set_phase(self, service: str, phase: Phase, **changes: Any) -> None:
        swap = self.services[service].swap
        assert swap is not None
        if phase not in SWAP_TABLE[swap.phase]:
            raise AssertionError(f"swap {swap.id}: {swap.phase.value} may not become {phase.value}")
        self.set_swap(service, phase=phase, **changes)

    def fail_swap(self, service: str, problem: Problem, log_tail: tuple[str, ...], end: Phase) -> None:
        """The swap goes back to where it came from. Does nothing once it is on the way."""
        swap = self.services[service].swap
        if swap is None or swap.phase in TERMINAL or swap.phase is Phase.ROLLING_BACK:
            return
        steps = tuple(
            replace(s, status="failed" if end is Phase.FAILED else "canceled", finished_at=self.at)
            if s.status == "running"
            else s
            for s in swap.steps
        )
        self.set_phase(
            service,
            Phase.ROLLING_BACK,
            end_phase=end,
            error=problem,
            log_tail=log_tail,
            reason=problem.message,
            steps=steps,
        )

    def end_candidate(self, service: str) -> None:
        """Kill a candidate that clients do not reach; one that answers them is retired by `advance`."""
        swap = self.services[service].swap
        candidate = self.worker_of(service, swap.target.number) if swap is not None else None
        server = self.server_of(service)
        if candidate is None or candidate == server or self.transferring(service):
            return
        if not any(g.split is not None and g.split.worker == candidate.id for g in self.gates_of(service)):
            self.stop(candidate, force=True)

    def finish_swap(self, service: str, phase: Phase, **changes: Any) -> None:
        self.set_phase(service, phase, finished_at=self.at, **changes)
        swap = self.services[service].swap
        assert swap is not None
        steps = tuple(
            replace(s, status="done" if phase is Phase.SUCCEEDED else "canceled", finished_at=self.at)
            if s.status == "running"
            else s
            for s in swap.steps
        )
        self.keep_nothing_for_return(service)
        self.finished_swaps.append(replace(swap, steps=steps))
        self.set_service(service, swap=None)

    # --- the end of the step -----------------------------------------------------------------------------

    def outcome(self, reply: Swap | Problem | None = None) -> Outcome:
        state = State(
            tuple(self.services.values()),
            tuple(self.workers.values()),
            tuple(self.reservations.values()),
            self.next_op,
            self.next_worker,
            self.next_swap,
            self.stopping,
        )
        wakes = (WakeAt(service, at) for service, at in self.wakes.items())
        return Outcome(state, (*self.effects, *wakes), tuple(self.finished_swaps), reply)

    def publish(self, event: str, **body: Any) -> None:
        self.effects.append(Publish(event, body))
