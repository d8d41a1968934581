"""Who holds a GPU's memory: what of it is our workers', and what is whose else."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Final

# PROC_PID_INIT_INO in the kernel: the inode of the initial PID namespace, by which NVML counts.
_INITIAL_PID_NAMESPACE: Final = "pid:[4026531836]"


def processes_on(nvml: Any, handle: Any, total_bytes: int) -> dict[int, int | None] | None:
    """pid -> bytes or None (not told, or more than there is: it would be learned for good). None: the list itself
    cannot be read."""
    compute = _listed(nvml, handle, "nvmlDeviceGetComputeRunningProcesses")
    if compute is None:
        return None
    found: dict[int, int | None] = {}
    for process in [*compute, *(_listed(nvml, handle, "nvmlDeviceGetGraphicsRunningProcesses") or ())]:
        used = process.usedGpuMemory
        if used is None or not 0 <= used <= total_bytes:  # absent, the sentinel 2^64 - 1, or nonsense
            used = None
        pid = int(process.pid)
        # A process that computes and draws is on both lists, with the same figure.
        before = found.get(pid, 0)
        found[pid] = None if used is None or before is None else max(before, used)
    return found


def _listed(nvml: Any, handle: Any, function: str) -> Iterable[Any] | None:
    for name in (function, f"{function}_v2"):  # the library picks the newest, and older drivers lack it
        try:
            return list(getattr(nvml, name)(handle))
        except Exception:
            continue
    return None


def shares_of(
    nvml: Any, proc: Path, processes: Mapping[int, int | None], workers: Mapping[str, AbstractSet[int]]
) -> tuple[tuple[tuple[str, int | None], ...], tuple[tuple[int, int | None, str], ...]]:
    """What each worker holds, and who else is there.

    A worker none of whose pids is listed is *unknown*, not 0: inside a PID namespace NVML names the host's pids,
    or nobody's. There a number may also be another process's by chance, so a match counts only where every
    listed pid exists.
    """
    trusted = in_initial_namespace(proc) or all((proc / str(pid)).exists() for pid in processes)
    used_by: list[tuple[str, int | None]] = []
    ours: set[int] = set()
    for worker in sorted(workers):
        listed = [pid for pid in workers[worker] if pid in processes] if trusted else []
        ours.update(listed)
        shares = [processes[pid] for pid in listed]
        known = [share for share in shares if share is not None]
        used_by.append((worker, sum(known) if shares and len(known) == len(shares) else None))
    foreign = [(pid, used, _process_name(nvml, pid)) for pid, used in processes.items() if pid not in ours]
    return tuple(used_by), tuple(sorted(foreign, key=lambda f: (-(f[1] or 0), f[0])))


def in_initial_namespace(proc: Path) -> bool:
    """Whether the pids that NVML tells are those that we see."""
    with contextlib.suppress(OSError):
        return os.readlink(proc / "self/ns/pid") == _INITIAL_PID_NAMESPACE
    return False


def _process_name(nvml: Any, pid: int) -> str:
    with contextlib.suppress(Exception):
        return str(nvml.nvmlSystemGetProcessName(pid))
    return ""
