"""A journal that knows less than the workers do: it could not be written for a while, or is lost.

What they say themselves is caught up with: workers that it has not heard of, what others have done since, hand-overs,
and names and numbers that have been given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from swapd.core import results
from swapd.core.draft import Draft
from swapd.core.errors import JOURNAL_FAILED, Problem
from swapd.core.events import Observed
from swapd.core.model import Kind, Op, OpKind, Revision, Service, Strategy, Worker
from swapd.core.states import FORWARD, Phase, WorkerState

ENDED: Final = "the daemon ended"
UP: Final = frozenset({WorkerState.LOADED, WorkerState.SERVING, WorkerState.HANDING_OVER, WorkerState.QUIESCED})
GAVE: Final = frozenset({WorkerState.HANDING_OVER, WorkerState.QUIESCED})
NOT_UP: Final = frozenset({WorkerState.SPAWNED, WorkerState.STAGED, WorkerState.PARKED})
OF_AN_EPOCH: Final = frozenset({OpKind.ADOPT, OpKind.POINT, OpKind.HAND_OVER, OpKind.SOURCE_DEAD, OpKind.TARGET_DEAD})
UNDER_WAY: Final = {  # in the worker, whoever asks for its end: memory of the device is being taken, or given back
    OpKind.STAGE: WorkerState.STAGING,
    OpKind.LOAD: WorkerState.LOADING,
    OpKind.PARK: WorkerState.PARKING,
    OpKind.WAKE: WorkerState.WAKING,
}

Seen = Mapping[str, Observed]


def go_by_numbers(d: Draft, observed: Iterable[Observed]) -> None:
    """Clients are told the revision of what answers them by itself, so that what a living worker says of its number
    counts: also where the journal, older than it, has given that to another content, or the worker another number."""
    servers = {o.points_to if o.kind is Kind.GATE else o.worker for o in observed if o.owner}
    for o in sorted(observed, key=lambda o: (o.worker in servers, o.state in UP)):
        if o.state is not None and o.revision is not None and o.service in d.services:
            _know_revision(d, d.services[o.service], o.revision)
            worker = d.workers.get(o.worker)
            if worker is not None and worker.revision != o.revision.number:
                _renumber(d, worker, o.revision)
                _know_slot(d, o)


def _know_revision(d: Draft, service: Service, revision: Revision) -> None:
    known, number, swap = service.revision(revision.number), revision.number, service.swap
    if known != revision:
        others = (r for r in service.revisions if r.number != number)
        revisions = tuple(sorted((*others, revision), key=lambda r: r.number))
        d.set_service(service.name, revisions=revisions, last_revision=max(number, service.last_revision))
        if swap is not None and number == swap.target.number:
            d.set_swap(service.name, target=revision)
        elif swap is not None and swap.source is not None and number == swap.source.number:
            d.set_swap(service.name, source=revision)


def _know_slot(d: Draft, o: Observed) -> None:
    service = d.services[o.service]
    if o.slot is not None and o.revision is not None and service.slot(o.revision.number) is None:
        d.set_service(o.service, slots=(*service.slots, (o.revision.number, o.slot)))


def _renumber(d: Draft, worker: Worker, revision: Revision) -> None:
    """Its files were others than the journal knows when it was started: as `results.content_changed`."""
    service = d.services[worker.service]
    swap = service.swap
    if swap is not None and swap.source is not None and swap.source.number == worker.revision:
        d.set_swap(service.name, source=revision)
    if service.stable == worker.revision:
        d.set_service(service.name, stable=revision.number)
    d.set_worker(worker.id, revision=revision.number)


def forget_namesake(d: Draft, o: Observed) -> None:
    """A daemon that could not read the journal has given the name again: what the journal knows by it is gone. Only
    before it begins does a worker get another number, or a number another content."""
    worker, said = d.workers.get(o.worker), o.revision
    if worker is None or o.state is None or not worker.connected:
        return
    known = d.services[worker.service].revision(worker.revision)
    other = known is not None and said is not None and (known.number != said.number or not known.same_content(said))
    if other or worker.kind is not o.kind:
        del d.workers[worker.id]
        d.reservations.pop(worker.id, None)


def take_in(d: Draft, o: Observed) -> None:
    """A worker of ours that the journal has lost. Whether it had proved itself is not known, unless clients are
    answered by it; one that nobody wants is ended by `advance`."""
    number = o.revision.number if o.revision is not None else 0
    up = o.state in UP
    worker = Worker(
        o.worker,
        o.service,
        o.kind,
        number,
        _as_seen(o.kind, o) if up else WorkerState.SPAWNED,
        connected=True,
        confirmed=up,
        hooks=o.hooks,
        points_to=o.points_to,
        split=o.split,
        made_of=o.made_of,
    )
    d.workers[worker.id] = worker
    _know_slot(d, o)
    if o.slot is not None:
        d.reservations[worker.id] = o.slot.promise(worker.id, o.service)


def give_no_more(d: Draft, worker_id: str) -> None:
    """A name has been given, whatever the journal says: a gate may go by it yet."""
    tail = worker_id.rpartition("-")[2]
    d.next_worker = max(d.next_worker, int(tail) + 1 if tail.isdigit() else 0)


def keep_one_of_each(d: Draft, name: str, seen: Seen) -> None:
    """An older journal may want another worker for what a living one is already: there is one of each revision."""
    kept: dict[int, Worker] = {}
    server = d.server_of(name)

    def merit(worker: Worker) -> tuple[bool, bool, bool]:
        return worker == server, worker.id in seen and seen[worker.id].state is not None, worker.state in UP

    for worker in sorted(d.workers_of(name), key=merit, reverse=True):
        if worker.kind is Kind.GATE or worker.ending:
            continue
        if worker.revision in kept:
            d.stop(worker, force=True)
        kept.setdefault(worker.revision, worker)


def catch_up_epochs(d: Draft, name: str, living: list[Worker], seen: Seen) -> None:
    """Where clients have been moved without the journal's knowledge, whoever it knows to be drained may have had some
    since."""
    newest = max((max(seen[w.id].epoch, seen[w.id].table_epoch) for w in living), default=0)
    if newest <= d.services[name].epoch:
        return
    d.set_service(name, epoch=newest)
    for worker in living:
        d.set_worker(worker.id, drained=False)


def know_hand_over(d: Draft, source: Worker, living: list[Worker], seen: Seen) -> None:
    """One under way that the journal, older than it, has nothing of. Its target has heard of its epoch, if it lives.
    Once somebody owns the clients by that epoch or a newer one it has ended, and only its source does not know yet."""
    o, op, others = seen[source.id], source.op, [w.id for w in living if w.id != source.id]
    known = op is not None and op.kind in (OpKind.HAND_OVER, OpKind.TARGET_DEAD) and not is_past(op, o)
    ended = any(seen[other].owner and seen[other].epoch >= o.epoch for other in others)
    if o.state is not WorkerState.HANDING_OVER or known or ended:
        return
    target = next((other for other in others if seen[other].epoch == o.epoch), None)
    d.set_worker(source.id, op=Op(d.next_op, OpKind.HAND_OVER, source.service, source.id, target, o.epoch))
    d.next_op += 1


def is_past(op: Op | None, o: Observed | None) -> bool:
    """The front has heard of a newer hand-over, or has a newer table, than this operation's: how that ended is seen on
    the host, and what of it comes yet is void."""
    if op is None or o is None or op.kind not in OF_AN_EPOCH:
        return False
    return (o.table_epoch if op.kind is OpKind.POINT else o.epoch) > op.epoch


def forget_past_hand_over(d: Draft, source: Worker, seen: Seen) -> None:
    """By a worker that is gone."""
    op = source.op
    if op is not None and op.kind is OpKind.HAND_OVER and is_past(op, seen.get(op.target or "")):
        d.end_step(op.service, op.step, "canceled", ENDED)
        d.set_worker(source.id, op=None)


def end_unknown_transfer(d: Draft, name: str, living: list[Worker], seen: Seen) -> None:
    """One of an epoch or of a worker that the journal, older than it, has not heard of, and whose source is gone: its
    target, if this is one, holds what it was offered."""
    newest = max(living, key=lambda w: seen[w.id].epoch, default=None)
    if newest is None or any(seen[w.id].state is WorkerState.HANDING_OVER for w in living):
        return
    epoch, service = seen[newest.id].epoch, d.before.service(name)
    known = service is not None and d.before.worker(newest.id) is not None and epoch <= service.epoch
    if epoch and not known and d.workers[newest.id].op is None:
        d.run(OpKind.SOURCE_DEAD, newest, epoch=epoch)


def end_unpromised_swap(d: Draft, name: str) -> None:
    """Beside the old model nothing is loaded without memory that was reserved with the decision, which an older journal
    may have lost with the candidate: the old one would be stopped for it."""
    swap = d.services[name].swap
    if swap is None or swap.phase not in FORWARD or swap.strategy is not Strategy.DUAL:
        return
    candidate = d.worker_of(name, swap.target.number)
    if candidate is None or candidate.id not in d.reservations:
        text = f"{ENDED} during the swap, and its candidate is not known any more: ask for it again"
        d.fail_swap(name, Problem(JOURNAL_FAILED, text), (), Phase.FAILED)
        d.end_candidate(name)


def catch_up(d: Draft, worker: Worker, o: Observed) -> None:
    """What it has done that an older journal has nothing of. A server must be seen ready, so its load is made again."""
    if worker.ending or (worker.op is not None and worker.op.kind in UNDER_WAY):
        return
    if o.state in UP and worker.state in NOT_UP and worker.kind is not Kind.ENGINE:
        d.set_worker(worker.id, state=_as_seen(worker.kind, o), confirmed=True)
    elif o.state in GAVE and worker.state is WorkerState.LOADED:
        d.set_worker(worker.id, state=WorkerState.QUIESCED)
    elif o.state in {WorkerState.STAGED, *UP} and worker.state is WorkerState.SPAWNED:
        d.set_worker(worker.id, state=WorkerState.STAGED)
    elif o.state is WorkerState.PARKING:
        d.run(OpKind.PARK, worker)
    elif o.state in (WorkerState.PARKED, WorkerState.WAKING) and worker.state is not WorkerState.PARKED:
        results.parked(d, worker)
    elif worker.verified and _makes_room(d, worker):
        d.set_worker(worker.id, verified=False)


def know_proved(d: Draft, living: list[Worker], seen: Seen) -> None:
    """No daemon has clients go by a gate to a worker that has not proved itself; and what they asked for may be in
    flight there. A gate that gives nobody away may point there since before the worker was parked and woken."""
    for gate in living:
        given = seen[gate.id].state is WorkerState.HANDING_OVER
        worker = d.workers.get(seen[gate.id].points_to or "") if given else None
        if worker is not None and not worker.ending and worker.id in seen and seen[worker.id].state in UP:
            worker = prove(d, worker)
            if worker.state in NOT_UP:
                d.set_worker(worker.id, state=WorkerState.QUIESCED)


def prove(d: Draft, worker: Worker) -> Worker:
    if worker.id in d.reservations:
        d.reservations[worker.id] = replace(d.reservations[worker.id], settled=True)
    proved = {"confirmed": True, "warmed": True, "verified": True, "ready_at": worker.ready_at or d.at}
    return d.set_worker(worker.id, **proved)


def _makes_room(d: Draft, worker: Worker) -> bool:
    """It may have been parked and woken since the journal was written, and not have been proved again."""
    swap = d.services[worker.service].swap
    source = swap.source.number if swap is not None and swap.parks and swap.source is not None else None
    return worker.can_park and worker.revision == source


def _as_seen(kind: Kind, o: Observed) -> WorkerState:
    """Of a worker that is up: what may have been in flight there, through whichever front, ends before it does."""
    spare = kind is Kind.GATE and o.state not in GAVE
    return WorkerState.LOADED if spare else WorkerState.QUIESCED
