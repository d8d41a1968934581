"""A service that has another name in the configuration than in the journal, and is the same: it is known by an address.

Whoever serves there goes on, under the new name: its workers (which keep the ids that they were given), the numbers of
its revisions, a swap that is under way. Anything else that has changed with the name is then a change like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from swapd.core.ledger import return_of
from swapd.core.model import Op, Reservation, Revision, Service, State, Swap, Worker

Names = Mapping[str, str]  # the new by the old


def renamed(state: State, listen: Mapping[str, Collection[str]]) -> dict[str, str]:
    """Services that are gone, each by the one new service that has an address of it. `listen`: the addresses that the
    configuration's services have. Where two could be meant, neither is."""
    gone = [s for s in state.services if s.name not in listen and not s.leaving]
    new = [name for name in listen if state.service(name) is None]
    pairs = [(s.name, name) for s in gone for name in new if not set(s.settings.listen).isdisjoint(listen[name])]
    olds, news = [old for old, _ in pairs], [name for _, name in pairs]
    return {old: name for old, name in pairs if olds.count(old) == news.count(name) == 1}


def rename(state: State, names: Names) -> State:
    return replace(
        state,
        services=tuple(_service(s, names[s.name]) if s.name in names else s for s in state.services),
        workers=tuple(_worker(w, names[w.service]) if w.service in names else w for w in state.workers),
        reservations=tuple(_reservation(r, names[r.service]) if r.service in names else r for r in state.reservations),
    )


def _service(service: Service, name: str) -> Service:
    """Where it was paused, somebody has looked at it: what it was told is of the old name."""
    return replace(
        service,
        name=name,
        revisions=tuple(_revision(r, name) for r in service.revisions),
        swap=_swap(service.swap, name) if service.swap is not None else None,
        paused=None,
        recoveries=0,
    )


def _revision(revision: Revision, name: str) -> Revision:
    return replace(revision, service=name)


def _swap(swap: Swap, name: str) -> Swap:
    source = _revision(swap.source, name) if swap.source is not None else None
    return replace(swap, service=name, source=source, target=_revision(swap.target, name))


def _worker(worker: Worker, name: str) -> Worker:
    op: Op | None = replace(worker.op, service=name) if worker.op is not None else None
    return replace(worker, service=name, op=op)


def _reservation(reservation: Reservation, name: str) -> Reservation:
    """There may be two for the way back, of different devices."""
    worker_id = reservation.worker_id
    if reservation.for_return:
        worker_id = return_of(name) + worker_id.removeprefix(return_of(reservation.service))
    return replace(reservation, service=name, worker_id=worker_id)
