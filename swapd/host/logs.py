"""Workers' logs: their ends for people, and their bounds for the disk.

Duty: read the tail of a log, follow it from an offset, remove those of workers long gone, and cut one that grows
without end. May not know: who writes them (workers do, by descriptors opened with O_APPEND, so that no daemon has to
live for it). Source: open(2) on O_APPEND; fallocate(2); logrotate's copytruncate as precedent.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

MAX_TAIL_BYTES: Final = 256 * 1024  # one reply on the control socket is limited to 1 MiB, and JSON may double this
MAX_CHUNK_BYTES: Final = 64 * 1024
_BLOCK_BYTES: Final = 16 * 1024
_WORKER_LOG: Final = re.compile(r"(?P<service>.+)-(?P<number>\d+)\.log")
_COPY_BYTES: Final = 1024 * 1024
_COLLAPSE_RANGE: Final = 0x08  # linux/falloc.h: takes whole blocks out of a file, and what follows moves up


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a log. Ask again from `offset`. `restarted`: the log was cut, what it had before is lost to whoever
    follows, and this is from its new beginning."""

    text: str
    offset: int
    restarted: bool = False


def tail(path: Path, lines: int, max_bytes: int = MAX_TAIL_BYTES, *, since: int = 0) -> list[str]:
    """The last lines, at most `lines` and `max_bytes`, oldest first, of those begun after the offset `since`. Empty if
    there is no log.

    Bytes that are not UTF-8 are replaced. A line of which the limit leaves only the end is not shown, unless there is
    no other. Of a log that is shorter than `since`, so was rotated, all counts.
    """
    return read_end(path, lines, max_bytes=max_bytes, since=since).text.split("\n")[:-1]


def read_end(
    path: Path, lines: int, *, ended: bool = False, max_bytes: int = MAX_TAIL_BYTES, since: int = 0
) -> LogChunk:
    """As `tail`; from its offset `read_from` goes on without a gap.

    A line that is still being written is in it as far as it is there, and `read_from` gives it again, whole: in two
    halves nobody would know what it says. `ended`: nobody writes any more. Where the log was rotated not long ago, the
    lines before come from the former file.
    """
    try:
        data, start, size = _end_of(path, lines, max_bytes, since)
    except FileNotFoundError:
        return LogChunk("", 0)
    former_size = 0
    if start == 0 and data.count(b"\n") <= lines:
        with contextlib.suppress(FileNotFoundError):
            before, start, former_size = _end_of(_former(path, 1), lines, max_bytes - len(data))
            data = before + data
    if start > 0:
        whole = data.partition(b"\n")[2]
        data = whole if since else whole or data
    unfinished = 0 if ended else len(data) - (data.rfind(b"\n") + 1)
    shown = data.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []
    offset = size - unfinished if unfinished <= size else former_size + size - unfinished  # as `read_from` takes it
    return LogChunk("".join(f"{line}\n" for line in shown), offset)


def _end_of(path: Path, lines: int, max_bytes: int, since: int = 0) -> tuple[bytes, int, int]:
    """The file's end, with more line ends than `lines` if that is not over `max_bytes`; where it starts, which is not
    before the last byte of what came before `since`; the size."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        floor = max(0, size - max_bytes, since - 1 if since <= size else 0)
        start, data = size, b""
        while start > floor and data.count(b"\n") <= lines:
            block = min(_BLOCK_BYTES, start - floor)
            start -= block
            file.seek(start)
            data = file.read(block) + data
    return data, start, size


def read_from(path: Path, offset: int, max_bytes: int = MAX_CHUNK_BYTES, *, ended: bool = False) -> LogChunk:
    """What was written since `offset`, at most `max_bytes`, in whole lines where there is one.

    A line that is still being written stays for the next call, unless it alone fills the limit, or nobody writes any
    more (`ended`). An offset beyond the log's end is from before it was rotated, and counts from the beginning of the
    former file, as if the log went on where that ends: whoever follows misses nothing.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            data, former_size = b"", 0
            if offset > size:
                data, former_size = _of_former(path, offset, max_bytes)
            restarted = not 0 <= offset <= former_size + size
            if restarted:
                offset, data, former_size = 0, b"", 0
            file.seek(max(0, offset - former_size))
            data += file.read(max_bytes - len(data))
    except FileNotFoundError:
        return LogChunk("", 0, restarted=offset != 0)
    whole, newline, _partial = data.rpartition(b"\n")
    if ended and offset + len(data) >= former_size + size:
        pass  # the last line, which has no end
    elif newline:
        data = whole + newline
    elif len(data) < max_bytes:
        data = b""
    offset += len(data)
    return LogChunk(data.decode(errors="replace"), offset - former_size if offset >= former_size else offset, restarted)


def _of_former(path: Path, offset: int, max_bytes: int) -> tuple[bytes, int]:
    """What the former file has after `offset`, and its size; nothing and 0 where there is none."""
    try:
        with _former(path, 1).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(offset)
            return file.read(max_bytes), size
    except FileNotFoundError:
        return b"", 0


