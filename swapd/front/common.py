"""What every part of a front builds on: its state, its hooks, and the way from an event to its effects.

A front is put together from parts that know one side of a hand-over each (`front.source`, `front.followers`,
`front.target`, `front.blocked`; `front.base` adds the daemon's orders); what is being moved, and how it is paused
and read again, is the affair of `front.direct` and `front.gate`, who fill in the hooks.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final

from swapd.core.handover import Effect, Event, State, step
from swapd.front.accept import Acceptor
from swapd.front.peer import PeerLink
from swapd.front.reports import Copy, FrontStats, Giving, Standing
from swapd.wire import peer as wire

BEAT_S: Final = 0.1
DRAIN_POLL_S: Final = 0.02  # what is in flight has too many ends to wait on each
DESCRIPTORS: Final = 16384  # 128 KiB of kernel memory


class Common(ABC):
    def __init__(self, loop: asyncio.AbstractEventLoop, *, health_path: str, retry_after_s: int) -> None:
        self.on_needs_successor: Callable[[int, int], None] = lambda epoch, count: None
        self._loop = loop
        self._thread = threading.get_ident()
        self._health_path = health_path
        self._retry_after_s = retry_after_s
        self._lock = threading.RLock()  # around every step: a hand-over past a blocked loop runs on another thread
        self._state = State()
        self._acceptor = Acceptor(loop, self._accepted, self._may_read, self._has_room)
        self._giving: Giving | None = None
        # as a target
        self._links: dict[PeerLink, int] = {}  # and the epoch that each was armed for
        self._armed: tuple[int, PeerLink] | None = None
        self._armed_timer: asyncio.TimerHandle | None = None
        self._parts: dict[tuple[PeerLink, int], bytes] = {}
        # what follows later
        self._ready: deque[Copy] = deque()
        self._outbound: set[PeerLink] = set()  # this hand-over's link, and older ones that still owe an answer
        self._unacknowledged: dict[int, tuple[PeerLink, Copy]] = {}
        self._next_id = 1
        self._asked = False
        _widen_descriptor_table()
        self._beat_at = time.monotonic()
        self._beat_timer = loop.call_later(BEAT_S, self._beat)
        self._closed = False
        self.turning_away = False
        self._started_at: float | None = None  # when this front last became the owner

    # --- what a subclass provides ------------------------------------------------------------------------------

    @abstractmethod
    def _set_quiesced(self, quiesced: bool) -> None:
        """[any thread] While set: accept nothing, parse nothing new."""

    @abstractmethod
    def _may_read(self) -> bool: ...

    @abstractmethod
    def _pause(self) -> list[Copy]:
        """Stop reading wherever possible; the copies that can move now. The others call `_follow` when they can."""

    @abstractmethod
    def _unpause(self) -> None:
        """Read again: everything of ours that is here."""

    @abstractmethod
    def _left(self) -> None:
        """What `_pause` returned is the new owner's now (each copy is released soon): never read it again."""

    @abstractmethod
    def _hold(self, fd: int, read: bytes) -> None:
        """Keep an offered descriptor, untouched."""

    @abstractmethod
    def _drop_held(self) -> None: ...

    @abstractmethod
    def _take(self, fd: int, read: bytes) -> None:
        """Read from a connection, as its owner."""

    @abstractmethod
    def _restore(self, copy: Copy) -> None:
        """A copy that `_pause` or `_follow` offered stays here after all."""

    @abstractmethod
    def _accepted(self, sock: socket.socket) -> None: ...

    def _has_room(self) -> bool:
        """Whether one more connection may be accepted."""
        return True

    @abstractmethod
    def _held_count(self) -> int: ...

    @abstractmethod
    def _busy_count(self) -> int:
        """Connections that will follow once they can."""

    def _turned_away_as_owner(self) -> int:
        """Clients who got a 503 instead of a model since this front became the owner."""
        return 0

    @abstractmethod
    def _on_beat(self) -> None: ...

    def standing(self) -> Standing:
        """[any thread] What a daemon that was away has missed."""
        giving = self._giving
        return Standing(self._state.epoch, giving.quiesced_at if giving is not None else None, self._started_at)

    def listeners(self) -> list[tuple[str, int]]:
        """[any thread] Names and descriptors of the listeners that are here. They stay this front's."""
        return self._acceptor.descriptors()

    @abstractmethod
    def stats(self) -> FrontStats:
        """[any thread]"""

    # --- from an event to its effects --------------------------------------------------------------------------

    def _apply(
        self, event: Event, link: PeerLink | None = None, received: wire.Received | None = None
    ) -> tuple[Effect, ...]:
        with self._lock:
            before = self._state
            self._state, effects = step(before, event)
        for effect in effects:
            self._perform(effect, before.epoch, link, received)
        return effects

    def _step(self, event: Event) -> tuple[Effect, ...]:
        with self._lock:
            self._state, effects = step(self._state, event)
        return effects

    @abstractmethod
    def _perform(self, effect: Effect, epoch: int, link: PeerLink | None, received: wire.Received | None) -> None: ...

    def _on_loop(self, call: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            call()
        else:
            self._loop.call_soon_threadsafe(call)

    # --- the beat ----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._beat_timer = self._loop.call_later(BEAT_S, self._beat)
        self._on_beat()
        self._let_go_of_links()

    def _blocked_s(self) -> float:
        return max(0.0, time.monotonic() - self._beat_at - BEAT_S)

    @abstractmethod
    def _let_go_of_links(self) -> None: ...


def _widen_descriptor_table() -> None:
    """Let the kernel grow this process's table of descriptors now. In a process with threads each doubling waits for an
    RCU grace period: measured, it made the first cutover of 1,000 connections 33 ms long instead of 4."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, DESCRIPTORS)
    with contextlib.suppress(OSError), open(os.devnull) as any_file:
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD_CLOEXEC, wanted - 1))
