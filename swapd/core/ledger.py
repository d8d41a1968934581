"""The ledger: how much of a device may still be promised.

    available = min(total - sum of reservations, free - sum of outstanding) - headroom

The first term stops swapd from promising more than there is, whatever the moment's reading says; the second
respects what is really free, including what others hold. *Outstanding* is what was promised and is not taken
yet: without it, two loads in flight would both count the bytes that neither has allocated so far.

Knows nothing of strategies or time. Unknown (`None`) never counts as zero: with an unknown reading,
or beside a load of unknown size, nothing is available.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from swapd.core.errors import DEVICE_UNKNOWN, MEMORY_NOT_RELEASED, VRAM_INSUFFICIENT, Problem
from swapd.core.model import RETURN, DeviceReading, Reservation
from swapd.core.sizes import human_bytes

MIB: Final = 1 << 20


def return_of(service: str, devices: Sequence[str] = ()) -> str:
    """The name of the reservation that keeps the way back open, in place of a worker's: nobody holds it. `devices`:
    those which the successor leaves alone, where there are any."""
    return f"{RETURN}{service}" + (f" on {', '.join(devices)}" if devices else "")


def on_device(reading: DeviceReading, reservations: Sequence[Reservation]) -> tuple[Reservation, ...]:
    return tuple(r for r in reservations if reading.name in r.devices)


def measured_use(reading: DeviceReading, worker_id: str) -> int | None:
    """What the worker holds on this device, in bytes; None when the reading does not tell."""
    return next((used for worker, used in reading.used_by if worker == worker_id), None)


def most_used(readings: Sequence[DeviceReading], worker_id: str) -> int | None:
    """What it holds on that of its devices on which it holds most; None when one of the readings does not tell."""
    uses = [measured_use(reading, worker_id) for reading in readings]
    known = [used for used in uses if used is not None]
    return max(known, default=None) if len(known) == len(uses) else None


def outstanding_bytes(reading: DeviceReading, reservation: Reservation) -> int:
    """What the worker was promised and has not taken yet.

    Use unknown: the whole reservation until the worker is settled, then nothing, because a settled worker's
    memory is already missing from `free`. A reservation of unknown size counts as its measured use: nothing is
    outstanding.
    """
    if reservation.bytes is None:
        return 0
    used = measured_use(reading, reservation.worker_id)
    if used is None:
        return 0 if reservation.settled else reservation.bytes
    return max(0, reservation.bytes - used)


def charged_bytes(reading: DeviceReading, reservation: Reservation) -> int | None:
    """What the ledger holds against this worker: its reservation, or its use where no size is known."""
    return reservation.bytes if reservation.bytes is not None else measured_use(reading, reservation.worker_id)


def loads_of_unknown_size(reading: DeviceReading, reservations: Sequence[Reservation]) -> tuple[Reservation, ...]:
    """Loads in flight that may still take any amount: nothing else is admitted beside them."""
    return tuple(r for r in on_device(reading, reservations) if r.bytes is None and not r.settled)


def ledger_bytes(reading: DeviceReading, reservations: Sequence[Reservation]) -> int | None:
    """total - sum of reservations. A settled worker of unknown size and use is left to the other term: `free`
    is without its memory already."""
    if reading.total_bytes is None:
        return None
    return reading.total_bytes - sum(charged_bytes(reading, r) or 0 for r in on_device(reading, reservations))


def unclaimed_bytes(reading: DeviceReading, reservations: Sequence[Reservation]) -> int | None:
    """free - sum of outstanding."""
    if reading.free_bytes is None:
        return None
    return reading.free_bytes - sum(outstanding_bytes(reading, r) for r in on_device(reading, reservations))


def available_bytes(reading: DeviceReading, reservations: Sequence[Reservation]) -> int | None:
    """How much may be promised now. Negative: as much is missing. None: not known, so promise nothing."""
    ledger = ledger_bytes(reading, reservations)
    unclaimed = unclaimed_bytes(reading, reservations)
    if ledger is None or unclaimed is None or loads_of_unknown_size(reading, reservations):
        return None
    return min(ledger, unclaimed) - reading.headroom_bytes


def after_release(
    reading: DeviceReading, reservations: Sequence[Reservation], residues: Mapping[str, int]
) -> tuple[DeviceReading, tuple[Reservation, ...]]:
    """The device as it should look once the named workers have let go, each but for its residue (0: stopped).

    A forecast, for planning only: whoever acts on it must see `room_for` agree before anything is loaded. A
    worker of unknown use gives back what it was promised and has taken (settled: all of it); where its size is
    unknown as well, nothing is counted on.
    """
    if not residues:
        return reading, tuple(reservations)
    freed_bytes = 0
    kept: list[Reservation] = []
    used_by = dict(reading.used_by)
    for reservation in reservations:
        if reading.name not in reservation.devices or reservation.worker_id not in residues:
            kept.append(reservation)
            continue
        residue_bytes = residues[reservation.worker_id]
        held_bytes = measured_use(reading, reservation.worker_id)
        if held_bytes is None:
            held_bytes = (reservation.bytes or 0) - outstanding_bytes(reading, reservation)
        freed_bytes += max(0, held_bytes - residue_bytes)
        used_by.pop(reservation.worker_id, None)
        if residue_bytes > 0:
            used_by[reservation.worker_id] = min(held_bytes, residue_bytes)
            kept.append(replace(reservation, bytes=residue_bytes, settled=True))
    free_bytes = reading.free_bytes
    if free_bytes is not None and reading.total_bytes is not None:
        free_bytes = max(free_bytes, min(reading.total_bytes, free_bytes + freed_bytes))
    return replace(reading, free_bytes=free_bytes, used_by=tuple(used_by.items())), tuple(kept)


def room_for(reading: DeviceReading, reservations: Sequence[Reservation], worker_id: str) -> Problem | None:
    """Before a load or a wake: has `worker_id` the room it was promised? What it holds already, parked, is its own.

    The check by measurement that a forecast must pass, in place above all: poll it until it returns None or the
    deadline is over. Workers that are gone must have left `reservations` by then; parked ones stay, with their
    residue. A candidate of unknown size needs everything but itself to be gone. What its own service keeps for the
    way back does not stand against it: that is for whoever comes after it.
    """
    mine = next((r for r in on_device(reading, reservations) if r.worker_id == worker_id), None)
    reading, others = after_release(reading, on_device(reading, reservations), {worker_id: 0})
    if mine is not None:
        others = tuple(r for r in others if not (r.for_return and r.service == mine.service))
    available = available_bytes(reading, others)
    if mine is None or available is None:
        loading = loads_of_unknown_size(reading, others)
        why = f"{loading[0].worker_id} is loading and its size is unknown" if loading else reading.detail
        why = why or ("its memory cannot be read" if mine else f"nothing is reserved for {worker_id}")
        return Problem(DEVICE_UNKNOWN, f"{reading.name}: {why}; {worker_id} is not loaded on a guess.")
    if mine.bytes is None:
        if available > 0 and not others:
            return None
        holders = ", ".join(sorted(r.worker_id for r in others)) or "other processes"
        text = f"{reading.name} is still in use by {holders}; {worker_id} needs it alone, as its size is unknown"
    elif available >= mine.bytes:
        return None
    else:
        room = f"{human_bytes(max(0, available), down=True)} available on {reading.name}"
        need = f"{worker_id} needs {human_bytes(mine.bytes, up=True)}"
        text = f"{room} after {human_bytes(reading.headroom_bytes)} headroom, {need}"
    details = {"device": reading.name, "available_bytes": available, "need_bytes": mine.bytes}
    return Problem(MEMORY_NOT_RELEASED, f"{text}.", details)


def beyond_plan(used_bytes: int | None, need_bytes: int | None) -> str:
    """In words, of a model that has taken more than was planned for it, and is let be."""
    if used_bytes is None or need_bytes is None or used_bytes <= need_bytes:
        return ""
    return f"; it took {human_bytes(used_bytes, up=True)}, {human_bytes(need_bytes)} were planned"


def overdrawn(reading: DeviceReading, reservations: Sequence[Reservation], worker_id: str) -> Problem | None:
    """After a load: does what `worker_id` has really taken break what others were promised?

    A worker that takes more than its reservation is let be as long as everybody else still finds their own; the
    headroom is there for this.
    """
    mine = next((r for r in on_device(reading, reservations) if r.worker_id == worker_id), None)
    used = measured_use(reading, worker_id)
    if mine is None or mine.bytes is None or used is None or used <= mine.bytes:
        return None
    real = tuple(replace(r, bytes=used) if r is mine else r for r in on_device(reading, reservations))
    ledger, unclaimed = ledger_bytes(reading, real), unclaimed_bytes(reading, real)
    lacks = -min(ledger if ledger is not None else 0, unclaimed if unclaimed is not None else 0)
    if lacks <= 0:
        return None
    excess = f"{human_bytes(lacks, up=True)} of that are promised to others"
    if len(real) == 1:
        excess = f"that is {human_bytes(lacks, up=True)} more than {reading.name} has for it"
    text = (
        f"{worker_id} has taken {human_bytes(used, up=True)} of {reading.name}, and {human_bytes(mine.bytes)} were"
        f" planned for it: {excess}."
        f' Declare device_memory = "{-(-used // MIB)}MiB" for its model, or make it take less.'
    )
    details = {"device": reading.name, "used_bytes": used, "reserved_bytes": mine.bytes, "lacks_bytes": lacks}
    return Problem(VRAM_INSUFFICIENT, text, details)
