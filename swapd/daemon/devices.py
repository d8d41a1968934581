"""The devices that models are placed on, read together: GPUs through NVML, the host's own memory through /proc."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from swapd.core.config import DeviceConfig
from swapd.core.devices import default_devices, names_of_one, without_twins
from swapd.core.errors import UNKNOWN_DEVICE, SwapdError
from swapd.core.guard import floor_of
from swapd.core.model import DeviceKind, DeviceReading, DeviceState, State
from swapd.daemon.workers import Workers
from swapd.host.host_memory import HostMemory
from swapd.host.nvml import Nvml

log = logging.getLogger("swapd.devices")

WATCH_S: Final = 10.0  # from one look that nobody asked for to the next, at least
LOOK_FOR_S: Final = 0.05  # so long one quick look does for everybody who asks
WATCH_SHARE: Final = 0.002  # of the time, at most: what a look at the host's memory costs grows with what is held


class Devices:
    def __init__(
        self,
        configs: Mapping[str, DeviceConfig],
        workers: Workers,
        state: Callable[[], State],
        publish: Callable[[str, Mapping[str, Any]], None],
        watch_s: float = WATCH_S,
    ) -> None:
        self._configs = dict(configs)
        self._publish = publish
        self._watch_s = watch_s
        self._seen: dict[str, tuple[DeviceState, str]] = {}  # what was the matter with each when it was last read
        self._told: dict[str, DeviceConfig] = {}  # by the log
        self._latest: dict[str, DeviceReading] = {}
        self._workers = workers
        self._state = state
        self.on_reading: Callable[[DeviceReading], None] = lambda reading: None  # hears of each
        self._looks: dict[str, tuple[float, asyncio.Task[int | None]]] = {}  # the last quick look at each, and when
        self._coming: dict[tuple[str, ...], asyncio.Task[list[DeviceReading]]] = {}  # readings that have not begun
        self._turns: dict[tuple[str, ...], asyncio.Lock] = {}
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
        tasks = [*(look for _, look in self._looks.values()), *self._coming.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._nvml.stop()

    async def host_free_bytes(self) -> int | None:
        """Of the host's own memory, whatever the devices are; None: not known."""
        return (await self._host.read_async("host", None, 0, {})).free_bytes

    def names(self) -> tuple[str, ...]:
        return tuple(self._configs)

    async def read_all(self) -> list[DeviceReading]:
        return await self.read(self.names())

    def floor_bytes(self, name: str) -> int:
        """What a worker that loads beside others must leave. Raises SwapdError(UNKNOWN_DEVICE)."""
        config = self._config(name)
        return floor_of(config.headroom_bytes, config.floor_bytes)

    async def free_at_least(self, name: str, enough_bytes: int) -> int | None:
        """So much of the device is free, or more: a quick look, to be followed by a reading where that is less than
        enough. Negative: a budget is overdrawn, at the worst. None: not known. Raises SwapdError(UNKNOWN_DEVICE)."""
        config, clock = self._config(name), asyncio.get_running_loop().time
        began_s, look = self._looks.get(name, (0.0, None))
        if look is None or (look.done() and clock() - began_s > LOOK_FOR_S):
            look = asyncio.ensure_future(self._look(config, enough_bytes))
            self._looks[name] = clock(), look
        return await asyncio.shield(look)  # many workers may load at once: who gives up does not take it from the rest

    async def _look(self, config: DeviceConfig, enough_bytes: int) -> int | None:
        if config.kind is DeviceKind.NVML:
            [reading] = await self._nvml.read_all([config], {})
            return reading.free_bytes
        if config.memory_bytes is None:
            free_bytes = await asyncio.to_thread(self._host.free_beside_files)
            if free_bytes >= enough_bytes:
                return free_bytes
        placed, pids = self._placed(), await self._workers.pids()
        here = [pid for worker, tree in pids.items() if config.name in placed.get(worker, ()) for pid in tree]
        return await asyncio.to_thread(self._host.free_at_least, config.memory_bytes, here)

    def _config(self, name: str) -> DeviceConfig:
        if name not in self._configs:
            known = ", ".join(self._configs)
            raise SwapdError(UNKNOWN_DEVICE, f"There is no device {name!r}; there are: {known}.")
        return self._configs[name]

    async def read(self, names: Sequence[str]) -> list[DeviceReading]:
        """The readings of the named devices, in that order. Raises SwapdError(UNKNOWN_DEVICE).

        Each begins after it was asked for; all who ask while another is under way share the next one: of a hundred
        services that start at once each would else have every process of the others looked at.
        """
        wanted = tuple(names)
        coming = self._coming.get(wanted)
        if coming is None:
            coming = self._coming[wanted] = asyncio.ensure_future(self._read_next(wanted))
        return list(await asyncio.shield(coming))

    async def _read_next(self, names: tuple[str, ...]) -> list[DeviceReading]:
        async with self._turns.setdefault(names, asyncio.Lock()):
            del self._coming[names]  # who asks from here on wants to know what is true then
            return await self._read(names)

    async def _read(self, names: Sequence[str]) -> list[DeviceReading]:
        configs = {name: self._config(name) for name in names}  # a reload may take one away meanwhile
        all_gpus = [self._configs[name] for name in names_of_one(self._configs)]
        placed = self._placed()
        pids = await self._workers.pids()
        ours = {os.getpid()}.union(*pids.values())
        readings: dict[str, DeviceReading] = {}
        for name, config in configs.items():
            if config.kind is DeviceKind.HOST:
                here = {worker: pids.get(worker, set()) for worker, devices in placed.items() if name in devices}
                reading = await self._host.read_async(name, config.memory_bytes, config.headroom_bytes, here, ours)
                readings[name] = reading
        gpus = [config for config in configs.values() if config.kind is DeviceKind.NVML]
        if gpus:
            seen = without_twins(await self._nvml.read_all(all_gpus or gpus, pids))
            readings |= {reading.name: reading for reading in seen if reading.name in configs}
        for reading in readings.values():
            self._note(reading)
            self.on_reading(reading)
        return [readings[name] for name in names]

    def troubles(self, names: Sequence[str]) -> list[dict[str, str]]:
        """What was the matter with these when they were last read."""
        found = ((name, *self._seen[name]) for name in names if name in self._seen)
        return [{"device": name, "state": state.value, "trouble": why} for name, state, why in found if why]

    def latest(self) -> list[DeviceReading]:
        """When each was last read, which `watch` sees to."""
        return [self._latest[name] for name in self._configs if name in self._latest]

    async def watch(self) -> None:
        """Look though nobody asks: a GPU's trouble is told soon, and it is the peak of a day that is learned."""
        await asyncio.gather(*(self._watch(kind) for kind in DeviceKind))

    async def _watch(self, kind: DeviceKind) -> None:
        clock = asyncio.get_running_loop().time
        took_s = 0.0
        while True:
            await asyncio.sleep(max(self._watch_s, took_s / WATCH_SHARE))
            begun = clock()
            names = [name for name, config in self._configs.items() if config.kind is kind]
            try:
                if names:
                    await self.read(names)
            except Exception:  # a bug of ours, or a device that a reload has just taken away: the next look tells
                log.exception("devices.watch")
            took_s = clock() - begun

    def _note(self, reading: DeviceReading) -> None:
        before, _ = self._seen.get(reading.name, (DeviceState.OK, ""))
        self._seen[reading.name] = (reading.state, reading.trouble)
        self._latest[reading.name] = reading
        if reading.state is before:
            return
        tell = log.info if reading.state is DeviceState.OK else log.warning
        tell("device.changed device=%s state=%s why=%r", reading.name, reading.state.value, reading.trouble)
        body = {
            "device": reading.name,
            "state": reading.state.value,
            "before": before.value,
            "trouble": reading.trouble,
        }
        self._publish("device.changed", body)

    def _placed(self) -> dict[str, tuple[str, ...]]:
        """Which worker stands on which devices: as it was promised, since its revision's slot may be another's by now,
        or forgotten. One that is staged is promised nothing yet."""
        state = self._state()
        placed: dict[str, tuple[str, ...]] = {}
        for worker in state.workers:
            service = state.service(worker.service)
            slot = service.slot(worker.revision) if service is not None else None
            if slot is not None:
                placed[worker.id] = slot.devices
        return placed | {r.worker_id: r.devices for r in state.reservations if not r.for_return}
