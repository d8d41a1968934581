"""What came of operations, and what happened by itself: results, failures, deaths.

A late result, or one of a worker that is gone, changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from swapd.core import errors, events, placement
from swapd.core.commands import begin_return
from swapd.core.crash_loop import problem_after
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.events import Amend, Measurement
from swapd.core.fallback import try_in_place
from swapd.core.model import FootprintSource, Golden, Kind, Op, OpKind, Revision, Service, Slot, Strategy, Swap, Worker
from swapd.core.stages import begin_again
from swapd.core.states import FORWARD, Phase, WorkerState
from swapd.core.to_come import to_come
from swapd.core.transfers import end_transfer, owns, pointed, switched, transferred

GATE_RETRY_S: Final = 1.0
BACKOFF_FIRST_S: Final = 0.5
CALM_S: Final = 60.0  # a worker that has served for so long starts its count of failures anew


def backoff_s(failures: int, longest_s: float) -> float:
    """The pause before the next start: 0.5 s, 1 s, 2 s ... up to `restart_backoff_max`."""
    return min(longest_s, BACKOFF_FIRST_S * 2.0 ** min(30, max(0, failures - 1)))


def measured(d: Draft, event: events.Measured) -> None:
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
    slot = event.result.slot(placed.devices, placed.need_bytes)
    d.set_service(event.service, slots=(*service.slots, (event.revision, slot)))


def _place_start(d: Draft, service: Service, revision: Revision, m: Measurement) -> placement.Placement | Problem:
    return placement.place(
        placement.PlacementRequest(
            service=service.name,
            model=revision.model,
            footprint=m.footprint,
            readings=m.readings,
            reservations=(
                *d.reservations.values(),
                *to_come(d.services.values(), d.workers.values(), d.reservations),
            ),
            gpus=m.gpus,
        )
    )


def _postpone(d: Draft, service: str, problem: Problem) -> None:
    known = d.services[service]
    failures = known.failures + 1
    pause_s = backoff_s(failures, known.settings.backoff_max_s)
    problem = problem_after(known, failures, problem)
    d.set_service(service, failures=failures, problem=problem, retry_at=d.at + pause_s)


def op_done(d: Draft, event: events.OpDone) -> None:
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
            _proved(d, op, event.result)
            _settle(d, worker, event.result.get("used_bytes"))
        case OpKind.ADOPT:
            bound = tuple(event.result.get("listeners", d.services[op.service].settings.listen))
            d.set_service(op.service, bound=bound)
            owns(d, worker, op.epoch)
            switched(d, op.service, event.result)
        case OpKind.POINT:
            pointed(d, worker, op, event.result)
        case OpKind.HAND_OVER | OpKind.TARGET_DEAD | OpKind.SOURCE_DEAD:
            transferred(d, worker, op, event)
        case OpKind.DRAIN:
            _drained(d, worker, int(event.result.get("cut", 0)))
        case OpKind.PARK:
            parked(d, worker)
        case _:
            pass


def _proved(d: Draft, op: Op, told: Mapping[str, Any]) -> None:
    """What was found of a candidate, be it well or not: by what clients may break, how it answers golden requests."""
    if op.kind is not OpKind.VERIFY or d.services[op.service].swap is None:
        return
    if "differences" in told:
        d.set_swap(op.service, differences=tuple(told["differences"]))
    if "golden" in told:
        golden = told["golden"]
        d.set_swap(op.service, golden=Golden(**{**golden, "differences": tuple(golden["differences"])}))


def parked(d: Draft, worker: Worker) -> None:
    d.set_worker(worker.id, state=WorkerState.PARKED, confirmed=False, verified=False)
    reservation = d.reservations.get(worker.id)
    if reservation is not None:  # what it keeps is what is measured
        d.reservations[worker.id] = replace(reservation, bytes=None, settled=True)


def _worker_with_op(d: Draft, op: int) -> Worker | None:
    return next((w for w in d.workers.values() if w.op is not None and w.op.id == op), None)


def _settle(d: Draft, worker: Worker, used_bytes: int | None) -> None:
    """It has proved itself: what it has not taken by now it is not about to take, and what it has taken counts."""
    reservation = d.reservations.get(worker.id)
    if reservation is None:
        return
    d.reservations[worker.id] = replace(reservation, settled=True)
    if used_bytes is not None and (reservation.bytes is None or used_bytes > reservation.bytes):
        d.reservations[worker.id] = replace(reservation, settled=True, bytes=used_bytes)
        service = d.services[worker.service]
        slots = ((n, _needs(s, used_bytes) if n == worker.revision else s) for n, s in service.slots)
        d.set_service(worker.service, slots=tuple(slots))


def _needs(slot: Slot, used_bytes: int) -> Slot:
    """It was seen to need more than was said, and may: the next worker's limit has the same margin."""
    more = used_bytes - (slot.need_bytes or 0)
    cap_bytes = slot.cap_bytes and slot.cap_bytes + more
    return replace(slot, need_bytes=used_bytes, source=FootprintSource.LEARNED, cap_bytes=cap_bytes)


