"""One process and its exit as an event; the supervisor that starts them and reaps their orphans.

The status of a child is only ever taken by its pid: waitpid(-1) would steal it from asyncio and from
subprocess.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from swapd.core.launch import MARKER, Command
from swapd.core.process_tree import UNKNOWN_EXIT, describe_exit
from swapd.host.pids import ProcessIdentity, exit_status, oom_kills, read_row
from swapd.host.processes.start import start_process
from swapd.host.processes.tree import Tree, end_tree, roots_of, trees_pids

ORPHAN_PERIOD_S: Final = 5.0  # a zombie seen in two rounds is nobody's: asyncio and subprocess reap at once
REAPED_POLLS: Final = 100
REAPED_POLL_S: Final = 0.01  # 1 s in all, for whoever is the parent of a process that is not ours
_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h

_log = logging.getLogger("swapd.processes")


class Process:
    """A worker's root process, started by `Supervisor.spawn` or adopted by `find`. `kill_tree` is due in the end, also
    if it has died; `let_go` if it shall live on without us."""

    def __init__(
        self, identity: ProcessIdentity, pidfd: int, marker: str, popen: subprocess.Popen[bytes] | None
    ) -> None:
        """`popen` None: an earlier daemon started it. It may still be our child, or somebody else's."""
        self.identity: Final = identity
        self.marker: Final = marker
        self.exit_code: int | None = None
        self._popen = popen
        self._pidfd = pidfd
        self.tree = Tree(identity.pid, marker, read_row(identity.pid))
        self._signalled = False
        self._oom_kills_before = oom_kills()
        self._oom_kills: int | None = None
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self._settling: asyncio.Task[None] | None = None
        self._loop.add_reader(pidfd, self._on_exit)

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    @property
    def reaped(self) -> bool:
        return self._popen is None or self._popen.returncode is not None

    @property
    def exit_text(self) -> str:
        """How it ended, for a person: "exit code 1", "killed by SIGSEGV"."""
        if self.exit_code is None:
            return "still running"
        return describe_exit(self.exit_code, oom_kills=self._oom_kills, by_swapd=self._signalled)

    @property
    def oom_killed(self) -> bool:
        """It was killed, not by swapd, and the kernel's OOM killer has struck on this host during its life."""
        return self.exit_code == -signal.SIGKILL and not self._signalled and bool(self._oom_kills)

    async def wait(self) -> int:
        """The exit code, negative for a signal, `UNKNOWN_EXIT` if it cannot be known. Any number may wait."""
        return await asyncio.shield(self._exited)

    async def kill_tree(self, grace_s: float) -> None:
        """Ends the whole tree: SIGTERM and up to `grace_s`, then SIGKILL. Returns when nothing of it lives.

        Raises SwapdError(TIMEOUT), naming them, if processes outlive SIGKILL by `KILL_DEADLINE_S`.
        """
        self._signalled = self._signalled or self.alive
        await end_tree(self.tree, grace_s)
        await self.wait()
        if self._settling is not None:
            await asyncio.shield(self._settling)

    def let_go(self) -> None:
        """Watch it no longer: it lives on."""
        if self._settling is None:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            if self._popen is not None:
                self._popen.returncode = UNKNOWN_EXIT  # or Popen would complain that it was forgotten

    def _on_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        code = _child_exit(self.pid)
        if code is not None:
            self._ended(code)
        self._settling = self._loop.create_task(self._settle())

    def _ended(self, code: int) -> None:
        self.exit_code = code
        if self._oom_kills_before is not None and (after := oom_kills()) is not None:
            self._oom_kills = after - self._oom_kills_before
        self._exited.set_result(code)

    async def _settle(self) -> None:
        try:
            if self.exit_code is None:
                self._ended(await self._foreign_exit())
            await asyncio.to_thread(self.tree.scan)
        finally:
            os.close(self._pidfd)
            if self._popen is not None:
                self._popen.wait()  # a zombie already: returns at once

    async def _foreign_exit(self) -> int:
        """Of a process that is not our child: told by the kernel once its parent has reaped it."""
        for _ in range(REAPED_POLLS):
            code = exit_status(self._pidfd)
            if code is not None:
                return code
            await asyncio.sleep(REAPED_POLL_S)
        return UNKNOWN_EXIT


