"""The front in a process of its own: it relays to the engines that its table names, and holds while there are none.

Connections on which nothing can begin lie bare and unread in the `Room`; those with a request have a transport in
the `Relay`. Both kinds move: an idle one of the relay becomes bare again first. Accepts at once, because health must
be answered and a client's patience counted from its first byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import time
from typing import Any, Final

from swapd.core.errors import BAD_REQUEST, SwapdError
from swapd.core.handover import Phase
from swapd.front.answers import FAILING, LAST_CALL_S, STOPPED, answer
from swapd.front.base import Copy, DrainReport, Front, FrontStats
from swapd.front.common import DRAIN_POLL_S
from swapd.front.relay.access_log import AccessLog
from swapd.front.relay.client import ClientConnection
from swapd.front.relay.relay import Relay
from swapd.front.relay.routing import Table
from swapd.front.reports import PointReport
from swapd.front.room import Held, Room
from swapd.front.shadow.keeper import Keeper

SPARE_DESCRIPTORS: Final = 64  # kept free of clients: for the hand-over itself, logs, control
DESCRIPTORS_A_CLIENT: Final = 2  # its own, and its engine's
BEATS_A_SWEEP: Final = 10
RESTING_A_SWEEP: Final = 512
CUT_GRACE_S: Final = 1.0  # for last words to be written


class GateFront(Front):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        health_path: str,
        hold_timeout_s: float,
        queue_limit: int,
        retry_after_s: int,
        keep_alive_s: float = 75.0,
        trust_forwarded: bool = False,
        tcp: bool = False,
    ) -> None:
        self._room = Room(
            loop,
            may_enter=lambda: self._relay.open,
            on_ready=self._enter,
            health=lambda: self.health(head_only=False, close=False),
            on_turned_away=self._log_turned_away,
            health_path=health_path,
            hold_timeout_s=hold_timeout_s,
            queue_limit=queue_limit,
            retry_after_s=retry_after_s,
            tcp=tcp,
        )
        self._relay = Relay(
            loop, self, health_path=health_path, retry_after_s=retry_after_s, trust_forwarded=trust_forwarded, tcp=tcp
        )
        self._shadow = Keeper(loop)
        super().__init__(loop, health_path=health_path, retry_after_s=retry_after_s)
        self._hold_timeout_s = hold_timeout_s
        self._keep_alive_s = keep_alive_s
        self._holding_since = 0.0
        self.pointed_at: float | None = None
        self._turned_away_before = 0
        self._beats = 0

    # --- the table ---------------------------------------------------------------------------------------------

    def point(self, table: Table) -> PointReport:
        """The next table: every request that begins from here on goes by it.

        Raises SwapdError(BAD_REQUEST) for one that is not newer.
        """
        if table.epoch <= self._relay.table.epoch:
            text = f"a table of epoch {table.epoch} is not newer than the gate's ({self._relay.table.epoch})"
            raise SwapdError(BAD_REQUEST, text, {"epoch": self._relay.table.epoch})
        if table.shadow is not None and self._relay.tcp:
            raise SwapdError(BAD_REQUEST, "this gate relays bytes: it knows no requests that a shadow could get")
        was_open = self._relay.table.open
        quiesced_at = time.monotonic()
        self._relay.point(table)
        self.pointed_at = now = time.monotonic()
        self._relay.tee = self._shadow.point(table.epoch, table.shadow)
        self._room.refuse(FAILING if table.turns_away else None)
        report = PointReport(quiesced_at, now, len(self._room.waiting), self._turned_away_as_owner())
        if table.open:
            self._room.let_in()
        elif was_open:
            self._begin_hold(now)
        return report

    def _begin_hold(self, now: float) -> None:
        self._holding_since = now
        self._turned_away_before = self._turned_away
        for client in list(self._relay.clients):
            self.settle(client)

    @property
    def reading(self) -> bool:
        return self._may_read()

    @property
    def _turned_away(self) -> int:
        return self._room.turned_away + self._relay.turned_away

    def health(self, *, head_only: bool, close: bool) -> bytes:
        """Good for as long as waiting may help: who came when this gate began to hold has not waited in vain yet."""
        relay = self._relay
        holding = not relay.table.open
        in_vain = time.monotonic() - self._holding_since > self._hold_timeout_s
        good = not holding or not (in_vain or relay.table.turns_away)
        word = "unavailable" if not good else "holding" if holding else "serving"
        body = json.dumps({"status": word}).encode()
        retry_after_s = None if good else self._retry_after_s
        status = 200 if good else 503
        return answer(status, body, retry_after_s=retry_after_s, keep_alive=not close, head_only=head_only)

    # --- clients come, wait, and enter -------------------------------------------------------------------------

    def _accepted(self, sock: socket.socket) -> None:
        if self._relay.open and not self.turning_away:
            self._relay.admit(sock, b"")
        else:
            self._room.add(Held(sock.detach()))

    def _has_room(self) -> bool:
        """Else the rest wait in the listener's queue."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        relayed = len(self._relay.clients) + self._relay.building + len(self._relay.tunnels())
        used = len(self._room.clients) + len(self._room.lingering) + DESCRIPTORS_A_CLIENT * relayed
        return limit == resource.RLIM_INFINITY or used < limit - SPARE_DESCRIPTORS

    def _enter(self, client: Held) -> None:
        sock = socket.socket(fileno=client.fd)
        self._relay.admit(sock, client.carried(), tried=client.tried, waits_since=client.since)

    def postpone(self, fd: int, waits_since: float | None) -> None:
        self._room.postpone(Held(fd, waits_since=waits_since))

    def settle(self, client: ClientConnection) -> None:
        if not client.waits_to_be_read or client.transport.is_closing():
            return
        if client.unflushed:
            client.watch_flush()
            return
        waiting = client.exchange
        if self.turning_away and waiting is not None:
            client.refuse(503, *STOPPED)
            return
        try:
            fd, read = self._relay.take_back(client)
        except OSError:  # no descriptor left
            client.refuse(503, *STOPPED)
            return
        held = Held(fd, read)
        if waiting is not None:
            held = Held(fd, read, tried=waiting.tried, waits_since=waiting.waits_since)
        if not self._may_read():
            self._follow(held)
        elif waiting is not None:
            self._room.postpone(held)
        else:
            self._room.add(held)

    # --- hand-over ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._holding_since = time.monotonic()
        self._turned_away_before = self._turned_away
        super()._start()

    def _turned_away_as_owner(self) -> int:
        return self._turned_away - self._turned_away_before

    def _set_quiesced(self, quiesced: bool) -> None:
        self._room.quiesced = quiesced
        self._relay.look()

    def _may_read(self) -> bool:
        return not self._room.quiesced and self._state.phase is Phase.OWNER

    def _pause(self) -> list[Copy]:
        self._room.watch(False)
        for client in list(self._relay.clients):
            if client.waits_to_be_read and not client.unflushed and not client.transport.is_closing():
                with contextlib.suppress(OSError):  # no descriptor left: it stays, and follows later
                    self._room.hold(Held(*self._relay.take_back(client)))
            else:
                self.settle(client)
        return list(self._room.clients.values())

    def _unpause(self) -> None:
        self._room.watch(True)
        self._room.look_at_carried()
        if self._relay.open:
            self._room.let_in()

    def _left(self) -> None:
        self._room.leave()

    def _hold(self, fd: int, read: bytes) -> None:
        self._room.hold(Held(fd, read))

    def _drop_held(self) -> None:
        self._room.drop()

    def _take(self, fd: int, read: bytes) -> None:
        self._room.add(Held(fd, read))

    def _restore(self, copy: Copy) -> None:
        if copy.fd not in self._room.clients:
            copy.gone = True
            self._take(copy.fd, copy.carried())

    def _held_count(self) -> int:
        return len(self._room.clients)

    def _busy_count(self) -> int:
        return self._relay.building + sum(not (c.gone or c.ending) for c in self._relay.clients)

    # --- the end -----------------------------------------------------------------------------------------------

    def turn_away(self) -> None:
        """Also those who wait."""
        super().turn_away()
        self._relay.turning_away = self._room.turning_away = True
        self._relay.look()
        self._room.turn_away_waiting()

    def stop_accepting(self) -> None:
        """Those who wait here have nobody to wait for."""
        super().stop_accepting()
        self._room.turn_away_waiting()

    async def drain(self, deadline_s: float, and_close: bool = False, upstream: str | None = None) -> DrainReport:
        """Wait for what is in flight: to one engine, or at all. At the deadline an event stream gets an error event, an
        unanswered request a 503, anything else its end. A gate that becomes the owner again meanwhile, or is pointed to
        that engine again, is done with it.
        """
        before, turned_away = self._relay.requests, self._turned_away
        if and_close and self.owner:
            self.turn_away()
        deadline = self._loop.time() + deadline_s
        owned, table = self._state.owned, self._relay.table
        while self._unfinished(upstream) and self._loop.time() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)
            owner_again = upstream is None and not and_close and self._state.owned != owned
            if owner_again or (self._relay.table is not table and self._relay.serves(upstream)):
                return DrainReport(self._relay.requests - before, 0)
        finished = self._relay.requests - before
        cut = self._relay.cut_all(upstream)
        if upstream is None:
            cut += self._turned_away - turned_away
            grace = self._loop.time() + CUT_GRACE_S
            while self._unfinished(None) and self._loop.time() < grace:  # noqa: ASYNC110
                await asyncio.sleep(DRAIN_POLL_S)
        return DrainReport(finished, cut)

    def _unfinished(self, upstream: str | None) -> bool:
        if upstream is not None:
            return self._relay.in_flight(upstream) > 0
        on_their_way = self._giving is not None and bool(self._ready or self._unacknowledged)
        return self._relay.in_flight() > 0 or on_their_way or any(c.unflushed for c in self._relay.clients)

    async def close(self) -> None:
        self.let_go_of_listeners()
        if self.turning_away:
            await asyncio.sleep(LAST_CALL_S)
        await self._room.lingering.finish()
        await super().close()
        self._relay.close()
        self._room.close()
        await self._shadow.close()

    # --- the beat ----------------------------------------------------------------------------------------------

    def _on_beat(self) -> None:
        self._relay.beat()
        self._shadow.beat()
        self._beats += 1
        sweeps = self._beats % BEATS_A_SWEEP == 0
        if sweeps:
            for client in self._relay.sweep(self._keep_alive_s)[:RESTING_A_SWEEP]:
                self.settle(client)
        if not self._may_read():
            return
        self._room.end_waits()
        if sweeps:
            self._room.close_idle(self._keep_alive_s)
        if self._relay.open and self._room.waiting:
            self._room.let_in()

    def stats(self) -> FrontStats:
        state, relay, room = self._state, self._relay, self._room
        mine = state.phase is not Phase.ARMED
        bare, waiting = (len(room.clients), len(room.waiting)) if mine else (0, 0)
        exchanges = relay.exchanges()
        oldest_s = max((relay.now - exchange.began_at for exchange in exchanges), default=0.0)
        idle = sum(client.idle for client in list(relay.clients))
        tunnels = len(relay.tunnels())
        return FrontStats(
            owner=self.owner,
            epoch=state.owned,
            connections=bare + len(relay.clients) + relay.building + tunnels,
            idle=bare - waiting + idle,
            in_flight=len(exchanges),
            streams=sum(exchange.answered for exchange in exchanges),
            upgraded=tunnels,
            held=waiting,
            requests=relay.requests + room.answered,
            cut=self._turned_away + relay.cut,
            oldest_in_flight_s=max(oldest_s, room.oldest_s),
            loop_blocked_s=self._blocked_s(),
            stragglers=self._stragglers() if state.gave else 0,
            quiet_s=None,  # there is no model here: `upstream_stats`
        )

    def log_to(self, access_log: AccessLog | None) -> None:
        """From here on; None: nowhere."""
        self._relay.log_to(access_log)

    @property
    def logs_access(self) -> bool:
        """[any thread]"""
        return self._relay.access_log is not None

    def _log_turned_away(self, seen: bytes, waited_s: float, code: str) -> None:
        if self._relay.access_log is not None:
            self._relay.access_log.note_turned_away(seen, waited_s, code)

    def gate_stats(self, *, windows: bool) -> dict[str, Any]:
        """[any thread] What only a gate has to tell: its table, what is in flight to each engine, who gets how much;
        `windows`: what was measured of each revision, and what came of the copies."""
        measured: dict[str, Any] = {}
        if windows:
            measured = {"windows": self._relay.measure.stats(time.monotonic()), "shadow": self.shadow_stats()}
        return {
            **measured,
            "table_epoch": self.table.epoch,
            "points_to": self.points_to,
            "upstreams": self._relay.upstream_stats(),
            "split": self._relay.chooser.stats(),
            "access_log": self._relay.access_log.stats() if self._relay.access_log is not None else None,
        }

    def shadow_stats(self) -> dict[str, Any] | None:
        """[any thread] What has come of the copies. None: the table names no shadow."""
        return self._shadow.stats()

    @property
    def table(self) -> Table:
        """[any thread]"""
        return self._relay.table

    @property
    def points_to(self) -> str | None:
        """[any thread] Who gets the requests that begin now; None: it holds."""
        table = self._relay.table
        return next((route.worker for route in table.routes if route.weight > 0), None) if table.open else None
