"""`step(state, event) -> Outcome`: the only way the daemon's state changes.

Pure and total: no I/O, no clock, no randomness, and an event that makes no sense here (a late result, a worker
that is gone) changes nothing. What an event *means* is decided here; what is to be done about it, in `advance`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from swapd.core import errors, events, placement
from swapd.core.advance import FORWARD, advance
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.events import Amend, Event, Measurement, Outcome
from swapd.core.model import (
    Kind,
    Op,
    OpKind,
    Revision,
    Service,
    Slot,
    State,
    Strategy,
    Swap,
    Worker,
)
from swapd.core.states import Phase, WorkerState

KEPT_REVISIONS: Final = 32
GATE_RETRY_S: Final = 1.0
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0


def step(state: State, event: Event) -> Outcome:
    """The state after `event`, what to do about it, and the answer if it was a command."""
    draft = Draft(state, event.at)
    handler: Callable[[Draft, Any], Swap | Problem | str | None] = _HANDLERS[type(event)]
    answer = handler(draft, event)
    if isinstance(answer, Problem):
        return Outcome(state, reply=answer)  # a refusal leaves everything untouched
    for name in list(draft.services):
        advance(draft, name)
    _tell(draft)
    reply = answer
    if isinstance(answer, str):  # the service whose swap answers the command
        service = draft.services[answer]
        reply = service.swap or next((s for s in reversed(draft.finished_swaps) if s.service == answer), None)
    return draft.outcome(reply if not isinstance(reply, str) else None)


def backoff_s(failures: int) -> float:
    """The pause before the next start: 0.5 s, 1 s, 2 s ... 30 s."""
    return min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** max(0, failures - 1))


# --- commands --------------------------------------------------------------------------------------------------


def _service_added(d: Draft, event: events.ServiceAdded) -> None:
    known = [r for r in (event.previous, event.revision) if r is not None]
    d.services[event.name] = Service(
        event.name,
        event.settings,
        event.config_model,
        revisions=tuple(known),
        stable=event.revision.number,
        previous=event.previous.number if event.previous else 0,
        epoch=event.epoch,
    )


def _settings_changed(d: Draft, event: events.SettingsChanged) -> None:
    if event.service in d.services:
        d.set_service(event.service, settings=event.settings)


def _swap_requested(d: Draft, event: events.SwapRequested) -> Problem | str:
    planned = plan(d.before, event)
    if isinstance(planned, Problem):
        return planned
    service = d.services[event.service]
    swap = service.swap
    if swap is not None:  # soaking: a new swap ends it, or returns to the revision that it kept
        if _is_return(d, service, event):
            _begin_return(d, service, Phase.CANCELED, f"returned by {event.actor}", event.actor)
            return event.service
        d.end_step(service.name, "soak", "done")
        d.finish_swap(service.name, Phase.SUCCEEDED, reason="its soak was ended by a new swap")
        service = d.services[event.service]
    _drop_failing_stable(d, service)
    number = max((r.number for r in service.revisions), default=0) + 1
    target = replace(event.candidate, number=number)
    slot = Slot(planned.device, planned.need_bytes, event.measurement.can_stage)
    source = service.revision(service.stable)
    swap = Swap(
        d.next_swap,
        service.name,
        source,
        target,
        Strategy.DUAL if planned.strategy is placement.Strategy.START else Strategy(planned.strategy.value),
        planned.why,
        Phase.PREPARING,
        event.actor,
        event.reason,
        d.at,
        reason=f"{target.model} is being prepared",
    )
    d.next_swap += 1
    d.set_service(
        service.name,
        swap=swap,
        revisions=(*service.revisions, target)[-KEPT_REVISIONS:],
        slots=(*((n, s) for n, s in service.slots if n == service.stable), (number, slot)),
        retry_at=None,
        measuring=False,
    )
    worker = d.add_worker(service.name, Kind.DIRECT, number, 0.0)
    if swap.strategy is Strategy.DUAL:
        d.reserve(worker, slot)
    return service.name


def plan(state: State, event: events.SwapRequested) -> placement.Placement | Problem:
    """What `swap` would do with this request now: its placement, or the refusal. Changes nothing."""
    service = state.service(event.service)
    if state.stopping:
        return Problem(errors.SHUTTING_DOWN, "swapd is shutting down; no swap is begun.")
    if service is None:
        return Problem(errors.UNKNOWN_SERVICE, f"There is no service {event.service!r}.")
    swap = service.swap
    if swap is not None and swap.phase is not Phase.SOAKING:
        text = (
            f"Swap {swap.id} of {service.name} to {swap.target.model} is under way ({swap.phase.value});"
            f" wait for it (swapd-cli wait {service.name}) or cancel it (swapd-cli cancel {service.name})."
        )
        return Problem(errors.SWAP_IN_PROGRESS, text, {"swap": swap.id, "phase": swap.phase.value})
    stable = service.revision(service.stable)
    if stable is not None and stable.same_content(event.candidate) and not event.again and service.owner is not None:
        text = (
            f"{service.name} already serves {stable.model} (revision {stable.number}) with this content and these"
            f" settings; to start it afresh: swapd-cli restart {service.name}."
        )
        serving = state.worker(service.owner)
        if serving is not None and serving.revision == stable.number:
            return Problem(errors.ALREADY_SERVING, text, {"revision": stable.number})
    return placement.place(_placement_request(state, service, event))


def _placement_request(state: State, service: Service, event: events.SwapRequested) -> placement.PlacementRequest:
    workers = [w for w in state.workers_of(service.name) if w.kind is Kind.DIRECT]
    reserved = {r.worker_id for r in state.reservations}
    serving = tuple(w.id for w in workers if w.revision == service.stable and w.can_serve)
    held = tuple(w.id for w in workers if w.id in reserved and w.id not in serving)
    wish = event.strategy or service.settings.strategy
    max_outage_s = event.max_outage_s if event.max_outage_s is not None else service.settings.max_outage_s
    names = {r.number: r.model for r in service.revisions}
    return placement.PlacementRequest(
        service=service.name,
        model=event.candidate.model,
        footprint=event.measurement.footprint,
        readings=event.measurement.readings,
        reservations=state.reservations,
        incumbents=serving,
        retiring=held,
        wish=placement.Strategy(wish.value),
        max_outage_s=max_outage_s,
        expected=event.measurement.expected,
        can_park=any("park" in w.hooks for w in workers if w.id in serving),
        model_of=tuple((w.id, names.get(w.revision, w.id)) for w in workers),
    )


def _is_return(d: Draft, service: Service, event: events.SwapRequested) -> bool:
    source = service.swap.source if service.swap is not None else None
    if source is None or event.again or not source.same_content(event.candidate):
        return False
    worker = d.worker_of(service.name, source.number)
    return worker is not None and (worker.can_serve or worker.state is WorkerState.PARKED)


def _drop_failing_stable(d: Draft, service: Service) -> None:
    """A stable revision that does not come up makes way: it is not retried while its successor is prepared."""
    worker = d.worker_of(service.name, service.stable)
    if worker is not None and not worker.can_serve:
        d.stop(worker, force=True)


def _return_requested(d: Draft, event: events.ReturnRequested) -> Problem | str:
    service = d.services.get(event.service)
    if service is None:
        return Problem(errors.UNKNOWN_SERVICE, f"There is no service {event.service!r}.")
    swap = service.swap
    if event.only_soaking:
        if swap is None or swap.phase is not Phase.SOAKING or swap.source is None:
            text = f"{service.name} has no soak to return from; to swap to another model: swapd-cli swap."
            return Problem(errors.NOTHING_TO_ROLL_BACK, text)
        _begin_return(d, service, Phase.CANCELED, f"rolled back by {event.actor}", event.actor)
        return service.name
    if swap is None:
        return Problem(errors.NOTHING_TO_CANCEL, f"No swap of {service.name} is under way.")
    if swap.phase is Phase.SOAKING:
        _begin_return(d, service, Phase.CANCELED, f"canceled by {event.actor}", event.actor)
    elif swap.phase is not Phase.ROLLING_BACK:
        why = f"canceled by {event.actor}" + (f": {event.reason}" if event.reason else "")
        d.fail_swap(service.name, Problem(errors.CANCELED, why), (), Phase.CANCELED)
        _end_candidate(d, service.name)
    return service.name


def _begin_return(d: Draft, service: Service, end: Phase, why: str, actor: str) -> None:
    """From a soak back to the old revision."""
    swap = service.swap
    assert swap is not None
    assert swap.source is not None
    d.end_step(service.name, "soak", "canceled")
    d.set_phase(service.name, Phase.ROLLING_BACK, end_phase=end, reason=why)
    d.set_service(service.name, stable=swap.source.number, previous=0)


def _shutdown_requested(d: Draft, event: events.ShutdownRequested) -> None:
    d.stopping = True


# --- results ---------------------------------------------------------------------------------------------------


def _measured(d: Draft, event: events.Measured) -> None:
    """The figures for a first start are here: place it, or try again later."""
    service = d.services.get(event.service)
    if service is None or not service.measuring:
        return
    revision = service.revision(event.revision)
    d.set_service(event.service, measuring=False)
    if revision is None or service.slot(event.revision) is not None:
        return
    placed = event.result if isinstance(event.result, Problem) else _place_start(d, service, revision, event.result)
    if isinstance(placed, Problem):
        _postpone(d, service.name, placed)
        return
    assert isinstance(event.result, Measurement)
    slot = Slot(placed.device, placed.need_bytes, event.result.can_stage)
    d.set_service(event.service, slots=(*service.slots, (event.revision, slot)))


def _place_start(d: Draft, service: Service, revision: Revision, m: Measurement) -> placement.Placement | Problem:
    return placement.place(
        placement.PlacementRequest(
            service=service.name,
            model=revision.model,
            footprint=m.footprint,
            readings=m.readings,
            reservations=tuple(d.reservations.values()),
        )
    )


def _postpone(d: Draft, service: str, problem: Problem) -> None:
    failures = d.services[service].failures + 1
    d.set_service(service, failures=failures, problem=problem, retry_at=d.at + backoff_s(failures))


def _op_done(d: Draft, event: events.OpDone) -> None:
    worker = _worker_with_op(d, event.op)
    if worker is None or worker.op is None:
        return
    op = worker.op
    if op.kind is OpKind.STOP:
        return  # its end is WorkerExited, when the whole tree is gone
    d.end_step(op.service, op.step, "done", str(event.result.get("detail", "")))
    d.set_worker(worker.id, op=None)
    match op.kind:
        case OpKind.SPAWN:
            state = WorkerState.LOADED if worker.kind is Kind.GATE else WorkerState.SPAWNED
            hooks = frozenset(event.result.get("hooks", ()))
            d.set_worker(worker.id, connected=True, hooks=hooks, state=state)
        case OpKind.STAGE:
            d.set_worker(worker.id, state=WorkerState.STAGED)
        case OpKind.CONFIRM:
            d.set_worker(worker.id, confirmed=True)
        case OpKind.LOAD:
            hooks = frozenset(event.result.get("hooks", worker.hooks))
            d.set_worker(worker.id, state=WorkerState.LOADED, hooks=hooks)
        case OpKind.WAKE:
            d.set_worker(worker.id, state=WorkerState.LOADED, warmed=True)
        case OpKind.WARM:
            d.set_worker(worker.id, warmed=True)
        case OpKind.VERIFY:
            d.set_worker(worker.id, verified=True, ready_at=d.at)
            _settle(d, worker.id)
        case OpKind.ADOPT:
            _owns(d, worker, op.epoch)
            _served(d, op, event.result)
        case OpKind.HAND_OVER | OpKind.TARGET_DEAD | OpKind.SOURCE_DEAD:
            _transferred(d, worker, op, event)
        case OpKind.DRAIN:
            _drained(d, worker, int(event.result.get("cut", 0)))
        case OpKind.PARK:
            d.set_worker(worker.id, state=WorkerState.PARKED, confirmed=False, verified=False)
            reservation = d.reservations.get(worker.id)
            if reservation is not None:  # what it keeps is what is measured
                d.reservations[worker.id] = replace(reservation, bytes=None, settled=True)
        case _:
            pass


def _worker_with_op(d: Draft, op: int) -> Worker | None:
    return next((w for w in d.workers.values() if w.op is not None and w.op.id == op), None)


def _settle(d: Draft, worker_id: str) -> None:
    reservation = d.reservations.get(worker_id)
    if reservation is not None:
        d.reservations[worker_id] = replace(reservation, settled=True)


def _owns(d: Draft, worker: Worker, epoch: int) -> None:
    service = d.services[worker.service]
    old = d.workers.get(service.owner or "")
    if old is not None and old.id != worker.id and old.state is WorkerState.SERVING:
        d.set_worker(old.id, state=WorkerState.QUIESCED, drained=False)
    d.set_worker(worker.id, state=WorkerState.SERVING, drained=False)
    d.set_service(worker.service, owner=worker.id, epoch=max(epoch, service.epoch))


def _transferred(d: Draft, worker: Worker, op: Op, event: events.OpDone) -> None:
    if op.kind is OpKind.TARGET_DEAD:
        _owns(d, worker, op.epoch)
        return
    if op.kind is OpKind.SOURCE_DEAD:
        if event.result.get("started") and event.result.get("listeners"):
            _owns(d, worker, op.epoch)
            _served(d, op, event.result)
        return  # otherwise nobody owns the listeners, and `advance` gives them to it
    target = d.workers.get(op.target or "")
    if target is None:
        return
    _owns(d, target, op.epoch)
    _served(d, replace(op, worker=target.id), event.result)


def _served(d: Draft, op: Op, result: Any) -> None:
    """A front has become the owner: what that means for the swap."""
    worker = d.workers[op.worker]
    service = d.services[worker.service]
    swap = service.swap
    if worker.kind is Kind.GATE:
        if swap is not None and "quiesced_at" in result:
            d.set_swap(service.name, held_at_mono_s=float(result["quiesced_at"]))
        return
    if service.failures or service.problem is not None:
        d.set_service(service.name, problem=None)
    if swap is None or swap.phase not in FORWARD or worker.revision != swap.target.number:
        return
    started_at, quiesced_at = result.get("started_at"), result.get("quiesced_at")
    cutover_ms = outage_ms = None
    if started_at is not None:
        if quiesced_at is not None:
            cutover_ms = round((started_at - quiesced_at) * 1000, 3)
        since = swap.held_at_mono_s if swap.held_at_mono_s is not None else quiesced_at
        outage_ms = round((started_at - since) * 1000, 3) if since is not None else None
    if swap.phase is Phase.PREPARING:
        d.set_phase(service.name, Phase.PROGRESSING)
    soak_until = d.at + service.settings.soak_s
    d.set_phase(
        service.name,
        Phase.SOAKING,
        cutover_ms=cutover_ms,
        outage_ms=outage_ms,
        soak_until=soak_until,
        reason=f"{swap.target.model} serves",
    )
    d.begin_step(service.name, "soak")
    previous = swap.source.number if swap.source is not None else 0
    d.set_service(service.name, stable=swap.target.number, previous=previous, failures=0, problem=None, retry_at=None)


def _drained(d: Draft, worker: Worker, cut: int) -> None:
    service = d.services[worker.service]
    if service.owner == worker.id and not d.stopping:
        return  # it became the owner again meanwhile
    d.set_worker(worker.id, drained=True)
    if not cut:
        return
    swap = service.swap
    if swap is not None and worker.revision in (swap.target.number, swap.source.number if swap.source else 0):
        d.set_swap(service.name, cut_requests=swap.cut_requests + cut)
    else:
        d.effects.append(Amend(service.name, worker.revision, cut))


def _op_failed(d: Draft, event: events.OpFailed) -> None:
    worker = _worker_with_op(d, event.op)
    if worker is None or worker.op is None:
        return
    op = worker.op
    d.end_step(op.service, op.step, "failed", event.problem.message)
    if op.kind is OpKind.HAND_OVER:
        _hand_over_failed(d, worker, op, event)
        return
    d.set_worker(worker.id, op=None)
    match op.kind:
        case OpKind.STOP:
            # Something of the tree cannot be ended (a process in the kernel): its memory stays reserved, and it is
            # asked again at the next step.
            d.set_worker(worker.id, state=WorkerState.QUIESCED, drained=True, verified=False)
            d.set_service(op.service, problem=event.problem)
        case OpKind.DRAIN:
            _drained(d, worker, 0)
        case OpKind.PARK:
            d.stop(d.workers[worker.id], force=False)
        case OpKind.CONFIRM if _stop_parked(d, worker):
            pass
        case _:
            _worker_failed(d, worker, event.problem, event.log_tail)


def _stop_parked(d: Draft, worker: Worker) -> bool:
    """Parking freed too little: stop what is parked, and measure again."""
    parked = [w for w in d.workers_of(worker.service) if w.state is WorkerState.PARKED and w.id != worker.id]
    for other in parked:
        d.stop(other, force=False)
    return bool(parked)


def _hand_over_failed(d: Draft, source: Worker, op: Op, event: events.OpFailed) -> None:
    """A target that did not take the clients in time is not fit to serve them.

    HAND_OVER_FAILED means that the source has resumed. Anything else leaves it open who reads: the source may
    resume only on the target's proven death (TARGET_DEAD, once WorkerExited tells it), so its operation stays.
    """
    if event.problem.code == errors.HAND_OVER_FAILED:
        d.set_worker(source.id, op=None)
    target = d.workers.get(op.target or "")
    if target is not None:
        _worker_failed(d, target, event.problem, event.log_tail)
    else:
        d.run(OpKind.TARGET_DEAD, d.workers[source.id], epoch=op.epoch)


def _worker_failed(d: Draft, worker: Worker, problem: Problem, log_tail: tuple[str, ...]) -> None:
    """A worker is of no use any more. A candidate's failure is its swap's; another's is retried with backoff."""
    current = d.workers.get(worker.id)
    if current is not None:
        d.stop(current, force=True)
    service = d.services[worker.service]
    swap = service.swap
    if (
        swap is not None
        and swap.phase in FORWARD
        and (worker.revision == swap.target.number or (worker.kind is Kind.GATE and swap.strategy is Strategy.IN_PLACE))
    ):
        d.fail_swap(worker.service, problem, log_tail, Phase.FAILED)
        _end_candidate(d, worker.service)
    elif worker.kind is Kind.GATE:
        _next_gate(d, worker)
    else:
        _postpone(d, worker.service, problem)


