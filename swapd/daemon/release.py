"""Memory that is given back: measured before the next model loads into it, and told where it does not come back.

Duty: the readings, how often and for how long. `core.ledger` says whether there is room, `core.release` what is
missing. Only readings that were begun after the release count; the one from before tells what was lost, no more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from swapd.core.errors import WORKER_EXITED, SwapdError
from swapd.core.ledger import room_for
from swapd.core.model import DeviceReading, Op, Slot, State
from swapd.core.release import not_back, not_released
from swapd.core.sizes import human_bytes
from swapd.core.states import WorkerState
from swapd.daemon.devices import Devices
from swapd.daemon.knowledge import Knowledge

log = logging.getLogger("swapd.release")

POLL_S: Final = 0.015  # clients are held meanwhile
SLOW_POLL_S: Final = 0.05  # after the first second: what takes that long takes longer


class Release:
    def __init__(self, state: Callable[[], State], devices: Devices, knowledge: Knowledge) -> None:
        self._state = state
        self._devices = devices
        self._knowledge = knowledge
        self._seen: dict[str, DeviceReading] = {}  # each device, while a swap is under way
        self._free: dict[str, dict[str, int]] = {}  # worker -> device -> what was free right before its load
        self._befores: dict[str, dict[tuple[str, str], DeviceReading]] = {}  # service -> (worker, device) -> before

    def see(self, readings: Iterable[DeviceReading]) -> None:
        self._seen = {reading.name: reading for reading in readings}

    def forget(self) -> None:
        """No swap is under way any more."""
        self._seen, self._befores = {}, {}

    def begins(self, op: Op, slot: Slot | None) -> None:
        """The worker is about to let go. As its device was last seen: to measure it now would keep clients waiting."""
        for device in slot.devices if slot is not None else ():
            if device in self._seen:
                self._befores.setdefault(op.service, {})[op.worker, device] = self._seen[device]

    async def confirm(self, op: Op, slot: Slot, limit_s: float) -> Mapping[str, Any]:
        """Both the ledger and the measurement must allow the load, right before it. Raises SwapdError at the limit,
        which says who is in its way, or WORKER_EXITED where the worker has ended meanwhile."""
        clock = asyncio.get_running_loop().time
        started_s = clock()
        while True:
            readings = await self._devices.read(slot.devices)
            problems = [room_for(reading, self._state().reservations, op.worker) for reading in readings]
            if self._state().worker(op.worker) is None:
                raise SwapdError(WORKER_EXITED, f"{op.worker} is not running.")
            waited_s = clock() - started_s
            if not any(problems) or waited_s >= limit_s:
                break
            await asyncio.sleep(POLL_S if waited_s < 1.0 else SLOW_POLL_S)
        gone = self._gone_of(op.service)
        losts = [not_back({w: r for (w, device), r in gone.items() if device == now.name}, now) for now in readings]
        for reading, problem, lost in zip(readings, problems, losts, strict=True):
            if lost is not None:
                log.warning("release.incomplete worker=%s %s", op.worker, lost.text)
            if problem is not None:
                self._knowledge.learn_residues(op.service, readings)
                raise SwapdError.of(not_released(problem, lost, reading))
        self._free = {worker: free for worker, free in self._free.items() if self._state().worker(worker) is not None}
        self._free[op.worker] = {r.name: r.free_bytes for r in readings if r.free_bytes is not None}
        free_bytes = min(reading.free_bytes or 0 for reading in readings)
        told = [f"{human_bytes(free_bytes, down=True)} free", *(lost.text for lost in losts if lost is not None)]
        return {"free_bytes": free_bytes, "waited_s": round(waited_s, 3), "detail": "; ".join(told)}

    def free_before(self, worker_id: str) -> Mapping[str, int]:
        """Of each of its devices, when the worker's memory was confirmed; told once."""
        return self._free.pop(worker_id, {})

    def _gone_of(self, service: str) -> Mapping[tuple[str, str], DeviceReading]:
        """The service's workers that have gone or parked, each told once."""
        befores = self._befores.pop(service, {})
        state = self._state()
        parked = {w.id for w in state.workers_of(service) if w.state is WorkerState.PARKED}
        return {key: r for key, r in befores.items() if state.worker(key[0]) is None or key[0] in parked}
