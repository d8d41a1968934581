"""Answers requests and publishes events.

Duty: framing, limits, deadlines, who asks, repeated requests. It knows what a request looks like (`wire.control`)
and nothing of what one means: that is the handler's. Everything runs on the event loop's thread and nothing here
waits for a client: one that floods, never reads, or dies costs its own messages only.

Source: docs/control.md for the contract; zmq_socket(7), ROUTER and PUB.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import zmq

from swapd import __version__
from swapd.core import errors
from swapd.core.errors import Problem, SwapdError
from swapd.host.control_socket.endpoint import MAX_CONNECTIONS, Endpoint, check_endpoint, peer_ids
from swapd.host.control_socket.memory import EventRing, Repeats, Users
from swapd.host.deadlines import within
from swapd.wire import control
from swapd.wire.control import Failure, Reply, Request, Success

log = logging.getLogger(__name__)

MAX_IN_FLIGHT: Final = 256  # requests being answered at once, over all clients
MAX_IN_FLIGHT_PER_CLIENT: Final = 32  # so that one client cannot take all of them
MAX_REMEMBERED: Final = 1024  # answers kept for repeated request_ids
MAX_RING_EVENTS: Final = 4096
HANDLER_DEADLINE_S: Final = 30.0
CLOSE_DEADLINE_S: Final = 2.0
ENVELOPE_FRAMES: Final = 8  # a REQ behind so many proxies is still answered


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request, as the kernel knows it. All None where it does not tell."""

    uid: int | None = None
    pid: int | None = None
    user: str | None = None

    def actor(self, added: str | None = None) -> str:
        """For records and logs: `ana`, `ana (deploy-bot)`, `uid 4711`, `unknown`."""
        name = self.user or ("unknown" if self.uid is None else f"uid {self.uid}")
        return f"{name} ({added})" if added else name


Handler = Callable[[str, dict[str, Any], Peer], Awaitable[Any]]


