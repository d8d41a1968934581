"""Between a gate and its shadow's process: a stream socket pair, with a frame for each message.

    to the process    meta, request's head, request's body, answer's body: four lengths, then those
    from the process  the share of requests to be copied now, and its figures: a double and a length, then JSON

`meta` is JSON and says by `kind` what the frame is: "start" (settings, and the figures to go on from), "copy" (of a
request and its answer), "watched" (how long a request took that is not copied). Both ends are of one version.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

_TO: Final = struct.Struct("!IIII")
_FROM: Final = struct.Struct("!dI")
FULL_REPORT: Final = 40 * 1024  # of figures: `stats` is one message of at most 128 KiB, and windows may take 80 of it
MAX_REPORT: Final = 96 * 1024  # nothing that the process has ever meant to say


@dataclass(frozen=True, slots=True)
class Frame:
    meta: Mapping[str, Any]
    head: bytes = b""
    body: bytes = b""
    answer: bytes = b""

    @property
    def size(self) -> int:
        return len(self.head) + len(self.body) + len(self.answer)


@dataclass(frozen=True, slots=True)
class Report:
    share: float
    figures: bytes  # JSON

    def read(self) -> dict[str, Any] | None:
        """[any thread] None: they are none."""
        try:
            told = json.loads(self.figures)
        except ValueError:
            return None
        return told if isinstance(told, dict) and isinstance(told.get("dropped_for"), dict) else None


class BadReport(Exception):
    """The process does not say what it should."""


def pieces_of(meta: Mapping[str, Any], head: bytes, body: Sequence[bytes], answer: Sequence[bytes]) -> list[bytes]:
    """A frame for the process, to be written as it is: bodies are not copied together."""
    said = json.dumps(meta).encode()
    lengths = _TO.pack(len(said), len(head), sum(map(len, body)), sum(map(len, answer)))
    return [lengths + said + head, *body, *answer]


def report_of(share: float, figures: bytes) -> bytes:
    return _FROM.pack(share, len(figures)) + figures


class FrameReader:
    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        self._buffer += data
        while len(self._buffer) >= _TO.size:
            lengths = _TO.unpack_from(self._buffer)
            if len(self._buffer) < _TO.size + sum(lengths):
                return
            at, parts = _TO.size, []
            for length in lengths:
                parts.append(bytes(self._buffer[at : at + length]))
                at += length
            del self._buffer[:at]
            yield Frame(json.loads(parts[0]), *parts[1:])


class ReportReader:
    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> Report | None:
        """The newest whole report. Raises BadReport."""
        self._buffer += data
        newest = None
        while len(self._buffer) >= _FROM.size:
            share, length = _FROM.unpack_from(self._buffer)
            if not 0.0 <= share <= 1.0 or length > MAX_REPORT:
                raise BadReport
            end = _FROM.size + length
            if len(self._buffer) < end:
                break
            newest = Report(share, self._buffer[_FROM.size : end])
            self._buffer = self._buffer[end:]
        return newest
