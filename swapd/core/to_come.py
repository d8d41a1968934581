"""What in-place swaps will take that is not reserved yet: their clients would be held for nothing if somebody else were
promised it between the decision and the moment when the old model has let go.

Pure, and looked up in the state: nobody can forget to give it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from swapd.core.model import TO_COME, Reservation, Service, State, Strategy, Worker
from swapd.core.states import FORWARD


def promised(state: State) -> tuple[Reservation, ...]:
    """All that counts against who is placed now."""
    reserved = (r.worker_id for r in state.reservations)
    return (*state.reservations, *to_come(state.services, state.workers, reserved))


def to_come(services: Iterable[Service], workers: Iterable[Worker], reserved: Iterable[str]) -> tuple[Reservation, ...]:
    """Beside the reservations, for whoever is placed now. `reserved`: the workers that have one."""
    known = set(reserved)
    have_theirs = {(w.service, w.revision) for w in workers if w.id in known and not w.ending}
    return tuple(reservation for service in services for reservation in _of(service, have_theirs))


def _of(service: Service, have_theirs: set[tuple[str, int]]) -> Iterator[Reservation]:
    """On each device what the new model needs beyond the old one, whose own is still reserved."""
    swap = service.swap
    if swap is None or swap.source is None or swap.strategy is not Strategy.IN_PLACE or swap.phase not in FORWARD:
        return
    new, old = service.slot(swap.target.number), service.slot(swap.source.number)
    if (service.name, swap.target.number) in have_theirs or new is None or new.need_bytes is None or old is None:
        return
    for device in new.devices:
        left_bytes = old.need_bytes if device in old.devices else 0
        if left_bytes is not None and new.need_bytes > left_bytes:
            name = f"{TO_COME}{service.name} on {device}"
            yield Reservation(name, service.name, device, new.need_bytes - left_bytes)
