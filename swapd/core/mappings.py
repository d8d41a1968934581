"""What a process tree holds of the host's memory, from its /proc/PID/smaps. Pure: the bytes come in as arguments.

The rules, and why neither RSS nor PSS will do. RSS counts a page once for every process that maps it. PSS shares it
out among all that do: of two workers that map one file of 200 MB each shows 100, and when one ends the other seems
to grow by what was there all along. So:

- *Anonymous* memory counts by its proportional share. The sharers of an anonymous page are the forks of one process,
  which are one worker's, so the shares of a tree add up to what is there, copied or not.
- *Shared memory and mapped files* count once an inode, in full for every worker that maps them, and once for a device
  on which several do.
- A file that the process maps as code (its program and libraries) does not count: it is everybody's, and no weights.

Source: proc_pid_smaps(5), Documentation/filesystems/proc.rst in the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Final

KIB: Final = 1024

# Mapped from no mount at all: memfd, SysV and anonymous shared memory live on the kernel's own, numbered 00:01.
_KERNEL_SHM_DEVICE: Final = b"00:01"
_MEMORY_PATHS: Final = (b"/memfd:", b"/SYSV", b"/dev/zero", b"/dev/shm/", b"[anon_shmem")

# One match a mapping: five times as fast as a loop over its 25 lines, and a model with CUDA has thousands of mappings.
# The fields' order is the kernel's; others may stand between, and Pss_Dirty came with Linux 5.19.
_SKIP: Final = rb"(?:[A-Z].*\n)*?"
_MAPPING: Final = re.compile(
    rb"^([0-9a-f]+)-([0-9a-f]+) ..(.)(.) ([0-9a-f]+) (\S+) (\d+) *(.*)\n"
    + _SKIP + rb"Rss: +(\d+) kB\n"
    + _SKIP + rb"Pss: +(\d+) kB\n"
    + rb"(?:" + _SKIP + rb"Pss_Dirty: +(\d+) kB\n)?"
    + _SKIP + rb"Anonymous: +(\d+) kB\n"
    + _SKIP + rb"Shared_Hugetlb: +(\d+) kB\n"
    + _SKIP + rb"Private_Hugetlb: +(\d+) kB\n"
    + _SKIP + rb"Swap: +(\d+) kB\n"
    + _SKIP + rb"SwapPss: +(\d+) kB\n",
    re.MULTILINE,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a file or of shared memory that one process maps, and how much of it is resident there."""

    file: tuple[bytes, int]  # device and inode: one identity, whoever maps it and by whatever path
    offset: int
    end: int
    resident_bytes: int
    share_bytes: int  # the proportional share of them
    on_disk: bool  # page cache, which the kernel counts as available; else shared memory


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    anonymous_bytes: int
    segments: tuple[Segment, ...]


def parse_smaps(data: bytes, memory_devices: Collection[bytes] = ()) -> ProcessMemory:
    """Of one process. `memory_devices` are the numbers (`00:1b`) of mounted tmpfs.

    Raises ValueError when a mapping cannot be read: what is not understood must not pass for nothing.
    """
    mappings = _MAPPING.findall(data)
    if len(mappings) != data.count(b"\nRss:"):
        raise ValueError(f"{data.count(b'Rss:')} mappings in smaps, of which {len(mappings)} could be read")
    anonymous_kib = 0
    segments: list[Segment] = []
    code: set[tuple[bytes, int]] = set()
    for low, high, execute, shared, offset, device, inode, path, rss_kib, pss_kib, dirty_kib, *kib in mappings:
        rss, pss = int(rss_kib), int(pss_kib)
        anonymous, shared_huge, private_huge, swap, swap_share = map(int, kib)
        anonymous_kib += private_huge
        file = (device, int(inode))
        if not file[1]:
            anonymous_kib += pss + swap_share
            continue
        if execute == b"x":
            code.add(file)
        # A private mapping's own copies of pages are anonymous too. smaps does not tell their share from the
        # file's, but they are its dirty pages.
        copied = min(anonymous, int(dirty_kib)) if dirty_kib else anonymous
        anonymous_kib += copied
        if shared == b"p":
            anonymous_kib += swap_share
            swap = swap_share = 0
        resident = rss - anonymous + shared_huge + swap
        if resident <= 0:
            continue
        begin = int(offset, 16)
        segments.append(
            Segment(
                file=file,
                offset=begin,
                end=begin + int(high, 16) - int(low, 16),
                resident_bytes=resident * KIB,
                share_bytes=max(0, pss - copied + swap_share) * KIB,
                on_disk=_is_on_disk(device, path, memory_devices),
            )
        )
    return ProcessMemory(anonymous_kib * KIB, tuple(s for s in segments if not (s.on_disk and s.file in code)))


def _is_on_disk(device: bytes, path: bytes, memory_devices: Collection[bytes]) -> bool:
    if device == _KERNEL_SHM_DEVICE or device in memory_devices:
        return False
    return not path.startswith(_MEMORY_PATHS)


def unique_bytes(segments: Iterable[Segment]) -> int:
    """What is resident of all files together, each page counted once.

    smaps does not say *which* pages are resident, so mappings of one stretch are weighed: together they hold at least
    what any single one does, and at least their shares. That is exact where all map the same pages, where nobody
    else maps them, and where there is only one.
    """
    by_file: dict[tuple[bytes, int], list[Segment]] = {}
    for segment in segments:
        by_file.setdefault(segment.file, []).append(segment)
    return sum(_unique_in_file(mapped) for mapped in by_file.values())


def _unique_in_file(mapped: list[Segment]) -> int:
    total = end = most = shares = 0
    for segment in sorted(mapped, key=lambda s: (s.offset, s.end)):
        if segment.offset >= end:  # another stretch begins: it can share no page with those before
            total += max(most, shares)
            most = shares = 0
        end = max(end, segment.end)
        most = max(most, segment.resident_bytes)
        shares += segment.share_bytes
    return total + max(most, shares)


def tree_bytes(processes: Iterable[ProcessMemory]) -> int:
    """What one process tree, or several together, hold."""
    anonymous_bytes = 0
    segments: list[Segment] = []
    for process in processes:
        anonymous_bytes += process.anonymous_bytes
        segments.extend(process.segments)
    return anonymous_bytes + unique_bytes(segments)


def page_cache_bytes(processes: Iterable[ProcessMemory]) -> int:
    """How much of that is mapped files on disk. The kernel counts those pages as available, as it could drop them;
    a model that computes with them cannot spare them."""
    return unique_bytes(s for process in processes for s in process.segments if s.on_disk)


def memory_devices(mountinfo: bytes) -> frozenset[bytes]:
    """The device numbers of mounted tmpfs, as smaps writes them, from /proc/self/mountinfo."""
    devices = set()
    for line in mountinfo.splitlines():
        columns, _, rest = line.partition(b" - ")
        fields = columns.split(None, 3)
        if len(fields) > 2 and rest.split(b" ", 1)[0] in (b"tmpfs", b"devtmpfs", b"ramfs", b"hugetlbfs"):
            major, _, minor = fields[2].partition(b":")
            devices.add(b"%02x:%02x" % (int(major), int(minor)))
    return frozenset(devices)
