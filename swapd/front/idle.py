"""Connections on which nothing is going on: bare descriptors in one nested epoll, which the loop watches as a whole.

That makes a hand-over cheap on both sides: the target registers a descriptor in a microsecond and builds a
transport only when bytes arrive, the source pauses them all by taking one descriptor out of its loop. Clients that
hang up are noticed (EPOLLRDHUP) and closed. A half-closed connection counts as hung up, as it does for uvicorn.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable
from typing import Final

HUNG_UP: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
EVENTS_A_TURN: Final = 256


class IdlePool:
    """Owns its descriptors. `on_ready` becomes the owner of one that has bytes to read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, on_ready: Callable[[int], None]) -> None:
        self._loop = loop
        self._on_ready = on_ready
        self._epoll = select.epoll()
        self._since: dict[int, float] = {}  # in order of arrival, hence of time
        self._watching = False

    def __len__(self) -> int:
        return len(self._since)

    def add(self, fd: int, now: float) -> None:
        self._epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        self._since[fd] = now

    def watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._epoll.fileno(), self._readable)

    def unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._epoll.fileno())

    def has(self, fd: int) -> bool:
        return fd in self._since

    def copies(self) -> list[RawCopy]:
        """All of them, for an offer. They stay here until `leave`, so that a resume costs nothing."""
        return [RawCopy(fd) for fd in self._since]

    def leave(self) -> None:
        """Forget all, closing none: they were offered, and their copies will be released."""
        self.unwatch()
        self._since.clear()
        self._epoll.close()  # takes every registration along, before any descriptor is closed
        self._epoll = select.epoll()

    def close_older(self, than: float) -> None:
        """The keep-alive timeout."""
        while self._since:
            fd, since = next(iter(self._since.items()))
            if since >= than:
                return
            self._remove(fd)
            os.close(fd)

    def close_all(self) -> None:
        fds = list(self._since)
        self.leave()
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        self.close_all()
        self._epoll.close()

    def _remove(self, fd: int) -> None:
        del self._since[fd]
        self._epoll.unregister(fd)

    def _readable(self) -> None:
        for fd, events in self._epoll.poll(0, EVENTS_A_TURN):
            if not self._watching:
                return
            self._remove(fd)
            if events & HUNG_UP:
                os.close(fd)
            else:
                self._on_ready(fd)


class RawCopy:
    """A bare descriptor that is being given away, with what was read from it."""

    __slots__ = ("_read", "fd", "gone")

    def __init__(self, fd: int, read: bytes = b"") -> None:
        self.fd = fd
        self.gone = False
        self._read = read

    def carried(self) -> bytes:
        return self._read

    def release(self) -> None:
        if not self.gone:
            self.gone = True
            os.close(self.fd)
