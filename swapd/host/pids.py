"""One process, named for ever, its age, and how it ended: what every host of workers needs.

Source: proc_pid_stat(5), pidfd_open(2), linux/pidfd.h on PIDFD_GET_INFO, proc_vmstat(5).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapd.core.process_tree import ProcessRow, parse_stat

# struct pidfd_info as first published (Linux 6.13, 64 bytes); later kernels append to it, and still take this size.
_PIDFD_INFO: Final = struct.Struct("=QQ11Ii")
_PIDFD_GET_INFO: Final = 3 << 30 | _PIDFD_INFO.size << 16 | 0xFF << 8 | 11  # _IOWR(0xFF, 11, struct pidfd_info)
_PIDFD_INFO_EXIT: Final = 1 << 3  # Linux 6.15


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """Names one process for ever: a pid alone is used again."""

    pid: int
    start_time: int  # clock ticks since boot, field 22 of /proc/PID/stat
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity | None:
        row = read_row(pid)
        return None if row is None else cls(pid, row.start_time, boot_id())

    @property
    def alive(self) -> bool:
        row = read_row(self.pid)
        return row is not None and row.alive and row.start_time == self.start_time and self.boot_id == boot_id()


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def read_row(pid: int) -> ProcessRow | None:
    # One read gives all six values; psutil would take four, and has no session, nor the start time in ticks.
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return parse_stat(file.read())
    except (OSError, ValueError):
        return None


def age_s(pid: int) -> float | None:
    """How long the process has been there. None: it is gone."""
    row = read_row(pid)
    with contextlib.suppress(OSError, ValueError):
        up_s = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
        return max(0.0, up_s - row.start_time / os.sysconf("SC_CLK_TCK")) if row is not None else None
    return None


def exit_status(pidfd: int) -> int | None:
    """The exit code (negative: the signal) of a process that somebody else has reaped.

    None: nobody has reaped it yet, or the kernel does not tell (before 6.15).
    """
    info = bytearray(_PIDFD_INFO.pack(_PIDFD_INFO_EXIT, *[0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:  # ENOTTY: unknown to this kernel; ESRCH: its exit was not asked for in time
        return None
    mask, *_, status = _PIDFD_INFO.unpack(info)
    return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None


def oom_kills() -> int | None:
    """How many processes the kernel's OOM killer has ended since boot: of any cgroup, of either version."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat", encoding="ascii") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None
