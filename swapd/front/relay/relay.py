"""The relay: clients' requests to the engines that the table names, and their answers back.

One table at a time, replaced as a whole: what is in flight goes on where it is, what begins goes by the new one. A
request for which no engine is there goes back to the gate, which lets it wait. Knows nothing of hand-overs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from time import monotonic
from typing import Any, Final, Protocol

from swapd.front.answers import REPLACED, STOPPED
from swapd.front.relay.access_log import AccessLog
from swapd.front.relay.chooser import Chooser
from swapd.front.relay.client import ClientConnection
from swapd.front.relay.exchange import BY_CONNECT, Exchange, connect
from swapd.front.relay.heads import RequestHead
from swapd.front.relay.measure import Measure
from swapd.front.relay.routing import Table
from swapd.front.relay.tunnel import Tunnel
from swapd.front.relay.upstream import Upstream, UpstreamConnection
from swapd.front.shadow.tee import Tee

log = logging.getLogger("swapd.relay")

ANSWER_STALL_S: Final = 60.0  # without a byte of it being taken (nginx: send_timeout)
REQUEST_STALL_S: Final = 60.0  # between two parts of a request (nginx: client_header_timeout, client_body_timeout)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
NOT_FOUND: Final = ("This path is not for clients.", "not_found")


class Gate(Protocol):
    """What the relay needs of the gate around it."""

    @property
    def reading(self) -> bool:
        """Requests may begin here."""

    def settle(self, client: ClientConnection) -> None:
        """Nothing can begin on this connection now: it waits for an engine, or moves, as soon as it can."""

    def postpone(self, fd: int, waits_since: float | None) -> None:
        """A connection that found no engine waits for one. The descriptor is the gate's from here on."""

    def health(self, *, head_only: bool, close: bool) -> bytes: ...


