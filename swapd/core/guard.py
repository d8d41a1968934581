"""The guard's rule: when a worker that loads beside others is killed, so that they never notice it.

Pure: it judges one reading. Polling cannot beat an allocator; what can is told in docs/memory.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from swapd.core.errors import GUARD_KILLED, Problem
from swapd.core.ledger import MIB, measured_use, on_device
from swapd.core.model import DeviceReading, OpKind, Reservation, Slot
from swapd.core.sizes import human_bytes

GUARDED: Final = frozenset({OpKind.LOAD, OpKind.WAKE, OpKind.WARM, OpKind.VERIFY})  # what may take device memory


def is_guarded(kind: OpKind, slot: Slot) -> bool:
    """A model's own `stage` hook, and its import, are to take none but its CUDA context; they may all the same."""
    return kind in GUARDED or (kind is OpKind.STAGE and slot.can_stage)


def floor_of(headroom_bytes: int, floor_bytes: int | None) -> int:
    """What a device is left at the least: half of the headroom, unless it is said. The other half is for what
    allocators round up to."""
    return floor_bytes if floor_bytes is not None else headroom_bytes // 2


def is_beside_others(device: str, reservations: Sequence[Reservation], worker_id: str) -> bool:
    """Somebody else stands on the device, and could lose by what this worker takes."""
    return any(device in r.devices and r.worker_id != worker_id and not r.for_return for r in reservations)


def left_bytes(reading: DeviceReading) -> int | None:
    """What is free; less than nothing where our workers hold more than the device's budget. None: not known."""
    if reading.free_bytes is None or reading.total_bytes is None:
        return None
    held_bytes = sum(used for _, used in reading.used_by if used is not None)
    return min(reading.free_bytes, reading.total_bytes - held_bytes)


def breach(
    reading: DeviceReading,
    reservations: Sequence[Reservation],
    worker_id: str,
    floor_bytes: int,
    *,
    stages: bool = False,
) -> Problem | None:
    """Why the worker must go, now; None: it need not. Of two that load at once, one that keeps to what it was promised
    is spared while the other is over. One that stages is promised nothing, and goes once it has taken more than the
    headroom."""
    left = left_bytes(reading)
    here = on_device(reading, reservations)
    mine = next((r for r in here if r.worker_id == worker_id), None)
    if left is None or left >= floor_bytes or not is_beside_others(reading.name, here, worker_id):
        return None
    if stages:
        mine = Reservation(worker_id, "", reading.name, reading.headroom_bytes)
        here = (*here, mine)
    over = [r.worker_id for r in here if not r.settled and _is_over(reading, r)]
    if mine is None or (worker_id not in over and (over or stages)):
        return None
    used = measured_use(reading, worker_id)
    free_text = f"{human_bytes(max(0, left), down=True)} of {reading.name} was free"
    below = (
        f"below its floor of {human_bytes(floor_bytes)}" if floor_bytes else "and its workers held more than its budget"
    )
    left_text = f"{free_text}, {below}"
    took = "" if used is None else f" had taken {human_bytes(used, up=True)}"
    if not stages and mine.bytes is not None:
        took += f"{' and' if took else ''} was promised {human_bytes(mine.bytes)}"
    cure = " Somebody else has taken the memory: see swapd-cli devices."
    if stages:
        cure = " Its import and its `stage` hook must need no memory of the device: see `stage` of its model."
    elif used is not None and worker_id in over:
        cure = f' Declare device_memory = "{-(-used // MIB)}MiB" or more for its model, or make it take less.'
    did = "staged while others served" if stages else "loaded beside others"
    text = f"{worker_id}{took}, and was killed while it {did}: {left_text}.{cure}"
    details = {
        "device": reading.name,
        "free_bytes": reading.free_bytes,
        "floor_bytes": floor_bytes,
        "used_bytes": used,
        "reserved_bytes": None if stages else mine.bytes,
    }
    return Problem(GUARD_KILLED, text, details)


def _is_over(reading: DeviceReading, reservation: Reservation) -> bool:
    """A worker of unknown size has been promised nothing in particular, so whatever it takes is too much for others."""
    used = measured_use(reading, reservation.worker_id)
    return used is not None and (reservation.bytes is None or used > reservation.bytes)
