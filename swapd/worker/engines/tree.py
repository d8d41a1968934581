"""The processes of the server that a runner has started: all of them, also children that left its session.

Duty: find them by parenthood, session and the marker that swapd puts into every worker's environment, and kill them.
The daemon does the same from outside, with a memory of who belonged; this is for what the runner's own end must not
leave behind. Source: proc(5); who belongs is `core.process_tree`'s.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from typing import Final

from swapd.core.process_tree import ProcessRow, find_members, parse_stat

MARKER: Final = "SWAPD_WORKER"  # as in host.processes, which this layer may not import
KILL_LIMIT_S: Final = 5.0
_POLL_S: Final = 0.01


def members(root: int, seen: Mapping[int, ProcessRow] | None = None) -> dict[int, ProcessRow]:
    """The living processes of the server whose first process is, or was, `root`, the leader of its own session.

    `seen` are its members of an earlier time: a child that has lost its parent since may show no other tie.
    """
    rows: dict[int, ProcessRow] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
                rows[int(name)] = parse_stat(file.read())
    marked = {pid for pid, row in rows.items() if row.session == root or _has_our_marker(pid)}
    known = {pid: row.start_time for pid, row in (seen or {}).items()}
    if root in rows:
        known[root] = rows[root].start_time
    found = find_members(rows, known=known, marked=marked, never={1, 2, os.getpid()}, foreign_sessions={os.getsid(0)})
    return {pid: row for pid, row in found.items() if row.alive}


def kill(root: int, seen: Mapping[int, ProcessRow]) -> None:
    """SIGKILL to all, until none is left; blocks for KILL_LIMIT_S at most, since the daemon comes after us."""
    until_s = time.monotonic() + KILL_LIMIT_S
    while (left := members(root, seen)) and time.monotonic() < until_s:
        _signal(left)
        time.sleep(_POLL_S)


def _signal(rows: Mapping[int, ProcessRow]) -> None:
    for pid in rows:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _has_our_marker(pid: int) -> bool:
    ours = os.environb.get(MARKER.encode())
    if not ours:
        return False
    with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
        return MARKER.encode() + b"=" + ours in file.read().split(b"\0")
    return False
