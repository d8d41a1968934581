"""A gate's waiting room: connections as bare descriptors, unread, in one nested epoll.

What has come is looked at with MSG_PEEK and not taken, except the health requests that are answered here. A wait
that is too long, or one too many, gets 503 with Retry-After; clients that hang up are let go and never reach a
model. In a tcp service nobody can be told anything, so the wait begins with the connection and ends with its close;
a half-close after some bytes is no hang-up there, but how many clients say that it is the server's turn.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Final

from swapd.front.answers import STOPPED, Lingering, answer, unavailable_body
from swapd.front.idle import EVENTS_A_TURN, HUNG_UP, RawCopy
from swapd.front.relay.heads import HEAD_END, BadHead, parse_request
from swapd.wire.peer import MAX_HEAD_BYTES

ARRIVALS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET  # told once for each arrival
DEPARTURES: Final = select.EPOLLRDHUP
LET_IN_A_TURN: Final = 64  # then the loop sees to the others


class Held(RawCopy):
    """One client. `since` is None until its first byte is seen; `waits_since`: it has waited before, and found no
    engine when it was let in: its patience goes on."""

    __slots__ = ("idle_since", "since", "tried")

    def __init__(self, fd: int, read: bytes = b"", *, tried: bool = False, waits_since: float | None = None) -> None:
        super().__init__(fd, read)
        self.since = waits_since
        self.idle_since = time.monotonic()
        self.tried = tried  # an engine has died with the request that waits here

    def view(self) -> bytes:
        """What has come so far, of which only `_read` was taken from the kernel."""
        with _borrowed(self.fd) as sock:
            try:
                return self._read + sock.recv(MAX_HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
            except OSError:
                return self._read

    def take(self, size: int) -> None:
        """Take `size` bytes of what `view` showed."""
        taken = min(size, len(self._read))
        self._read = self._read[taken:]
        if size > taken:
            with _borrowed(self.fd) as sock:
                sock.recv(size - taken, socket.MSG_DONTWAIT)

    def say(self, data: bytes) -> bool:
        with _borrowed(self.fd) as sock:
            try:
                return sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) == len(data)
            except OSError:
                return False


class _borrowed:
    """A socket object around a descriptor for the length of one call, without the system calls of a full one."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)

    def __enter__(self) -> socket.socket:
        return self._sock

    def __exit__(self, *_: object) -> None:
        self._sock.detach()


