"""The guard: while a worker loads beside others, their device is watched, and it is killed before they lose by it.

Duty: the looking and the killing; every reading teaches the footprint, these too. `core.guard` says when. May not know:
what follows for the swap.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any, Final

from swapd.core.errors import OUT_OF_MEMORY, Problem, SwapdError
from swapd.core.events import Run
from swapd.core.guard import breach, is_beside_others, is_guarded
from swapd.core.ledger import most_used
from swapd.core.model import Op, OpKind, Slot, State
from swapd.daemon.devices import Devices
from swapd.daemon.workers import Workers

log = logging.getLogger("swapd.guard")

POLL_S: Final = 0.05
LONGEST_S: Final = 0.25  # up to this, as long as the last look took: looking must not slow down who serves

_Result = Mapping[str, Any]


class Guard:
    def __init__(self, state: Callable[[], State], devices: Devices, workers: Workers) -> None:
        self._state = state
        self._devices = devices
        self._workers = workers

    async def beside(self, effect: Run, work: Coroutine[Any, Any, _Result]) -> _Result:
        """Have `work` done, and its worker killed if that would be at the cost of others. Raises SwapdError: its own,
        or GUARD_KILLED."""
        op, slot = effect.op, effect.slot
        if slot is None or not is_guarded(op.kind, slot):
            return await work
        before = self._why_condemned(op)  # by an earlier guard, of a worker that has outlived it
        working = asyncio.ensure_future(work)
        guarding = asyncio.ensure_future(self._watch(op, slot))
        try:
            await asyncio.wait({working, guarding}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done() or self._why_condemned(op) is not before:
                raise SwapdError.of(await guarding)  # half killed it would be frozen, and may have answered well
            return working.result()
        except SwapdError as error:
            if (why := self._why_condemned(op)) is not None:  # whatever else was seen of its end
                raise SwapdError.of(why) from None
            if error.code == OUT_OF_MEMORY:
                raise SwapdError.of(await self._with_its_use(op, slot, error.problem)) from None
            raise
        finally:
            for task in (working, guarding):
                task.cancel()
            await asyncio.gather(working, guarding, return_exceptions=True)

    def _why_condemned(self, op: Op) -> Problem | None:
        live = self._workers.live.get(op.worker)
        return live.condemned if live is not None else None

    async def _watch(self, op: Op, slot: Slot) -> Problem:
        """Returns once the worker has been killed, and never otherwise."""
        clock = asyncio.get_running_loop().time
        failed = False
        while True:
            looked_at = clock()
            for device in slot.devices:
                problem = None
                try:
                    problem = await self._look(op, device)
                except Exception:  # a bug of ours, which the model shall not be ended for; told once
                    if not failed:
                        log.exception("guard.bug worker=%s device=%s", op.worker, device)
                    failed = True
                if problem is not None:
                    log.warning("guard.killed worker=%s device=%s details=%s", op.worker, device, dict(problem.details))
                    await self._workers.condemn(op.worker, problem)
                    return problem
            await asyncio.sleep(min(LONGEST_S, max(POLL_S, clock() - looked_at)))

    async def _look(self, op: Op, device: str) -> Problem | None:
        """Cheaply first; whoever is to be killed is measured."""
        if not is_beside_others(device, self._state().reservations, op.worker):
            return None
        try:
            floor_bytes = self._devices.floor_bytes(device)
            at_least = await self._devices.free_at_least(device, floor_bytes)
            if at_least is None or at_least >= floor_bytes:
                return None
            readings = await self._devices.read((device,))
        except SwapdError as error:  # the device has left the configuration
            log.warning("guard.blind worker=%s because=%s", op.worker, error.message)
            return None
        stages = op.kind is OpKind.STAGE
        return breach(readings[0], self._state().reservations, op.worker, floor_bytes, stages=stages)

    async def _with_its_use(self, op: Op, slot: Slot, problem: Problem) -> Problem:
        """What a worker that found no more memory still holds: it needs at least that."""
        try:
            readings = await self._devices.read(slot.devices)
        except SwapdError:
            return problem
        used = most_used(readings, op.worker)
        return problem if used is None else replace(problem, details={**problem.details, "used_bytes": used})
