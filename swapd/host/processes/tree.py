"""All processes of one worker: found by several ties, and ended together.

A process that scrubs its environment, leaves its session and loses its parent before anybody looked is not
found: only a cgroup of the worker's own can hold that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import threading
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Final

import psutil

from swapd.core.errors import TIMEOUT, SwapdError
from swapd.core.launch import MARKER
from swapd.core.process_tree import ProcessRow, find_members
from swapd.host.deadlines import within
from swapd.host.pids import read_row

# After SIGKILL only the kernel (state D) can keep a process; a driver's teardown takes seconds.
KILL_DEADLINE_S: Final = 10.0
_FREEZE_ROUNDS: Final = 50  # each stops every process found; one that forks has to get ahead of all of them

_log = logging.getLogger("swapd.processes")


# --- the process table -------------------------------------------------------------------------------------


def _read_table() -> dict[int, ProcessRow]:
    return {pid: row for pid in psutil.pids() if (row := read_row(pid)) is not None}


def _read_markers(rows: Iterable[ProcessRow]) -> dict[int, bytes]:
    found = {}
    for row in rows:
        if row.pid <= 2 or row.ppid == 2:  # the kernel's own threads have no environment
            continue
        with contextlib.suppress(OSError), open(f"/proc/{row.pid}/environ", "rb") as file:
            for entry in file.read().split(b"\0"):
                if entry.startswith(MARKER.encode() + b"="):
                    found[row.pid] = entry.partition(b"=")[2]
    return found


def tree_pids(root: int, marker: str) -> set[int]:
    """The living processes of a worker: everything below `root`, in its session, or carrying its marker."""
    return trees_pids({marker: root})[marker]


def trees_pids(roots: Mapping[str, int], known: Mapping[str, Tree] | None = None) -> dict[str, set[int]]:
    """`tree_pids` of many workers (marker to root pid) in one pass over the process table. `known`: the trees of some,
    which remember what is seen now."""
    rows = _read_table()
    markers = _read_markers(rows.values())
    trees = {marker: Tree(root, marker, rows.get(root)) for marker, root in roots.items()} | dict(known or {})
    return {marker: set(trees[marker].living(rows, markers)) for marker in roots}


def roots_of(markers: Collection[str]) -> dict[str, int]:
    """Of each marker that a living process carries, the first of its tree: what carries it has not started that."""
    rows = {pid: row for pid, row in _read_table().items() if row.alive}
    marked = _read_markers(rows.values())
    wanted = {marker.encode(): marker for marker in markers}
    found: dict[str, int] = {}
    for pid in sorted(marked, key=lambda pid: rows[pid].start_time):
        name = wanted.get(marked[pid])
        if name is not None and marked.get(rows[pid].ppid) != marked[pid]:
            found.setdefault(name, pid)
    return found


class Tree:
    """The processes of one worker, remembered: a child whose parent is gone shows no other tie."""

    def __init__(self, root: int, marker: str, row: ProcessRow | None) -> None:
        """`row`: the root's, now; None: it is gone."""
        self.root = root
        self._marker = marker.encode()
        self._known = {} if row is None else {root: row.start_time}
        self._lock = threading.RLock()  # scans run in threads: one after an exit may meet one of kill_tree

    def members(self, rows: Mapping[int, ProcessRow], markers: Mapping[int, bytes]) -> dict[int, ProcessRow]:
        members = find_members(
            rows,
            known=self._known,
            marked={pid for pid, marker in markers.items() if marker == self._marker},
            never={1, 2, os.getpid()},
            foreign_sessions={os.getsid(0)},
        )
        self._known = {pid: row.start_time for pid, row in members.items()}
        return members

    def living(self, rows: Mapping[int, ProcessRow], markers: Mapping[int, bytes]) -> dict[int, ProcessRow]:
        with self._lock:
            return {pid: row for pid, row in self.members(rows, markers).items() if row.alive}

    def scan(self) -> dict[int, ProcessRow]:
        """The living members now."""
        with self._lock:
            rows = _read_table()
            return self.living(rows, _read_markers(rows.values()))


# --- ending a tree -----------------------------------------------------------------------------------------


