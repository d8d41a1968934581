"""The words of a placement decision: who holds what, and what would make room. Figures as people read them.

Split from `placement` so that the decisions read without the wording. Pure; knows the ledger, no strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from swapd.core.ledger import (
    after_release,
    available_bytes,
    charged_bytes,
    measured_use,
    on_device,
    outstanding_bytes,
)
from swapd.core.model import DeviceReading, Reservation
from swapd.core.sizes import human_bytes

Name = Callable[[str], str]  # worker id -> how people know it, or its model

# Below this, memory that nobody we know holds is the driver's and not worth a word in a reason.
UNACCOUNTED_WORTH_TELLING_BYTES: Final = 128 << 20


def holders(reading: DeviceReading, reservations: Sequence[Reservation], name: Name) -> str:
    """`a (chat-3) holds 20.0 of 24.0 GiB, 3.0 GiB is held outside swapd`"""
    total, free = reading.total_bytes or 0, reading.free_bytes or 0
    here = sorted(on_device(reading, reservations), key=lambda r: (-(charged_bytes(reading, r) or 0), r.worker_id))
    parts = []
    for r in here:
        used = measured_use(reading, r.worker_id)
        unseen = used is None and r.settled and not r.for_return
        verb = "holds" if unseen or (used or 0) >= (r.bytes or 0) else "is promised"
        parts.append(f"{name(r.worker_id)} {verb} {human_bytes(held_bytes(reading, r))}")
    known = sum(measured_use(reading, r.worker_id) or 0 for r in here)
    unmeasured = any(measured_use(reading, r.worker_id) is None and r.settled for r in here)
    unaccounted = total - free - known
    if not unmeasured and unaccounted >= UNACCOUNTED_WORTH_TELLING_BYTES:
        parts.append(f"{human_bytes(unaccounted)} is held outside swapd")
    if not parts:
        return f"{human_bytes(free, down=True)} of {human_bytes(total)} is free"
    of_total = human_bytes(total)
    first = parts[0].removesuffix(of_total[-4:]) if of_total.endswith(parts[0][-4:]) else parts[0]
    return ", ".join([f"{first} of {of_total}", *parts[1:]])


def what_makes_room(
    reading: DeviceReading,
    reservations: Sequence[Reservation],
    need_bytes: int,
    name: Name,
    model: Name,
    own: Sequence[str],
) -> tuple[str, ...]:
    """What would let `need_bytes` in, on a device where they do not fit. `own` workers are not offered to be
    stopped: they are the service's own, and stopping them is what in-place means."""
    total, available = reading.total_bytes or 0, available_bytes(reading, reservations) or 0
    if need_bytes > total - reading.headroom_bytes:
        return (f"a device with at least {human_bytes(need_bytes + reading.headroom_bytes, up=True)}",)
    changes = []
    for r in on_device(reading, reservations):
        if r.worker_id in own:
            continue
        room = available_bytes(*after_release(reading, reservations, {r.worker_id: 0}))
        if room is not None and room >= need_bytes:
            freed = human_bytes(held_bytes(reading, r))
            swap = f"wait for the end of {r.service}'s swap"
            changes.append(f"{swap if r.for_return else f'stop {name(r.worker_id)} of {r.service}'} (frees {freed})")
    short = need_bytes - available
    is_there = (reading.free_bytes or 0) - reading.headroom_bytes >= need_bytes  # and promised to somebody
    if is_there:
        changes += _smaller_promises(reading, reservations, short, model)
    if not is_there or not changes:
        changes.append(f"free {human_bytes(short, up=True)} on {reading.name}")
    return tuple(changes)


def _smaller_promises(
    reading: DeviceReading, reservations: Sequence[Reservation], short: int, model: Name
) -> list[str]:
    """Whose device_memory would have to be how small, among those that have not taken what they were promised."""
    spare = {r: outstanding for r in on_device(reading, reservations) if (outstanding := outstanding_bytes(reading, r))}
    changes = []
    for r, outstanding in spare.items():
        if r.bytes is not None and outstanding >= short and not r.for_return:
            most, used = human_bytes(r.bytes - short, down=True), measured_use(reading, r.worker_id)
            now = f"{human_bytes(r.bytes)} is promised to it"
            now += f", of which it holds {human_bytes(used)}" if used is not None else ""
            changes.append(f"declare device_memory of at most {most} for {model(r.worker_id)} ({now})")
    models = [model(r.worker_id) for r in spare if not r.for_return]
    if models and not changes:
        return [f"declare a smaller device_memory for {both(models)}, {human_bytes(short, up=True)} less in all"]
    return changes


def held_bytes(reading: DeviceReading, reservation: Reservation) -> int:
    """For telling only: the larger of what a worker was promised and what it is seen to hold."""
    return max(reservation.bytes or 0, measured_use(reading, reservation.worker_id) or 0)


def both(names: Iterable[str]) -> str:
    return " and ".join(names)
