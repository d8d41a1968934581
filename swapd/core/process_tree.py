"""What a process table means: which processes belong to one worker, and why one of them ended.

Duty: the reading of /proc/PID/stat, the rule of belonging, and the words for an exit status. May not know: how
the table is read, or how anything is signalled. Source: proc_pid_stat(5), signal(7), credentials(7) on
sessions.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

UNKNOWN_EXIT: Final = 256  # out of the range of real ones: the process ended, and its status went to somebody else


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """One line of the process table. With `start_time` (clock ticks since boot) the pid names a process."""

    pid: int
    ppid: int
    session: int
    start_time: int
    state: str
    threads: int

    @property
    def alive(self) -> bool:
        """A zombie is not; but a leader that ended before its other threads only looks like one."""
        return self.state not in "ZXx" or (self.state == "Z" and self.threads > 1)


def parse_stat(data: bytes) -> ProcessRow:
    """The line of /proc/PID/stat. Raises ValueError. The name in brackets may hold spaces and brackets."""
    head, bracket, rest = data.rpartition(b")")
    fields = rest.split()
    if not bracket or len(fields) < 20:
        raise ValueError("not a line of /proc/PID/stat")
    return ProcessRow(
        pid=int(head.split(b" ", 1)[0]),
        ppid=int(fields[1]),
        session=int(fields[3]),
        start_time=int(fields[19]),
        state=fields[0].decode(),
        threads=int(fields[17]),
    )


def find_members(
    rows: Mapping[int, ProcessRow],
    *,
    known: Mapping[int, int],
    marked: Collection[int],
    never: Collection[int],
    foreign_sessions: Collection[int],
) -> dict[int, ProcessRow]:
    """The processes of one worker, zombies included.

    A process belongs when it was known to (`known`: pid to start time, the root among them), carries the
    worker's marker in its environment, is the child of one that belongs, or shares a session with one. A
    session counts only while somebody known is in it: its number stays taken as long, so a stranger cannot have
    it. `never` are pids that are not touched whatever they look like, `foreign_sessions` sessions that prove
    nothing.
    """
    members: dict[int, ProcessRow] = {}
    fresh = [
        row for pid, row in rows.items() if pid not in never and (known.get(pid) == row.start_time or pid in marked)
    ]
    by_parent: dict[int, list[ProcessRow]] = {}
    by_session: dict[int, list[ProcessRow]] = {}
    for row in rows.values():
        by_parent.setdefault(row.ppid, []).append(row)
        by_session.setdefault(row.session, []).append(row)
    while fresh:
        row = fresh.pop()
        if row.pid in members or row.pid in never:
            continue
        members[row.pid] = row
        fresh += by_parent.get(row.pid, ())
        if row.session > 0 and row.session not in foreign_sessions:
            fresh += by_session[row.session]
    return members


def describe_exit(code: int, *, oom_kills: int | None = None, by_swapd: bool = False) -> str:
    """An exit status (negative: the signal) in words.

    `oom_kills`: how often the kernel's OOM killer struck on this host during the process's life, None if that
    cannot be read. `by_swapd`: swapd itself has sent the signal.
    """
    if code == UNKNOWN_EXIT:
        return "ended; its exit status is not known"
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if by_swapd and -code in (signal.SIGTERM, signal.SIGKILL):
        return f"killed by {name} (sent by swapd)"
    if -code != signal.SIGKILL:
        return f"killed by {name}"
    if oom_kills is None:
        return "killed by SIGKILL (often the kernel's OOM killer)"
    if oom_kills > 0:
        return "killed by SIGKILL (the kernel's OOM killer struck on this host meanwhile: see dmesg)"
    return "killed by SIGKILL (not by the kernel's OOM killer: it did not strike on this host)"
