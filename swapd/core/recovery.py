"""What a daemon finds at its start: the journal's state and the host's differ, and this brings the two together.

A worker that is gone has ended, as if its end had just been told. An operation whose end is seen on the host (the
model is loaded, another front owns the clients) has ended well. Any other is void, and `core.advance` begins it again:
its effects are idempotent by observation. Nothing here asks in which step of which swap the daemon died.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from swapd.core import commands, errors, events, results
from swapd.core.behind import (
    ENDED,
    NOT_UP,
    UNDER_WAY,
    UP,
    Seen,
    catch_up,
    catch_up_epochs,
    end_unknown_transfer,
    end_unpromised_swap,
    forget_namesake,
    forget_past_hand_over,
    give_no_more,
    go_by_numbers,
    is_past,
    keep_one_of_each,
    know_hand_over,
    know_proved,
    prove,
    take_in,
)
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.events import Kept, Observed, OpDone, OpFailed, WorkerExited
from swapd.core.model import Kind, Op, OpKind, Revision, Service, Swap, Worker
from swapd.core.routing import next_epoch
from swapd.core.stages import stage_of
from swapd.core.states import FORWARD, Phase, WorkerState
from swapd.core.transfers import served

MAX_RECOVERIES: Final = 3

_AGAIN: Final = frozenset({OpKind.STOP, OpKind.SOURCE_DEAD, OpKind.TARGET_DEAD})  # `advance` waits for their end
# These may come to pass yet, in a front whose loop is blocked, and nobody would know: one that is newer ends them.
_LATE: Final = frozenset({OpKind.ADOPT, OpKind.POINT})
# Right before these the memory was measured, by a daemon that ended: somebody else may have taken it since.
_MEASURED_FOR: Final = frozenset({OpKind.LOAD, OpKind.WAKE})


def recovered(d: Draft, event: events.Recovered) -> None:
    """Take the host as it is for what it is."""
    d.stopping = False
    for added in event.added:
        commands.service_added(d, added)
    seen = {o.worker: o for o in event.observed}
    for o in event.observed:
        forget_namesake(d, o)
    go_by_numbers(d, event.observed)
    for o in event.observed:
        give_no_more(d, o.worker)
        give_no_more(d, o.points_to or "")
        if o.worker not in d.workers and o.state is not None and o.service in d.services:
            take_in(d, o)
    kept = {each.name: each for each in event.kept}
    for name in list(d.services):
        _recover(d, name, event, seen, kept.get(name))


def resumed(d: Draft, event: events.Resumed) -> Problem | None:
    service = d.services.get(event.service)
    if service is None:
        return Problem(errors.UNKNOWN_SERVICE, f"There is no service {event.service!r}.")
    if service.paused is None:
        return Problem(errors.NOTHING_TO_RESUME, f"{event.service} is not paused.")
    d.set_service(event.service, paused=None, recoveries=0)
    return None


def journal_found(d: Draft, event: events.JournalFound) -> None:
    """No number is given twice."""
    d.next_worker = max(d.next_worker, event.next_worker)
    d.next_swap = max(d.next_swap, event.next_swap)
    for name, last in event.last_revisions:
        if name in d.services:
            d.set_service(name, last_revision=max(last, d.services[name].last_revision))


def note_settled(d: Draft) -> None:
    """A service that has come to rest counts its failed recoveries anew."""
    for service in list(d.services.values()):
        rests = d.server_of(service.name) is not None and not _is_under_way(service)
        if service.recoveries and service.paused is None and rests:
            d.set_service(service.name, recoveries=0)


def _is_under_way(service: Service) -> bool:
    """In a stage that has begun it rests, as in a soak: the gate goes on by itself, perhaps for hours."""
    swap = service.swap
    if swap is None or swap.phase is Phase.SOAKING:
        return False
    return swap.stage_at is None or stage_of(swap) is None


# --- one service -----------------------------------------------------------------------------------------------


def _recover(d: Draft, name: str, event: events.Recovered, seen: Seen, kept: Kept | None) -> None:
    d.set_service(name, measuring=False)
    if kept is not None:
        d.set_service(name, settings=kept.settings, config_model=kept.config_model, leaving=False)
    if event.crashed:
        _count(d, name)
    workers = d.workers_of(name)
    living = [w for w in workers if w.id in seen and seen[w.id].state is not None]
    if not living:
        _begin_anew(d, name)
    if kept is not None and kept.fresh is not None:
        _renew(d, name, kept.fresh)
    for worker in living:
        _see(d, worker, seen[worker.id])
    catch_up_epochs(d, name, living, seen)
    for worker in living:
        know_hand_over(d, d.workers[worker.id], living, seen)
    for worker in living:
        _conclude(d, d.workers[worker.id], seen)
    for worker in living:
        if worker.id in d.workers:
            catch_up(d, d.workers[worker.id], seen[worker.id])
    know_proved(d, living, seen)
    _find_owner(d, name, living, seen)
    _note_server(d, name, seen)
    for worker in workers:
        if worker not in living and worker.id in d.workers:
            forget_past_hand_over(d, d.workers[worker.id], seen)
            _bury(d, d.workers[worker.id], seen)
    keep_one_of_each(d, name, seen)
    end_unpromised_swap(d, name)
    for worker in living:
        _end_what_ends(d, worker.id, seen[worker.id])


def _count(d: Draft, name: str) -> None:
    """A daemon that dies here again and again would do so for ever: the service is left as it is, for a person."""
    service = d.services[name]
    starts = d.server_of(name) is None and any(w.op is not None for w in d.workers_of(name))
    if service.paused is not None or not (starts or _is_under_way(service)):
        return
    d.set_service(name, recoveries=service.recoveries + 1)
    if service.recoveries >= MAX_RECOVERIES:
        text = (
            f"swapd has ended {service.recoveries} times in a row in the middle of something of {name}, and begins"
            f" nothing for it any more; what serves goes on. Why it ended is in its own log. To go on: swapd-cli"
            f" resume {name}."
        )
        d.set_service(name, paused=Problem(errors.SERVICE_PAUSED, text, {"recoveries": service.recoveries}))


def _begin_anew(d: Draft, name: str) -> None:
    """Nothing of the service lives (the host was started again): its stable revision is started afresh."""
    service = d.services[name]
    if service.swap is not None:
        _end_swap(d, service.swap, "and all workers with it")
    d.keep_nothing_for_return(name)
    d.set_service(name, slots=(), failures=0, problem=None, retry_at=None)
    for worker in d.workers_of(name):
        del d.workers[worker.id]
        d.reservations.pop(worker.id, None)
    d.set_service(name, owner=None)


def _end_swap(d: Draft, swap: Swap, how: str) -> None:
    """It cannot go on, in either direction."""
    if swap.phase is Phase.SOAKING:
        d.finish_swap(swap.service, Phase.SUCCEEDED, reason=f"{ENDED} during the soak, {how}")
        return
    if swap.phase is not Phase.ROLLING_BACK:
        d.set_phase(swap.service, Phase.ROLLING_BACK)
    end = swap.end_phase or (Phase.FAILED if swap.error is not None else Phase.CANCELED)
    d.finish_swap(swap.service, end, reason=f"{ENDED} during the swap, {how}")


def _renew(d: Draft, name: str, fresh: Revision) -> None:
    """Nothing of the service has been ready to serve, so it may as well be what the configuration says now."""
    service = d.services[name]
    stable = service.revision(service.stable)
    if service.swap is None and (stable is None or not stable.same_content(fresh)):
        commands.number_anew(d, name, fresh)


def _see(d: Draft, worker: Worker, o: Observed) -> None:
    """What it says itself. Its role, which it does not know, is the journal's."""
    changes: dict[str, Any] = {"connected": True}
    if worker.kind is Kind.GATE:
        changes["points_to"] = o.points_to
        changes["split"] = o.split
    elif o.hooks:
        changes["hooks"] = o.hooks
    d.set_worker(worker.id, **changes)