def _open_pidfd(row: ProcessRow) -> int | None:
    try:
        pidfd = os.pidfd_open(row.pid)
    except OSError:
        return None
    # Looked at after the open: from here on the descriptor and the row mean the same process, or it is closed.
    now = read_row(row.pid)
    if now is None or now.start_time != row.start_time:
        os.close(pidfd)
        return None
    return pidfd


def _send_signals(rows: Iterable[ProcessRow], *signals: signal.Signals) -> None:
    for row in rows:
        pidfd = _open_pidfd(row)
        if pidfd is None:
            continue
        try:
            for number in signals:
                signal.pidfd_send_signal(pidfd, number)
        except OSError as error:
            if error.errno != errno.ESRCH:
                _log.warning("process.signal_refused pid=%d signal=%s error=%s", row.pid, number.name, error)
        finally:
            os.close(pidfd)


async def _wait_exits(rows: Iterable[ProcessRow], timeout_s: float) -> None:
    """Returns when all of them have ended, or after `timeout_s`."""
    loop = asyncio.get_running_loop()
    pidfds = {pidfd for row in rows if (pidfd := _open_pidfd(row)) is not None}
    waiting = set(pidfds)
    all_ended = asyncio.Event()

    def ended(pidfd: int) -> None:
        loop.remove_reader(pidfd)
        waiting.discard(pidfd)
        if not waiting:
            all_ended.set()

    for pidfd in pidfds:
        loop.add_reader(pidfd, ended, pidfd)
    try:
        if waiting:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(max(timeout_s, 0), all_ended.wait())
    finally:
        for pidfd in pidfds:
            loop.remove_reader(pidfd)
            os.close(pidfd)


async def end_tree(tree: Tree, grace_s: float) -> None:
    """SIGTERM and up to `grace_s`, then SIGKILL; returns when no member lives. Raises SwapdError(TIMEOUT)."""
    if not (grace_s > 0 and await _terminate(tree, grace_s)):
        await _kill(tree)


async def _terminate(tree: Tree, grace_s: float) -> bool:
    """SIGTERM, and `grace_s` to end by themselves. The root first: a server knows the order of its parts."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + grace_s
    told: set[tuple[int, int]] = set()
    while members := await asyncio.to_thread(tree.scan):
        if loop.time() >= until_s:
            return False
        targets = [members[tree.root]] if tree.root in members else list(members.values())
        fresh = [row for row in targets if (row.pid, row.start_time) not in told]
        _send_signals(fresh, signal.SIGTERM, signal.SIGCONT)  # a stopped process would not see the first
        told |= {(row.pid, row.start_time) for row in fresh}
        await _wait_exits(targets, until_s - loop.time())
    return True


async def _kill(tree: Tree) -> None:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + KILL_DEADLINE_S
    while members := await asyncio.to_thread(tree.scan):
        if loop.time() >= until_s:
            raise _stuck(members.values())
        # Freeze before the kill, or a parent that starts its children anew is ahead of us for ever.
        for _ in range(_FREEZE_ROUNDS):
            _send_signals(members.values(), signal.SIGSTOP)
            found = await asyncio.to_thread(tree.scan)
            if found.keys() <= members.keys():
                break
            members = found
        _send_signals(members.values(), signal.SIGKILL)
        await _wait_exits(members.values(), min(1.0, until_s - loop.time()))


def _stuck(rows: Iterable[ProcessRow]) -> SwapdError:
    described = []
    for row in rows:
        name, where = "?", ""
        with contextlib.suppress(psutil.Error):
            name = psutil.Process(row.pid).name()
        with contextlib.suppress(OSError):
            where = Path(f"/proc/{row.pid}/wchan").read_text(encoding="ascii").strip("0\n")
        described.append(f"{row.pid} ({name}, state {row.state}{f' in {where}' if where else ''})")
    return SwapdError(
        TIMEOUT,
        f"still alive {KILL_DEADLINE_S:g} s after SIGKILL: {', '.join(described)}. A process in state D ends"
        " when the device or file system that it waits for answers (see dmesg); its memory is taken until then.",
        {"pids": [row.pid for row in rows]},
    )


async def kill_leftovers(marker: str, grace_s: float = 0.0) -> None:
    """Ends every process that carries `marker`: what a worker of an earlier daemon has left."""
    await end_tree(Tree(0, marker, None), grace_s)
