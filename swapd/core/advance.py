"""What a service needs next: given what is, and what is wanted, the operations to begin now.

`advance` is level-triggered. It never asks how a state came to be, so the forward way, the way back, a crash and
a first start all run through the same few rules, and being called once too often changes nothing:

1. A worker of the wanted revision is made ready, one operation at a time, once memory is reserved for it.
2. In place, memory is reserved only when the worker it replaces has let go: a gate holds its clients, it drains, and
   parks or stops.
3. The clients go to the wanted worker as soon as it has proved itself; where nobody serves, a gate holds them
   (`core.routing`).
4. Whoever is no longer wanted drains and is stopped.
"""

from __future__ import annotations

from swapd.core import errors
from swapd.core.commands import begin_return
from swapd.core.delivery import Then
from swapd.core.draft import TRANSFERS, Draft
from swapd.core.errors import Problem
from swapd.core.events import Exit, Measure
from swapd.core.evidence import Outcome
from swapd.core.model import RESTORE, Kind, OpKind, Revision, Service, Slot, Strategy, Swap, Worker
from swapd.core.routing import hold, is_pointed_to, is_target, release_gates, route, step_of
from swapd.core.stages import answering, proceed
from swapd.core.states import FORWARD, Phase, WorkerState
from swapd.core.turns import may_give, may_hold, may_take


def advance(d: Draft, name: str) -> None:
    """Begin whatever the service needs now."""
    if d.shuts_down(name):
        _shut_down(d, d.services[name])
        return
    if d.services[name].paused is not None:
        return
    proceed(d, name)
    _end_soak(d, d.services[name])
    _end_rollback(d, d.services[name])
    service = d.services[name]
    goal = _goal(service)
    leaving = _leaving(d, service)
    worker = _ensure(d, service, goal) if goal is not None else None
    if worker is not None:
        if _has_memory(d, worker):
            _make_ready(d, worker)
        else:
            _make_room(d, service, worker, leaving)
    if leaving is not None and _both_resident(d, service, leaving):
        _make_ready(d, leaving)  # a stable revision that died while its successor was being prepared
    answers = answering(d.services[name], goal)
    route(d, name, answers)
    _retire(d, name, goal)
    release_gates(d, name, answers)


def _goal(service: Service) -> Revision | None:
    """The revision that clients shall be served by."""
    swap = service.swap
    if swap is None:
        return service.revision(service.stable)
    return swap.source if swap.phase is Phase.ROLLING_BACK else swap.target


def _leaving(d: Draft, service: Service) -> Worker | None:
    """The worker that the goal's worker replaces, while a swap is between the two."""
    swap = service.swap
    if swap is None or swap.phase is Phase.SOAKING:
        return None
    other = swap.target if swap.phase is Phase.ROLLING_BACK else swap.source
    return d.worker_of(service.name, other.number) if other is not None else None


def _has_memory(d: Draft, worker: Worker) -> bool:
    """Its memory is reserved. A parked worker's reservation is only for what it keeps while parked."""
    reservation = d.reservations.get(worker.id)
    return reservation is not None and not (worker.state is WorkerState.PARKED and reservation.settled)


def _both_resident(d: Draft, service: Service, leaving: Worker) -> bool:
    swap = service.swap
    dual = swap is not None and swap.phase in FORWARD and swap.strategy is not Strategy.IN_PLACE
    return dual and _has_memory(d, leaving)


# --- 1. a worker is made ready ---------------------------------------------------------------------------------


def _ensure(d: Draft, service: Service, goal: Revision) -> Worker | None:
    """The goal's worker; begun if it is not there and it is known where it may stand."""
    worker = d.worker_of(service.name, goal.number)
    if worker is not None:
        return worker
    slot = service.slot(goal.number)
    if slot is None:
        if not service.measuring and (service.retry_at is None or d.at >= service.retry_at):
            d.set_service(service.name, measuring=True, retry_at=None)
            d.effects.append(Measure(service.name, goal.number))
        elif service.retry_at is not None:
            d.wake_at(service.name, service.retry_at)
        return None
    worker = d.add_worker(service.name, slot.kind, goal.number, service.retry_at or 0.0)
    if _memory_is_ours(d, service, goal):
        d.reserve(worker, slot)
    return worker


