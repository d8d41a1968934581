"""Workers' logs: their ends for people, and their bounds for the disk.

Duty: read the tail of a log, follow it from an offset, remove those of workers long gone, and cut one that grows
without end. May not know: who writes them (workers do, by descriptors opened with O_APPEND, so that no daemon has to
live for it). Source: open(2) on O_APPEND; logrotate's copytruncate as precedent.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_TAIL_BYTES: Final = 256 * 1024  # one reply on the control socket is limited to 1 MiB, and JSON may double this
MAX_CHUNK_BYTES: Final = 64 * 1024
_BLOCK_BYTES: Final = 16 * 1024
_WORKER_LOG: Final = re.compile(r"(?P<service>.+)-(?P<number>\d+)\.log")
_FORMER: Final = ".1"  # what was cut off a log lies beside it, once


@dataclass(frozen=True, slots=True)
class LogChunk:
    """A piece of a log. Ask again from `offset`; `restarted`: the log was cut, and this is from its new beginning."""

    text: str
    offset: int
    restarted: bool = False


def tail(path: Path, lines: int, max_bytes: int = MAX_TAIL_BYTES) -> list[str]:
    """The last lines, at most `lines` and `max_bytes`, oldest first. Empty if there is no log.

    Bytes that are not UTF-8 are replaced. A line of which the limit leaves only the end is not shown, unless there is
    no other.
    """
    return read_end(path, lines, max_bytes=max_bytes).text.split("\n")[:-1]


def read_end(path: Path, lines: int, *, ended: bool = False, max_bytes: int = MAX_TAIL_BYTES) -> LogChunk:
    """As `tail`; from its offset `read_from` goes on without a gap.

    A line that is still being written is in it as far as it is there, and `read_from` gives it again, whole: in two
    halves nobody would know what it says. `ended`: nobody writes any more.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            floor = max(0, size - max_bytes)
            start, data = size, b""
            while start > floor and data.count(b"\n") <= lines:
                block = min(_BLOCK_BYTES, start - floor)
                start -= block
                file.seek(start)
                data = file.read(block) + data
    except FileNotFoundError:
        return LogChunk("", 0)
    if start > 0:
        whole = data.partition(b"\n")[2]
        data = whole or data
    unfinished = 0 if ended else len(data) - (data.rfind(b"\n") + 1)
    shown = data.decode(errors="replace").splitlines()[-lines:] if lines > 0 else []
    return LogChunk("".join(f"{line}\n" for line in shown), size - unfinished)


def read_from(path: Path, offset: int, max_bytes: int = MAX_CHUNK_BYTES, *, ended: bool = False) -> LogChunk:
    """What was written since `offset`, at most `max_bytes`, in whole lines where there is one.

    A line that is still being written stays for the next call, unless it alone fills the limit, or nobody writes any
    more (`ended`).
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            restarted = offset > size or offset < 0
            offset = 0 if restarted else offset
            file.seek(offset)
            data = file.read(max_bytes)
    except FileNotFoundError:
        return LogChunk("", 0, restarted=offset != 0)
    whole, newline, _partial = data.rpartition(b"\n")
    if ended and offset + len(data) >= size:
        pass  # the last line, which has no end
    elif newline:
        data = whole + newline
    elif len(data) < max_bytes:
        data = b""
    return LogChunk(data.decode(errors="replace"), offset + len(data), restarted)


def newest(directory: Path, service: str, *, among: Collection[str] | None = None) -> str | None:
    """The worker of the service whose log was written last; with `among`, of these the one of the highest number."""
    found = [(int(m["number"]), path) for path, m in _worker_logs(directory) if m["service"] == service]
    if among is not None:
        return max(((n, path.stem) for n, path in found if path.stem in among), default=(0, None))[1]
    return max(found, key=lambda each: _written_at(each[1]))[1].stem if found else None


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
            path.unlink(missing_ok=True)
            path.with_name(path.name + _FORMER).unlink(missing_ok=True)
            removed.append(path.stem)
    return sorted(removed)


def cap(path: Path, max_bytes: int) -> bool:
    """Cuts a log that has grown beyond `max_bytes`: what it held is moved to `NAME.log.1`, replacing that.

    The worker goes on writing at the new end, since it appends. What it writes between the copy and the cut is lost:
    its descriptor cannot be swapped from outside. Returns whether it was cut.
    """
    try:
        if path.stat().st_size <= max_bytes:
            return False
        former = path.with_name(path.name + _FORMER)
        temporary = path.with_name(path.name + ".tmp")
        with path.open("rb") as source, temporary.open("wb") as target:
            os.fchmod(target.fileno(), 0o640)
            source.seek(-max_bytes, os.SEEK_END)  # a log that outgrew its cap by far must not fill the disk twice
            shutil.copyfileobj(source, target)
        temporary.replace(former)
        os.truncate(path, 0)
    except FileNotFoundError:
        return False
    return True
