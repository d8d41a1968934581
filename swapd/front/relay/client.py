"""A client's side of the relay: heads are read one at a time, and a request begins when the one before is answered.

What comes early stays as it is in a bounded buffer, and goes on with the connection when that moves to another front
or is put back to wait. Knows nothing of engines but what its exchange does.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from typing import TYPE_CHECKING, Final

from swapd.front.answers import LastWords, answer, error_body, unavailable_body
from swapd.front.relay.exchange import BY_AHEAD, BY_UPSTREAM, Exchange
from swapd.front.relay.heads import HEAD_END, BadHead, Via, parse_request
from swapd.wire.peer import MAX_HEAD_BYTES

if TYPE_CHECKING:
    from swapd.front.relay.relay import Relay

MAX_AHEAD_BYTES: Final = 64 * 1024
_EMPTY_LINES: Final = re.compile(rb"\A(?:\r\n)+")


class ClientConnection(asyncio.Protocol):
    __slots__ = (
        *("_buffer", "_full", "_paused", "_untaken", "_untaken_since", "_via", "ending", "exchange", "fd", "gone"),
        *("read_at", "relay", "since", "transport", "tried", "waits_since"),
    )

    transport: asyncio.Transport

    def __init__(self, relay: Relay, fd: int, read: bytes, tried: bool, waits_since: float | None) -> None:
        self.relay = relay
        self.fd = fd
        self.exchange: Exchange | None = None
        self.gone = False  # closed, or given away
        self.ending = False  # last words said
        self.since = relay.now  # idle since
        self.read_at = relay.now
        self.tried = tried  # an engine has died with the request that waits in `read`
        self.waits_since = waits_since  # that request, if it has waited
        self._buffer = read
        self._full = False  # more is written than the client has taken
        self._untaken = 0  # bytes that were written and not sent, when `deaf` was last asked
        self._untaken_since = 0.0
        self._paused = 0
        self._via: Via | None = None

    # --- what the relay asks -----------------------------------------------------------------------------------

    @property
    def via(self) -> Via:
        if self._via is None:
            peer = self.transport.get_extra_info("peername")
            self._via = Via(peer[0] if isinstance(peer, tuple) else "", self.relay.trust_forwarded)
        return self._via

    @property
    def idle(self) -> bool:
        """Between two requests."""
        return self.exchange is None and not (self._buffer or self.ending or self.gone)

    @property
    def waits_to_be_read(self) -> bool:
        """Nothing of what it has sent has gone anywhere: it can be put back."""
        return not (self.gone or self.ending) and (self.exchange is None or not self.exchange.begun)

    @property
    def without_engine(self) -> bool:
        """Its request has found no engine."""
        return self.exchange is not None and self.exchange.upstream is None

    @property
    def unflushed(self) -> bool:
        return self.transport.get_write_buffer_size() > 0

    def overdue(self, before: float) -> bool:
        """In the middle of a request, and nothing of it has come for too long."""
        exchange = self.exchange
        if exchange is None:
            unfinished = bool(self._buffer)
        else:
            unfinished = exchange.awaits_body or (exchange.begun and not exchange.whole)
        return unfinished and not (self._paused or self.ending or self.gone) and self.read_at < before

    def deaf(self, now: float, limit_s: float) -> bool:
        """It has taken nothing of its answer for so long. To be asked once a second or so."""
        untaken = self.transport.get_write_buffer_size()
        if untaken == 0 or self._untaken == 0 or untaken < self._untaken:
            self._untaken_since = now
        self._untaken = untaken
        return now - self._untaken_since > limit_s

    def become_tunnel(self) -> bytes:
        """Its transport gets another protocol. Returns what came early."""
        self.gone = True
        self.exchange = None
        self.resume(self._paused)
        early, self._buffer = self._buffer, b""
        return early

    def take_unread(self) -> bytes:
        """Everything that was read and has gone nowhere. The connection is of no use here after that."""
        exchange, self.exchange = self.exchange, None
        read = exchange.unread() if exchange is not None else b""
        read, self._buffer = read + self._buffer, b""
        return read

    def take(self) -> bytes:
        """What has come and was not looked at."""
        data, self._buffer = self._buffer, b""
        return data

    def ahead(self, size: int) -> bytes | None:
        """The next bytes, which stay where they are; None: they have not all come."""
        return self._buffer[:size] if len(self._buffer) >= size else None

    def put_back(self, data: bytes) -> None:
        self._buffer = data + self._buffer

    def watch_flush(self) -> None:
        """Hear of the very end of the write buffer: with a limit of zero, `resume_writing` means empty."""
        self.transport.set_write_buffer_limits(0)

    def pause(self, why: int) -> None:
        if not self._paused and not self.transport.is_closing():
            self.transport.pause_reading()
        self._paused |= why

    def resume(self, why: int) -> None:
        if self._paused == why and not (self.ending or self.transport.is_closing()):
            self.transport.resume_reading()
        self._paused &= ~why

    # --- the transport's calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.relay.arrived(self)
        if self.relay.open:
            self._next()
        else:
            asyncio.get_running_loop().call_soon(self._next)
        if self._paused:  # uvloop starts to read right after this call, whatever was paused in it
            asyncio.get_running_loop().call_soon(self._pause_again)

    def _pause_again(self) -> None:
        if self._paused and not self.transport.is_closing():
            self.transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        exchange = self.exchange
        if exchange is not None or not self._buffer:
            self.read_at = self.relay.now  # a head's time counts from its first byte, however slowly it drips
        self._buffer = self._buffer + data if self._buffer else data
        if exchange is None:
            self._next()
        elif exchange.awaits_body:
            self._awaited_came(exchange)
        elif exchange.begun and not exchange.whole:
            self._body_came()
        if len(self._buffer) > MAX_AHEAD_BYTES:
            self.pause(BY_AHEAD)

    def _body_came(self) -> None:
        exchange = self.exchange
        assert exchange is not None
        try:
            exchange.more()
        except BadHead as error:
            exchange.refuse(error.status, str(error), error.code)

    def _awaited_came(self, exchange: Exchange) -> None:
        if len(self._buffer) < exchange.head.length:
            return
        exchange.awaits_body = False
        if self.relay.open:
            self.relay.begin(exchange)
        else:
            self.relay.settle(self)

    def pause_writing(self) -> None:
        self._full = True
        exchange = self.exchange
        if exchange is not None and exchange.connection is not None:
            exchange.connection.pause_reading()

    def resume_writing(self) -> None:
        self._full = False
        exchange = self.exchange
        if exchange is None:
            self._next()
        elif exchange.connection is not None:
            exchange.connection.resume_reading()
        elif self.without_engine and not (exchange.awaits_body and self.relay.open):
            self.relay.settle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.relay.departed(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    # --- requests ----------------------------------------------------------------------------------------------

    def _next(self) -> None:
        self._begin_next()
        self.read_on()

    def read_on(self) -> None:
        """What came ahead of its turn is less now, perhaps."""
        if self._paused & BY_AHEAD and len(self._buffer) <= MAX_AHEAD_BYTES:
            self.resume(BY_AHEAD)

    def _begin_next(self) -> None:
        """Begin with the request whose head is in the buffer, if it is whole, and the answers before it are taken."""
        relay = self.relay
        while self.exchange is None and not (self.gone or self.ending):
            if not relay.open:
                relay.settle(self)
                return
            if self._full:
                return
            if self._buffer[:2] == b"\r\n":  # RFC 9112 2.2: empty lines before a request mean nothing
                self._buffer = _EMPTY_LINES.sub(b"", self._buffer, 1)
            if not self._buffer:
                return
            end = self._buffer.find(HEAD_END, 0, MAX_HEAD_BYTES)
            try:
                if end < 0:
                    self._check_beginning()
                    return
                raw, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
                head = parse_request(raw)
            except BadHead as error:
                self.refuse(error.status, str(error), error.code)
                return
            if relay.answers_itself(self, head):
                continue
            self.exchange = Exchange(relay, self, raw, head)
            self.tried, self.waits_since = False, None
            relay.begin(self.exchange)
            return

    def _check_beginning(self) -> None:
        """Of a head that is not whole yet, and may never be."""
        if len(self._buffer) >= MAX_HEAD_BYTES:
            raise BadHead(431, "head_too_large", "The request's head is over 64 KiB.")
        if b"\n\n" in self._buffer or b"\n\r\n" in self._buffer:
            raise BadHead(400, "bad_request", "The request's lines must end in CRLF.")

    def exchange_done(self, *, close: bool) -> None:
        """The answer is out. `close`: the connection ends with it."""
        self.exchange = None
        if self.gone or self.ending:
            return
        if close:
            self.end()
            return
        self.since = self.read_at = self.relay.now
        self.resume(BY_UPSTREAM)
        if self._buffer or self._paused or not self.relay.open:
            self._next()

    # --- the end -----------------------------------------------------------------------------------------------

    def say(self, data: bytes) -> None:
        self.transport.write(data)

    def refuse(self, status: int, message: str, code: str) -> None:
        """Answer for ourselves, and close."""
        if self.gone or self.ending:
            return
        unavailable = status in (502, 503)
        body = unavailable_body(message, code) if unavailable else error_body(message, "invalid_request_error", code)
        retry_after_s = self.relay.retry_after_s if unavailable else None
        head_only = self.exchange is not None and self.exchange.head.method == b"HEAD"
        self.relay.refused(status)
        self.transport.write(answer(status, body, retry_after_s=retry_after_s, head_only=head_only))
        self.end()

    def stalled(self) -> None:
        exchange = self.exchange
        if exchange is None:
            self.refuse(408, "The request's head did not come in time.", "head_timeout")
        else:
            exchange.refuse(408, "The request's body did not come in time.", "body_timeout")

    def end(self) -> None:
        """FIN after what is still to be written, then read and discard for a while: a close with unread bytes would
        destroy the answer on its way."""
        self.ending = True
        self.exchange = None
        self._buffer = b""
        if not self.transport.is_closing():
            LastWords(asyncio.get_running_loop(), self.transport, self)

    def abort(self, *, reset: bool = False) -> None:
        """The client shall see that its answer is not whole. `reset`: its end would look like that of a whole one."""
        self.exchange = None
        if reset:
            sock = self.transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def release(self) -> None:
        """Another descriptor of this connection lives on: close ours, and nothing but ours."""
        self.gone = True
        self.transport.abort()