def _drained(d: Draft, worker: Worker, cut: int) -> None:
    service = d.services[worker.service]
    if worker.state is WorkerState.SERVING and not d.shuts_down(service.name):
        return  # it became the owner again meanwhile
    d.set_worker(worker.id, drained=True)
    if worker.state is WorkerState.STOPPING:
        d.run(OpKind.STOP, worker)
    if not cut:
        return
    swap = service.swap
    own = swap is not None and worker.revision in (swap.target.number, swap.source.number if swap.source else 0)
    if swap is not None and (own or worker.kind is Kind.GATE):
        d.set_swap(service.name, cut_requests=swap.cut_requests + cut)
    elif worker.kind is not Kind.GATE:
        d.effects.append(Amend(service.name, worker.revision, cut))


def op_failed(d: Draft, event: events.OpFailed) -> None:
    worker = _worker_with_op(d, event.op)
    if worker is None or worker.op is None:
        return
    op = worker.op
    d.end_step(op.service, op.step, "failed", event.problem.message)
    if op.kind is OpKind.HAND_OVER:
        _hand_over_failed(d, worker, op, event)
        return
    d.set_worker(worker.id, op=None)
    _proved(d, op, event.problem.details)
    match op.kind:
        case OpKind.STOP:
            # Something of the tree cannot be ended (a process in the kernel): its memory stays reserved, and it is
            # asked again at the next step.
            d.set_worker(worker.id, state=WorkerState.QUIESCED, drained=True, verified=False, outlived_kill=True)
            d.set_service(op.service, problem=event.problem)
        case OpKind.DRAIN:
            _drained(d, worker, 0)
        case OpKind.PARK:
            d.stop(d.workers[worker.id], force=False, step="stop")
        case OpKind.ADOPT if d.services[op.service].owner == worker.id:  # it serves on, at the addresses that it has
            d.set_service(op.service, problem=event.problem, bound=d.services[op.service].settings.listen)
        case OpKind.CONFIRM if _stop_parked(d, worker):
            pass
        case OpKind.CONFIRM if worker.state is WorkerState.PARKED:  # others have its memory: it is no worse for that
            _postpone(d, op.service, event.problem)
            d.set_worker(worker.id, not_before=d.services[op.service].retry_at)
        case _:
            _worker_failed(d, worker, event.problem, event.log_tail)


def _stop_parked(d: Draft, worker: Worker) -> bool:
    """Parking freed too little: stop what is parked, and measure again. Unless it could not come back: then the swap
    fails, and it is woken."""
    swap = d.services[worker.service].swap
    if swap is not None and swap.phase in FORWARD and not swap.may_stop:
        return False
    parked = [w for w in d.workers_of(worker.service) if w.state is WorkerState.PARKED and w.id != worker.id]
    for other in parked:
        d.stop(other, force=False, step="stop")
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
        and (worker.revision == swap.target.number or (worker.kind is Kind.GATE and _goes_by_gate(service, swap)))
    ):
        if (why := try_in_place(d, service, worker, problem)) is None:
            return
        d.fail_swap(worker.service, why, log_tail, Phase.FAILED)
        d.end_candidate(worker.service)
    elif worker.kind is Kind.GATE:
        _next_gate(d, worker.service)
    else:
        _postpone(d, worker.service, problem)


def _goes_by_gate(service: Service, swap: Swap) -> bool:
    """The swap needs a gate: to hold the clients, or to stand before what it brings."""
    slot = service.slot(swap.target.number)
    gated = slot is not None and service.gated(slot.kind)
    return swap.source is not None and (gated or swap.strategy is Strategy.IN_PLACE)


def _next_gate(d: Draft, service: str) -> None:
    """One that failed is not begun again in a tight loop."""
    if all(gate.connected for gate in d.gates_of(service)):
        d.add_worker(service, Kind.GATE, 0, d.at + GATE_RETRY_S)


def worker_exited(d: Draft, event: events.WorkerExited) -> None:
    worker = d.workers.pop(event.worker, None)
    if worker is None:
        return
    d.reservations.pop(worker.id, None)
    if d.services[worker.service].owner == worker.id:
        d.set_service(worker.service, owner=None)
    d.settle_roles(worker.service)
    if worker.op is not None:
        expected = worker.op.kind is OpKind.STOP
        d.end_step(
            worker.service, worker.op.step, "done" if expected else "failed", "" if expected else event.problem.message
        )
    end_transfer(d, worker)
    if worker.split is not None and d.services[worker.service].owner is None:
        begin_again(d, worker.service, f"{worker.id} ended, and with it what it had measured")
    if not worker.ending:
        _lost(d, worker, event)


