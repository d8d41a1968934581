"""Which devices there are when the configuration names none. Pure: what was seen comes in as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swapd.core.config import DeviceConfig
from swapd.core.model import DeviceKind


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