def _next_gate(d: Draft, dead: Worker) -> None:
    """A gate that never came up is not begun again in a tight loop."""
    if not dead.connected and d.gate_of(dead.service) is None:
        d.add_worker(dead.service, Kind.GATE, 0, d.at + GATE_RETRY_S)


def _end_candidate(d: Draft, name: str) -> None:
    """Kill a candidate that clients have not reached; one that owns them is retired by `advance`."""
    service = d.services[name]
    swap = service.swap
    if swap is None:
        return
    candidate = d.worker_of(name, swap.target.number)
    if candidate is not None and candidate.id != service.owner and not d.transferring(name):
        d.stop(candidate, force=True)


def _worker_exited(d: Draft, event: events.WorkerExited) -> None:
    worker = d.workers.pop(event.worker, None)
    if worker is None:
        return
    d.reservations.pop(worker.id, None)
    service = d.services[worker.service]
    was_owner = service.owner == worker.id
    if was_owner:
        service = d.set_service(worker.service, owner=None)
    if worker.op is not None:
        expected = worker.op.kind is OpKind.STOP
        d.end_step(
            worker.service, worker.op.step, "done" if expected else "failed", "" if expected else event.problem.message
        )
    _end_transfer(d, worker, event.at)
    if worker.ending or d.stopping:
        return
    swap = service.swap
    if worker.kind is Kind.GATE:
        if swap is not None and swap.strategy is Strategy.IN_PLACE and swap.phase is Phase.PREPARING:
            _worker_failed(d, worker, event.problem, event.log_tail)
        else:
            _next_gate(d, worker)
        return
    if swap is not None and worker.revision == swap.target.number:
        if swap.phase is Phase.SOAKING and swap.source is not None:
            d.set_swap(service.name, error=event.problem, log_tail=event.log_tail)
            why = f"{swap.target.model} ended during the soak: {event.problem.message}"
            _begin_return(d, service, Phase.FAILED, why, "swapd")
            return
        if swap.phase in FORWARD:
            d.fail_swap(service.name, event.problem, event.log_tail, Phase.FAILED)
            return
    if worker.revision == service.stable:
        _restart(d, service, worker, event.problem)


