"""One end of a hand-over's socket on the event loop: sends in order, receives, notices the end.

Sending never waits: what the kernel will not take now is queued, with duplicates of its descriptors (the originals
may be closed, and their numbers used again, before the queue moves). Knows the wire, not the protocol's rules.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from swapd.wire import peer as wire

RETRY_S: Final = (
    0.002  # after ETOOMANYREFS: other sockets of this user hold the quota, and nothing tells when they let go
)
MESSAGES_A_TURN: Final = 64


class PeerLink:
    """Owns the socket. `on_message` gets each message with its descriptors (and owns them), `on_gone` the end, once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_message: Callable[[PeerLink, wire.Received], None],
        on_gone: Callable[[PeerLink], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_message = on_message
        self._on_gone = on_gone
        self._queue: deque[tuple[wire.Message, list[int]]] = deque()
        self._writing = False
        self._retry: asyncio.TimerHandle | None = None
        self.closed = False
        wire.prepare(sock)
        loop.add_reader(sock.fileno(), self._readable)

    def send(self, message: wire.Message, fds: Sequence[int] = ()) -> None:
        """Send now, or as soon as the kernel takes it. A peer that is gone is told by `on_gone`, later."""
        if self.closed:
            return
        if not self._queue and self._try(message, fds):
            return
        try:
            self._queue.append((message, [os.dup(fd) for fd in fds]))
        except OSError:  # no descriptor left: without this message the rest makes no sense
            self._loop.call_soon(self._gone)

    def drain(self) -> None:
        """Take in everything that has arrived, before a decision that depends on it."""
        while not self.closed and self._readable():
            pass

    def close(self) -> None:
        """Close without `on_gone`. What was still queued is not sent."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._wait_writable(False)
        if self._retry is not None:
            self._retry.cancel()
        for _, fds in self._queue:
            wire.close_all(fds)
        self._queue.clear()
        self._sock.close()

    def _try(self, message: wire.Message, fds: Sequence[int]) -> bool:
        """True when the message needs no further care: sent, or the peer is gone."""
        try:
            wire.send(self._sock, message, fds)
        except BlockingIOError:
            self._wait_writable(True)
            return False
        except OSError as error:
            if error.errno not in (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                self._loop.call_soon(self._gone)
                return True
            if self._retry is None:
                self._retry = self._loop.call_later(RETRY_S, self._flush)
            return False
        return True

    def _flush(self) -> None:
        self._retry = None
        self._wait_writable(False)
        while self._queue and not self.closed:
            message, fds = self._queue[0]
            if not self._try(message, fds):
                return
            self._queue.popleft()
            wire.close_all(fds)

    def _wait_writable(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._sock.fileno(), self._flush)
        elif not wanted and self._writing:
            self._loop.remove_writer(self._sock.fileno())
        self._writing = wanted

    def _readable(self) -> bool:
        """Returns whether there may be more."""
        for _ in range(MESSAGES_A_TURN):
            if self.closed:
                return False
            try:
                received = wire.receive(self._sock)
            except BlockingIOError:
                return False
            except (wire.WireError, OSError):
                received = None
            if received is None:
                self._gone()
                return False
            self._on_message(self, received)
        return True

    def _gone(self) -> None:
        if not self.closed:
            self.close()
            self._on_gone(self)
