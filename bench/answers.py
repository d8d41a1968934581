"""Reads HTTP/1.1 answers as strictly as a client has to.

Duty: bytes of one connection in, one `Answer` out, or `Malformed`. It knows no sockets, no clocks and no retries.
Strict on purpose: an answer without a length is refused (its truncation could not be told from its end), and
bytes beyond an answer are kept apart, because nobody asked for them. Source: RFC 9112, sections 4, 6 and 7.1.

The load shares two cores with the server that it measures, so heads are parsed once and then looked up: a server
repeats the same head byte for byte until its Date changes.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_LIMIT = 64 * 1024
HEADS_CACHED = 4096  # heads differ by Date (one a second) and length


class Malformed(Exception):
    """What came is not an HTTP/1.1 answer."""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    length: int  # -1: chunked
    close: bool
    revision: int | None
    retry_after: bool


_heads: dict[bytes, Head] = {}


def parse_head(raw: bytes) -> Head:
    """One answer's head, without its final empty line. Raises Malformed."""
    known = _heads.get(raw)
    if known is not None:
        return known
    lines = raw.split(b"\r\n")
    parts = lines[0].split(b" ", 2)
    if len(parts) < 2 or parts[0] not in (b"HTTP/1.1", b"HTTP/1.0") or not parts[1].isdigit():
        raise Malformed(f"status line {lines[0][:80]!r}")
    status, close = int(parts[1]), parts[0] == b"HTTP/1.0"
    length: int | None = None
    revision, chunked, retry_after = None, False, False
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            raise Malformed(f"header line {line[:80]!r}")
        name, value = name.lower(), value.strip()
        if name == b"content-length":
            if not value.isdigit() or (length is not None and length != int(value)):
                raise Malformed(f"content-length {value[:40]!r}")
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = value.lower() == b"chunked"
            if not chunked:
                raise Malformed(f"transfer-encoding {value[:40]!r}")
        elif name == b"connection":
            close = close or value.lower() == b"close"
        elif name == b"x-swapd-revision":
            revision = int(value) if value.isdigit() else None
        elif name == b"retry-after":
            retry_after = True
    if status in (204, 304) or 100 <= status < 200:
        length, chunked = 0, False
    if chunked and length is not None:
        raise Malformed("both content-length and transfer-encoding")
    if length is None and not chunked:
        raise Malformed("neither content-length nor chunked: its end could not be told from a cut")
    head = Head(status, -1 if chunked else length or 0, close, revision, retry_after)
    if len(_heads) >= HEADS_CACHED:
        _heads.clear()
    _heads[raw] = head
    return head


class AnswerReader:
    """Collects one answer at a time: `begin`, then `feed` until it returns True."""

    __slots__ = ("_buffer", "_chunk_left", "_pieces", "body", "extra", "head", "started")

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        self._buffer = b""
        self._pieces: list[bytes] = []
        self._chunk_left = -1  # -1: the next thing is a chunk's size line
        self.head: Head | None = None
        self.body = b""
        self.extra = b""  # bytes after the answer's end
        self.started = False  # a byte of the answer has come

    def feed(self, data: bytes) -> bool:
        """Takes what came; True once the answer is complete. Raises Malformed."""
        self.started = True
        if self._buffer:
            data = self._buffer + data
        while self.head is None:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > HEAD_LIMIT or not data.startswith(b"HTTP/1."[: len(data)]):
                    raise Malformed(f"no head in {data[:60]!r}")
                self._buffer = data
                return False
            head, data = parse_head(data[:end]), data[end + 4 :]
            if 100 <= head.status < 200:  # an interim answer: the real one follows
                continue
            self.head = head
        if self.head.length < 0:
            return self._feed_chunks(data)
        if len(data) < self.head.length:
            self._buffer = data
            return False
        self.body, self.extra, self._buffer = data[: self.head.length], data[self.head.length :], b""
        return True

    def _feed_chunks(self, data: bytes) -> bool:
        at = 0
        while True:
            if self._chunk_left < 0:
                end = data.find(b"\r\n", at)
                if end < 0:
                    if len(data) - at > 256:
                        raise Malformed("chunk size line without an end")
                    break
                try:
                    self._chunk_left = int(data[at:end].split(b";", 1)[0], 16)
                except ValueError:
                    raise Malformed(f"chunk size {data[at:end][:40]!r}") from None
                at = end + 2
            if len(data) - at < self._chunk_left + 2:
                break
            if self._chunk_left == 0:  # the last one; trailers are not expected from our servers
                if data[at : at + 2] != b"\r\n":
                    raise Malformed("trailers")
                self.body, self.extra, self._buffer = b"".join(self._pieces), data[at + 2 :], b""
                return True
            if data[at + self._chunk_left : at + self._chunk_left + 2] != b"\r\n":
                raise Malformed("chunk without its end")
            self._pieces.append(data[at : at + self._chunk_left])
            at += self._chunk_left + 2
            self._chunk_left = -1
        self._buffer = data[at:]
        return False