def _end_transfer(d: Draft, dead: Worker, at: float) -> None:
    """A party of a hand-over is proven dead: tell the other, so that somebody reads the clients again."""
    op = dead.op
    if op is not None and op.kind is OpKind.HAND_OVER:
        target = d.workers.get(op.target or "")
        if target is not None and not target.ending:
            d.run(OpKind.SOURCE_DEAD, target, epoch=op.epoch, step=op.step)
    for other in list(d.workers.values()):
        if other.op is not None and other.op.kind is OpKind.HAND_OVER and other.op.target == dead.id:
            d.end_step(other.service, other.op.step, "failed", "the target of the hand-over ended")
            d.run(OpKind.TARGET_DEAD, other, epoch=other.op.epoch)


def _restart(d: Draft, service: Service, dead: Worker, problem: Problem) -> None:
    """The serving revision's worker ended by itself: begin another, with backoff, in the same memory."""
    calm = dead.ready_at is not None and d.at - dead.ready_at > 2 * BACKOFF_MAX_S
    failures = 1 if calm else service.failures + 1
    pause_s = 0.0 if failures == 1 else backoff_s(failures - 1)
    d.set_service(service.name, failures=failures, problem=problem, retry_at=d.at + pause_s)
    slot = service.slot(dead.revision)
    if slot is not None and d.worker_of(service.name, dead.revision) is None:
        worker = d.add_worker(service.name, Kind.DIRECT, dead.revision, d.at + pause_s)
        d.reserve(worker, slot)


