"""The tensors of safetensors files in this process's memory: every page there, none of it the files'.

A copy, not a mapping of the files: one that is overwritten while a model serves from it would change the model, or end
it (SIGBUS); and CUDA pins what it copies from. Private memory: its pages may be huge, which makes them several times
faster to fault in than those of a memfd (docs/weights.md). Knows nothing of torch. Raises SwapdError.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from swapd.core.errors import CANCELED, LOAD_FAILED, OUT_OF_MEMORY, SwapdError
from swapd.core.footprint import BadWeights, safetensors_header_length
from swapd.core.safetensors import Placed, Tensor, lay_out, read_tensors
from swapd.core.sizes import human_bytes
from swapd.worker.gently import go_last

PIECE_BYTES: Final = 16 << 20  # read at once: between two of them a stop is seen
READERS: Final = 4  # one thread copies 2 to 6 GB/s out of the page cache, and a disk likes several requests at once
SPARE_BYTES: Final = 256 << 20  # of the host's memory, left to everybody else
_TELL_S: Final = 0.05

Tell = Callable[[int, int], None]


class HostCopy:
    """Where the tensors will lie is known from the headers, at once; `fill` reads them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Reads the headers. Raises SwapdError(LOAD_FAILED) naming a file that is missing or damaged."""
        if not paths:
            raise SwapdError(LOAD_FAILED, "Weights: there is no .safetensors file among the paths given.")
        self._paths = list(paths)
        self._stamps: list[tuple[int, ...]] = []
        files = []
        for path in self._paths:
            with _open(path) as fd:
                self._stamps.append(_stamp(fd))
                files.append(_tensors(path, fd))
        layout = lay_out(files)
        if isinstance(layout, BadWeights):
            raise SwapdError(LOAD_FAILED, f"Weights {self._paths[-1].parent}: {layout.why}.")
        self.tensors: tuple[Placed, ...] = layout[0]
        self.size_bytes: int = layout[1]

    def fill(self, tell: Tell, is_stopped: Callable[[], bool], *, gently: bool) -> mmap.mmap:
        """Read everything; `tell(done_bytes, total_bytes)` on the way. `gently`: a model serves beside.

        Raises SwapdError: OUT_OF_MEMORY before anything is read, CANCELED soon after `is_stopped`, LOAD_FAILED when
        a file cannot be read, or is another than when its header was read.
        """
        self._need_room()
        whole_pages = -(-max(self.size_bytes, 1) // mmap.PAGESIZE) * mmap.PAGESIZE  # as CUDA pins them
        memory = mmap.mmap(-1, whole_pages, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError):  # a kernel without
            memory.madvise(mmap.MADV_HUGEPAGE)
        try:
            _Filling(self, memory, self._paths, is_stopped, gently).run(tell)
            self._need_unchanged()
        except BaseException:
            memory.close()  # now, and not when whoever keeps the traceback lets go of it
            raise
        return memory

    def pieces(self) -> Iterator[tuple[int, int, int, int]]:
        """(file, offset in it, offset in memory, bytes), each short enough to be stopped after."""
        for placed in self.tensors:
            for done in range(0, placed.tensor.size_bytes, PIECE_BYTES):
                size = min(PIECE_BYTES, placed.tensor.size_bytes - done)
                yield placed.file, placed.tensor.begin + done, placed.at + done, size

    def _need_unchanged(self) -> None:
        for path, stamp in zip(self._paths, self._stamps, strict=True):
            with _open(path) as fd:
                if _stamp(fd) != stamp:
                    raise SwapdError(LOAD_FAILED, f"Weights {path}: it was changed while it was read.")

    def _need_room(self) -> None:
        available = _available_bytes()
        if available is not None and available < self.size_bytes + SPARE_BYTES:
            need, free = human_bytes(self.size_bytes, up=True), human_bytes(available, down=True)
            text = f"Weights: they take {need} of host memory, and {free} are available."
            raise SwapdError(OUT_OF_MEMORY, text, {"need_bytes": self.size_bytes, "available_bytes": available})


class _Filling:
    """One reading of all pieces, by a few threads of its own."""

    def __init__(
        self, copy: HostCopy, memory: mmap.mmap, paths: Sequence[Path], is_stopped: Callable[[], bool], gently: bool
    ) -> None:
        self._total = sum(placed.tensor.size_bytes for placed in copy.tensors)
        self._pieces = copy.pieces()
        self._memory = memory
        self._paths = paths
        self._is_stopped = is_stopped
        self._gently = gently
        self._lock = threading.Lock()
        self._done = 0
        self._error: BaseException | None = None

    def run(self, tell: Tell) -> None:
        count = min(READERS, max(1, len(os.sched_getaffinity(0))))
        threads = [threading.Thread(target=self._work, name=f"weights-{n}", daemon=True) for n in range(count)]
        begun: list[threading.Thread] = []
        try:
            for thread in threads:
                thread.start()
                begun.append(thread)
            for thread in threads:
                while thread.is_alive():
                    thread.join(_TELL_S)
                    tell(self._done, self._total)
        except BaseException as error:  # of `tell`, of a signal's handler, or no more threads may be started
            self._fail(error)
            for thread in begun:
                thread.join()  # the memory must be nobody's afterwards
            raise
        if self._error is not None:
            raise self._error
        tell(self._total, self._total)

    def _work(self) -> None:
        if self._gently:
            go_last()
        try:
            with contextlib.ExitStack() as files, memoryview(self._memory) as view:
                fds = [files.enter_context(_open(path)) for path in self._paths]
                while (piece := self._next()) is not None:
                    file, begin, at, size = piece
                    with view[at : at + size] as target:
                        self._read(fds[file], self._paths[file], target, begin)
                    with self._lock:
                        self._done += size
        except BaseException as error:
            self._fail(error)

    def _next(self) -> tuple[int, int, int, int] | None:
        with self._lock:
            if self._is_stopped() and self._error is None:
                self._error = SwapdError(CANCELED, "Reading the weights was given up: it was told to stop.")
            return None if self._error is not None else next(self._pieces, None)

    def _read(self, fd: int, path: Path, target: memoryview, begin: int) -> None:
        got = 0
        while got < len(target):
            try:
                count = os.preadv(fd, [target[got:]], begin + got)
            except OSError as error:
                raise _unreadable(path, error) from error
            if count == 0:
                raise SwapdError(LOAD_FAILED, f"Weights {path}: it became shorter while it was read.")
            got += count

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error


def _tensors(path: Path, fd: int) -> tuple[Tensor, ...]:
    size = os.fstat(fd).st_size
    try:
        length = safetensors_header_length(os.pread(fd, 8, 0), size)
        found = length if isinstance(length, BadWeights) else read_tensors(os.pread(fd, length, 8), size)
    except OSError as error:
        raise _unreadable(path, error) from error
    if isinstance(found, BadWeights):
        raise SwapdError(LOAD_FAILED, f"Weights {path}: {found.why}.", {"file": str(path)})
    return found


@contextlib.contextmanager
def _open(path: Path) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _stamp(fd: int) -> tuple[int, ...]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _unreadable(path: Path, error: OSError) -> SwapdError:
    why = (error.strerror or str(error)).lower()
    return SwapdError(LOAD_FAILED, f"Weights {path}: {why}.", {"file": str(path)})


def _available_bytes() -> int | None:
    """What the kernel says could be had without swapping: MemAvailable."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
