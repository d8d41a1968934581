"""The listeners of a front: accept while it owns them, let go without closing, never listen(), never shutdown().

Not the loop's own server: uvloop's cannot be paused, and calls listen() again, which would cut everybody's queue
short. A listener's O_NONBLOCK is shared with every process that holds it, so it is set and never cleared.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Collection, Mapping
from typing import Final

MAX_REST: Final = 4096  # the longest queue
ACCEPTS_A_TURN: Final = 64  # then the loop sees to the connections it has
PAUSE_S: Final = 0.1  # when the process is out of descriptors or memory: waiting clients keep their place in the queue
OUT_OF_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Acceptor:
    """Asked before every single accept: `may_accept` (no: stop, until `watch`), and `has_room` (no: wait a moment).
    `on_accept` owns the socket that it gets."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_accept: Callable[[socket.socket], None],
        may_accept: Callable[[], bool],
        has_room: Callable[[], bool] = lambda: True,
    ) -> None:
        self._loop = loop
        self._on_accept = on_accept
        self._may_accept = may_accept
        self._has_room = has_room
        self._listeners: dict[str, socket.socket] = {}
        self._watching = False
        self._pause: asyncio.TimerHandle | None = None

    @property
    def names(self) -> list[str]:
        return list(self._listeners)

    def descriptors(self) -> list[tuple[str, int]]:
        return [(name, listener.fileno()) for name, listener in list(self._listeners.items())]

    def add(self, name: str, listener: socket.socket) -> None:
        """Take over a listener; a copy that is already here under this name is closed in its favour."""
        old = self._listeners.pop(name, None)
        if old is not None:
            if self._watching:
                self._loop.remove_reader(old.fileno())
            old.close()
        listener.setblocking(False)
        self._listeners[name] = listener
        if self._watching:
            self._loop.add_reader(listener.fileno(), self._readable, listener)

    def keep_only(self, names: Collection[str]) -> None:
        """Close our copies of all others, and accept first who waits there."""
        for name in [name for name in self._listeners if name not in names]:
            listener = self._listeners.pop(name)
            if self._watching:
                self._loop.remove_reader(listener.fileno())
            self._accept_all(listener)
            listener.close()

    def watch(self) -> None:
        self._cancel_pause()
        if not self._watching:
            self._watching = True
            for listener in self._listeners.values():
                self._loop.add_reader(listener.fileno(), self._readable, listener)

    def unwatch(self) -> None:
        """Out of the loop, descriptors kept. Must precede close(): a duplicate elsewhere would make the loop spin."""
        self._cancel_pause()
        if self._watching:
            self._watching = False
            for listener in self._listeners.values():
                self._loop.remove_reader(listener.fileno())

    def close(self) -> None:
        """Close our copies, and ours only."""
        self.unwatch()
        for listener in self._listeners.values():
            listener.close()
        self._listeners.clear()

    def accept_rest(self) -> None:
        """Take everybody who is in the queues now: the end of the listeners would reset them."""
        for listener in self._listeners.values():
            self._accept_all(listener)

    def _accept_all(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # nobody is left, or no descriptor
            for _ in range(MAX_REST):
                self._on_accept(listener.accept()[0])

    def _readable(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_A_TURN):
            if not self._may_accept():
                self.unwatch()
                return
            if not self._has_room():
                self._wait_for_room()
                return
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno not in OUT_OF_ROOM:
                    raise
                self._wait_for_room()
                return
            self._on_accept(sock)

    def _wait_for_room(self) -> None:
        self.unwatch()
        self._pause = self._loop.call_later(PAUSE_S, self._again)

    def _again(self) -> None:
        self._pause = None
        if not self._may_accept():
            return
        if self._has_room():
            self.watch()
        else:
            self._wait_for_room()

    def _cancel_pause(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None


def listeners_of(names: tuple[str, ...], fds: list[int]) -> Mapping[str, socket.socket]:
    """Wrap received descriptors."""
    return {name: socket.socket(fileno=fd) for name, fd in zip(names, fds, strict=True)}
