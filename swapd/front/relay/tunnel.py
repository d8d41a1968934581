"""Bytes both ways, unread: a WebSocket after its handshake, or a whole connection of a tcp service.

Each end's flow control reaches the other, and so does a half-close. A tunnel has no boundaries, so it never moves: it
ends where it began, at the latest when its engine's time to drain is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swapd.front.relay.relay import Relay
    from swapd.front.relay.upstream import Upstream


class Tunnel:
    __slots__ = ("_relay", "began_at", "client", "engine", "upstream")

    def __init__(self, relay: Relay, upstream: Upstream) -> None:
        self._relay = relay
        self.upstream = upstream
        self.began_at = relay.now
        self.client = End(self)
        self.engine = End(self)
        self.client.other, self.engine.other = self.engine, self.client

    @property
    def now(self) -> float:
        return self._relay.now

    def abort(self) -> None:
        for end in (self.client, self.engine):
            if end.transport is not None:
                end.transport.abort()

    def ended(self) -> None:
        if self.client.lost and self.engine.lost:
            self._relay.tunnel_ended(self)


class End(asyncio.Protocol):
    """One side. Takes the place of the transport's protocol."""

    __slots__ = ("_early", "_finished", "lost", "other", "transport", "tunnel")

    other: End

    def __init__(self, tunnel: Tunnel) -> None:
        self.tunnel = tunnel
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self._finished = False  # no more comes from here
        self._early = b""  # came before the other side was there

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        other = self.other
        if other._early:
            transport.write(other._early)
            other._early = b""
        if other.lost:
            transport.close()
        elif other._finished:
            transport.write_eof()

    def take(self, transport: asyncio.Transport) -> None:
        """Become the protocol of a transport that had another."""
        self.transport = transport
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        other = self.other.transport
        if self is self.tunnel.engine:
            self.tunnel.upstream.heard_at = self.tunnel.now
        if other is None:
            self._early += data
        elif not other.is_closing():
            other.write(data)

    def eof_received(self) -> bool:
        self._finished = True
        other = self.other
        if other._finished or other.lost:
            return False  # both are done
        if other.transport is not None and not other.transport.is_closing():
            other.transport.write_eof()
        return True

    def pause_writing(self) -> None:
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.pause_reading()

    def resume_writing(self) -> None:
        other = self.other.transport
        if other is not None and not other.is_closing():
            other.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        other = self.other
        if other.transport is not None and not other.lost:
            if exc is None:
                other.transport.close()  # after what is still to be written
            else:
                other.transport.abort()
        self.tunnel.ended()
