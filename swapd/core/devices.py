"""Which devices there are when the configuration names none. Pure: what was seen comes in as an argument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from swapd.core.config import DeviceConfig
from swapd.core.model import DeviceKind, DeviceReading, DeviceState


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """A GPU, or a slice of one that is divided by MIG."""

    uuid: str
    index: int  # of the GPU
    slice: int | None = None  # of the MIG slice within it
    product: str = ""


def default_devices(seen: Sequence[SeenGpu]) -> tuple[DeviceConfig, ...]:
    """Every NVIDIA GPU and MIG slice; on a host without one, the host's memory.

    Matched by UUID, because indexes change when a card is added or lost.
    """
    if not seen:
        return (DeviceConfig(name="host", kind=DeviceKind.HOST),)
    return tuple(
        DeviceConfig(
            name=f"gpu{gpu.index}" if gpu.slice is None else f"gpu{gpu.index}-mig{gpu.slice}",
            kind=DeviceKind.NVML,
            match=gpu.uuid,
        )
        for gpu in seen
    )


def names_of_one(configs: Mapping[str, DeviceConfig]) -> tuple[str, ...]:
    """Devices of which two may be one GPU, as some are named by index and some by UUID."""
    matches = {name: device.match or "" for name, device in configs.items() if device.kind is DeviceKind.NVML}
    by_index = {name for name, match in matches.items() if match.isdigit()}
    return tuple(matches) if 0 < len(by_index) < len(matches) else ()


def without_twins(readings: Sequence[DeviceReading]) -> list[DeviceReading]:
    """Of two devices that are one GPU only the first is known: each would promise all of it."""
    first: dict[str, str] = {}
    found = []
    for reading in readings:
        twin = first.setdefault(reading.uuid, reading.name) if reading.uuid else reading.name
        if twin != reading.name:
            why = f"it is the same GPU as {twin}: leave one of them out"
            unknown = tuple((worker, None) for worker, _ in reading.used_by)
            state = DeviceState.FAILED
            reading = replace(reading, total_bytes=None, free_bytes=None, used_by=unknown, foreign=(), state=state)
            reading = replace(reading, detail=why, trouble=why, holders_known=False, names_all=False)
        found.append(reading)
    return found
