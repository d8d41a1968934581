"""While a swap is under way: the most that each device held, and what it was like before anybody let go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from swapd.core.events import PeakSeen
from swapd.core.guard import left_bytes
from swapd.core.model import DeviceReading, Service, State
from swapd.daemon.devices import Devices
from swapd.daemon.release import Release
from swapd.host.clock import wall_s as now

SAMPLE_S: Final = 0.25
SAMPLE_SHARE: Final = 0.1  # of the time, at most: reading the host's memory holds up each process for a moment


class Peaks:
    def __init__(
        self, state: Callable[[], State], take: Callable[[PeakSeen], object], devices: Devices, release: Release
    ) -> None:
        self._state = state
        self._take = take
        self._devices = devices
        self._release = release
        self._highest: dict[tuple[int, str], int] = {}  # (swap, device): bytes
        self._sampling = False

    def sample(self) -> asyncio.Task[None] | None:
        """Until no swap is under way any more. None: that is being done already."""
        if self._sampling:
            return None
        self._sampling = True
        return asyncio.get_running_loop().create_task(self._sample(), name="peaks")

    async def _sample(self) -> None:
        clock = asyncio.get_running_loop().time
        try:
            while any(_is_under_way(service) for service in self._state().services):
                begun = clock()
                readings = await self._devices.read_all()
                self._release.see(readings)
                self.see(readings)
                await asyncio.sleep(max(SAMPLE_S, (clock() - begun) / SAMPLE_SHARE))
        finally:
            self._sampling = False
            self._highest = {}
            self._release.forget()

    def see(self, readings: Sequence[DeviceReading]) -> None:
        """What was read for another end counts too: samples may miss the most that a candidate held."""
        for service in filter(_is_under_way, self._state().services):
            self._see(service, readings)

    def _see(self, service: Service, readings: Sequence[DeviceReading]) -> None:
        assert service.swap is not None
        devices = {name for _, slot in service.slots for name in slot.devices}
        for r in readings:
            left = left_bytes(r)
            if r.name not in devices or not r.known or r.total_bytes is None or left is None:
                continue
            used, key = r.total_bytes - left, (service.swap.id, r.name)
            if used > self._highest.get(key, -1):
                self._highest[key] = used
                self._take(PeakSeen(now(), service.name, r.name, used))


def _is_under_way(service: Service) -> bool:
    return service.swap is not None and service.swap.soak_until is None
