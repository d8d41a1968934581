"""The gate while no model is there: clients wait, unread, in the kernel's buffers.

Accepts at once, because health must be answered and a client's patience counted from its first byte. Looks at what
has come with MSG_PEEK and takes nothing, except the health requests that it answers itself. A wait that is too long,
or one too many, gets 503 with Retry-After; clients that hang up are let go and never reach a model.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import select
import socket
import time
from typing import Final

from swapd.core.handover import Phase
from swapd.front.answers import LAST_CALL_S, STOPPED, Lingering, answer, unavailable_body
from swapd.front.base import Copy, DrainReport, Front, FrontStats
from swapd.front.idle import EVENTS_A_TURN, HUNG_UP, RawCopy
from swapd.wire.peer import MAX_HEAD_BYTES

SPARE_DESCRIPTORS: Final = 64  # kept free of clients: for the hand-over itself, logs, control
HEAD_END: Final = b"\r\n\r\n"
ARRIVALS: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET  # told once for each arrival
DEPARTURES: Final = select.EPOLLRDHUP


class Held(RawCopy):
    """One client. `since` is None until its first byte is seen."""

    __slots__ = ("since",)

    def __init__(self, fd: int, read: bytes) -> None:
        super().__init__(fd, read)
        self.since: float | None = None

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


class _borrowed:
    """A socket object around a descriptor for the length of one call, without the system calls of a full one."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)

    def __enter__(self) -> socket.socket:
        return self._sock

    def __exit__(self, *_: object) -> None:
        self._sock.detach()


