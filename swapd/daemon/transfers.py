"""Who owns the clients: the daemon's part of each transfer. It introduces two fronts, and hears what came of it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from swapd.core import errors
from swapd.core.config import ServiceConfig
from swapd.core.delivery import Delivery
from swapd.core.errors import SwapdError
from swapd.core.model import Op, OpKind
from swapd.daemon.live import Live
from swapd.daemon.tables import table
from swapd.wire import worker as wire

HELLO: Final = {"protocol": wire.PROTOCOL, "min_protocol": wire.MIN_PROTOCOL}
REQUEST_S: Final = 5.0  # for verbs that only change who does what
BLOCKED_LOOP_S: Final = 1.0  # on top of hand_over_timeout: a source whose loop is blocked hands over its listeners
BLOCKED_LIMIT_S: Final = 60.0  # a proved worker that is told to take the clients while its model blocks its loop


class Transfers:
    def __init__(
        self,
        live: Callable[[str], Live],
        listeners: Mapping[str, Mapping[str, socket.socket]],
        patience_s: Callable[[], float],
        settings: Callable[[str], tuple[Delivery | None, ServiceConfig]],
    ) -> None:
        self._live = live  # raises WORKER_EXITED for one that is gone
        self._listeners = listeners
        self._patience_s = patience_s
        self._settings = settings  # of a service: how its swap proves the candidate, and what is configured

    @property
    def methods(self) -> Mapping[OpKind, Callable[[Op], Awaitable[Mapping[str, Any]]]]:
        return {
            OpKind.ADOPT: self.adopt,
            OpKind.HAND_OVER: self.hand_over,
            OpKind.POINT: self.point,
            OpKind.SOURCE_DEAD: self.source_dead,
            OpKind.TARGET_DEAD: self.target_dead,
            OpKind.SUCCESSOR: self.successor,
        }

    async def adopt(self, op: Op) -> Mapping[str, Any]:
        listeners = self._listeners[op.service]
        result = await _patiently(
            self._live(op.worker),
            "adopt",
            {"epoch": op.epoch, "listeners": list(listeners)},
            fds=tuple(sock.fileno() for sock in listeners.values()),
            deadline_s=self._patience_s(),
        )
        return {**result, "listeners": list(listeners)}

    async def hand_over(self, op: Op) -> Mapping[str, Any]:
        """Introduce the two by a socketpair; from then on they need no daemon.

        HAND_OVER_FAILED: the source serves on. TIMEOUT: it is open who does, until one of the two is dead.
        """
        assert op.target is not None
        source = self._live(op.worker)
        deadline_s = self._patience_s()
        try:
            target = self._live(op.target)
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except (SwapdError, OSError) as error:
            raise SwapdError(errors.HAND_OVER_FAILED, f"{op.target} cannot be handed to: {error}") from None
        with ours, theirs:
            try:
                await target.request("receive", {"epoch": op.epoch}, fds=(theirs.fileno(),), deadline_s=deadline_s)
            except SwapdError as error:
                text = f"{op.target} does not take the clients: {error.message}"
                raise SwapdError(errors.HAND_OVER_FAILED, text) from None
            theirs.close()
            params = {"epoch": op.epoch, "deadline_s": deadline_s}
            patience_s = 2 * deadline_s + BLOCKED_LOOP_S
            try:
                return await source.request("hand_over", params, fds=(ours.fileno(),), deadline_s=patience_s)
            except SwapdError as error:
                if error.code in (errors.TIMEOUT, errors.WORKER_EXITED, errors.HAND_OVER_FAILED):
                    raise
                raise SwapdError(errors.HAND_OVER_FAILED, error.message) from None  # it was refused, not begun

    async def point(self, op: Op) -> Mapping[str, Any]:
        """Replace the gate's table. A target that has died since is told by itself: until then the clients wait."""
        gate = self._live(op.worker)
        main, other = (self._route(gate, name) for name in (op.target, op.split.worker if op.split else None))
        params = table(op, main, other, *self._settings(op.service))
        return await gate.request("point", params, deadline_s=REQUEST_S)

    def _route(self, gate: Live, worker_id: str | None) -> dict[str, Any] | None:
        try:
            worker = self._live(worker_id or "")
        except SwapdError:
            return None
        gate.upstreams.add(worker.id)
        return worker.route

    async def successor(self, op: Op) -> Mapping[str, Any]:
        assert op.target is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            params = {"epoch": op.epoch}
            await self._live(op.target).request("receive", params, fds=(theirs.fileno(),), deadline_s=REQUEST_S)
            return await self._live(op.worker).request("successor", params, fds=(ours.fileno(),), deadline_s=REQUEST_S)

    async def source_dead(self, op: Op) -> Mapping[str, Any]:
        params = {"epoch": op.epoch}
        return await _patiently(self._live(op.worker), "source_dead", params, deadline_s=REQUEST_S)

    async def target_dead(self, op: Op) -> Mapping[str, Any]:
        params = {"epoch": op.epoch}
        return await _patiently(self._live(op.worker), "target_dead", params, deadline_s=REQUEST_S)


async def _patiently(
    live: Live, verb: str, params: Mapping[str, Any], *, fds: tuple[int, ...] = (), deadline_s: float
) -> Mapping[str, Any]:
    """A request for the worker's loop. One that the model blocks is late, not dead: its channel tells the two apart."""
    request = asyncio.ensure_future(live.request(verb, params, fds=fds, deadline_s=BLOCKED_LIMIT_S))
    try:
        while not (await asyncio.wait({request}, timeout=deadline_s))[0]:
            await live.request("stats", deadline_s=deadline_s)
        return request.result()
    finally:
        request.cancel()
