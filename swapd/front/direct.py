"""The front inside an asgi engine's process: uvicorn's protocol on this process's loop, no hop, and movable.

Accepts by itself (a listener must be pausable), keeps what is idle as bare descriptors, and sweeps for timeouts
instead of arming a timer for each request. The worker's private socket is served by the same protocol in a group of
its own, which is never handed over, never quiesced and never counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
import time
from collections.abc import Awaitable
from email.utils import formatdate
from typing import Any, Final

from uvicorn.config import Config

from swapd.core.handover import Phase
from swapd.front.accept import Acceptor
from swapd.front.answers import LAST_CALL_S, LINGER_S, REPLACED, STOPPED, HangUpWatch
from swapd.front.base import Copy, DrainReport, Front, FrontStats
from swapd.front.common import DRAIN_POLL_S
from swapd.front.connections import Group, HttpConnection
from swapd.front.idle import IdlePool

READ_BYTES: Final = 65536
HEAD_TIMEOUT_S: Final = 60.0  # a request's head must be complete by then (nginx: client_header_timeout 60 s)
BEATS_A_SWEEP: Final = 10
CUT_GRACE_S: Final = 3.0  # for last words and the applications' own clean-up


class DirectFront(Front):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        app: Any,
        app_state: dict[str, Any],
        *,
        revision: int,
        health_path: str,
        keep_alive_s: float,
        retry_after_s: int,
        private_socket: socket.socket,
    ) -> None:
        self._group = Group(self, retry_after_s)
        self._private = Group(self, retry_after_s)
        self._late = Group(self, retry_after_s, closed=True)  # who asks once the service is being stopped
        self._newcomers = self._group
        super().__init__(loop, health_path=health_path, retry_after_s=retry_after_s)
        self.hang_ups = HangUpWatch(loop)
        self._app_state = app_state
        self._keep_alive_s = keep_alive_s
        self._revision_header = (b"x-swapd-revision", str(revision).encode())
        # asgi3 said, not guessed: uvicorn takes a bound method (an Engine's `app`) for ASGI 2.
        self._config = Config(
            app=app, http=HttpConnection, lifespan="off", interface="asgi3", access_log=False, log_config=None
        )
        self._config.load()
        self._app = self._config.loaded_app
        self._config.loaded_app = self._route
        self._pool = IdlePool(loop, self._idle_ready)
        self._held: list[tuple[int, bytes]] = []  # offered connections of which something was read
        self._building: dict[asyncio.Task[Any], HttpConnection] = {}
        self._poll = select.poll()
        self._beats = 0
        self._cut = 0
        self._private_acceptor = Acceptor(loop, self._accepted_private, lambda: True)
        if not private_socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            private_socket.listen(128)
        self._private_acceptor.add("private", private_socket)
        self._private_acceptor.watch()
        self._on_beat()

    # --- requests ----------------------------------------------------------------------------------------------

    def _route(self, scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        """Not a coroutine of its own: the hot path costs one comparison."""
        if scope.get("path") == self._health_path and scope["type"] == "http":
            return self._health(send)
        return self._app(scope, receive, send)  # type: ignore[no-any-return]

    async def _health(self, send: Any) -> None:
        serving = self.owner
        body = json.dumps({"status": "serving" if serving else "not serving"}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if not serving:
            headers.append((b"retry-after", str(self._retry_after_s).encode()))
        await send({"type": "http.response.start", "status": 200 if serving else 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    # --- connections come --------------------------------------------------------------------------------------

    def _accepted(self, sock: socket.socket) -> None:
        fd = sock.fileno()
        self._poll.register(fd, select.POLLRDHUP | select.POLLIN)
        events = self._poll.poll(0)
        self._poll.unregister(fd)
        if not events:
            self._pool.add(sock.detach(), self._group.now)
        elif events[0][1] & (select.POLLRDHUP | select.POLLHUP | select.POLLERR):
            sock.close()  # it gave up while it waited in the queue: the model never hears of it
        else:
            self._build(self._newcomers, sock, b"")

    def _accepted_private(self, sock: socket.socket) -> None:
        self._build(self._private, sock, b"")

    def _idle_ready(self, fd: int) -> None:
        if self._group.quiesced:
            self._pool.add(fd, self._group.now)
            self._pool.unwatch()
            return
        sock = socket.socket(fileno=fd)
        try:
            data = sock.recv(READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._pool.add(sock.detach(), self._group.now)
            return
        except OSError:
            data = b""
        if data:
            self._build(self._newcomers, sock, data)
        else:
            sock.close()

    def _build(self, group: Group, sock: socket.socket, read: bytes) -> None:
        """Give the connection a transport. It is in the group from the loop's next turn on."""
        connection = HttpConnection(self._config, group, self._app_state, self._loop, sock.fileno(), read)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: connection, sock))
        self._building[task] = connection
        task.add_done_callback(self._built)

    def _built(self, task: asyncio.Task[Any]) -> None:
        self._building.pop(task, None)
        if not task.cancelled():
            task.exception()  # the socket broke before it had a transport: nobody to tell

    # --- hand-over ---------------------------------------------------------------------------------------------

    def _set_quiesced(self, quiesced: bool) -> None:
        self._group.quiesced = quiesced

    def _may_read(self) -> bool:
        return not self._group.quiesced and self._state.phase is Phase.OWNER

    def _connections(self) -> list[HttpConnection]:
        """[any thread]"""
        return [c for c in list(self._group.connections) if type(c) is HttpConnection]

    def _pause(self) -> list[Copy]:
        self._pool.unwatch()
        copies: list[Copy] = list(self._pool.copies())
        for connection in self._connections():
            if self._settled(connection):
                copies.append(connection)
            elif not connection.gone:
                connection.watch_if_frozen()
        return copies

    def settle(self, connection: HttpConnection) -> None:
        """Something changed on a connection of a quiesced front: it may be able to follow now."""
        if self._settled(connection):
            self._follow(connection)
        elif not connection.gone:
            connection.watch_if_frozen()

    def _settled(self, connection: HttpConnection) -> bool:
        """Freeze the connection as far as its request allows. True when it is movable, and to be moved now."""
        c = connection
        if c.offered or c.gone or c.upgraded or c.ending or c.transport.is_closing():
            return False
        if c.answerable_only_here:
            return False
        c.freeze()
        if c.busy:
            return False
        if c.unflushed:
            c.watch_flush()
            return False
        c.offered = True
        return True

    def _unpause(self) -> None:
        for connection in self._connections():
            if not connection.offered:
                connection.restore()
        self._pool.watch()
        held, self._held = self._held, []
        for fd, read in held:
            self._take(fd, read)

    def _left(self) -> None:
        self._pool.leave()

    def _hold(self, fd: int, read: bytes) -> None:
        if read:
            self._held.append((fd, read))
        else:
            self._pool.add(fd, self._group.now)

    def _drop_held(self) -> None:
        self._pool.close_all()
        held, self._held = self._held, []
        for fd, _ in held:
            os.close(fd)

    def _take(self, fd: int, read: bytes) -> None:
        if read:
            self._build(self._newcomers, socket.socket(fileno=fd), read)
        else:
            self._pool.add(fd, self._group.now)

    def _restore(self, copy: Copy) -> None:
        if isinstance(copy, HttpConnection):
            copy.restore()
        elif not self._pool.has(copy.fd):  # an offered one has never left the pool
            copy.gone = True
            self._take(copy.fd, copy.carried())

    def _held_count(self) -> int:
        return len(self._pool) + len(self._held)

    def _busy_count(self) -> int:
        return len(self._building) + sum(
            not (c.offered or c.gone or c.upgraded or c.ending) for c in self._connections()
        )

    # --- the end -----------------------------------------------------------------------------------------------

    async def drain(self, deadline_s: float, and_close: bool = False) -> DrainReport:
        """Wait for requests, streams and WebSockets in flight, for requests of which only this process has the
        beginning, and for what applications do after their answers.

        At the deadline: an event stream gets an error event, an unanswered request a 503, a WebSocket a close 1012.
        A front that becomes the owner again meanwhile is done with it: nothing of it is to end any more.
        """
        if and_close and self.owner:
            self.turn_away()
        deadline = self._loop.time() + deadline_s
        owned = self._state.owned
        started = self._group.total_requests
        websockets = self._upgraded()
        while self._unfinished() and self._loop.time() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)
            if not and_close and self._state.owned != owned:
                return DrainReport(self._group.total_requests - started, 0)
        finished = self._group.total_requests - started + len(websockets - self._upgraded())
        cut = self._cut_all()
        grace = self._loop.time() + CUT_GRACE_S
        while cut and self._unfinished() and self._loop.time() < grace:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)
        return DrainReport(finished, cut)

    def turn_away(self) -> None:
        """Those who come late get a group of their own, so that a drain waits for none of them."""
        if self.turning_away:
            return
        super().turn_away()
        self._newcomers = self._late
        for connection in self._connections():
            connection.close_to_new()
            if not connection.unfinished:
                connection.join(self._late)
        for connection in self._building.values():
            if connection.group is self._group:
                connection.close_to_new()
                connection.join(self._late)

    def stop_accepting(self) -> None:
        """And let go of those who ask for nothing."""
        super().stop_accepting()
        self._pool.close_all()
        for connection in self._connections():
            if connection.idle:
                connection.transport.close()
        for cycle in self._group.running():
            cycle.keep_alive = False

    def _upgraded(self) -> set[Any]:
        return {c for c in list(self._group.connections) if type(c) is not HttpConnection}

    def _unfinished(self) -> bool:
        return (
            bool(self._group.tasks)
            or bool(self._upgraded())
            or any(c.unfinished and not c.gone for c in self._connections())
            or (self._giving is not None and bool(self._ready or self._unacknowledged))  # still on their way
        )

    def _cut_all(self) -> int:
        cut = 0
        running = {c.transport: c for c in self._group.running() if not c.response_complete}
        for connection in self._connections():
            if connection.gone or connection.ending or not connection.unfinished:
                continue
            cut += 1 + len(connection.pipeline)
            if connection.busy or connection.answerable_only_here:
                connection.cut(running.get(connection.transport), *(STOPPED if self.turning_away else REPLACED))
            else:  # its answer is complete here, and the client too slow
                connection.transport.abort()
        for websocket in self._upgraded():
            cut += 1
            with contextlib.suppress(Exception):
                websocket.shutdown()  # close frame 1012, then the transport
        for task in list(self._group.tasks):
            task.cancel()
        self._cut += cut
        return cut

    async def _see_out(self) -> None:
        """Whoever has asked gets the 503; the others' connections end with a FIN."""
        self.let_go_of_listeners()
        await asyncio.sleep(LAST_CALL_S)
        self._pool.close_all()
        left = [c for group in (self._group, self._late) for c in list(group.connections) if type(c) is HttpConnection]
        for connection in left:
            if connection.idle:
                connection.transport.close()
            else:
                connection.cut(connection.cycle if connection.busy else None, *STOPPED)
        ends = self._loop.time() + LINGER_S
        while any(not c.gone for c in left) and self._loop.time() < ends:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL_S)

    async def close(self) -> None:
        if self.turning_away:
            await self._see_out()
        await super().close()
        self._private_acceptor.close()
        for group in (self._group, self._private, self._late):
            for connection in list(group.connections):
                connection.transport.abort()
        self._drop_held()
        self._pool.close()
        await asyncio.sleep(0)  # connection_lost runs in the loop's next turn
        self.hang_ups.close()

    # --- the beat ----------------------------------------------------------------------------------------------

    def _on_beat(self) -> None:
        now = time.monotonic()
        self._group.now = self._private.now = self._late.now = now
        if self._beats % BEATS_A_SWEEP == 0:
            self._refresh_headers()
            self._sweep(now)
        self._beats += 1

    def _refresh_headers(self) -> None:
        """What uvicorn's own server does in `on_tick`, plus the revision."""
        date = (b"date", formatdate(time.time(), usegmt=True).encode())
        headers = [date, *self._config.encoded_headers, self._revision_header]
        self._group.default_headers = self._private.default_headers = self._late.default_headers = headers

    def _sweep(self, now: float) -> None:
        idle_before, head_before = now - self._keep_alive_s, now - HEAD_TIMEOUT_S
        if self._may_read():
            self._pool.close_older(idle_before)
        others = [*self._private.connections, *self._late.connections]
        for connection in [c for c in others if type(c) is HttpConnection] + self._connections():
            if connection.gone or connection.ending or connection.flow.frozen:
                continue
            if connection.idle and connection.since < idle_before:
                connection.transport.close()
            elif connection.head_overdue(head_before):
                connection.refuse(408, "The request's head did not come in time.", "head_timeout")

    def stats(self) -> FrontStats:
        connections = self._connections()
        busy = [c for c in connections if c.busy]
        now = time.monotonic()
        state = self._state
        upgraded = len(self._upgraded())
        pooled = len(self._pool) if state.phase is not Phase.ARMED else 0
        return FrontStats(
            owner=self.owner,
            epoch=state.owned,
            connections=len(connections) + upgraded + pooled,
            idle=pooled + sum(c.idle for c in connections),
            in_flight=sum(1 + len(c.pipeline) for c in busy),
            streams=sum(c.streaming for c in busy),
            upgraded=upgraded,
            held=0,
            requests=self._group.total_requests,
            cut=self._cut,
            oldest_in_flight_s=max((now - c.began_at for c in busy), default=0.0),
            loop_blocked_s=self._blocked_s(),
            stragglers=self._stragglers() if state.gave else 0,
            quiet_s=None if self._group.heard_at is None else max(0.0, now - self._group.heard_at),
        )
