"""What a card tells of its own health: Xid errors, and uncorrectable errors of its memory.

Most cards tell some of it only, and containers less: what is not told is not trouble.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any, Final

from swapd.core.device_states import memory_error_words, xid_words
from swapd.core.model import DeviceState

MEMORY_HEALTH_FOR_S: Final = 5.0
MAX_EVENTS: Final = 64  # kept of a card, and taken at a time


class Health:
    """Of all cards, since NVML was initialised. What they have told of Xid errors outlives that: it is the owner's."""

    def __init__(self, nvml: Any, xids: dict[str, list[int]]) -> None:
        """`nvml`: the module pynvml, initialised. `xids`: what is known by the UUID of a card, and is added to."""
        self._nvml = nvml
        self._events: Any = None  # NVML's set of them
        self._listened: set[str] = set()  # the UUIDs of cards whose events these are
        self._xids = xids
        self._memory_health: dict[str, tuple[float, tuple[DeviceState, str] | None]] = {}  # by UUID: until when, what

    def trouble(self, handle: Any, uuid: str) -> tuple[DeviceState, str]:
        """What the card tells of itself. A slice's is its whole card's. Most cards tell some of it only."""
        with contextlib.suppress(Exception):
            handle = self._nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
        return xid_words(self._xids_of(handle)) or self._memory_errors(handle, uuid) or (DeviceState.OK, "")

    def _memory_errors(self, handle: Any, uuid: str) -> tuple[DeviceState, str] | None:
        """Asked now and then: readings may come twenty times a second, and this takes longer than the memory."""
        until_s, found = self._memory_health.get(uuid, (0.0, None))
        if time.monotonic() < until_s:
            return found
        uncorrected, pending, failed = None, False, False
        with contextlib.suppress(Exception):
            uncorrected = int(
                self._nvml.nvmlDeviceGetTotalEccErrors(
                    handle, self._nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self._nvml.NVML_VOLATILE_ECC
                )
            )
        with contextlib.suppress(Exception):
            _, _, pending, failed = map(bool, self._nvml.nvmlDeviceGetRemappedRows(handle))
        found = memory_error_words(uncorrected, pending, failed)
        self._memory_health[uuid] = (time.monotonic() + MEMORY_HEALTH_FOR_S, found)
        return found

    def _xids_of(self, handle: Any) -> Sequence[int]:
        """The Xid errors that this card is known to have had."""
        with contextlib.suppress(Exception):
            uuid = str(self._nvml.nvmlDeviceGetUUID(handle))
            if self._events is None:
                self._events = self._nvml.nvmlEventSetCreate()
            if uuid not in self._listened:
                self._nvml.nvmlDeviceRegisterEvents(handle, self._nvml.nvmlEventTypeXidCriticalError, self._events)
                self._listened.add(uuid)
            self._collect_xids()
            return self._xids.get(uuid, ())
        return ()

    def _collect_xids(self) -> None:
        for _ in range(MAX_EVENTS):
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError:  # a timeout: there are no more
                return
            known = self._xids.setdefault(str(self._nvml.nvmlDeviceGetUUID(event.device)), [])
            known.append(int(event.eventData))
            del known[:-MAX_EVENTS]