class Room:
    """`may_enter` says whether requests may begin; then a client of which something has come is given to `on_ready`,
    who owns its descriptor from there on. `health` makes the answer to a health request. `on_turned_away` gets what had
    come of a request, how long it waited, and the code of its 503."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        may_enter: Callable[[], bool],
        on_ready: Callable[[Held], None],
        health: Callable[[], bytes],
        on_turned_away: Callable[[bytes, float, str], None],
        health_path: str,
        hold_timeout_s: float,
        queue_limit: int,
        retry_after_s: int,
        tcp: bool,
    ) -> None:
        self.clients: dict[int, Held] = {}
        self.waiting: dict[int, Held] = {}  # those of which something has come, in order of their first byte
        self.turning_away = False  # the service is being stopped
        self.refusal: tuple[str, str] | None = None  # why waiting is in vain just now: message and code of the 503
        self.turned_away = 0
        self.answered = 0  # health requests
        self.quiesced = False
        self.lingering = Lingering(loop)
        self._loop = loop
        self._may_enter = may_enter
        self._on_ready = on_ready
        self._health = health
        self._on_turned_away = on_turned_away
        self._health_start = b"GET " + health_path.encode()
        self._hold_timeout_s = hold_timeout_s
        self._queue_limit = queue_limit
        self._retry_after_s = retry_after_s
        self._tcp = tcp
        self._epoll = select.epoll()
        self._watching = False
        self._letting_in = False

    # --- clients come ------------------------------------------------------------------------------------------

    def hold(self, client: Held) -> None:
        """Keep it, untouched."""
        self.clients[client.fd] = client
        self._epoll.register(client.fd, ARRIVALS)

    def add(self, client: Held) -> None:
        self.hold(client)
        if client.carried() or self._tcp:
            self._look(client)
        # else the registration itself tells of what has come already

    def postpone(self, client: Held) -> None:
        """There is no engine for its request: it waits, for the next turn at the earliest."""
        self.hold(client)
        self._wait(client)

    def forget(self, client: Held) -> None:
        del self.clients[client.fd]
        self.waiting.pop(client.fd, None)
        self._epoll.unregister(client.fd)

    def watch(self, wanted: bool) -> None:
        if wanted and not self._watching:
            self._loop.add_reader(self._epoll.fileno(), self._readable)
        elif not wanted and self._watching:
            self._loop.remove_reader(self._epoll.fileno())
        self._watching = wanted

    def look_at_carried(self) -> None:
        """After a hand-over: requests that came along."""
        for client in list(self.clients.values()):
            if client.since is None and (client.carried() or self._tcp):
                self._look(client)

    def _readable(self) -> None:
        for fd, events in self._epoll.poll(0, EVENTS_A_TURN):
            client = self.clients.get(fd)
            if client is None or self.quiesced:
                continue
            if not events & HUNG_UP:
                self._look(client)
            elif self._has_left(client):
                self.forget(client)
                os.close(fd)
            else:
                self._epoll.modify(fd, 0)  # a reset is told all the same

    def _look(self, client: Held) -> None:
        """Something has come: let it in, answer it if it is about our health, else let it wait."""
        if self._may_enter() and client.since is None and not self.turning_away:
            self._enter(client)
            return
        if self._tcp:
            self._wait(client)
            return
        while True:
            seen = client.view()
            if not seen:
                return
            size = None if self.turning_away else self._health_request(seen)
            if size is None:
                self._wait(client)
                return
            if size == 0:
                if client.since is None:
                    self._wait(client, undecided=True)
                return
            client.take(size)
            self.waiting.pop(client.fd, None)
            client.since = None
            client.idle_since = time.monotonic()
            self.answered += 1
            if not client.say(self._health()):
                self.forget(client)
                os.close(client.fd)
                return

    def _health_request(self, seen: bytes) -> int | None:
        """The size of the health request at the front of `seen`; 0: it may become one; None: it is none, or one with a
        body, which is the model's affair."""
        start = self._health_start
        if not seen.startswith(start[: len(seen)]):
            return None
        if len(seen) <= len(start):
            return 0
        if seen[len(start)] not in b" ?":
            return None
        end = seen.find(HEAD_END)
        if end < 0:
            return 0 if len(seen) < MAX_HEAD_BYTES else None
        size = end + len(HEAD_END)
        try:
            return size if parse_request(seen[:size]).length == 0 else None
        except BadHead:
            return None

    def _wait(self, client: Held, undecided: bool = False) -> None:
        if client.since is None:
            client.since = time.monotonic()
        why = STOPPED if self.turning_away else self.refusal
        if why is not None and not undecided:
            self._turn_away(client, *why)
            return
        if client.fd not in self.waiting:
            if len(self.waiting) >= self._queue_limit:
                self._turn_away(client, "Too many requests wait for the model.", "queue_full")
                return
            self.waiting[client.fd] = client
        if not undecided:
            self._epoll.modify(client.fd, DEPARTURES)

    # --- clients go --------------------------------------------------------------------------------------------

    def let_in(self) -> None:
        """Whoever waits, in order, some a turn; those who come meanwhile go past them no faster."""
        if not self._letting_in:
            self._letting_in = True
            self._loop.call_soon(self._let_some_in, len(self.waiting))

    def _let_some_in(self, left: int) -> None:
        for _ in range(min(LET_IN_A_TURN, left)):
            client = next(iter(self.waiting.values()), None)
            if client is None or self.quiesced or not self._may_enter():
                self._letting_in = False
                return
            if self._has_left(client):
                self.forget(client)
                os.close(client.fd)
            else:
                self._enter(client)
        left -= LET_IN_A_TURN
        if left > 0:
            self._loop.call_soon(self._let_some_in, left)
        else:
            self._letting_in = False

    def _has_left(self, client: Held) -> bool:
        poll = select.poll()
        poll.register(client.fd, select.POLLRDHUP)
        seen = poll.poll(0)
        if not seen or not self._tcp:
            return bool(seen)
        return bool(seen[0][1] & (select.POLLHUP | select.POLLERR)) or not client.view()

    def _enter(self, client: Held) -> None:
        self.forget(client)
        client.gone = True
        self._on_ready(client)

    def _turn_away(self, client: Held, message: str, code: str) -> None:
        self.turned_away += 1
        seen, since = client.view(), client.since
        self.forget(client)
        client.gone = True
        if self._tcp:
            os.close(client.fd)
            return
        self._on_turned_away(seen, time.monotonic() - since if since is not None else 0.0, code)
        data = answer(
            503,
            unavailable_body(message, code),
            retry_after_s=self._retry_after_s,
            head_only=seen.startswith(b"HEAD "),
        )
        self.lingering.say(client.fd, data)

    def turn_away_waiting(self, why: tuple[str, str] = STOPPED) -> None:
        for client in list(self.waiting.values()):
            self._turn_away(client, *why)

    def refuse(self, why: tuple[str, str] | None) -> None:
        """Nobody waits from here on, and nobody who did; None: clients wait again."""
        self.refusal = why
        if why is not None and not self.quiesced:
            self.turn_away_waiting(why)

    def end_waits(self) -> None:
        """Of those who have waited for too long."""
        before = time.monotonic() - self._hold_timeout_s
        for client in list(self.waiting.values()):
            if client.since is not None and client.since < before:
                self._turn_away(client, "The model did not come back in time.", "hold_timeout")

    def close_idle(self, keep_alive_s: float) -> None:
        """Those who have said nothing for so long."""
        before = time.monotonic() - keep_alive_s
        for client in list(self.clients.values()):
            if client.since is None and client.idle_since < before and not client.view():
                self.forget(client)
                os.close(client.fd)

    @property
    def oldest_s(self) -> float:
        oldest = next(iter(list(self.waiting.values())), None)
        since = oldest.since if oldest is not None else None
        return 0.0 if since is None else max(0.0, time.monotonic() - since)

    # --- hand-over, the end ------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Forget all, closing none: others have them."""
        self.clients.clear()
        self.waiting.clear()
        self._epoll.close()  # before the copies are closed
        self._epoll = select.epoll()

    def drop(self) -> None:
        fds = list(self.clients)
        self.leave()
        for fd in fds:
            os.close(fd)

    def close(self) -> None:
        self.watch(False)
        self.drop()
        self._epoll.close()
        self.lingering.close()