def worker_hung(d: Draft, event: events.WorkerHung) -> None:
    """As if it had ended by itself; its process tree, and with it its memory, follows."""
    worker = d.workers.get(event.worker)
    if worker is None or worker.state is not WorkerState.SERVING or worker.op is not None:
        return
    d.stop(worker, force=True)
    _lost(d, worker, event)


def _lost(d: Draft, worker: Worker, event: events.WorkerExited | events.WorkerHung) -> None:
    """It was to go on, and does not: what that means for its swap, or who takes its place."""
    if d.shuts_down(worker.service):
        return
    service = d.services[worker.service]
    swap = service.swap
    if worker.kind is Kind.GATE:
        if swap is not None and swap.strategy is Strategy.IN_PLACE and swap.phase is Phase.PREPARING:
            _worker_failed(d, worker, event.problem, event.log_tail)
        elif not worker.connected:
            _next_gate(d, worker.service)
        return
    if swap is not None and worker.revision == swap.target.number:
        if swap.phase is Phase.SOAKING and swap.source is not None:
            d.set_swap(service.name, error=event.problem, log_tail=event.log_tail)
            why = f"{swap.target.model} ended during the soak: {event.problem.message}"
            begin_return(d, service, Phase.FAILED, why)
            return
        if swap.phase in FORWARD:
            if (problem := try_in_place(d, service, worker, event.problem)) is not None:
                d.fail_swap(service.name, problem, event.log_tail, Phase.FAILED)
            return
    if worker.revision == service.stable:
        _restart(d, service, worker, event.problem)


def _restart(d: Draft, service: Service, dead: Worker, problem: Problem) -> None:
    """The serving revision's worker ended by itself: begin another, with backoff, in the memory that it had."""
    calm = dead.ready_at is not None and d.at - dead.ready_at > CALM_S
    failures = 1 if calm else service.failures + 1
    pause_s = 0.0 if failures == 1 else backoff_s(failures - 1, service.settings.backoff_max_s)
    problem = problem_after(service, failures, problem)
    d.set_service(service.name, failures=failures, problem=problem, retry_at=d.at + pause_s)
    slot = service.slot(dead.revision)
    if slot is not None and d.worker_of(service.name, dead.revision) is None:
        worker = d.add_worker(service.name, slot.kind, dead.revision, d.at + pause_s)
        if dead.id not in d.reservations:
            d.reserve(worker, slot)


def content_changed(d: Draft, event: events.ContentChanged) -> None:
    """A number stands for one content: what has served, or may have, gets a new one. A candidate has not."""
    worker = d.workers.get(event.worker)
    service = d.services[worker.service] if worker is not None else None
    old = service.revision(worker.revision) if service is not None and worker is not None else None
    if worker is None or service is None or old is None or old.fingerprint == event.fingerprint:
        return
    swap = service.swap
    if swap is not None and swap.phase in FORWARD and old.number == swap.target.number:
        new = replace(old, fingerprint=event.fingerprint)
        d.set_swap(service.name, target=new)
        d.set_service(service.name, revisions=tuple(new if r == old else r for r in service.revisions))
        return
    if swap is not None and swap.phase is Phase.SOAKING and old.number == swap.target.number:
        d.end_step(service.name, "soak", "done")
        d.finish_swap(service.name, Phase.SUCCEEDED, reason=f"{old.model} has served, and its files have changed since")
        service, swap = d.services[worker.service], None
    new = replace(old, number=service.last_revision + 1, fingerprint=event.fingerprint)
    if swap is not None and swap.source == old:
        d.set_swap(service.name, source=new)
    d.set_service(
        service.name,
        revisions=(*service.revisions, new),
        last_revision=new.number,
        stable=new.number if service.stable == old.number else service.stable,
        slots=(*service.slots, *((new.number, slot) for n, slot in service.slots if n == old.number)),
    )
    d.set_worker(worker.id, revision=new.number)


def successor_needed(d: Draft, event: events.SuccessorNeeded) -> None:
    worker = d.workers.get(event.worker)
    if worker is None:
        return
    service = d.services[worker.service]
    if service.owner is not None and service.owner != worker.id:
        d.run(OpKind.SUCCESSOR, worker, target=service.owner, epoch=service.epoch)


def peak_seen(d: Draft, event: events.PeakSeen) -> None:
    service = d.services.get(event.service)
    if service is None or service.swap is None:
        return
    peaks = dict(service.swap.peak_memory_bytes)
    peaks[event.device] = max(event.used_bytes, peaks.get(event.device, 0))
    d.set_swap(event.service, peak_memory_bytes=tuple(sorted(peaks.items())))


def timer_fired(d: Draft, event: events.TimerFired) -> None:
    """Nothing but the time has changed; `advance` looks at the clock."""
