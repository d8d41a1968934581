"""In the shadow's process: one request to a server's private socket, and its whole answer, within bounds.

Connections are kept for a moment, as the relay keeps its own, so that the latencies of both can be compared. Everything
here may be slow or wrong: the caller sets the deadline, and gets `Failed`.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from swapd.front.relay.bodies import BadBody, Body, Counted, UntilClose, body_of
from swapd.front.relay.heads import HEAD_END, AnswerHead, BadAnswer, parse_answer
from swapd.front.relay.routing import Route
from swapd.front.relay.upstream import FRESH_S, Upstream
from swapd.wire.peer import MAX_HEAD_BYTES

FRAMING: Final = 16  # bytes on the wire for one of the body at most, as far as we follow: chunks of one byte take 6


class Failed(Exception):
    """There is no answer. `kind`: as it is counted."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Answered:
    head: AnswerHead
    body: bytes  # None of it where it is `too_long`
    too_long: bool
    first_byte_s: float  # to the end of the head
    took_s: float


class Server:
    """One address, with its idle connections."""

    def __init__(self, loop: asyncio.AbstractEventLoop, address: str, uid: int | None, *, reuse: bool) -> None:
        self._loop = loop
        self._reuse = reuse
        self._upstream = Upstream(loop, Route("", 0, address, uid=uid))  # it knows whose socket it must be
        self._idle: list[_Connection] = []

    async def ask(self, request: list[bytes], method: bytes, limit: int) -> Answered:
        """Raises Failed. To be cancelled at the caller's deadline."""
        while (kept := self._take()) is not None:
            try:
                return await self._one(kept, request, method, limit)
            except _Unused:  # the server has closed it meanwhile
                continue
        connection = _Connection()
        try:
            await self._upstream.open(lambda: connection)
        except OSError as error:
            raise Failed("unreachable", f"it cannot be reached: {error}") from None
        except BaseException:
            connection.abort()
            raise
        return await self._one(connection, request, method, limit)

    async def _one(self, connection: _Connection, request: list[bytes], method: bytes, limit: int) -> Answered:
        try:
            answered = await connection.ask(self._loop, request, method, limit)
        except BaseException:
            connection.abort()
            raise
        if self._reuse and connection.reusable:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
        else:
            connection.abort()
        return answered

    def _take(self) -> _Connection | None:
        now = time.monotonic()
        while self._idle:
            connection = self._idle.pop()
            if now - connection.idle_since <= FRESH_S and not connection.lost:
                connection.reused = True
                return connection
            connection.abort()
        return None

    def close(self) -> None:
        for connection in self._idle:
            connection.abort()
        self._idle.clear()


class _Unused(Exception):
    """A kept connection that ended before it gave a byte."""


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.idle_since = 0.0
        self.reused = False
        self.lost = False
        self.reusable = False
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Answered] | None = None

    async def ask(self, loop: asyncio.AbstractEventLoop, request: list[bytes], method: bytes, limit: int) -> Answered:
        self._waiting = loop.create_future()
        self._method = method
        self._limit = limit
        self._left = FRAMING * limit + 2 * MAX_HEAD_BYTES
        self._buffer = b""
        self._head: AnswerHead | None = None
        self._body: Body = Counted(0)
        self._pieces: list[bytes] = []
        self._length = 0
        self.reusable = False
        self._began = self._first = time.monotonic()
        if self._transport is None or self.lost:
            raise _Unused
        self._transport.writelines(request)
        return await self._waiting

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        waiting = self._waiting
        if waiting is None or waiting.done():
            self.abort()  # it speaks without being asked
            return
        self._left -= len(data)
        try:
            if self._head is None:
                data = self._read_head(self._buffer + data)
            if self._head is not None:
                self._read_body(data)
        except (BadAnswer, BadBody) as error:
            self._fail("broken", f"its answer is no valid HTTP: {error}")

    def _read_head(self, data: bytes) -> bytes:
        """What comes after it."""
        self._buffer = b""
        while (end := data.find(HEAD_END, 0, MAX_HEAD_BYTES)) >= 0:
            head = parse_answer(data[: end + 4], self._method)
            data = data[end + 4 :]
            if head.status == 101:
                raise BadAnswer("it changes the protocol without being asked")
            if not head.interim:
                self._head = head
                self._first = time.monotonic()
                self._body = body_of(head.length) if head.length else Counted(0)
                return data
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise BadAnswer("it begins otherwise")
        if len(data) >= MAX_HEAD_BYTES or self._left < 0:
            raise BadAnswer("its head is over 64 KiB")
        self._buffer = data
        return b""

    def _read_body(self, data: bytes) -> None:
        pieces, rest = self._body.feed(data)
        self._pieces += pieces
        self._length += sum(map(len, pieces))
        if self._length > self._limit or self._left < 0:
            self._pieces.clear()
            self._answer(too_long=True)
        elif self._body.done:
            assert self._head is not None
            self.reusable = self._head.keep_alive and not rest
            self._answer(too_long=False)

    def _answer(self, *, too_long: bool) -> None:
        waiting, head = self._waiting, self._head
        assert waiting is not None
        assert head is not None
        now = time.monotonic()
        body = b"".join(self._pieces)
        if not waiting.done():
            waiting.set_result(Answered(head, body, too_long, self._first - self._began, now - self._began))

    def _fail(self, kind: str, why: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Failed(kind, why))
        self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        waiting = self._waiting
        if waiting is None or waiting.done():
            return
        if isinstance(self._body, UntilClose) and exc is None:
            self._answer(too_long=False)
        elif self.reused and self._head is None and not self._buffer:
            waiting.set_exception(_Unused())
        else:
            where = "in the middle of its answer" if self._head is not None else "before it answered"
            self._fail("died", f"it closed the connection {where}")