def _memory_is_ours(d: Draft, service: Service, goal: Revision) -> bool:
    """May the goal's memory be reserved at once? Yes, unless a swap's other worker still stands in its place."""
    swap = service.swap
    if swap is not None and swap.phase in FORWARD:
        return False  # `rollout` reserved it with the decision (dual), or _make_room does (in-place)
    others = [w for w in d.workers_of(service.name) if w.id in d.reservations and w.revision != goal.number]
    return not others and not _being_freed(d, service)


def _being_freed(d: Draft, service: Service) -> bool:
    """A process tree of this service that is not gone yet still holds memory."""
    return any(w.ending and w.id in d.reservations for w in d.workers_of(service.name))


def _make_ready(d: Draft, worker: Worker) -> None:
    """The next operation towards serving. At most one at a time."""
    if worker.op is not None or worker.ending or worker.can_serve:
        return
    if d.at < worker.not_before:
        d.wake_at(worker.service, worker.not_before)
    elif not worker.connected:
        d.run(OpKind.SPAWN, worker, step=step_of(d, worker, "spawn"))
    elif worker.state is WorkerState.PARKED or not (worker.confirmed and worker.warmed):
        if not _waits(d, worker.service, step_of(d, worker, "wait"), may_take(d, worker)):
            _take(d, worker)
    elif not worker.verified:
        d.run(OpKind.VERIFY, worker, step=step_of(d, worker, "verify"))


def _take(d: Draft, worker: Worker) -> None:
    """The next operation that takes memory, or sees whether it may."""
    if not worker.confirmed:
        service = d.services[worker.service]
        others = [w for w in d.workers_of(worker.service) if w.id != worker.id and w.kind is not Kind.GATE]
        patience_s = service.settings.drain_timeout_s if any(_going(service, w) for w in others) else 0.0
        d.run(OpKind.CONFIRM, worker, step=step_of(d, worker, "confirm"), deadline_s=patience_s)
    elif worker.state is WorkerState.PARKED:
        d.run(OpKind.WAKE, worker, step=step_of(d, worker, "wake"))
    elif worker.state in (WorkerState.SPAWNED, WorkerState.STAGED):
        d.run(OpKind.LOAD, worker, step=step_of(d, worker, "load"))
    else:
        d.run(OpKind.WARM, worker, step=step_of(d, worker, "warm"))


def _waits(d: Draft, name: str, step: str | None, whom: str | None) -> bool:
    """Whether somebody else has the device now; told in the swap that it holds up."""
    swap = d.services[name].swap
    told = swap is not None and any(s.name == step and s.status == "running" for s in swap.steps)
    if whom is not None and step is not None and not told:
        d.begin_step(name, step, f"for {whom}: a device has one load or release at a time")
    elif whom is None and told:
        d.end_step(name, step, "done")
    return whom is not None


def _going(service: Service, worker: Worker) -> bool:
    """It is about to give its memory back, but may first finish what is in flight, or wait for its turn."""
    swap = service.swap
    parties = (swap.source, swap.target) if swap is not None else ()
    wanted = {service.stable, *(revision.number for revision in parties if revision is not None)}
    draining = worker.op is not None and worker.op.kind is OpKind.DRAIN
    return worker.ending or draining or worker.revision not in wanted


# --- 2. room in place ------------------------------------------------------------------------------------------