class GateFront(Front):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        health_path: str,
        hold_timeout_s: float,
        queue_limit: int,
        retry_after_s: int,
    ) -> None:
        self._epoll = select.epoll()
        self._clients: dict[int, Held] = {}
        self._waiting: dict[int, Held] = {}  # those of which something has come, in order of their first byte
        self._quiesced = False
        self._watching = False
        super().__init__(loop, health_path=health_path, retry_after_s=retry_after_s)
        self._health = b"GET " + health_path.encode()
        self._hold_timeout_s = hold_timeout_s
        self._queue_limit = queue_limit
        self._lingering = Lingering(loop)
        self._requests = 0
        self._turned_away = 0
        self._turned_away_before = 0
        self._owner_since = 0.0

    # --- clients come ------------------------------------------------------------------------------------------

    def _accepted(self, sock: socket.socket) -> None:
        self._take(sock.detach(), b"")

    def _has_room(self) -> bool:
        """Else the rest wait in the listener's queue."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return limit == resource.RLIM_INFINITY or len(self._clients) + len(self._lingering) < limit - SPARE_DESCRIPTORS

    def _hold(self, fd: int, read: bytes) -> None:
        self._clients[fd] = Held(fd, read)
        self._epoll.register(fd, ARRIVALS)

    def _take(self, fd: int, read: bytes) -> None:
        self._hold(fd, read)
        if read:
            self._look(self._clients[fd])
        # else the registration itself tells of what has come already

    def _readable(self) -> None:
        for fd, events in self._epoll.poll(0, EVENTS_A_TURN):
            client = self._clients.get(fd)
            if client is None or self._quiesced:
                continue
            if events & HUNG_UP:
                self._forget(client)
                os.close(fd)
            else:
                self._look(client)

    def _look(self, client: Held) -> None:
        """Something has come: answer it if it is about our health, else let it wait."""
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
            self._waiting.pop(client.fd, None)
            client.since = None
            self._requests += 1
            if not self._say(client, self._health_answer()):
                return

    def _health_answer(self) -> bytes:
        """Good for as long as waiting may help: who came when this gate began to hold has not waited in vain yet."""
        if time.monotonic() - self._owner_since <= self._hold_timeout_s:
            return answer(200, json.dumps({"status": "holding"}).encode(), keep_alive=True)
        body = json.dumps({"status": "unavailable"}).encode()
        return answer(503, body, retry_after_s=self._retry_after_s, keep_alive=True)

    def _health_request(self, seen: bytes) -> int | None:
        """The size of the health request at the front of `seen`; 0: it may become one; None: it is none."""
        start = self._health
        if not seen.startswith(start[: len(seen)]):
            return None
        if len(seen) <= len(start):
            return 0
        if seen[len(start)] not in b" ?":
            return None
        end = seen.find(HEAD_END)
        if end < 0:
            return 0 if len(seen) < MAX_HEAD_BYTES else None
        head = seen[:end].lower()
        if b"\r\ncontent-length:" in head or b"\r\ntransfer-encoding:" in head:
            return None  # with a body it is the model's affair
        return end + len(HEAD_END)

    def _say(self, client: Held, data: bytes) -> bool:
        with _borrowed(client.fd) as sock:
            try:
                sent = sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                sent = 0
        if sent != len(data):
            self._forget(client)
            os.close(client.fd)
            return False
        return True

    def _wait(self, client: Held, undecided: bool = False) -> None:
        if client.since is None:
            client.since = time.monotonic()
            if self.turning_away:
                self._turn_away(client, *STOPPED)
                return
            if len(self._waiting) >= self._queue_limit:
                self._turn_away(client, "Too many requests wait for the model.", "queue_full")
                return
            self._waiting[client.fd] = client
        if not undecided:
            self._epoll.modify(client.fd, DEPARTURES)

    def _turn_away(self, client: Held, message: str, code: str) -> None:
        self._turned_away += 1
        head_only = client.view().startswith(b"HEAD ")
        self._forget(client)
        client.gone = True
        body = unavailable_body(message, code)
        self._lingering.say(client.fd, answer(503, body, retry_after_s=self._retry_after_s, head_only=head_only))

    def _forget(self, client: Held) -> None:
        del self._clients[client.fd]
        self._waiting.pop(client.fd, None)
        self._epoll.unregister(client.fd)

    # --- hand-over ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._owner_since = time.monotonic()
        self._turned_away_before = self._turned_away
        super()._start()

    def _turned_away_as_owner(self) -> int:
        return self._turned_away - self._turned_away_before

    def _set_quiesced(self, quiesced: bool) -> None:
        self._quiesced = quiesced

    def _may_read(self) -> bool:
        return not self._quiesced and self._state.phase is Phase.OWNER

    def _pause(self) -> list[Copy]:
        self._watch(False)
        return list(self._clients.values())

    def _unpause(self) -> None:
        self._watch(True)
        for client in list(self._clients.values()):
            if client.since is None and client.carried():
                self._look(client)

    def _watch(self, wanted: bool) -> None:
        if wanted and not self._watching:
            self._loop.add_reader(self._epoll.fileno(), self._readable)
        elif not wanted and self._watching:
            self._loop.remove_reader(self._epoll.fileno())
        self._watching = wanted

    def _left(self) -> None:
        self._clients.clear()
        self._waiting.clear()
        self._epoll.close()  # before the copies are closed
        self._epoll = select.epoll()

    def _drop_held(self) -> None:
        fds = list(self._clients)
        self._left()
        for fd in fds:
            os.close(fd)

    def _restore(self, copy: Copy) -> None:
        if copy.fd not in self._clients:
            copy.gone = True
            self._take(copy.fd, copy.carried())

    def _held_count(self) -> int:
        return len(self._clients)

    def _busy_count(self) -> int:
        return 0

    # --- the end, the beat -------------------------------------------------------------------------------------

    def turn_away(self) -> None:
        """Also those who wait."""
        super().turn_away()
        self._turn_away_waiting()

    def stop_accepting(self) -> None:
        """Those who wait here have nobody to wait for."""
        super().stop_accepting()
        self._turn_away_waiting()

    def _turn_away_waiting(self) -> None:
        for client in list(self._waiting.values()):
            self._turn_away(client, *STOPPED)

    async def drain(self, deadline_s: float, and_close: bool = False) -> DrainReport:
        """Nothing is in flight in a gate."""
        before = self._turned_away
        if and_close and self.owner:
            self.turn_away()
        return DrainReport(0, self._turned_away - before)

    async def close(self) -> None:
        self.let_go_of_listeners()
        if self.turning_away:
            await asyncio.sleep(LAST_CALL_S)
        await self._lingering.finish()
        await super().close()
        self._watch(False)
        self._drop_held()
        self._epoll.close()
        self._lingering.close()

    def _on_beat(self) -> None:
        if not self._may_read():
            return
        before = time.monotonic() - self._hold_timeout_s
        while self._waiting:
            client = next(iter(self._waiting.values()))
            if client.since is None or client.since >= before:
                return
            self._turn_away(client, "The model did not come back in time.", "hold_timeout")

    def stats(self) -> FrontStats:
        state = self._state
        mine = state.phase is not Phase.ARMED
        clients, waiting = (len(self._clients), len(self._waiting)) if mine else (0, 0)
        oldest = next(iter(list(self._waiting.values())), None)
        since = oldest.since if oldest is not None else None
        return FrontStats(
            owner=self.owner,
            epoch=state.owned,
            connections=clients,
            idle=clients - waiting,
            in_flight=0,
            streams=0,
            upgraded=0,
            held=waiting,
            requests=self._requests,
            cut=self._turned_away,
            oldest_in_flight_s=0.0 if since is None else max(0.0, time.monotonic() - since),
            loop_blocked_s=self._blocked_s(),
            stragglers=self._stragglers() if state.gave else 0,
        )
