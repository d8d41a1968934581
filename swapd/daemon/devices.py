"""The devices that models are placed on, read together: GPUs through NVML, the host's own memory through /proc."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from swapd.core.config import DeviceConfig
from swapd.core.devices import default_devices
from swapd.core.errors import UNKNOWN_DEVICE, SwapdError
from swapd.core.model import DeviceKind, DeviceReading, State
from swapd.daemon.workers import Workers
from swapd.host.host_memory import HostMemory
from swapd.host.nvml import Nvml

log = logging.getLogger("swapd.devices")


class Devices:
    def __init__(self, configs: Mapping[str, DeviceConfig], workers: Workers, state: Callable[[], State]) -> None:
        self._configs = dict(configs)
        self._told: dict[str, DeviceConfig] = {}  # by the log
        self._workers = workers
        self._state = state
        self._host = HostMemory()
        self._nvml = Nvml()

    async def start(self) -> None:
        self.configure(await self.found(self._configs))

    async def found(self, configs: Mapping[str, DeviceConfig]) -> dict[str, DeviceConfig]:
        """Those of the configuration or, if it names none, every GPU; on a host without one, its memory."""
        return dict(configs) or {d.name: d for d in default_devices(await self._nvml.list_devices())}

    def configure(self, found: Mapping[str, DeviceConfig]) -> None:
        """Go by these from now on."""
        for name, device in found.items():
            if self._told.get(name) != device:
                log.info("device.found name=%s kind=%s match=%s", name, device.kind.value, device.match or "-")
        self._configs = self._told = dict(found)

    async def close(self) -> None:
        await self._nvml.stop()

    def names(self) -> tuple[str, ...]:
        return tuple(self._configs)

    async def read_all(self) -> list[DeviceReading]:
        return await self.read(self.names())

    async def read(self, names: Sequence[str]) -> list[DeviceReading]:
        """The readings of the named devices, in that order. Raises SwapdError(UNKNOWN_DEVICE)."""
        for name in names:
            if name not in self._configs:
                known = ", ".join(self._configs)
                raise SwapdError(UNKNOWN_DEVICE, f"There is no device {name!r}; there are: {known}.")
        placed = self._placed()
        pids = await self._workers.pids()
        readings: dict[str, DeviceReading] = {}
        for name in names:
            config = self._configs[name]
            if config.kind is DeviceKind.HOST:
                here = {worker: pids.get(worker, set()) for worker, devices in placed.items() if name in devices}
                reading = await self._host.read_async(name, config.memory_bytes, config.headroom_bytes, here)
                readings[name] = reading
        gpus = [self._configs[n] for n in names if self._configs[n].kind is DeviceKind.NVML]
        for reading in await self._nvml.read_all(gpus, pids) if gpus else ():
            readings[reading.name] = reading
        return [readings[name] for name in names]

    def _placed(self) -> dict[str, tuple[str, ...]]:
        """Which worker stands on which devices."""
        state = self._state()
        placed: dict[str, tuple[str, ...]] = {}
        for worker in state.workers:
            service = state.service(worker.service)
            slot = service.slot(worker.revision) if service is not None else None
            if slot is not None:
                placed[worker.id] = slot.devices
        return placed
