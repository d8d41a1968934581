"""An engine's side of the relay: its connections, kept alive and pooled, and the answers read from them.

A connection carries one exchange at a time. It goes back to the pool only when request and answer were both whole,
and nothing was left over. Knows nothing of clients but what an exchange tells.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from swapd.front.relay.bodies import BadBody, Body, Counted, UntilClose, body_of
from swapd.front.relay.heads import HEAD_END, AnswerHead, BadAnswer, parse_answer
from swapd.front.relay.routing import Route
from swapd.wire.peer import MAX_HEAD_BYTES

if TYPE_CHECKING:
    from swapd.front.relay.exchange import Exchange
    from swapd.front.relay.measure import Samples
    from swapd.front.relay.tunnel import Tunnel

CONNECT_S: Final = 5.0
# Servers close what has been idle for too long (uvicorn, llama-server: 5 s), and a request may cross that close: none
# is sent on an older connection, and one that must not be sent twice only on a fresh one.
IDLE_S: Final = 4.0
FRESH_S: Final = 1.0
REST_BYTES: Final = 64 * 1024
_PEERCRED: Final = struct.Struct("3i")  # pid, uid, gid: unix(7)


class Upstream:
    """One engine, as long as the table names it or anything is in flight there."""

    __slots__ = ("_careful", "_loop", "_pool", "exchanges", "heard_at", "revision_line", "route", "samples", "tunnels")

    revision_line: bytes
    samples: Samples  # what it does under the table of the moment

    def __init__(self, loop: asyncio.AbstractEventLoop, route: Route) -> None:
        self.route = route
        self.exchanges: set[Exchange] = set()
        self.tunnels: set[Tunnel] = set()
        self.heard_at: float | None = None  # when it last sent a part of an answer that is no 5xx
        self._loop = loop
        self._pool: list[UpstreamConnection] = []  # the freshest last
        self._careful = False
        self.point(route)

    def point(self, route: Route) -> None:
        """Its route in the next table: the engine may be elsewhere now."""
        if route.address != self.route.address:
            self.close()
        self.route = route
        self.revision_line = b"x-swapd-revision: %d\r\n" % route.revision

    @property
    def in_flight(self) -> int:
        return len(self.exchanges) + len(self.tunnels)

    def take(self, now: float, *, idempotent: bool) -> UpstreamConnection | None:
        """A pooled connection that the engine will not close under the request."""
        if self._careful and not idempotent:
            return None
        pool = self._pool
        while pool and now - pool[-1].idle_since <= (IDLE_S if idempotent else FRESH_S):
            connection = pool.pop()
            if not connection.ended:
                return connection
            connection.transport.abort()
        return None

    def be_careful(self) -> None:
        """It has closed a kept connection under a request, without a word: none that must not be sent twice goes to it
        on such a one again."""
        self._careful = True

    def put(self, connection: UpstreamConnection, now: float) -> None:
        if connection.address != self.route.address or not self.route.reuse:
            connection.transport.abort()
            return
        connection.idle_since = now
        connection.reused = True
        self._pool.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        if connection in self._pool:
            self._pool.remove(connection)

    async def connect(self) -> UpstreamConnection:
        """Raises OSError, also when it takes too long."""
        connection = UpstreamConnection(self)
        await self.open(lambda: connection)
        return connection

    async def open(self, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        """A transport to the engine for a protocol of the caller's making. Raises OSError."""
        address = self.route.address
        if address.startswith("unix:"):  # at once, or not at all
            transport, _ = await self._loop.create_unix_connection(protocol, address[5:])
            if self.route.uid is not None and _uid_of(transport) != self.route.uid:
                transport.abort()
                raise OSError(f"{address} is another user's socket")
        else:
            host, _, port = address.rpartition(":")
            connecting = self._loop.create_connection(protocol, host, int(port))
            try:
                transport, _ = await asyncio.wait_for(connecting, CONNECT_S)
            except asyncio.TimeoutError:
                raise OSError(f"{address} did not answer within {CONNECT_S:g} s") from None
        return transport

    def sweep(self, now: float) -> None:
        while self._pool and now - self._pool[0].idle_since > IDLE_S:
            self._pool.pop(0).transport.abort()

    def close(self) -> None:
        """The pooled connections; what is in flight goes on."""
        pool, self._pool = self._pool, []
        for connection in pool:
            connection.transport.abort()


