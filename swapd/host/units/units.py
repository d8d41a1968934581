"""All workers' units: a worker's directory becomes its user's, its environment a file, and its unit is started."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import Final

from swapd.core.errors import COMMAND_NOT_FOUND, SPAWN_FAILED, SwapdError
from swapd.core.launch import Command
from swapd.core.unit_settings import (
    SLICE,
    UnitState,
    explain_start,
    limits,
    properties,
    quote_argument,
    unit_name,
)
from swapd.host.units.prepare import prepare
from swapd.host.units.process import UnitProcess
from swapd.host.units.systemd import CALL_DEADLINE_S, Systemd, cgroup_pids, missing_controllers

FORGET_S: Final = 5.0  # at a start, for a unit that systemd is still ending

log = logging.getLogger("swapd.units")


class Units:
    """Starts workers as services, and finds those of an earlier daemon. One per daemon."""

    def __init__(self) -> None:
        self._systemd = Systemd()
        self._processes: dict[str, UnitProcess] = {}
        self.missing: Final = missing_controllers()
        """The limits that this host cannot set: "cpu", "memory"."""
        if self.missing:
            log.warning("units.no_limits controllers=%s (not in this host's cgroups)", ",".join(self.missing))

    def close(self) -> None:
        """The workers stay."""

    async def spawn(self, command: Command) -> UnitProcess:
        """Starts a command in a unit of its own, with `env`, the few variables that systemd adds, and no other.

        Raises SwapdError(COMMAND_NOT_FOUND) when the command, its directory or its user is not usable, SPAWN_FAILED
        when the host refuses. The caller must end it with `kill_tree`.
        """
        starting = asyncio.ensure_future(self._start(command))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_abandon)
            raise

    async def _start(self, command: Command) -> UnitProcess:
        unit = unit_name(command.name)
        environment_file = await asyncio.to_thread(prepare, command)
        argv = [command.argv[0], *map(quote_argument, command.argv[1:])]
        settings = tuple(properties(command, environment_file))
        if await self._is_taken(unit):
            raise SwapdError(
                SPAWN_FAILED, f"{unit} runs already, and is not this daemon's: see systemctl status {unit}"
            )
        said = await self._systemd.run(unit, SLICE, settings, argv)
        state = await self._systemd.state(unit)
        if said:
            await self._forget(unit)
            code = COMMAND_NOT_FOUND if state.exit_code else SPAWN_FAILED
            raise SwapdError(code, explain_start(command, state, said))
        self._processes = {marker: process for marker, process in self._processes.items() if not process.ended}
        return await self._own(state)

    async def _is_taken(self, unit: str) -> bool:
        """What has ended and is remembered under that name is forgotten: a journal that was lost counts anew."""
        state = await self._systemd.state(unit)
        if state.loaded and not state.running:
            await self._forget(unit)
        return state.running

    async def _forget(self, unit: str, deadline_s: float = CALL_DEADLINE_S) -> None:
        await self._systemd.stop(unit, deadline_s)
        await self._systemd.forget(unit)

    async def _forget_what_ended(self, units: Collection[str]) -> None:
        """One that cannot end yet (state D, an ExecStopPost= of the operator's) holds up no start: a later one forgets
        it, or whoever needs its name."""
        ends = await asyncio.gather(*(self._forget(unit, FORGET_S) for unit in units), return_exceptions=True)
        for unit, end in zip(units, ends, strict=True):
            if isinstance(end, SwapdError):
                log.warning("units.not_forgotten unit=%s because=%s", unit, end.message)
            elif end is not None:
                raise end

    async def find(self, markers: Collection[str]) -> dict[str, UnitProcess]:
        """Those that an earlier daemon has started, by marker: living, or ended with its exit code. Whoever gets one
        owns it, as from `spawn`. What else of ours has ended is forgotten, and what lives is left alone and told of."""
        found, ended = {}, []
        for state in await self._systemd.states(unit_name("*")):
            if state.marker in markers:
                found[state.marker] = await self._own(state)
            elif state.marker and state.running:
                log.warning("units.unknown unit=%s pid=%d left_alone", state.unit, state.pid)
            elif state.marker:
                ended.append(state.unit)
        await self._forget_what_ended(ended)
        return found

    async def _own(self, state: UnitState) -> UnitProcess:
        process = self._processes[state.marker] = UnitProcess(self._systemd, state)
        if not state.running:
            await process.wait()
        return process

    async def pids(self, roots: Mapping[str, int]) -> dict[str, set[int]]:
        """Every process of each tree; `roots` and result by marker."""
        cgroups = {marker: self._processes[marker].cgroup for marker in roots if marker in self._processes}
        return await asyncio.to_thread(lambda: {marker: cgroup_pids(cgroup) for marker, cgroup in cgroups.items()})

    async def set_limits(
        self, name: str, *, cpu_weight: int | None = None, memory_max_bytes: int | None = None
    ) -> None:
        """Of a running worker, from now on. None leaves a limit as it is. Raises SwapdError."""
        changed = tuple(limits(memory_max_bytes, cpu_weight))
        if changed:
            await self._systemd.set_properties(unit_name(name), changed)


def _abandon(starting: asyncio.Future[UnitProcess]) -> None:
    """The caller was cancelled while the unit was being started: nobody would own it."""
    if not starting.cancelled() and starting.exception() is None:
        ending = asyncio.ensure_future(starting.result().kill_tree(0.0))
        _abandoned.add(ending)
        ending.add_done_callback(_abandoned.discard)


_abandoned: Final[set[asyncio.Future[None]]] = set()
