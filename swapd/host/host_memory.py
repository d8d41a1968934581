"""The host's own memory as a device, really measured: a budget, what our workers hold of it, and what is free.

Sole importer of psutil for memory, and sole reader of /proc/PID/smaps and the memory cgroup. What the figures mean
is `core.mappings`'. Reading smaps takes the mapped process's mmap lock for as long as the kernel walks its pages
(milliseconds for gigabytes), so this is for decisions and displays, not for a tight loop.

Source: proc_pid_smaps(5), proc_meminfo(5) on MemAvailable, Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst in the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

import psutil

from swapd.core.mappings import KIB, ProcessMemory, memory_devices, page_cache_bytes, parse_smaps, tree_bytes
from swapd.core.model import DeviceKind, DeviceReading, DeviceState
from swapd.core.sizes import human_bytes

# A process may have 65,530 mappings (vm.max_map_count), at some 770 bytes each.
_MAX_SMAPS_BYTES: Final = 128 << 20
_READ_BYTES: Final = 1 << 20
MAX_FOREIGN: Final = 5  # processes of others that a reading names: those that hold most
LARGE_BYTES: Final = 64 << 20  # less is not worth a name
LARGEST_FOR_S: Final = 2.0  # a look at every process is not for each of the readings of a wait for memory
_CGROUP_ROOTS: Final = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
_CGROUP_V1_ROOT: Final = Path("/sys/fs/cgroup/memory")


PROCESSES: Final = 20  # for so many more, the deadline is once as long again: 3 ms each, and 100 ms on a starved host


class HostMemory:
    """`read_async` answers within its deadline (longer for more processes), whatever /proc does; `read` is the same on
    the caller's own thread."""

    def __init__(self, *, deadline_s: float = 2.0, proc: Path = Path("/proc")) -> None:
        self._deadline_s = deadline_s
        self._proc = proc
        self._lock = asyncio.Lock()
        self._pending: asyncio.Future[DeviceReading | Exception] | None = None
        self._late = False  # the pending call has missed its deadline
        self._largest: tuple[tuple[int, int | None, str], ...] = ()  # processes of the host, whosever
        self._largest_until_s = 0.0

    async def read_async(
        self,
        name: str,
        budget_bytes: int | None,
        headroom_bytes: int,
        workers: Mapping[str, AbstractSet[int]],
        ours: AbstractSet[int] | None = None,
    ) -> DeviceReading:
        """`workers`: those placed on this device, each with the pids of its process tree. `ours`: every process of
        swapd, so that the largest others can be named; None: they are not."""
        trees = {worker: frozenset(pids) for worker, pids in workers.items()}
        known = frozenset(ours) if ours is not None else None
        deadline_s = self._deadline_s * (1 + sum(map(len, trees.values())) / PROCESSES)
        reading = await self._call(lambda: self.read(name, budget_bytes, headroom_bytes, trees, known), deadline_s)
        if isinstance(reading, DeviceReading):
            return reading
        state, why = DeviceState.FAILED, f"/proc: {reading}"
        if reading is None:
            state, why = DeviceState.NO_ANSWER, f"/proc did not answer in {deadline_s:.3g} s"
        unknown = tuple((worker, None) for worker in sorted(trees))
        kind = DeviceKind.HOST
        return DeviceReading(
            name, kind, headroom_bytes, None, None, unknown, detail=why, state=state, trouble=why, holders_known=False
        )

    async def _call(self, read: Callable[[], DeviceReading], deadline_s: float) -> DeviceReading | Exception | None:
        """On a thread, with the deadline (None: it is over), and never on a second one while the last has not come
        back: a process whose mmap lock is held for good costs one thread, not one a reading."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            give_up_at = loop.time() + deadline_s
            if self._pending is not None and not self._pending.done():
                if not self._late:  # a caller was cancelled; its call may well come back
                    await asyncio.wait({self._pending}, timeout=deadline_s)
                if not self._pending.done():
                    self._late = True
                    return None
            answer: asyncio.Future[DeviceReading | Exception] = loop.create_future()
            self._pending, self._late = answer, False

            def work() -> None:
                result: DeviceReading | Exception
                try:
                    result = read()
                except Exception as error:
                    result = error
                with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
                    loop.call_soon_threadsafe(answer.set_result, result)

            # A daemon thread: unlike an executor's, it does not keep a stopping process from exiting.
            threading.Thread(target=work, name="swapd-host-memory", daemon=True).start()
            await asyncio.wait({answer}, timeout=max(0.0, give_up_at - loop.time()))
            self._late = not answer.done()
            return None if self._late else answer.result()

    def read(
        self,
        name: str,
        budget_bytes: int | None,
        headroom_bytes: int,
        workers: Mapping[str, AbstractSet[int]],
        ours: AbstractSet[int] | None = None,
    ) -> DeviceReading:
        host = psutil.virtual_memory()
        in_memory = memory_devices(_slurp(self._proc / "self/mountinfo") or b"")
        all_processes: list[ProcessMemory] = []
        used_by: list[tuple[str, int | None]] = []
        unreadable_bytes = 0
        unreadable: list[str] = []
        for worker in sorted(workers):
            processes, hidden_bytes = self._tree(workers[worker], in_memory)
            all_processes += processes
            if hidden_bytes is None:
                used_by.append((worker, tree_bytes(processes)))
            else:
                used_by.append((worker, None))
                unreadable.append(worker)
                unreadable_bytes += hidden_bytes
        used_bytes = tree_bytes(all_processes) + unreadable_bytes
        # MemAvailable and a cgroup's file pages include those of weights that our workers map and need.
        cached_bytes = page_cache_bytes(all_processes)
        total_bytes, free_bytes = host.total, host.available - cached_bytes
        details = [f"{human_bytes(host.total)} of memory"]
        cgroup = cgroup_room(self._proc)
        if cgroup is not None:
            limit_bytes, room_bytes = cgroup
            if limit_bytes < total_bytes:
                total_bytes = limit_bytes
                details.append(f"limited to {human_bytes(limit_bytes)} by its cgroup")
            free_bytes = min(free_bytes, room_bytes - cached_bytes)
        shared_with_others = budget_bytes is None or free_bytes < budget_bytes - used_bytes
        if budget_bytes is not None:
            total_bytes = budget_bytes
            free_bytes = min(free_bytes, budget_bytes - used_bytes)
            details.append(f"a budget of {human_bytes(budget_bytes)}")
        if unreadable:
            details.append(f"not allowed to see what {', '.join(unreadable)} maps: its resident size is counted")
        return DeviceReading(
            name=name,
            kind=DeviceKind.HOST,
            headroom_bytes=headroom_bytes,
            total_bytes=total_bytes,
            free_bytes=max(0, free_bytes),
            used_by=tuple(used_by),
            foreign=self._others(ours) if ours is not None and shared_with_others else (),
            detail=", ".join(details),
        )

    def _others(self, ours: AbstractSet[int]) -> tuple[tuple[int, int | None, str], ...]:
        """The largest processes that are not swapd's: pid, bytes, name. What they hold alone, by /proc/PID/statm."""
        if time.monotonic() >= self._largest_until_s:
            found = (self._process(int(path.name)) for path in self._proc.iterdir() if path.name.isdigit())
            large = [each for each in found if each is not None and (each[1] or 0) >= LARGE_BYTES]
            self._largest = tuple(sorted(large, key=lambda each: (-(each[1] or 0), each[0])))
            self._largest_until_s = time.monotonic() + LARGEST_FOR_S
        return tuple(each for each in self._largest if each[0] not in ours)[:MAX_FOREIGN]

    def _process(self, pid: int) -> tuple[int, int | None, str] | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            pages = (self._proc / f"{pid}/statm").read_text().split()
            name = (self._proc / f"{pid}/comm").read_text().rstrip("\n")
            return pid, (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE"), name
        return None

    def free_beside_files(self) -> int:
        """What is free if every file that anybody maps is needed: by the host's own counters, whatever runs there."""
        mapped = re.search(rb"^Mapped: +([0-9]+) kB$", _slurp(self._proc / "meminfo") or b"", re.MULTILINE)
        mapped_bytes = int(mapped[1]) * KIB if mapped is not None else psutil.virtual_memory().total
        return self._free(mapped_bytes)

    def free_at_least(self, budget_bytes: int | None, pids: Iterable[int]) -> int:
        """What is free by counters alone, which no process is held up for. Never more than `read` says, but for what
        changes meanwhile: libraries, and pages that processes share, count for each of them. Negative: the budget is
        overdrawn, at the worst."""
        held_bytes = file_bytes = 0
        for pid in pids:
            held, files = _counted(_slurp(self._proc / str(pid) / "status") or b"")
            held_bytes += held
            file_bytes += files
        free_bytes = self._free(file_bytes)
        return free_bytes if budget_bytes is None else min(free_bytes, budget_bytes - held_bytes)

    def _free(self, file_bytes: int) -> int:
        """Available, but for files that are not to be dropped."""
        available_bytes, cgroup = psutil.virtual_memory().available, cgroup_room(self._proc)
        return (available_bytes if cgroup is None else min(available_bytes, cgroup[1])) - file_bytes

    def _tree(self, pids: AbstractSet[int], in_memory: AbstractSet[bytes]) -> tuple[list[ProcessMemory], int | None]:
        """The readable processes of a tree, and the resident bytes of the others (None: there are no others)."""
        processes: list[ProcessMemory] = []
        hidden_bytes: int | None = None
        for pid in sorted(pids):
            try:
                data = self._smaps(pid)
                if data is not None:
                    processes.append(parse_smaps(data, in_memory))
            except (OSError, ValueError):  # not permitted, or not understood; a process that is gone has no data
                hidden_bytes = (hidden_bytes or 0) + _resident_bytes(pid)
        return processes, hidden_bytes

    def _smaps(self, pid: int) -> bytes | None:
        """None: the process is gone. OSError: it is there and will not be read."""
        try:
            fd = os.open(self._proc / str(pid) / "smaps", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if (self._proc / str(pid)).exists():
                raise  # a kernel without CONFIG_PROC_PAGE_MONITOR
            return None
        except ProcessLookupError:
            return None
        chunks: list[bytes] = []
        size = 0
        try:
            while chunk := os.read(fd, _READ_BYTES):
                chunks.append(chunk)
                size += len(chunk)
                if size > _MAX_SMAPS_BYTES:
                    raise OSError(f"smaps of {pid} is longer than {human_bytes(_MAX_SMAPS_BYTES)}")
        except ProcessLookupError:
            return None
        finally:
            os.close(fd)
        return b"".join(chunks)


def _counted(status: bytes) -> tuple[int, int]:
    """Of /proc/PID/status: all that the process holds, and what of that is files. Nothing for one that is gone."""
    kib = dict.fromkeys((b"RssAnon", b"RssShmem", b"RssFile", b"VmSwap", b"HugetlbPages"), 0)
    for line in status.splitlines():
        name, _, value = line.partition(b":")
        if name in kib:
            kib[name] = int(value.split()[0])
    return sum(kib.values()) * KIB, kib[b"RssFile"] * KIB


def _resident_bytes(pid: int) -> int:
    """An upper bound that everybody may read: it counts libraries, and shared pages for each process."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


# --- the memory cgroup -------------------------------------------------------------------------------------


def cgroup_room(
    proc: Path = Path("/proc"), roots: tuple[Path, ...] = _CGROUP_ROOTS, v1: Path = _CGROUP_V1_ROOT
) -> tuple[int, int] | None:
    """(the tightest limit, the least room) of this process's memory cgroup and those above it; None: no limit is
    set, or none can be read. Room counts file pages as free, as the kernel drops them before it kills."""
    paths = {}
    for line in (_slurp(proc / "self/cgroup") or b"").splitlines():
        _, _, rest = line.partition(b":")
        controllers, _, path = rest.partition(b":")
        if not controllers or b"memory" in controllers.split(b","):
            paths[bool(controllers)] = os.fsdecode(path).lstrip("/")
    levels: list[tuple[int, int]] = []
    if False in paths:
        for root in roots:
            levels += _levels(root, paths[False], "memory.max", "memory.current", (b"active_file", b"inactive_file"))
    if True in paths:
        # v1 counts its children's pages in the total_ figures.
        fields = (b"total_active_file", b"total_inactive_file")
        levels += _levels(v1, paths[True], "memory.limit_in_bytes", "memory.usage_in_bytes", fields)
    if not levels:
        return None
    return min(limit for limit, _ in levels), min(room for _, room in levels)


def _levels(root: Path, path: str, limit: str, usage: str, file_fields: tuple[bytes, bytes]) -> list[tuple[int, int]]:
    found = []
    directory = root / path
    # Inside a container the path may be of the host's tree, with only the own group mounted: then that is the root.
    for level in (directory, *directory.parents) if directory.is_dir() else (root,):
        limit_bytes, usage_bytes = _number(level / limit), _number(level / usage)
        if limit_bytes is not None and usage_bytes is not None:
            files = sum(_stat_field(level / "memory.stat", field) for field in file_fields)
            found.append((limit_bytes, max(0, limit_bytes - usage_bytes) + min(files, usage_bytes)))
        if level == root:
            break
    return found


def _number(path: Path) -> int | None:
    """None for "max", for v1's way of saying it (the largest page-aligned int64), and for what cannot be read."""
    text = (_slurp(path) or b"").strip()
    value = int(text) if text.isdigit() else None
    return value if value is not None and value < 1 << 62 else None


def _stat_field(path: Path, field: bytes) -> int:
    for line in (_slurp(path) or b"").splitlines():
        name, _, value = line.partition(b" ")
        if name == field and value.isdigit():
            return int(value)
    return 0


def _slurp(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None
