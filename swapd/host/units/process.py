"""One worker's unit: its main process, its exit as an event of the loop, and the end of all that is in its cgroup."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from typing import Final

from swapd.core.errors import TIMEOUT, SwapdError
from swapd.core.process_tree import UNKNOWN_EXIT, describe_exit
from swapd.core.unit_settings import UnitState
from swapd.host.deadlines import within
from swapd.host.pids import ProcessIdentity, boot_id, exit_status, oom_kills
from swapd.host.units.systemd import CALL_DEADLINE_S, Systemd, cgroup_pids

KILL_DEADLINE_S: Final = 10.0  # after SIGKILL only the kernel (state D) can keep a process
_POLL_S: Final = 0.02

log = logging.getLogger("swapd.units")


class UnitProcess:
    """Made by `Units`. `kill_tree` is due in the end, also if it has died: systemd remembers it until then."""

    def __init__(self, systemd: Systemd, state: UnitState) -> None:
        self.unit: Final = state.unit
        self.marker: Final = state.marker
        self.cgroup: Final = state.cgroup
        self.exit_code: int | None = None
        self._systemd = systemd
        self._signalled = False
        self._out_of_memory = False
        self._oom_kills_before = oom_kills()
        self._oom_kills: int | None = None
        self._ending = asyncio.Lock()
        self.ended = False  # nothing of it is left
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._pidfd: int | None = None
        with contextlib.suppress(OSError):  # it has ended already
            self._pidfd = os.pidfd_open(state.pid) if state.running else None
        identity = ProcessIdentity.of(state.pid) if self._pidfd is not None else None
        self.identity: Final = identity or ProcessIdentity(state.pid, 0, boot_id())  # 0: gone before it was seen
        self._settling: asyncio.Task[None] | None = None
        if self._pidfd is not None:
            self._loop.add_reader(self._pidfd, self._on_exit)
        else:
            self._settling = self._loop.create_task(self._settle())

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    @property
    def exit_text(self) -> str:
        """How it ended, for a person: "exit code 1", "killed by SIGSEGV"."""
        if self.exit_code is None:
            return "still running"
        if self._out_of_memory:
            return "killed by the kernel's OOM killer (its memory_max, or the host's memory: see dmesg)"
        return describe_exit(self.exit_code, oom_kills=self._oom_kills, by_swapd=self._signalled)

    @property
    def oom_killed(self) -> bool:
        """systemd saw the kernel's OOM killer strike in it; or it was killed, not by swapd, while that one struck
        somewhere on this host."""
        maybe = self.exit_code == -signal.SIGKILL and not self._signalled and bool(self._oom_kills)
        return self._out_of_memory or maybe

    async def wait(self) -> int:
        """The exit code, negative for a signal, `UNKNOWN_EXIT` if it cannot be known. Any number may wait."""
        return await asyncio.shield(self._exited)

    async def kill_tree(self, grace_s: float) -> None:
        """Ends the whole unit: SIGTERM and up to `grace_s`, then SIGKILL. Returns when its cgroup is empty.

        Raises SwapdError(TIMEOUT), naming them, if processes outlive SIGKILL by `KILL_DEADLINE_S`.
        """
        async with self._ending:
            if self.ended:
                return
            if self.alive:
                self._signalled = True
                if grace_s > 0:
                    await self._systemd.signal(self.unit, "main", signal.SIGTERM)
                    await self._systemd.signal(self.unit, "main", signal.SIGCONT)  # stopped, it would not see the first
                    with contextlib.suppress(asyncio.TimeoutError):
                        await within(grace_s, self.wait())
            await self._kill()
            await self.wait()
            await self._systemd.forget(self.unit)
            self.ended = True

    def let_go(self) -> None:
        """Watch it no longer: it lives on."""
        if self._settling is None and self._pidfd is not None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    async def _kill(self) -> None:
        until_s = self._loop.time() + KILL_DEADLINE_S
        await self._systemd.signal(self.unit, "all", signal.SIGKILL)
        # The stop takes what was forked meanwhile, and lets go of a unit that has ended by itself.
        try:
            await self._systemd.stop(self.unit, KILL_DEADLINE_S)
        except SwapdError as error:
            log.warning("units.not_stopped unit=%s because=%s", self.unit, error.message)
        while pids := await asyncio.to_thread(cgroup_pids, self.cgroup):
            if self._loop.time() >= until_s:
                raise SwapdError(
                    TIMEOUT,
                    f"still alive {KILL_DEADLINE_S:g} s after SIGKILL: {', '.join(map(str, sorted(pids)))} of"
                    f" {self.unit}. A process in state D ends when the device or file system that it waits for"
                    " answers (see dmesg); its memory is taken until then.",
                    {"pids": sorted(pids)},
                )
            await asyncio.sleep(_POLL_S)

    def _on_exit(self) -> None:
        assert self._pidfd is not None
        self._loop.remove_reader(self._pidfd)
        self._settling = self._loop.create_task(self._settle())

    async def _settle(self) -> None:
        """The process is gone: systemd reaps it within moments, and knows how it ended."""
        code: int | None = None
        until_s = self._loop.time() + CALL_DEADLINE_S
        try:
            while code is None and self._loop.time() < until_s:
                state = await self._systemd.state(self.unit)
                if not state.loaded:  # somebody else has stopped it, and systemd has forgotten how it ended
                    code = exit_status(self._pidfd) if self._pidfd is not None else None
                    break
                code, self._out_of_memory = state.exit_code, state.out_of_memory
                if code is None:
                    await asyncio.sleep(_POLL_S)
        except SwapdError as error:
            log.warning("units.exit_unknown unit=%s error=%s", self.unit, error.message)
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._oom_kills_before is not None and (after := oom_kills()) is not None:
            self._oom_kills = after - self._oom_kills_before
        self.exit_code = UNKNOWN_EXIT if code is None else code
        self._exited.set_result(self.exit_code)