def _make_room(d: Draft, service: Service, worker: Worker, leaving: Worker | None) -> None:
    """Bring the worker that stands in the way to let go, then reserve its memory for `worker`."""
    slot = service.slot(worker.revision)
    assert slot is not None
    if leaving is None or leaving.state is WorkerState.PARKED:
        if _being_freed(d, service):
            return
        d.reserve(worker, slot)
        if service.swap is not None and service.swap.phase in FORWARD:
            source = service.swap.source
            d.keep_for_return(worker, slot, service.slot(source.number) if source is not None else None)
        _make_ready(d, d.workers[worker.id])
        return
    forward = service.swap is not None and service.swap.phase in FORWARD
    if forward and (not _prepared(d, worker, slot) or answering(service, None) is not None):
        return  # before clients wait there is something to be done, or the swap is paused
    if d.server_of(service.name) == leaving:
        prefix = "" if forward else RESTORE
        if d.transferring(service.name) or not _waits(
            d, service.name, f"{prefix}wait", may_hold(d, service, slot, leaving)
        ):
            hold(d, service, f"{prefix}hold")
        return
    _let_go(d, service, leaving, forward=forward)


def _prepared(d: Draft, worker: Worker, slot: Slot) -> bool:
    """Everything is done that needs no device memory. Begins the next such operation otherwise: the model's own `stage`
    hook, where it has declared one, or its files into the page cache."""
    if worker.op is not None or _failed_before(d, worker):
        return False
    if not worker.connected:
        _make_ready(d, worker)
        return False
    if worker.state is WorkerState.SPAWNED and (slot.reads or stages(worker, slot)):
        d.run(OpKind.STAGE, worker, step="stage")
        return False
    return True


def stages(worker: Worker, slot: Slot) -> bool:
    """It has a `stage` hook that needs no device memory."""
    return slot.can_stage and "stage" in worker.hooks


def _failed_before(d: Draft, worker: Worker) -> bool:
    """The swap's first try, beside the old model, is not gone yet: clients are not held before it is."""
    others = (w for w in d.workers_of(worker.service) if w.revision == worker.revision and w.id != worker.id)
    return any(w.id in d.reservations for w in others)


def _let_go(d: Draft, service: Service, leaving: Worker, *, forward: bool) -> None:
    """Drain, then park or stop, as it was planned. The caller comes back until it is parked or gone."""
    if leaving.op is not None or leaving.ending or is_target(d, leaving):
        return
    prefix = "" if forward else RESTORE
    may_park = forward and service.swap is not None and service.swap.parks and leaving.can_park
    if leaving.state is WorkerState.QUIESCED and not leaving.drained:
        deadline_s = service.settings.drain_timeout_s
        d.run(OpKind.DRAIN, leaving, step=f"{prefix}drain", deadline_s=deadline_s)
    elif is_pointed_to(d, leaving):
        return  # by a gate that follows in a moment
    elif leaving.connected and _waits(d, service.name, f"{prefix}wait", may_give(d, leaving)):
        return
    elif may_park and leaving.state is WorkerState.QUIESCED:
        d.run(OpKind.PARK, leaving, step="park")
    else:
        d.stop(leaving, force=not leaving.connected, step=f"{prefix}stop")


# --- 4. whoever is no longer wanted ----------------------------------------------------------------------------


def _retire(d: Draft, name: str, goal: Revision | None) -> None:
    service = d.services[name]
    swap, server = service.swap, d.server_of(name)
    wanted = {goal.number} if goal is not None else set()
    if swap is not None and swap.phase is not Phase.ROLLING_BACK and swap.source is not None:
        wanted.add(swap.source.number)
    for worker in d.workers_of(name):
        if worker.kind is Kind.GATE or worker.revision in wanted or worker.ending or worker == server:
            continue
        if d.transferring(name) and worker.op is None and worker.state is WorkerState.QUIESCED:
            continue
        if worker.state is WorkerState.QUIESCED and not worker.drained:
            if worker.op is None:
                step = f"{RESTORE}drain" if swap is not None and swap.phase is Phase.ROLLING_BACK else None
                d.run(OpKind.DRAIN, worker, deadline_s=service.settings.drain_timeout_s, step=step)
        elif worker.op is None or worker.op.kind not in (OpKind.DRAIN, OpKind.HAND_OVER, OpKind.SOURCE_DEAD):
            if is_target(d, worker) or is_pointed_to(d, worker):
                continue
            in_no_haste = worker.state in (WorkerState.QUIESCED, WorkerState.PARKED)
            if not (in_no_haste and may_give(d, worker)):
                d.stop(worker, force=worker.state is not WorkerState.QUIESCED)