class ControlSocket:
    """`start()` binds both sockets or raises SwapdError(LISTEN_FAILED); afterwards each request is answered in its
    own task by `handler(method, params, peer)`, which returns JSON-encodable values or raises SwapdError.
    `hello` and `events_since` are answered here. All methods belong to the loop's thread."""

    def __init__(
        self,
        control_endpoint: str,
        events_endpoint: str,
        handler: Handler,
        *,
        epoch: int | str,
        handler_deadline_s: float = HANDLER_DEADLINE_S,
        max_connections: int = MAX_CONNECTIONS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._control_endpoint = control_endpoint
        self._events_endpoint = events_endpoint
        self.epoch = epoch
        self._handler = handler
        self._handler_deadline_s = handler_deadline_s
        self._max_connections = max_connections
        self._clock = clock
        self._ring = EventRing(epoch, MAX_RING_EVENTS)
        self._repeats = Repeats(MAX_REMEMBERED)
        self._users = Users()
        self._tasks: set[asyncio.Task[None]] = set()
        self._per_client: dict[bytes, int] = {}
        self._endpoints: list[Endpoint] = []
        self._pub: Endpoint | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    @property
    def listener(self) -> socket.socket | None:
        """The control endpoint's, to be kept for the next daemon: a duplicate, which `close` closes."""
        return self._endpoints[0].listener if self._endpoints else None

    async def start(self, kept: socket.socket | None = None) -> None:
        """`kept`: the `listener` of an earlier daemon, with the clients that wait in it. It becomes ours.

        Raises SwapdError(LISTEN_FAILED), and then leaves nothing behind.
        """
        for endpoint in (self._control_endpoint, self._events_endpoint):
            check_endpoint(endpoint)
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context(io_threads=1)
        try:
            self._router = self._open(zmq.ROUTER, self._control_endpoint, self._on_request, kept)
            self._pub = self._open(zmq.PUB, self._events_endpoint, lambda _: None)
        except BaseException:
            await self.close()
            raise

    def _open(
        self,
        kind: int,
        address: str,
        on_message: Callable[[list[zmq.Frame]], None],
        kept: socket.socket | None = None,
    ) -> Endpoint:
        assert self._context is not None
        endpoint = Endpoint(self._context, kind, address, self._loop, on_message, self._max_connections)
        self._endpoints.append(endpoint)
        endpoint.bind(kept)
        return endpoint

    async def close(self, *, leave: bool = False) -> None:
        """Answers what is in progress, for up to two seconds, sends what is queued, and removes the socket files.

        `leave`: they stay. Whoever asks meanwhile is answered by the next daemon, if that gets `listener`.
        """
        for endpoint in self._endpoints:
            endpoint.stop_reading()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_DEADLINE_S)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=CLOSE_DEADLINE_S)
        self._repeats.close()
        endpoints, self._endpoints, self._pub = self._endpoints, [], None
        for endpoint in endpoints:
            endpoint.close(leave=leave)
        context, self._context = self._context, None
        if context is not None:
            await asyncio.to_thread(context.term)  # off the loop: it waits for LINGER_MS, while answers leave

    # --- events ----------------------------------------------------------------------------------------------

    def publish(self, event: str, body: Mapping[str, Any]) -> None:
        """Sends to every subscriber that keeps up, and keeps it in the ring for the others. Never raises for what
        is in `body`: an event that cannot be told must not stop what it tells of."""
        try:
            message = self._ring.append(event, body, self._clock())
        except (TypeError, ValueError, RecursionError):
            log.exception("control.event_lost event=%s", event)
            return
        if self._pub is not None:
            self._pub.send([event.encode(), message])

    # --- requests --------------------------------------------------------------------------------------------

    def _on_request(self, frames: list[zmq.Frame]) -> None:
        envelope, body = _unwrap(frames)
        if body is None:
            if len(frames) > 2:  # a lone empty frame is a greeting (ZMQ_PROBE_ROUTER): no answer
                self._refuse(envelope, f"one JSON object a message, not {len(frames) - 1} frames")
            return
        request = control.decode_request(body.bytes)
        if isinstance(request, Failure):
            self._reply(envelope, request)
            return
        client = envelope[0]
        mine = self._per_client.get(client, 0)
        if mine >= MAX_IN_FLIGHT_PER_CLIENT or len(self._tasks) >= MAX_IN_FLIGHT:
            whose = "you" if mine >= MAX_IN_FLIGHT_PER_CLIENT else "all clients"
            busy = f"too many requests from {whose} are being answered: nothing was done, ask again in a second"
            self._reply(envelope, control.failure_of(request.id, Problem(errors.BUSY, busy)))
            return
        self._per_client[client] = mine + 1
        task = self._loop.create_task(self._answer(envelope, request, peer_ids(body)))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, client))

    def _done(self, task: asyncio.Task[None], client: bytes) -> None:
        self._tasks.discard(task)
        left = self._per_client[client] - 1
        if left:
            self._per_client[client] = left
        else:
            del self._per_client[client]
        if not task.cancelled() and task.exception() is not None:
            log.error("control.answer_failed", exc_info=task.exception())

    async def _answer(self, envelope: Sequence[bytes], request: Request, ids: tuple[int, int] | None) -> None:
        reply: Reply
        try:
            peer = Peer() if ids is None else Peer(ids[0], ids[1], await self._users.name(ids[0]))
            result = await within(self._handler_deadline_s, self._result(request, peer))
            reply = Success(request.id, result)
        except SwapdError as refused:
            reply = control.failure_of(request.id, refused.problem)
        except (asyncio.TimeoutError, TimeoutError):
            late = f"no answer to {request.method} in {self._handler_deadline_s:g} s; it may be acted on: see status"
            reply = control.failure_of(request.id, Problem(errors.TIMEOUT, late))
        except asyncio.CancelledError:
            stopping = Problem(errors.SHUTTING_DOWN, "swapd is stopping: ask again when it is back")
            self._reply(envelope, control.failure_of(request.id, stopping))
            raise
        except Exception:
            log.exception("control.bug method=%s", request.method)
            reply = control.failure_of(request.id, _bug(request.method))
        self._reply(envelope, reply)

    async def _result(self, request: Request, peer: Peer) -> Any:
        params = dict(request.params)
        if request.method == "hello":
            return self._hello(peer)
        if request.method == "events_since":
            return self._ring.since(params["epoch"], params["seq"], params.get("limit", 1000))
        request_id = params.get("request_id")
        if request_id is None:
            return await self._handler(request.method, params, peer)
        key = (peer.uid, request.method, request_id)
        return await self._repeats.once(key, params, lambda: self._handler(request.method, params, peer))

    def _hello(self, peer: Peer) -> dict[str, Any]:
        return {
            "name": "swapd",
            "version": __version__,
            "protocol": control.PROTOCOL,
            "min_protocol": control.MIN_PROTOCOL,
            "capabilities": [],
            "methods": {name: method.summary for name, method in control.METHODS.items()},
            "pid": os.getpid(),
            "epoch": self.epoch,
            "seq": self._ring.last_seq,
            "events": self._events_endpoint,
            "you": {"uid": peer.uid, "pid": peer.pid, "user": peer.user},
        }

    def _refuse(self, envelope: Sequence[bytes], message: str) -> None:
        problem = Problem(errors.BAD_REQUEST, message)
        self._reply(envelope, Failure(None, control.INVALID_REQUEST, problem))

    def _reply(self, envelope: Sequence[bytes], reply: Reply) -> None:
        try:
            body = control.encode_reply(reply)
            if len(body) > control.MAX_REPLY_BYTES:
                raise ValueError(f"{len(body)} bytes")
        except (TypeError, ValueError, RecursionError):
            log.exception("control.unencodable_answer")
            body = control.encode_reply(control.failure_of(reply.id, _bug("the answer")))
        self._router.send([*envelope, body])


def _unwrap(frames: list[zmq.Frame]) -> tuple[list[bytes], zmq.Frame | None]:
    """(what goes before the answer, the request). A DEALER sends one frame, a REQ an empty one first, and each
    proxy on the way an address more; None when it is none of these."""
    if len(frames) == 2:
        return [frames[0].bytes], frames[1] if len(frames[1]) else None
    if 3 <= len(frames) <= ENVELOPE_FRAMES + 3 and not len(frames[-2]):
        return [frame.bytes for frame in frames[:-1]], frames[-1]
    return [frames[0].bytes], None


def _bug(what: str) -> Problem:
    return Problem(errors.INTERNAL, f"{what} failed by a bug of swapd; its log says more (journalctl -u swapd)")
