"""The machine around a daemon: limits, disks, clock, systemd, kernel and driver, for `doctor`.

Duty: read them, each by itself, so that one that cannot be read hides no other. Blocks for a few seconds at most.
Source: proc(5), statvfs(3), adjtimex(2), systemctl(1), journalctl(1).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from swapd.core.diagnosis import Disk, Host

UNIT: Final = "swapd.service"  # where no running daemon tells by its cgroup
TOOL_S: Final = 3.0  # for systemctl and journalctl: a systemd that hangs must not hang us
TIMEX_BYTES: Final = 512  # struct timex has 208; zeroed, its `modes` asks for nothing to be set
TIME_ERROR: Final = 5  # adjtimex: the clock is not synchronized


def look_at_host(paths: Sequence[Path], daemon_pid: int | None, *, log_lines: int = 0) -> Host:
    """`paths` lie on the disks that matter. `log_lines`: so many of the daemon's own last lines, where systemd's
    journal has them."""
    systemd = Path("/run/systemd/system").is_dir()
    unit = (_unit_of(daemon_pid) or UNIT) if systemd else None
    state, restarts = _unit_state(unit, daemon_pid) if unit is not None else (None, None)
    known = state is not None
    used, limit = _files_of(daemon_pid)
    return Host(
        kernel=f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
        driver=_driver(),
        up_s=_up_s(),
        systemd=systemd,
        unit=unit if known else None,
        unit_state=state,
        unit_restarts=restarts,
        open_files=used,
        max_files=limit,
        disks=_disks(paths),
        clock_synchronized=_clock_synchronized(),
        daemon_log=_daemon_log(unit, log_lines) if known and unit is not None and log_lines else (),
    )


def _disks(paths: Sequence[Path]) -> tuple[Disk, ...]:
    """One for each file system, named by the first path on it that is there."""
    found: dict[int, Disk] = {}
    for path in paths:
        there = next((each for each in (path, *path.parents) if os.path.exists(each)), Path("/"))
        with contextlib.suppress(OSError):
            stat = os.statvfs(there)
            disk = Disk(
                str(there),
                stat.f_bavail * stat.f_frsize,
                stat.f_blocks * stat.f_frsize,
                bool(stat.f_flag & os.ST_RDONLY),
            )
            found.setdefault(os.stat(there).st_dev, disk)
    return tuple(found.values())


def _files_of(pid: int | None) -> tuple[int | None, int | None]:
    """How many the process has open, and how many it may."""
    used = limit = None
    with contextlib.suppress(OSError):
        limits = Path(f"/proc/{pid}/limits").read_text()
        match = re.search(r"^Max open files\s+(\d+)", limits, re.MULTILINE)
        limit = int(match[1]) if match else None
        used = len(os.listdir(f"/proc/{pid}/fd"))
    return used, limit


def _clock_synchronized() -> bool | None:
    with contextlib.suppress(OSError, AttributeError):
        state = int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES)))
        return None if state < 0 else state != TIME_ERROR
    return None


def _driver() -> str | None:
    """575.57.08, of NVIDIA's kernel module."""
    with contextlib.suppress(OSError):
        match = re.search(r"\b(\d{3,}\.\d+(\.\d+)?)\b", Path("/proc/driver/nvidia/version").read_text())
        return match[1] if match else None
    return None


def _up_s() -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return float(Path("/proc/uptime").read_text().split()[0])
    return None


def _unit_of(pid: int | None) -> str | None:
    """The service that the process belongs to."""
    with contextlib.suppress(OSError):
        parts = Path(f"/proc/{pid}/cgroup").read_text().strip().split("/")
        return next((part for part in reversed(parts) if part.endswith(".service")), None)
    return None


def _unit_state(unit: str, pid: int | None) -> tuple[str | None, int | None]:
    """None, None: there is no such unit, it is not this daemon's, or systemd does not answer."""
    told = _ask("systemctl", "show", unit, "-p", "LoadState,ActiveState,NRestarts,MainPID")
    values = dict(line.split("=", 1) for line in told if "=" in line)
    if values.get("LoadState") != "loaded" or (pid is not None and values.get("MainPID") != str(pid)):
        return None, None
    restarts = values.get("NRestarts", "")
    return values.get("ActiveState"), int(restarts) if restarts.isdigit() else None


def _daemon_log(unit: str, lines: int) -> tuple[str, ...]:
    return tuple(_ask("journalctl", "-u", unit, "-n", str(lines), "-o", "short-iso", "--no-pager", "-q"))


def _ask(*command: str) -> list[str]:
    """What a tool of systemd's prints; nothing when it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return []
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TOOL_S, check=False)
        return done.stdout.splitlines()
    return []