def newest(directory: Path, service: str) -> str | None:
    """The worker of the service whose log was written last."""
    found = [path for path, match in _worker_logs(directory) if match["service"] == service]
    return max(found, key=_written_at).stem if found else None


def _worker_logs(directory: Path) -> list[tuple[Path, re.Match[str]]]:
    with contextlib.suppress(FileNotFoundError):
        return [(path, match) for path in directory.iterdir() if (match := _WORKER_LOG.fullmatch(path.name))]
    return []


def _written_at(path: Path) -> float:
    with contextlib.suppress(FileNotFoundError):  # tidied away meanwhile
        return path.stat().st_mtime
    return 0.0


def prune(directory: Path, *, keep_per_service: int, running: Collection[str] = ()) -> list[str]:
    """Removes logs of ended workers but for the newest of each service. Returns the ids whose logs went.

    `running` are worker ids whose logs stay whatever their age. Numbers count up for ever, so the highest is the
    newest. A gate's logs (`chat-gate-4`) are counted apart from the models'.
    """
    by_service: dict[str, list[tuple[int, Path]]] = {}
    for path, match in _worker_logs(directory):
        if path.stem not in running:
            by_service.setdefault(match["service"], []).append((int(match["number"]), path))
    removed = []
    for logs in by_service.values():
        logs.sort(reverse=True)
        for _number, path in logs[max(keep_per_service, 0) :]:
            for each in (path, *_formers(path).values()):
                each.unlink(missing_ok=True)
            removed.append(path.stem)
    return sorted(removed)


def cap(path: Path, max_bytes: int, keep: int = 1) -> bool:
    """Rotates a log that has grown beyond `max_bytes`: what it held is moved to `NAME.log.1`, that to `.2` and so on;
    `keep` of these stay. Returns whether it was. Blocks for as long as the disk takes.

    The worker takes no part: it appends, so it goes on at the new end. Where a file's beginning can be taken off at
    once (ext4, XFS) nothing of what it writes meanwhile is lost, and the log goes on from the last whole block.
    Elsewhere it is copied and cut, and what is written in the microseconds between the two is lost.
    """
    try:
        with path.open("r+b") as log:
            size = os.fstat(log.fileno()).st_size
            if size <= max_bytes:
                return False
            block = os.fstatvfs(log.fileno()).f_bsize
            whole_blocks = (size - 1) // block * block  # not all of it: that cannot be taken off
            if keep == 0:
                _take_off(log, whole_blocks)
                return True
            temporary = path.with_name(path.name + ".tmp")
            with temporary.open("wb") as former:
                os.fchmod(former.fileno(), 0o640)
                # A log that outgrew its cap by far must not fill the disk twice.
                log.seek(0 if size <= 2 * max_bytes else max(0, whole_blocks - max_bytes))
                _copy(log, former, whole_blocks)
                _make_room(path, keep)
                temporary.replace(_former(path, 1))
                _take_off(log, whole_blocks, former)
    except FileNotFoundError:
        return False
    return True


def _take_off(log: BinaryIO, size: int, former: BinaryIO | None = None) -> None:
    """The first bytes of the log, or all that it has, which `former` gets before."""
    os.fdatasync(log.fileno())  # here, where it holds up nobody: the call below would have the worker wait for the disk
    if size and _collapse(log.fileno(), size):
        return
    if former is not None:
        _copy(log, former, None)
        former.flush()
    os.ftruncate(log.fileno(), 0)


def _copy(source: BinaryIO, target: BinaryIO, end: int | None) -> None:
    """From where `source` stands to `end`, or to what is its end by then."""
    while data := source.read(_COPY_BYTES if end is None else min(_COPY_BYTES, end - source.tell())):
        target.write(data)


def _collapse(descriptor: int, size: int) -> bool:
    """fallocate(FALLOC_FL_COLLAPSE_RANGE). False: this file system cannot."""
    fallocate = getattr(ctypes.CDLL(None), "fallocate64", None) or getattr(ctypes.CDLL(None), "fallocate", None)
    if fallocate is None:
        return False
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return bool(fallocate(descriptor, _COLLAPSE_RANGE, 0, size) == 0)


def _former(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _formers(path: Path) -> dict[int, Path]:
    """What was cut off the log, by number."""
    found = {}
    for each in path.parent.glob(f"{glob.escape(path.name)}.*"):
        number = each.name.removeprefix(f"{path.name}.")
        if number.isdigit():
            found[int(number)] = each
    return found


def _make_room(path: Path, keep: int) -> None:
    """Each former file becomes one older; those past `keep` go."""
    for number, former in sorted(_formers(path).items(), reverse=True):
        if number >= keep:
            former.unlink(missing_ok=True)
        else:
            former.replace(_former(path, number + 1))