class Relay:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        gate: Gate,
        *,
        health_path: str,
        retry_after_s: int,
        trust_forwarded: bool = False,
        tcp: bool = False,
    ) -> None:
        self.table = Table(0, hold=True)
        self.now = loop.time()  # some 100 ms coarse: precise enough for timeouts, and free to read
        self.retry_after_s = retry_after_s
        self.trust_forwarded = trust_forwarded
        self.tcp = tcp
        self.turning_away = False
        self.open = False
        self.tee: Tee | None = None  # where requests are copied
        self.clients: set[ClientConnection] = set()
        self.requests = 0
        self.turned_away = 0
        self.cut = 0
        self.access_log: AccessLog | None = None
        self.measure = Measure(self.table, monotonic())
        self._loop = loop
        self._gate = gate
        self._health_path = health_path.encode()
        self._upstreams: dict[str, Upstream] = {}
        self.chooser = Chooser(self.table, self._upstreams)
        self._building: set[asyncio.Task[Any]] = set()  # connections that have no transport yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._id_prefix = os.urandom(6).hex()
        self._last_id = 0

    # --- the table ---------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Whether requests may begin has perhaps changed. Kept as a value: every request asks for it."""
        self.open = self._gate.reading and (self.table.open or self.turning_away)

    def point(self, table: Table) -> None:
        self.table = table
        self.look()
        for route in table.routes:
            upstream = self._upstreams.get(route.worker)
            if upstream is None:
                self._upstreams[route.worker] = Upstream(self._loop, route)
            else:
                upstream.point(route)
        named = {route.worker for route in table.routes}
        for worker, upstream in list(self._upstreams.items()):
            if worker not in named:
                upstream.close()
                if not upstream.in_flight:
                    del self._upstreams[worker]
        self.chooser.point(table)
        self.measure.point(table, monotonic())
        for route in table.routes:
            self._upstreams[route.worker].samples = self.measure.samples_of(route.revision)

    def serves(self, worker: str | None) -> bool:
        """Requests may begin there."""
        return self.table.open and any(route.worker == worker and route.weight > 0 for route in self.table.routes)

    # --- clients -----------------------------------------------------------------------------------------------

    def admit(self, sock: socket.socket, read: bytes, *, tried: bool = False, waits_since: float | None = None) -> None:
        """A connection that may have a request: give it a transport. Takes over `sock`."""
        if self.tcp:
            self._task(self._admit_tcp(sock, waits_since))
            return
        client = ClientConnection(self, sock.fileno(), read, tried, waits_since)
        task = self._loop.create_task(self._loop.connect_accepted_socket(lambda: client, sock))
        self._building.add(task)
        task.add_done_callback(self._built)

    def _built(self, task: asyncio.Task[Any]) -> None:
        self._building.discard(task)
        if not task.cancelled():
            task.exception()  # the socket broke before it had a transport: nobody to tell

    @property
    def building(self) -> int:
        return len(self._building)

    def arrived(self, client: ClientConnection) -> None:
        self.clients.add(client)

    def departed(self, client: ClientConnection) -> None:
        self.clients.discard(client)

    def settle(self, client: ClientConnection) -> None:
        self._gate.settle(client)

    def take_back(self, client: ClientConnection) -> tuple[int, bytes]:
        """The connection as a bare descriptor, with what was read of it and went nowhere. Raises OSError."""
        fd = os.dup(client.fd)
        if client.exchange is not None:
            self.left(client.exchange)  # a connection for it may be on its way
        read = client.take_unread()
        client.release()
        self.clients.discard(client)
        return fd, read

    # --- requests ----------------------------------------------------------------------------------------------

    def next_id(self) -> bytes:
        self._last_id += 1
        return b"%s-%x" % (self._id_prefix.encode(), self._last_id)

    def answers_itself(self, client: ClientConnection, head: RequestHead) -> bool:
        if head.target.partition(b"?")[0] != self._health_path or head.method not in (b"GET", b"HEAD") or head.length:
            return False
        self.requests += 1
        client.say(self._gate.health(head_only=head.method == b"HEAD", close=not head.keep_alive))
        if not head.keep_alive:
            client.end()
        return True

    def begin(self, exchange: Exchange) -> None:
        """Send it to an engine, or let it wait for one."""
        if self.turning_away:
            exchange.refuse(503, *STOPPED)
            return
        upstream = self.chooser.only
        if upstream is None or exchange.unreachable:
            if self.chooser.awaits_body(exchange):
                self._await_body(exchange)
                return
            upstream = self.chooser.choose(exchange, self.now)
        if upstream is None:
            self._wait(exchange)
        elif upstream.route.blocks(exchange.head.target):
            exchange.refuse(404, *NOT_FOUND)
        else:
            exchange.upstream = upstream
            exchange.samples = upstream.samples
            exchange.sent_at = monotonic()
            upstream.exchanges.add(exchange)
            connection = None if exchange.fresh else upstream.take(self.now, idempotent=exchange.head.idempotent)
            if connection is not None:
                exchange.begin(connection)
            else:
                exchange.client.pause(BY_CONNECT)
                self._task(connect(exchange, upstream))

    def connected(self, exchange: Exchange, upstream: Upstream, connection: UpstreamConnection) -> None:
        if exchange not in upstream.exchanges:  # its client has gone meanwhile
            connection.abort()
            return
        exchange.client.resume(BY_CONNECT)
        exchange.begin(connection)

    def _await_body(self, exchange: Exchange) -> None:
        """Until its client has told whose request it is."""
        head = exchange.head
        if any(name == b"expect" for name, _ in head.headers):  # nothing comes before this; the engine need not say it
            head.headers = [header for header in head.headers if header[0] != b"expect"]
            exchange.client.say(CONTINUE)
        exchange.awaits_body = True

    def died(self, exchange: Exchange, upstream: Upstream) -> None:
        """An engine, with this request, which goes to one once more."""
        self.chooser.avoid(exchange, upstream.route.worker)

    def unreachable(self, exchange: Exchange, upstream: Upstream) -> None:
        if exchange not in upstream.exchanges:
            return
        exchange.client.resume(BY_CONNECT)
        exchange.unreachable += (upstream.route.worker,)
        self.left(exchange)
        self.begin(exchange)
        if exchange.upstream is not None:  # else it waits, perhaps for this one
            upstream.samples.failed()

    def _wait(self, exchange: Exchange) -> None:
        self._loop.call_soon(self.settle, exchange.client)  # not within its transport's own call

    def left(self, exchange: Exchange) -> None:
        """It is not this engine's any more."""
        upstream, exchange.upstream = exchange.upstream, None
        if upstream is not None:
            upstream.exchanges.discard(exchange)

    def ended(self, exchange: Exchange) -> None:
        if exchange.came_at:
            self._log(exchange)
        if exchange.upstream is not None:
            exchange.upstream.exchanges.discard(exchange)
            self.requests += 1

    def _log(self, exchange: Exchange) -> None:
        if self.access_log is not None:
            self.access_log.note(exchange, monotonic())

    def log_to(self, access_log: AccessLog | None) -> None:
        """From here on; what was queued for the one before is written."""
        before, self.access_log = self.access_log, access_log
        if before is not None:
            before.end()

    def refused(self, status: int) -> None:
        self.turned_away += status == 503

    def tell(self, exchange: Exchange, event: str, why: str) -> None:
        worker = exchange.upstream.route.worker if exchange.upstream is not None else ""
        head = exchange.head
        what = f"{head.method.decode()} {head.target[:200].decode('latin1')}"
        request_id = head.request_id.decode("latin1")
        log.warning("relay.%s worker=%s request_id=%s %s why=%s", event, worker, request_id, what, why)

    # --- tunnels -----------------------------------------------------------------------------------------------

    def tunnel(self, exchange: Exchange, connection: UpstreamConnection, rest: bytes) -> None:
        """After a handshake both sides go on as bytes."""
        client, upstream = exchange.client, exchange.upstream
        assert upstream is not None
        self.requests += 1
        if exchange.came_at:
            self._log(exchange)
        self.left(exchange)
        self.clients.discard(client)
        early = client.become_tunnel()
        tunnel = Tunnel(self, upstream)
        upstream.tunnels.add(tunnel)
        tunnel.engine.take(connection.transport)
        tunnel.client.take(client.transport)
        if rest:
            client.transport.write(rest)
        if early:
            connection.transport.write(early)

    async def _admit_tcp(self, sock: socket.socket, waits_since: float | None) -> None:
        unreachable: tuple[str, ...] = ()
        while True:
            upstream, choice = self.chooser.choose_for_tunnel(unreachable, self.now)
            if upstream is None:
                break
            tunnel = Tunnel(self, upstream)
            upstream.tunnels.add(tunnel)
            try:
                await upstream.open(lambda tunnel=tunnel: tunnel.engine)  # type: ignore[misc]
            except OSError:
                upstream.tunnels.discard(tunnel)
                unreachable += (upstream.route.worker,)
                continue
            self.requests += 1
            if choice is not None:
                self.chooser.begins(choice, self.now)
            try:
                await self._loop.connect_accepted_socket(lambda tunnel=tunnel: tunnel.client, sock)  # type: ignore[misc]
            except OSError:
                tunnel.client.lost = True
                tunnel.abort()
                sock.close()
            return
        self._gate.postpone(sock.detach(), waits_since)

    def tunnel_ended(self, tunnel: Tunnel) -> None:
        tunnel.upstream.tunnels.discard(tunnel)

    # --- the end -----------------------------------------------------------------------------------------------

    def exchanges(self, worker: str | None = None) -> list[Exchange]:
        chosen = self._chosen(worker)
        return [exchange for upstream in chosen for exchange in list(upstream.exchanges)]

    def tunnels(self, worker: str | None = None) -> list[Tunnel]:
        return [tunnel for upstream in self._chosen(worker) for tunnel in list(upstream.tunnels)]

    def _chosen(self, worker: str | None) -> list[Upstream]:
        if worker is None:
            return list(self._upstreams.values())
        return [self._upstreams[worker]] if worker in self._upstreams else []

    def in_flight(self, worker: str | None = None) -> int:
        return sum(upstream.in_flight for upstream in self._chosen(worker))

    def upstream_stats(self) -> dict[str, dict[str, Any]]:
        """[any thread]"""
        figures = {}
        for worker, upstream in list(self._upstreams.items()):
            exchanges, tunnels = list(upstream.exchanges), list(upstream.tunnels)
            began = [*(each.began_at for each in exchanges), *(each.began_at for each in tunnels)]
            figures[worker] = {
                "in_flight": len(exchanges),
                "streams": sum(exchange.answered for exchange in exchanges),
                "upgraded": len(tunnels),
                "oldest_in_flight_s": max(0.0, self.now - min(began, default=self.now)),
                "quiet_s": None if upstream.heard_at is None else max(0.0, self.now - upstream.heard_at),
            }
        return figures

    def cut_all(self, worker: str | None = None) -> int:
        """The time to finish is over."""
        exchanges, tunnels = self.exchanges(worker), self.tunnels(worker)
        for exchange in exchanges:
            exchange.cut(*(STOPPED if self.turning_away else REPLACED))
        for tunnel in tunnels:
            tunnel.abort()
        self.cut += len(exchanges) + len(tunnels)
        return len(exchanges) + len(tunnels)

    def beat(self) -> None:
        self.now = self._loop.time()
        self.measure.beat()

    def sweep(self, keep_alive_s: float) -> list[ClientConnection]:
        """Once a second: what has been silent for too long ends. Returns the idle ones of a while."""
        before = self.now - REQUEST_STALL_S
        resting = []
        for client in list(self.clients):
            if client.overdue(before):
                client.stalled()
            elif client.deaf(self.now, ANSWER_STALL_S):
                client.transport.abort()
            elif client.idle and client.since < self.now - keep_alive_s:
                client.transport.close()
            elif client.idle and client.since < self.now - 1.0:
                resting.append(client)
        for worker, upstream in list(self._upstreams.items()):
            upstream.sweep(self.now)
            if not upstream.in_flight and all(route.worker != worker for route in self.table.routes):
                upstream.close()
                del self._upstreams[worker]
        return resting

    def close(self) -> None:
        for task in [*self._tasks, *self._building]:
            task.cancel()
        for tunnel in self.tunnels():
            tunnel.abort()
        for client in list(self.clients):
            client.transport.abort()
        for upstream in self._upstreams.values():
            upstream.close()
        if self.access_log is not None:
            self.access_log.end()
            self.access_log.wait()

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
