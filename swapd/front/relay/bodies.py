"""Where a body ends: counted bytes, chunks (RFC 9112 7.1), or the end of the connection. Strict, bounded, and pure.

A reader takes what has come and gives back the data in it, and what lies beyond the body. Data is not gathered: what
came in one piece goes on in one piece.
"""

from __future__ import annotations

import re
from typing import Final, Protocol

MAX_LINE_BYTES: Final = 256 + 16 + 2  # a chunk's size with its extensions, which are dropped
MAX_TRAILER_BYTES: Final = 16 * 1024
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER: Final = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
# RFC 9110 6.5.1: fields that frame, route, authorise or shape a message mean nothing in a trailer, or harm.
_NOT_IN_TRAILERS: Final = frozenset(
    b"transfer-encoding content-length host connection trailer te upgrade keep-alive proxy-connection cache-control"
    b" expect max-forwards pragma range authorization set-cookie cookie content-encoding content-type"
    b" content-range x-forwarded-for x-forwarded-proto forwarded via x-request-id".split()
)


class BadBody(Exception):
    """What came is no body as its head announced it."""


class Body(Protocol):
    done: bool
    trailers: list[tuple[bytes, bytes]]

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        """(pieces of the body, bytes after it). Raises BadBody."""


def body_of(length: int) -> Body:
    """Of a head's `length`: bytes, -1 for chunked, -2 for until the end of the connection."""
    return Counted(length) if length >= 0 else Chunked() if length == -1 else UntilClose()


class Counted:
    __slots__ = ("_left", "done", "trailers")

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.trailers: list[tuple[bytes, bytes]] = []

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        piece, rest = data[: self._left], data[self._left :]
        self._left -= len(piece)
        self.done = self._left == 0
        return [piece] if piece else [], rest


class UntilClose:
    """Never done: who reads it hears of the connection's end."""

    __slots__ = ("done", "trailers")

    def __init__(self) -> None:
        self.done = False
        self.trailers: list[tuple[bytes, bytes]] = []

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        return [data] if data else [], b""


class Chunked:
    __slots__ = ("_buffer", "_in_trailers", "_left", "_trailer_bytes", "done", "trailers")

    def __init__(self) -> None:
        self._buffer = b""  # the beginning of a line
        self._left = 0  # of the chunk's data and the CRLF after it
        self._in_trailers = False
        self._trailer_bytes = 0
        self.done = False
        self.trailers: list[tuple[bytes, bytes]] = []

    def feed(self, data: bytes) -> tuple[list[bytes], bytes]:
        data = self._buffer + data
        self._buffer = b""
        pieces: list[bytes] = []
        at = 0
        while not self.done and at < len(data):
            if self._left:
                at = self._data(data, at, pieces)
                continue
            end = data.find(b"\r\n", at, at + (MAX_TRAILER_BYTES if self._in_trailers else MAX_LINE_BYTES))
            if end < 0:
                self._keep(data[at:])
                return pieces, b""
            self._line(data[at:end])
            at = end + 2
        return pieces, data[at:]

    def _data(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        """`_left` counts the chunk's own CRLF, so that it is checked wherever it is cut."""
        size = max(0, min(self._left - 2, len(data) - at))
        if size:
            pieces.append(data[at : at + size])
            self._left -= size
            at += size
        while self._left and self._left <= 2 and at < len(data):
            if data[at] != (0x0D if self._left == 2 else 0x0A):
                raise BadBody("a chunk is longer than it said")
            self._left -= 1
            at += 1
        return at

    def _keep(self, line: bytes) -> None:
        if len(line) >= (MAX_TRAILER_BYTES if self._in_trailers else MAX_LINE_BYTES) or b"\n" in line:
            raise BadBody("a line between its chunks does not end in CRLF, or too late")
        self._buffer = line

    def _line(self, line: bytes) -> None:
        if self._in_trailers:
            self._trailer(line)
            return
        size = _SIZE.fullmatch(line)
        if size is None:
            raise BadBody(f"{line[:20]!r} is no size of a chunk")
        length = int(size[1], 16)
        self._in_trailers = length == 0
        self._left = length + 2 if length else 0

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._trailer_bytes += len(line) + 2
        field = _TRAILER.fullmatch(line)
        if field is None or self._trailer_bytes > MAX_TRAILER_BYTES:
            raise BadBody(f"{line[:20]!r} is no trailer field, or one too many")
        name = field[1].lower()
        if name not in _NOT_IN_TRAILERS:
            self.trailers.append((name, field[2].rstrip(b" \t")))


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: list[tuple[bytes, bytes]]) -> bytes:
    return b"0\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in trailers) + b"\r\n"
