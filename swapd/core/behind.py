"""A journal that knows less than the workers do: it could not be written for a while, or is lost.

What they say themselves is caught up with: workers that it has not heard of, what others have done since, hand-overs,
and names and numbers that have been given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from swapd.core import results
from swapd.core.draft import Draft
from swapd.core.events import Observed
from swapd.core.model import Kind, Op, OpKind, Revision, Service, Worker
from swapd.core.states import WorkerState

UP: Final = frozenset({WorkerState.LOADED, WorkerState.SERVING, WorkerState.HANDING_OVER, WorkerState.QUIESCED})
GAVE: Final = frozenset({WorkerState.HANDING_OVER, WorkerState.QUIESCED})
NOT_UP: Final = frozenset({WorkerState.SPAWNED, WorkerState.STAGED, WorkerState.PARKED})
UNDER_WAY: Final = {  # in the worker, whoever asks for its end: memory of the device is being taken, or given back
    OpKind.STAGE: WorkerState.STAGING,
    OpKind.LOAD: WorkerState.LOADING,
    OpKind.PARK: WorkerState.PARKING,
    OpKind.WAKE: WorkerState.WAKING,
}

Seen = Mapping[str, Observed]


def take_in(d: Draft, o: Observed) -> None:
    """A worker of ours that the journal has lost. Whether it had proved itself is not known, unless clients are
    answered by it; one that nobody wants is ended by `advance`."""
    revision = _revision_of(d.services[o.service], o)
    number = revision.number if revision is not None else 0
    service = d.set_service(o.service, last_revision=max(number, d.services[o.service].last_revision))
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
        made_of=o.made_of,
    )
    d.workers[worker.id] = worker
    if revision is not None and service.revision(number) is None:
        service = d.set_service(o.service, revisions=(*service.revisions, revision))
    if o.slot is not None:
        if service.slot(number) is None:
            d.set_service(o.service, slots=(*service.slots, (number, o.slot)))
        d.reservations[worker.id] = o.slot.promise(worker.id, o.service)


def give_no_more(d: Draft, worker_id: str) -> None:
    """A name has been given, whatever the journal says: a gate may go by it yet."""
    tail = worker_id.rpartition("-")[2]
    d.next_worker = max(d.next_worker, int(tail) + 1 if tail.isdigit() else 0)


def _revision_of(service: Service, o: Observed) -> Revision | None:
    """A number that the journal, older than the worker, has given to another content since is not this one's."""
    known = service.revision(o.revision.number) if o.revision is not None else None
    if o.revision is None or known is None or known.same_content(o.revision):
        return o.revision
    same = next((r for r in service.revisions if r.same_content(o.revision)), None)
    return same or replace(o.revision, number=service.last_revision + 1)


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


def know_hand_over(d: Draft, source: Worker, living: list[Worker], seen: Seen) -> None:
    """One under way that the journal, older than it, has nothing of. Its target has heard of its epoch, if it lives."""
    o, op = seen[source.id], source.op
    if o.state is not WorkerState.HANDING_OVER or (
        op is not None and op.kind in (OpKind.HAND_OVER, OpKind.TARGET_DEAD)
    ):
        return
    target = next((w.id for w in living if w.id != source.id and seen[w.id].epoch == o.epoch), None)
    d.set_worker(source.id, op=Op(d.next_op, OpKind.HAND_OVER, source.service, source.id, target, o.epoch))
    d.next_op += 1


def end_unknown_transfer(d: Draft, name: str, living: list[Worker], seen: Seen) -> None:
    """One of an epoch that the journal, older than it, has not heard of, and whose source is gone: its target, if this
    is one, holds what it was offered."""
    known = d.before.service(name)
    if known is None or any(seen[w.id].state is WorkerState.HANDING_OVER for w in living):
        return
    newest = max(living, key=lambda w: seen[w.id].epoch, default=None)
    if newest is not None and seen[newest.id].epoch > known.epoch and d.workers[newest.id].op is None:
        d.run(OpKind.SOURCE_DEAD, newest, epoch=seen[newest.id].epoch)


def catch_up(d: Draft, worker: Worker, o: Observed) -> None:
    """What it has done that an older journal has nothing of. A server must be seen ready, so its load is made again."""
    if worker.ending or (worker.op is not None and worker.op.kind in UNDER_WAY):
        return
    if o.state in UP and worker.state in NOT_UP and worker.kind is not Kind.ENGINE:
        d.set_worker(worker.id, state=_as_seen(worker.kind, o), confirmed=True)
    elif o.state in GAVE and worker.state is WorkerState.LOADED:
        d.set_worker(worker.id, state=WorkerState.QUIESCED)
    elif o.state is WorkerState.STAGED and worker.state is WorkerState.SPAWNED:
        d.set_worker(worker.id, state=WorkerState.STAGED)
    elif o.state is WorkerState.PARKED and worker.state is not WorkerState.PARKED:
        results.parked(d, worker)


def _as_seen(kind: Kind, o: Observed) -> WorkerState:
    """Of a worker that is up: what may have been in flight there, through whichever front, ends before it does."""
    spare = kind is Kind.GATE and o.state not in GAVE
    return WorkerState.LOADED if spare else WorkerState.QUIESCED
