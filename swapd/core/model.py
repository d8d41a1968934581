"""The nouns shared by every decision: devices, footprints, reservations, revisions.

Frozen values. Sizes are in bytes, times in seconds; `None` means *unknown* and is never treated as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class DeviceKind(str, Enum):
    NVML = "nvml"  # an NVIDIA GPU or MIG slice
    HOST = "host"  # the host's own memory, or a budget within it


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One measurement of one device.

    `used_by` maps our workers' ids to the device memory that their process trees hold (None: not known for that
    worker). `foreign` lists processes on the device that are not ours: (pid, bytes or None, name).
    """

    name: str
    kind: DeviceKind
    headroom_bytes: int
    total_bytes: int | None
    free_bytes: int | None
    used_by: tuple[tuple[str, int | None], ...] = ()
    foreign: tuple[tuple[int, int | None, str], ...] = ()
    uuid: str = ""
    detail: str = ""  # e.g. "NVIDIA H200, driver 575.57" or why the memory is unknown

    @property
    def known(self) -> bool:
        return self.total_bytes is not None and self.free_bytes is not None


class FootprintSource(str, Enum):
    DECLARED = "declared"  # device_memory in the config
    LEARNED = "learned"  # the peak of an earlier run of the same model and settings
    ESTIMATED = "estimated"  # weights' headers plus overhead
    UNKNOWN = "unknown"  # nothing to go by: admitted only where it may have the device to itself


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one worker of a model needs on its device, and how that is known."""

    need_bytes: int | None
    source: FootprintSource
    detail: str = ""  # e.g. "weights 14.96 GiB + overhead 0.50 GiB"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Device memory promised to a worker from before its spawn until its process tree is gone.

    `settled` is set once the worker has proved itself: what it has not taken by then it is not about to take.
    """

    worker_id: str
    service: str
    device: str
    bytes: int | None
    settled: bool = False


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable way to serve: which model, with which settings, over which content."""

    number: int  # counts up per service, from 1
    service: str
    model: str
    settings_digest: str  # sha256 hex of the model's settings, 16 digits
    fingerprint: str  # sha256 hex over weights and code, 16 digits

    def same_content(self, other: Revision) -> bool:
        return (self.model, self.settings_digest, self.fingerprint) == (
            other.model,
            other.settings_digest,
            other.fingerprint,
        )
