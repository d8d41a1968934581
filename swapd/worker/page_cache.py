"""Files into the page cache while another model serves, so that a load finds them there.

What a server of its own, or an app without a `stage` hook, can be given beforehand. Goes last (`worker.gently`), and
reads no more than fits beside what serves: what others have mapped is theirs, though the kernel would take it.
It fails nothing: what cannot be read is left for the load to tell of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from swapd.worker.gently import go_last
from swapd.worker.progress import Progress

log = logging.getLogger("swapd.worker.page_cache")

PIECE_BYTES: Final = 4 << 20
GRAIN_BYTES: Final = 64 << 10  # asked about one byte in so many: the kernel reads ahead by more
SPARE_BYTES: Final = 512 << 20  # of the host's memory, left for what others may want to read or allocate meanwhile
LATE_S: Final = 10.0  # for a piece under way at the end; one that takes longer is left: the disk is all others'


@dataclass(slots=True)
class Brought:
    """What has become of the files' bytes."""

    bytes: int = 0
    cached_bytes: int = 0  # were there already
    read_bytes: int = 0
    no_room_bytes: int = 0  # left out: memory for them would be missing elsewhere


async def bring(files: Sequence[str], limit_s: float, progress: Progress) -> dict[str, Any]:
    """Bring the files in, for `limit_s` at most. The figures of `Brought`; of a thread that hangs in the kernel, or has
    failed, none. Given up when cancelled."""
    loop, stop = asyncio.get_running_loop(), threading.Event()
    done: asyncio.Future[Brought] = loop.create_future()

    def finish(brought: Brought) -> None:
        if not done.done():
            done.set_result(brought)

    def work() -> None:
        brought = Brought()
        try:
            go_last()
            brought = bring_now(files, time.monotonic() + limit_s, progress, stop.is_set)
        except Exception:
            log.exception("page_cache.failed")
        with contextlib.suppress(RuntimeError):  # the loop is closed: the worker has ended
            loop.call_soon_threadsafe(finish, brought)

    threading.Thread(target=work, name="page-cache", daemon=True).start()
    try:
        await asyncio.wait({done}, timeout=limit_s + LATE_S)
        if not done.done():
            log.warning("page_cache.late limit_s=%g", limit_s)
        return asdict(done.result() if done.done() else Brought())
    finally:
        stop.set()


def bring_now(files: Sequence[str], until_mono_s: float, progress: Progress, is_stopped: Callable[[], bool]) -> Brought:
    """What is missing is found out before anything is read: the kernel reads ahead."""
    with contextlib.ExitStack() as opened:
        found = [each for name in files if (each := _open(name, opened)) is not None]
        brought = Brought(sum(size for _, size in found))
        missing = [piece for piece in _pieces(found) if not _is_cached(*piece)]
        brought.cached_bytes = brought.bytes - sum(size for _, _, size in missing)
        progress(brought.cached_bytes, brought.bytes)
        for fd, _ in found:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = memoryview(bytearray(PIECE_BYTES))
        for fd, begin, size in missing:
            if is_stopped() or time.monotonic() > until_mono_s:
                break
            _bring_piece(fd, begin, buffer[:size], brought)
            progress(brought.cached_bytes + brought.read_bytes, brought.bytes)
    return brought


def _bring_piece(fd: int, begin: int, buffer: memoryview, brought: Brought) -> None:
    if brought.cached_bytes + brought.read_bytes + len(buffer) + SPARE_BYTES > room_bytes():
        brought.no_room_bytes += len(buffer)
        return
    with contextlib.suppress(OSError):
        brought.read_bytes += os.preadv(fd, [buffer], begin)


def _is_cached(fd: int, begin: int, size: int) -> bool:
    """Seen by reads that must not wait for a disk. (mincore() says yes to all of a file that another user owns.)"""
    byte = [bytearray(1)]
    try:
        return all(os.preadv(fd, byte, at, os.RWF_NOWAIT) for at in range(begin, begin + size, GRAIN_BYTES))
    except OSError:  # EAGAIN: it would have to wait; or a file system that cannot tell
        return False


def room_bytes() -> int:
    """What the page cache may hold without anybody missing it: what is available, less the files that are mapped."""
    figures = {}
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            figures[name] = int(value.split()[0]) * 1024
    return figures.get("MemAvailable", 0) - figures.get("Mapped", 0)


def _open(name: str, opened: contextlib.ExitStack) -> tuple[int, int] | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    opened.callback(os.close, fd)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return None
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # asking what is there must not fetch what is not
    return fd, status.st_size


def _pieces(files: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    for fd, total in files:
        for begin in range(0, total, PIECE_BYTES):
            yield fd, begin, min(PIECE_BYTES, total - begin)
