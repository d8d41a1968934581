"""Whether a model is where it should be: one that finds no GPU often takes the processor instead, and tells nobody.

Pure. Judged only by figures that are known: what NVML says that the worker holds, or, where it names everybody and not
the worker, that the device's free memory has not fallen either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from swapd.core.errors import NOT_ON_DEVICE, Problem
from swapd.core.ledger import measured_use
from swapd.core.model import DeviceKind, DeviceReading
from swapd.core.sizes import human_bytes

FAR_BELOW: Final = 5  # a fifth: quantised to 4 bits while it is loaded, a model still holds a quarter of its files
LEAST_BYTES: Final = 256 << 20  # what is smaller cannot be told from a context


def expected_of_declared(declared_bytes: int) -> int:
    """What to expect of a model of which nothing but its declaration is known. It may grow to that, and begin with a
    small part of it: so no more than what a model on the processor does not hold, either."""
    return min(declared_bytes, FAR_BELOW * LEAST_BYTES)


def not_on_device(
    readings: Sequence[DeviceReading], worker_id: str, should_hold_bytes: int | None, free_before: Mapping[str, int]
) -> Problem | None:
    """Of a worker that has loaded and answered requests. `should_hold_bytes`: on all its devices together.
    `free_before`: of each device, right before the load. None: it is there, or it cannot be told."""
    if should_hold_bytes is None or should_hold_bytes < LEAST_BYTES:
        return None
    if not readings or any(reading.kind is not DeviceKind.NVML for reading in readings):
        return None
    held_bytes = 0
    for reading in readings:
        used = _held(reading, worker_id, free_before)
        if used is None:
            return None
        held_bytes += used
    if held_bytes * FAR_BELOW >= should_hold_bytes:
        return None
    names = " and ".join(reading.name for reading in readings)
    text = (
        f"{worker_id} holds {human_bytes(held_bytes)} of {names}, and its model should hold about"
        f" {human_bytes(should_hold_bytes)} there: it runs on the processor, it seems. See its log for why it found no"
        f" GPU; if it is meant to hold no more, declare device_memory for its model."
    )
    details = {"devices": [r.name for r in readings], "used_bytes": held_bytes, "should_hold_bytes": should_hold_bytes}
    return Problem(NOT_ON_DEVICE, text, details)


def _held(reading: DeviceReading, worker_id: str, free_before: Mapping[str, int]) -> int | None:
    """None: not known."""
    used = measured_use(reading, worker_id)
    if used is not None:
        return used
    before = free_before.get(reading.name)
    if not reading.names_all or before is None or reading.free_bytes is None:
        return None
    return max(0, before - reading.free_bytes)  # at the most: it is not among those who are named
