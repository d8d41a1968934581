"""Whose turn it is on a device: one load or release at a time, from what is let go to what is warm.

A server may measure what is free while it loads, and aborts, or takes too little, if somebody frees or takes memory
meanwhile (vllm#56830); and what the daemon measures itself would mix. So on an exclusive device

- whoever takes memory (confirm, load, warm, wake) has it from the first of these until it is warm,
- an in-place swap has the devices of both its models from the moment it holds the clients until the new one is warm:
  they shall not wait for another service's load as well,
- who is to give memory back without haste waits for its turn too.

What fails, crashes or shuts down is ended at once. Nobody waits for what has outlived a kill: that may be for ever, and
what it was promised stays promised. It is a pure rule over the state: nobody can forget to give a turn
back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from swapd.core.draft import Draft
from swapd.core.model import OpKind, Reservation, Service, Slot, Strategy, Swap, Worker
from swapd.core.states import Phase, WorkerState

TAKES: Final = frozenset({OpKind.CONFIRM, OpKind.LOAD, OpKind.WAKE, OpKind.WARM})
GIVES: Final = frozenset({OpKind.PARK, OpKind.STOP})
_MEASURES: Final = TAKES - {OpKind.CONFIRM}  # with a model that may look at what is free
_ON_ITS_WAY: Final = (WorkerState.SPAWNED, WorkerState.STAGED, WorkerState.LOADED)


@dataclass(frozen=True, slots=True)
class _Claim:
    """Somebody's on devices, as far as they are exclusive for who asks. The lowest rank goes first."""

    rank: tuple[int, int]
    service: str
    worker: str  # whom the others wait for
    devices: frozenset[str]
    op: OpKind | None = None


_UNDER_WAY, _IN_PLACE, _BETWEEN, _NONE = range(4)  # the first part of a rank


def may_take(d: Draft, worker: Worker) -> str | None:
    """Whom a worker has to wait for before it takes memory; None: it is its turn."""
    claims = (c for c in _claims(d) if c.service != worker.service or c.rank[0] == _UNDER_WAY)
    return _first(claims, _devices(d, worker), worker.id, _rank(d, worker))


def may_give(d: Draft, worker: Worker) -> str | None:
    """Whom a worker has to wait for before it gives memory back that nobody is in haste for; None: it may at once. Its
    own service's next worker may be waiting for just that, and others for that one: they are not waited for."""
    claims = list(_claims(d))
    awaited = any(c.service == worker.service and c.op is OpKind.CONFIRM for c in claims)
    ahead = (c for c in claims if c.op in _MEASURES or (c.service != worker.service and (c.op or not awaited)))
    return _first(ahead, _devices(d, worker), worker.id, _rank(d, worker))


def may_hold(d: Draft, service: Service, incoming: Slot, leaving: Worker) -> str | None:
    """Whom an in-place swap has to wait for before it holds its clients; None: it is its turn."""
    claims = (c for c in _claims(d) if c.service != service.name)
    return _first(claims, _exclusive(incoming) | _devices(d, leaving), "", (_NONE, 0))


def _first(claims: Iterable[_Claim], devices: frozenset[str], own: str, rank: tuple[int, int]) -> str | None:
    ahead = (c for c in claims if c.worker != own and c.rank < rank and not devices.isdisjoint(c.devices))
    return next((c.worker for c in ahead), None)


def _claims(d: Draft) -> Iterator[_Claim]:
    for name, service in d.services.items():
        if (swap := _in_place(d, name)) is not None:
            parties = [service.slot(r.number) for r in (swap.source, swap.target) if r is not None]
            devices = frozenset(device for slot in parties if slot is not None for device in slot.devices)
            candidate = d.worker_of(name, swap.target.number)
            yield _Claim((_IN_PLACE, swap.id), name, candidate.id if candidate is not None else name, devices)
    for number, worker in enumerate(d.workers.values()):
        op = worker.op.kind if worker.op is not None and not worker.outlived_kill else None
        promised = d.reservations.get(worker.id)
        if promised is not None and (op in TAKES | GIVES or _is_between(d, worker)):
            rank = (_UNDER_WAY, 0) if op is not None else (_BETWEEN, number)
            yield _Claim(rank, worker.service, worker.id, frozenset(promised.devices), op)


def _rank(d: Draft, worker: Worker) -> tuple[int, int]:
    """Its own: those with a lower one go first."""
    if (swap := _in_place(d, worker.service)) is not None:
        return (_IN_PLACE, swap.id)
    if _is_between(d, worker):
        return (_BETWEEN, list(d.workers).index(worker.id))
    return (_NONE, 0)


def _is_between(d: Draft, worker: Worker) -> bool:
    """Two operations of its way to being warm: the next is begun in a moment. Not of what a soak keeps: an old model
    that had died, and was on its way back when its successor took over, is left as it is until somebody returns to it.
    """
    service = d.services[worker.service]
    swap = service.swap
    kept = swap.source if swap is not None and swap.phase is Phase.SOAKING else None
    if kept is not None and kept.number == worker.revision:
        return False
    parked = worker.state is WorkerState.PARKED
    on_its_way = worker.confirmed and (parked or (worker.state in _ON_ITS_WAY and not worker.warmed))
    return on_its_way and worker.op is None and service.paused is None and not d.shuts_down(service.name)


def _in_place(d: Draft, name: str) -> Swap | None:
    """The swap of this service that has its devices, from hold to warm."""
    swap = d.services[name].swap
    if swap is None or swap.strategy is not Strategy.IN_PLACE:
        return None
    if d.services[name].paused is not None or d.shuts_down(name):
        return None
    goal = swap.target
    if swap.phase is Phase.ROLLING_BACK and swap.source is not None:
        if d.server_of(name) is not None and not d.transferring(name):
            return None  # clients are not held yet, or no more
        goal = swap.source
    elif swap.phase is not Phase.PROGRESSING:
        return None
    worker = d.worker_of(name, goal.number)
    warm = worker is not None and worker.warmed and worker.state is not WorkerState.PARKED
    return None if warm else swap


def _devices(d: Draft, worker: Worker) -> frozenset[str]:
    """Those of its devices that are exclusive: by what it is promised, as its slot may be forgotten before it ends."""
    promised = d.reservations.get(worker.id)
    return _exclusive(promised) if promised is not None else frozenset()


def _exclusive(where: Slot | Reservation) -> frozenset[str]:
    return frozenset(where.devices) if where.exclusive else frozenset()