# --- the ends --------------------------------------------------------------------------------------------------


def _end_soak(d: Draft, service: Service) -> None:
    swap = service.swap
    if swap is None or swap.phase is not Phase.SOAKING or swap.soak_until is None:
        return
    delivery, finding = swap.delivery, swap.finding
    fails = finding is not None and finding.outcome is Outcome.FAIL
    if fails and finding is not None and delivery is not None and swap.source and delivery.on_fail is Then.ABORT:
        d.set_swap(service.name, error=Problem(errors.ANALYSIS_FAILED, finding.text))
        begin_return(d, service, Phase.FAILED, f"in its soak: {finding.text}")
    elif d.at >= swap.soak_until:
        d.end_step(service.name, "soak", "done")
        d.finish_swap(service.name, Phase.SUCCEEDED, reason=f"{swap.target.model} serves")
    else:
        d.wake_at(service.name, swap.soak_until)


def _end_rollback(d: Draft, service: Service) -> None:
    """A swap that goes back has ended once the old revision serves again, or cannot and the candidate is gone."""
    swap = service.swap
    if swap is None or swap.phase is not Phase.ROLLING_BACK or d.transferring(service.name):
        return
    server, owner = d.server_of(service.name), d.owner_of(service.name)
    alone = owner is None or owner.split is None
    served = alone and server is not None and swap.source is not None and server.revision == swap.source.number
    gone = not any(w.revision == swap.target.number for w in d.workers_of(service.name))
    if served or (gone and _hopeless(service, swap)):
        assert swap.end_phase is not None
        reason = swap.reason
        if not served and swap.source is not None:
            reason += f"; {swap.source.model} does not serve either, and is being retried"
        d.finish_swap(service.name, swap.end_phase, reason=reason)


def _hopeless(service: Service, swap: Swap) -> bool:
    """The old revision has never run, or has failed to come back: the swap does not wait for it."""
    return swap.source is None or service.slot(swap.source.number) is None or service.problem is not None


def _shut_down(d: Draft, service: Service) -> None:
    """Drain whoever owns the listeners, end everything else; when all are gone, a service that leaves is dropped, and a
    daemon that stops may exit. What a gate relays to is drained after it."""
    why = "the daemon was stopped" if d.stopping else "the service was removed"
    if service.swap is not None:
        swap = service.swap
        if swap.phase is Phase.SOAKING:
            d.finish_swap(service.name, Phase.SUCCEEDED, reason=f"{swap.target.model} serves; {why}")
        else:
            if swap.phase is not Phase.ROLLING_BACK:
                d.set_phase(service.name, Phase.ROLLING_BACK, reason=why)
            d.finish_swap(service.name, swap.end_phase or Phase.CANCELED)
    workers = d.workers_of(service.name)
    for worker in workers:
        if worker.ending:
            continue
        busy = worker.op is not None and worker.op.kind in (OpKind.DRAIN, *TRANSFERS)
        if busy or is_target(d, worker) or is_pointed_to(d, worker):
            continue
        serving = worker.state in (WorkerState.SERVING, WorkerState.QUIESCED)
        if serving and not worker.drained:
            d.run(
                OpKind.DRAIN,
                worker,
                deadline_s=service.settings.drain_timeout_s,
                force=worker.id == service.owner,
            )
        elif worker.id != service.owner or len(workers) == 1:  # the owner last: what others finish follows to it
            d.stop(worker, force=not serving)
    if service.leaving and not d.workers_of(service.name):
        del d.services[service.name]
    if d.stopping and not d.workers and not any(isinstance(e, Exit) for e in d.effects):
        d.effects.append(Exit())