def _successor_needed(d: Draft, event: events.SuccessorNeeded) -> None:
    worker = d.workers.get(event.worker)
    if worker is None:
        return
    service = d.services[worker.service]
    if service.owner is not None and service.owner != worker.id:
        d.run(OpKind.SUCCESSOR, worker, target=service.owner, epoch=service.epoch)


def _peak_seen(d: Draft, event: events.PeakSeen) -> None:
    service = d.services.get(event.service)
    if service is None or service.swap is None:
        return
    peaks = dict(service.swap.peak_memory_bytes)
    peaks[event.device] = max(event.used_bytes, peaks.get(event.device, 0))
    d.set_swap(event.service, peak_memory_bytes=tuple(sorted(peaks.items())))


def _timer_fired(d: Draft, event: events.TimerFired) -> None:
    """Nothing but the time has changed; `advance` looks at the clock."""


_HANDLERS: Final[dict[type, Callable[[Draft, Any], Any]]] = {
    events.ServiceAdded: _service_added,
    events.SettingsChanged: _settings_changed,
    events.SwapRequested: _swap_requested,
    events.ReturnRequested: _return_requested,
    events.ShutdownRequested: _shutdown_requested,
    events.Measured: _measured,
    events.OpDone: _op_done,
    events.OpFailed: _op_failed,
    events.WorkerExited: _worker_exited,
    events.SuccessorNeeded: _successor_needed,
    events.PeakSeen: _peak_seen,
    events.TimerFired: _timer_fired,
}