def _uid_of(transport: asyncio.Transport) -> int:
    """Who listens at the other end of a Unix socket, by the kernel's word. In a directory that belongs to an engine's
    user the name of its socket may lead anywhere, also to sockets that only the gate's user can reach."""
    sock = transport.get_extra_info("socket")
    uid: int = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))[1]
    return uid


class UpstreamConnection(asyncio.Protocol):
    __slots__ = (
        *("_body", "_buffer", "_failing", "_keep_alive", "_paused", "_poll", "address", "exchange", "idle_since"),
        *("reused", "transport", "upstream"),
    )

    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.address = upstream.route.address
        self.exchange: Exchange | None = None
        self.idle_since = 0.0
        self.reused = False  # it has been idle
        self._buffer = b""  # the beginning of an answer's head
        self._body: Body | None = None
        self._keep_alive = False
        self._failing = False  # its answer is a 5xx
        self._paused = False
        self._poll = select.poll()

    def begin(self, exchange: Exchange, request: bytes) -> None:
        self.exchange = exchange
        self._body = None
        self.transport.write(request)

    @property
    def _writing(self) -> bool:
        """Or was, when it broke."""
        return self.transport.is_closing() or self.transport.get_write_buffer_size() > 0

    @property
    def began(self) -> bool:
        """Something of the answer has come."""
        return self._body is not None or bool(self._buffer)

    @property
    def ended(self) -> bool:
        """The engine has closed it, or said something, and the loop has not told yet. Asked before each use: what is
        written after this, and left unread, is answered by a reset, not by an end that looks like any other."""
        return self.transport.is_closing() or bool(self._poll.poll(0))

    def abort(self) -> None:
        """The exchange is over before its end: the engine sees its client gone."""
        self.exchange = None
        self.transport.abort()

    def pause_reading(self) -> None:
        if not self._paused and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._paused and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    # --- the transport's calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN | select.POLLRDHUP)

    def pause_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_full(True)

    def resume_writing(self) -> None:
        if self.exchange is not None:
            self.exchange.upstream_full(False)

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is None:
            self.transport.abort()  # it speaks without being asked: nothing of it can be trusted any more
            return
        head = None
        try:
            if self._body is None:
                head, data = self._head(exchange, self._buffer + data if self._buffer else data)
                if head is None:
                    return
                self._keep_alive = head.keep_alive
                self._failing = head.status >= 500
                self._body = body_of(head.length) if head.length else _NOTHING
            pieces, rest = self._body.feed(data)
        except (BadAnswer, BadBody) as error:
            self.abort()
            exchange.bad_answer(str(error))
            return
        if not self._failing:
            self.upstream.heard_at = exchange.relay.now
        if not self._body.done:
            exchange.answer(head, pieces)
            return
        self.exchange = None
        if self._keep_alive and exchange.sent and not (rest or self._writing):
            self.upstream.put(self, exchange.relay.now)
        else:
            self.transport.abort()
        exchange.answer_end(head, pieces, self._body.trailers)

    def _head(self, exchange: Exchange, data: bytes) -> tuple[AnswerHead | None, bytes]:
        """The answer's head, once it is whole, and what comes after it. Interim answers go on at once."""
        while True:
            end = data.find(HEAD_END, 0, MAX_HEAD_BYTES)
            if end < 0:
                if len(data) >= MAX_HEAD_BYTES:
                    raise BadAnswer("its head is over 64 KiB")
                self._buffer = data
                return None, b""
            head = parse_answer(data[: end + 4], exchange.head.method)
            data = data[end + 4 :]
            if not head.interim:
                break
            exchange.interim(head)
        self._buffer = b""
        if head.status == 101:
            if not exchange.head.upgrade:
                raise BadAnswer("it changes the protocol without being asked")
            self.exchange = None
            exchange.upgraded(self, head, data)
            return None, b""
        return head, data

    def _read_rest(self) -> None:
        """Writing failed: the engine closed with a part of the request unread. What it had said before is still there
        (a 413, for example), and the loop will not read it any more."""
        fd = self.transport.get_extra_info("socket").fileno()
        with contextlib.suppress(OSError):
            while self.exchange is not None and (data := os.read(fd, REST_BYTES)):
                self.data_received(data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self.exchange is not None:
            self._read_rest()
        self.upstream.forget(self)
        exchange, self.exchange = self.exchange, None
        if exchange is None:
            return
        if isinstance(self._body, UntilClose) and exc is None:
            exchange.answer_end(None, [], [])
        else:
            exchange.upstream_lost(self, exc)


_NOTHING: Final = Counted(0)