def _conclude(d: Draft, worker: Worker, seen: Seen) -> None:
    op = worker.op
    if op is None:
        return
    result = _end_of(worker, op, seen)
    if result is not None:
        results.op_done(d, OpDone(d.at, op.id, result))
    elif op.kind is OpKind.HAND_OVER and seen[worker.id].state is WorkerState.HANDING_OVER:
        _end_hand_over(d, worker, op, seen)
    elif is_past(op, seen[worker.id]):
        d.end_step(op.service, op.step, "canceled", ENDED)
        d.set_worker(worker.id, op=None)
    elif op.kind in _AGAIN or UNDER_WAY.get(op.kind) is seen[worker.id].state:
        d.end_step(op.service, op.step, "canceled", ENDED)
        d.run(op.kind, worker, step=op.step, epoch=op.epoch, force=op.force)
    elif op.kind in _LATE:
        d.end_step(op.service, op.step, "canceled", ENDED)
        epoch = next_epoch(d, op.service)
        d.run(op.kind, worker, step=op.step, target=op.target, epoch=epoch, turn_away=op.turn_away, split=op.split)
    else:
        d.end_step(op.service, op.step, "canceled", ENDED)
        not_begun = op.kind in _MEASURED_FOR and seen[worker.id].state in NOT_UP
        d.set_worker(worker.id, op=None, confirmed=worker.confirmed and not not_begun)