# --- telling -------------------------------------------------------------------------------------------------


def _tell(d: Draft) -> None:
    """Publish what changed, by comparing before and after: no transition can be forgotten."""
    for finished in d.finished_swaps:
        d.publish("swap.finished", swap_id=finished.id, service=finished.service, phase=finished.phase.value)
    for name, service in d.services.items():
        old = d.before.service(name)
        swap, old_swap = service.swap, old.swap if old is not None else None
        if swap is not None and (old_swap is None or old_swap.id != swap.id):
            d.publish("swap.created", swap_id=swap.id, service=name)
            old_swap = None
        if swap is not None:
            _tell_swap(d, swap, old_swap)
        if old is None or (old.owner, old.failures, old.problem) != (service.owner, service.failures, service.problem):
            d.publish("service.changed", service=name, owner=service.owner, failures=service.failures)
    for worker in d.workers.values():
        before = d.before.worker(worker.id)
        if before is None or before.state is not worker.state:
            d.publish("worker.state", worker=worker.id, service=worker.service, state=worker.state.value)
    for gone in d.before.workers:
        if gone.id not in d.workers:
            d.publish("worker.state", worker=gone.id, service=gone.service, state=WorkerState.GONE.value)


def _tell_swap(d: Draft, swap: Swap, before: Swap | None) -> None:
    if before is None or before.phase is not swap.phase:
        d.publish("swap.phase", swap_id=swap.id, service=swap.service, phase=swap.phase.value, reason=swap.reason)
    old_steps = before.steps if before is not None else ()
    for index, record in enumerate(swap.steps):
        if index >= len(old_steps) or old_steps[index] != record:
            ms = None if record.finished_at is None else round((record.finished_at - record.started_at) * 1000, 1)
            d.publish(
                "swap.step",
                swap_id=swap.id,
                service=swap.service,
                step=record.name,
                status=record.status,
                ms=ms,
                detail=record.detail,
            )