def _child_exit(pid: int) -> int | None:
    """The exit code of a child of ours, negative for a signal; None: it is none."""
    try:
        # WNOWAIT: while it stays a zombie its pid and session are not used again, so what it left is found.
        status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if status is None:
        return None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


class Supervisor:
    """Starts processes, and reaps the orphans of those that it started. One per daemon."""

    def __init__(self) -> None:
        self._children: dict[int, Process] = {}
        self._orphans: set[tuple[int, int]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def become_subreaper(self) -> None:
        """From now on orphaned descendants become children of the daemon, not of init: they stay in reach.

        Needs a running loop: it also starts the rounds that reap them. `close` ends these.
        """
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            # Inherited from whoever started us; the kernel would throw exit statuses away.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            _log.warning("process.no_subreaper error=%s", os.strerror(ctypes.get_errno()))
        self._next_round()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def spawn(self, command: Command) -> Process:
        """Starts a command in its own session with exactly `env` and the marker, its output appended to its log.

        Nothing confines it: it runs as the daemon does. Raises SwapdError(COMMAND_NOT_FOUND) when the command or its
        directory is not usable, SPAWN_FAILED when the host refuses (no memory, too many processes, no log). The caller
        must end it with `kill_tree`.
        """
        environment = {**command.env, MARKER: command.marker}
        # In a thread: the program may lie on a file system that hangs.
        starting = asyncio.get_running_loop().run_in_executor(
            None, start_process, list(command.argv), environment, command.cwd, Path(command.log_path)
        )
        try:
            popen = await asyncio.shield(starting)
        except asyncio.CancelledError:
            starting.add_done_callback(_abandon)
            raise
        identity = ProcessIdentity.of(popen.pid)
        assert identity is not None  # not yet reaped, so it is in the table
        process = Process(identity, os.pidfd_open(popen.pid), command.marker, popen)
        self._children[process.pid] = process
        return process

    async def find(self, markers: Collection[str]) -> dict[str, Process]:
        """The living processes that an earlier daemon has started, by marker. Whoever gets one owns it, as from
        `spawn`; of those that have ended nothing is known any more."""
        found = {}
        for marker, pid in (await asyncio.to_thread(roots_of, markers)).items():
            with contextlib.suppress(OSError):  # it ended meanwhile
                pidfd = os.pidfd_open(pid)
                identity = ProcessIdentity.of(pid)
                if identity is None or not identity.alive:
                    os.close(pidfd)
                    continue
                found[marker] = Process(identity, pidfd, marker, None)
                self._children[pid] = found[marker]
        return found

    async def pids(self, roots: Mapping[str, int]) -> dict[str, set[int]]:
        """Every process of each tree; `roots` and result by marker. What is seen now is known later, too."""
        trees = {process.marker: process.tree for process in self._children.values()}
        return await asyncio.to_thread(trees_pids, roots, trees)

    async def set_limits(
        self, name: str, *, cpu_weight: int | None = None, memory_max_bytes: int | None = None
    ) -> None:
        """Nothing: plain processes have no cgroup of their own."""

    def reap_orphans(self) -> int:
        """Takes the exit status of orphans that ended before the previous round. Returns how many."""
        self._children = {pid: process for pid, process in self._children.items() if not process.reaped}
        zombies = set()
        reaped = 0
        for pid in _children_of_self() - self._children.keys():
            row = read_row(pid)
            if row is None or row.alive:
                continue
            if (pid, row.start_time) in self._orphans:
                with contextlib.suppress(ChildProcessError):
                    reaped += os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
            else:
                zombies.add((pid, row.start_time))
        self._orphans = zombies
        return reaped

    def _next_round(self) -> None:
        self.reap_orphans()
        self._timer = asyncio.get_running_loop().call_later(ORPHAN_PERIOD_S, self._next_round)


def _children_of_self() -> set[int]:
    pids: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            pids.update(map(int, file.read().split()))
    return pids


def _abandon(starting: asyncio.Future[subprocess.Popen[bytes]]) -> None:
    """The caller was cancelled while the process was being started: nobody would own it."""
    if not starting.cancelled() and starting.exception() is None:
        popen = starting.result()
        popen.kill()
        popen.wait()