def _end_of(worker: Worker, op: Op, seen: Seen) -> Mapping[str, Any] | None:
    """The result of an operation whose end is seen on the host; None: it is not, or says too little."""
    o = seen[worker.id]
    target = seen.get(op.target or "")
    done = {"started_at": o.started_at} if o.started_at is not None else {}
    match op.kind:
        case OpKind.SPAWN:
            return {"hooks": o.hooks}
        case OpKind.STAGE if o.state is WorkerState.STAGED:
            return {}
        case OpKind.LOAD if o.state in UP and worker.kind is not Kind.ENGINE:  # a server must be seen ready as well
            return {"hooks": o.hooks}
        case OpKind.WAKE if o.state in UP:
            return {}
        case OpKind.PARK if o.state is WorkerState.PARKED:
            return {}
        case OpKind.POINT if o.table_epoch == op.epoch:
            return {"quiesced_at": o.pointed_at, "started_at": o.pointed_at} if o.pointed_at is not None else {}
        case OpKind.ADOPT if o.owner:
            return done
        case OpKind.TARGET_DEAD if o.owner and o.state is not WorkerState.HANDING_OVER:
            return {"resumed": True}
        case OpKind.SOURCE_DEAD if o.owner:
            return {**done, "started": True, "listeners": True}
        case OpKind.HAND_OVER if target is not None and target.owner:
            times = {"quiesced_at": o.quiesced_at, "started_at": target.started_at}
            return times if None not in times.values() else {}
        case _:
            return None


def _end_hand_over(d: Draft, source: Worker, op: Op, seen: Seen) -> None:
    """The source waits for its target to start. Proof of the target's death is all that lets it go on."""
    if op.target not in d.workers:
        d.run(OpKind.TARGET_DEAD, source, epoch=op.epoch, step=op.step)
    elif (o := seen.get(op.target)) is not None and o.state is not None:
        text = f"{op.target} did not take the clients of {source.id}, and {ENDED} meanwhile"
        results.op_failed(d, OpFailed(d.at, op.id, Problem(errors.TIMEOUT, text)))
    # else: the target's end, which is told in a moment, has the source go on


def _find_owner(d: Draft, name: str, living: list[Worker], seen: Seen) -> None:
    """A source that was seen before its target may say that it owns, as the target does by now."""
    owners = [w for w in living if seen[w.id].owner]
    newest = max(
        owners, key=lambda w: (seen[w.id].epoch, seen[w.id].state is not WorkerState.HANDING_OVER), default=None
    )
    d.set_service(name, owner=newest.id if newest is not None else None)
    bound = next((seen[w.id].listeners for w in owners if w.id == d.services[name].owner), None)
    if bound is not None:
        d.set_service(name, bound=bound)
    if not owners:
        end_unknown_transfer(d, name, living, seen)
    d.settle_roles(name)


def _bury(d: Draft, worker: Worker, seen: Seen) -> None:
    """It ended while no daemon was there to see it, or had not begun. One that a gate points to has."""
    has_begun = worker.connected or any(o.points_to == worker.id for o in seen.values())
    if not has_begun and worker.op is not None:
        d.end_step(worker.service, worker.op.step, "canceled", ENDED)
        d.set_worker(worker.id, op=None)
    if has_begun or worker.state is WorkerState.STOPPING:
        _gone(d, d.workers[worker.id], seen)


def _gone(d: Draft, worker: Worker, seen: Seen) -> None:
    o = seen.get(worker.id)
    text = f"{worker.id} ended while no daemon was there to see it."
    problem = o.problem if o is not None and o.problem is not None else Problem(errors.WORKER_EXITED, text)
    results.worker_exited(d, WorkerExited(d.at, worker.id, problem, o.log_tail if o is not None else ()))


def _end_what_ends(d: Draft, worker_id: str, o: Observed) -> None:
    """Told to end by whoever it was, it takes nobody any more. What is in flight there is finished first, if it can be;
    then another takes its place."""
    worker = d.workers.get(worker_id)
    if worker is None or (worker.op is not None and worker.op.kind is OpKind.STOP):
        return
    if worker.ending or (o.state is WorkerState.STOPPING and not d.shuts_down(worker.service)):
        d.set_worker(worker.id, state=WorkerState.STOPPING)
        patience_s = d.services[worker.service].settings.drain_timeout_s
        d.run(OpKind.DRAIN, worker, deadline_s=patience_s, force=worker.id == d.services[worker.service].owner)


def _note_server(d: Draft, name: str, seen: Seen) -> None:
    """Who answers the clients has proved itself, or no daemon would have let it. Perhaps none has heard that it does:
    then this is the switch."""
    server, swap = d.server_of(name), d.services[name].swap
    if server is None or server.kind is Kind.GATE or server.id not in seen or seen[server.id].state not in UP:
        return
    server = prove(d, d.set_worker(server.id, state=WorkerState.SERVING))
    stable = d.services[name].stable
    parties = (swap.target, swap.source) if swap is not None else ()
    if server.revision not in (stable, *(r.number for r in parties if r is not None)):
        if swap is not None:  # the journal is older than the end of it, and than the next one
            _end_swap(d, swap, "and the journal could not be written")
            swap = None
        d.set_service(name, stable=server.revision, previous=stable)
    if swap is not None and swap.phase in FORWARD and server.revision == swap.target.number:
        served(d, swap, server, None, None)
