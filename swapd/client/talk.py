"""The conversation with the daemon, as steps that never wait by themselves (see `waiting`).

Duty: one request and its answer, what became of a swap, the events without gaps. May not know whether it runs in
a thread or on a loop.

Source: docs/control.md; the ZeroMQ guide, chapter 4, "lazy pirate": a socket that got no answer is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, Final

import zmq

from swapd.client.failures import DaemonUnreachable, SwapFailed, diagnose, no_endpoint
from swapd.client.waiting import Event, Steps, Wait
from swapd.core import errors
from swapd.core.errors import SwapdError
from swapd.wire import control
from swapd.wire.control import Failure, WireError

DEADLINE_S: Final = 35.0  # longer than the daemon gives itself (30 s), so that its own word comes first
AT_ONCE_S: Final = 0.1  # a daemon that is there is connected within a millisecond
LOOK_S: Final = 0.25  # how often a call that waits looks whether the connection still stands
IDLE_S: Final = 1.0  # after so long without an event, ask whether one was missed
PATIENCE_S: Final = 60.0  # how long a wait for a swap outlasts an absent daemon

OnEvent = Callable[[Event], None]


class Talk:
    """The conversation, in steps. It never waits by itself."""

    def __init__(self, endpoint: str, connect_s: float) -> None:
        self._endpoint = endpoint
        self._connect_s = connect_s
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._idle: list[zmq.Socket[bytes]] = []  # connected, and owed no answer
        self._last_id = 0

    def close(self) -> None:
        self._context.destroy(linger=0)

    # --- one request ---------------------------------------------------------------------------------------------

    def call(self, method: str, params: Mapping[str, Any], deadline_s: float) -> Steps[Any]:
        """The result. Raises SwapdError, or DaemonUnreachable. A request that only reads is asked again when the
        daemon was restarted meanwhile; one that acts is not, because it may have been acted on."""
        end = time.monotonic() + deadline_s
        acts = method in control.METHODS and control.METHODS[method].acts
        while True:
            client = self._reusable() or (yield from self._connected(end))
            sent = answered = False
            try:
                self._last_id += 1
                request_id = self._last_id
                client.send(control.encode_request(request_id, method, params), zmq.NOBLOCK)
                sent = True
                reply = yield from self._reply(client, request_id, end)
                answered = reply is not None
            except zmq.Again:
                reply = None  # the connection broke just now: nothing was sent
            finally:
                # After an answer it can be used again; else one may still come, for nobody.
                if answered:
                    self._idle.append(client)
                else:
                    client.close(linger=0)
            if isinstance(reply, Failure):
                problem = reply.problem
                raise SwapdError(problem.code, problem.message, problem.details)
            if reply is not None:
                return reply.result
            if time.monotonic() >= end:
                raise DaemonUnreachable(
                    f"swapd at {self._endpoint} took the request and did not answer in {deadline_s:g} s"
                    + ("; it may be acted on: ask for the status" if acts else "")
                )
            if acts and sent:
                raise DaemonUnreachable(
                    f"swapd at {self._endpoint} went away before it answered; it may have acted: ask for the status"
                )

    def _reusable(self) -> zmq.Socket[bytes] | None:
        while self._idle:
            client = self._idle.pop()
            if _ready(client, zmq.POLLOUT):
                return client
            client.close(linger=0)
        return None

    def _connected(self, end: float) -> Steps[zmq.Socket[bytes]]:
        """Raises DaemonUnreachable, with the reason: zmq itself only ever goes on trying."""
        patience_end = min(end, time.monotonic() + self._connect_s)
        pause_s = AT_ONCE_S
        while True:
            client = self._connect()
            found = False
            try:
                left = max(0.0, patience_end - time.monotonic())
                found = bool((yield Wait(client, zmq.POLLOUT, min(pause_s, left))))
                if found:
                    return client
            finally:
                if not found:
                    client.close(linger=0)
            trouble = diagnose(self._endpoint)
            if time.monotonic() >= patience_end or (trouble is not None and trouble.final):
                silent = f"{self._endpoint} is open, but nobody there speaks as swapd does"
                raise DaemonUnreachable(trouble.message if trouble else silent, {"endpoint": self._endpoint})
            pause_s *= 2  # on a host under load, the next attempt gets the time that this one lacked

    def _connect(self) -> zmq.Socket[bytes]:
        client: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        # One socket, one connection: writable only while it stands, and when it breaks that is seen. With zmq's own
        # reconnecting, a request that went down with a daemon would be waited for to the end.
        client.setsockopt(zmq.IMMEDIATE, 1)
        client.setsockopt(zmq.RECONNECT_IVL, -1)
        client.setsockopt(zmq.MAXMSGSIZE, control.MAX_REPLY_BYTES)
        try:
            client.connect(self._endpoint)
        except zmq.ZMQError:
            client.close()
            raise DaemonUnreachable(no_endpoint(self._endpoint)) from None
        return client

    def _reply(self, client: zmq.Socket[bytes], request_id: int, end: float) -> Steps[control.Reply | None]:
        """None when the time is over or the connection gone."""
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return None
            if not (yield Wait(client, zmq.POLLIN, min(LOOK_S, left))):
                if not _ready(client, zmq.POLLOUT):
                    return None
                continue
            try:
                reply = control.decode_reply(client.recv_multipart(zmq.NOBLOCK)[-1])
            except zmq.Again:
                continue
            except WireError as broken:
                raise SwapdError(errors.INTERNAL, f"{self._endpoint} answers as swapd does not: {broken}") from None
            if reply.id == request_id or (isinstance(reply, Failure) and reply.id is None):
                return reply

    # --- waiting for a swap --------------------------------------------------------------------------------------

    def act(
        self, method: str, params: Mapping[str, Any], deadline_s: float | None, on_event: OnEvent | None
    ) -> Steps[Any]:
        started = time.monotonic()
        call_s = least(deadline_s, DEADLINE_S)
        hello = yield from self.call("hello", {}, call_s)  # first: no event of this swap may be missed
        record = yield from self.call(method, params, call_s)
        left = None if deadline_s is None else max(0.0, deadline_s - (time.monotonic() - started))
        # Asked for within the soak, a return answers with the swap that it undoes: canceled is what was wanted.
        returned = record["phase"] in ("RollingBack", "Canceled")
        since = (hello["epoch"], hello["seq"])
        record = yield from self.wait_swap(record["id"], left, on_event, since)
        well = record["phase"] in control.PHASES_WELL or (returned and record["phase"] == "Canceled")
        if not well and record["phase"] != "Paused":
            raise SwapFailed(record)
        return record

    def wait_swap(
        self,
        swap_id: int,
        deadline_s: float | None,
        on_event: OnEvent | None,
        since: tuple[int | str, int] | None = None,
    ) -> Steps[Any]:
        end = None if deadline_s is None else time.monotonic() + deadline_s
        if since is None:
            hello = yield from self.call("hello", {}, least(deadline_s, DEADLINE_S))
            since = (hello["epoch"], hello["seq"])
        record = yield from self.call("show", {"id": swap_id}, DEADLINE_S)
        events = self.events(since, PATIENCE_S, end)
        try:
            answer: int | None = None
            while record["phase"] not in control.PHASES_AT_REST:
                item = next(events) if answer is None else events.send(answer)
                answer = None
                if isinstance(item, Wait):
                    answer = yield item
                    continue
                if item.get("swap_id") == swap_id and on_event is not None:
                    on_event(item)
                if _may_end(item, swap_id):
                    record = yield from self.call("show", {"id": swap_id}, DEADLINE_S)
        except StopIteration:
            message = f"swap {swap_id} is not finished after {deadline_s:g} s; it goes on"
            raise SwapdError(errors.TIMEOUT, message, {"id": swap_id}) from None
        finally:
            events.close()
        return record

    # --- events --------------------------------------------------------------------------------------------------

    def events(
        self, since: tuple[int | str, int] | None, patience_s: float | None, end: float | None = None
    ) -> Generator[Wait | Event, int, None]:
        """Each event once and in order; returns at `end`. See `Client.events`."""
        subscriber: zmq.Socket[bytes] | None = None
        cursor = _Cursor(*since) if since is not None else None
        absent_since: float | None = None
        try:
            while end is None or time.monotonic() < end:
                try:
                    if subscriber is None:
                        hello = yield from self.call("hello", {}, _until(end, DEADLINE_S))
                        subscriber = self._subscribe(hello["events"])
                        cursor = cursor or _Cursor(hello["epoch"], hello["seq"])
                    assert cursor is not None
                    # The memory first: what happened before the subscription took hold is in there.
                    more = True
                    while more:
                        params = {"epoch": cursor.epoch, "seq": cursor.seq}
                        found = yield from self.call("events_since", params, _until(end, DEADLINE_S))
                        more = bool(found["more"])
                        yield from cursor.fill(found)
                    absent_since = None
                except SwapdError as absent:
                    if absent.code not in (errors.DAEMON_UNREACHABLE, errors.SHUTTING_DOWN, errors.BUSY):
                        raise
                    absent_since = absent_since or time.monotonic()
                    if patience_s is not None and time.monotonic() - absent_since > patience_s:
                        raise
                    if subscriber is not None and absent.code == errors.DAEMON_UNREACHABLE:
                        subscriber.close(linger=0)  # it may come back with its events elsewhere
                        subscriber = None
                    yield Wait(None, 0, _until(end, LOOK_S))
                    continue
                while (yield Wait(subscriber, zmq.POLLIN, _until(end, IDLE_S))):
                    if not (yield from self._take(subscriber, cursor)):
                        break  # a gap: back to the memory
        finally:
            if subscriber is not None:
                subscriber.close(linger=0)

    def _subscribe(self, address: str) -> zmq.Socket[bytes]:
        subscriber: zmq.Socket[bytes] = self._context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.LINGER, 0)
        subscriber.subscribe(b"")  # everything: with a filter, every event left out would look like a gap
        subscriber.connect(address)
        return subscriber

    def _take(self, subscriber: zmq.Socket[bytes], cursor: _Cursor) -> Generator[Event, int, bool]:
        """False at a gap."""
        try:
            event = control.decode_event(subscriber.recv_multipart(zmq.NOBLOCK)[-1])
        except (zmq.Again, WireError):
            return True
        if event["epoch"] != cursor.epoch or event["seq"] > cursor.seq + 1:
            return False
        if event["seq"] == cursor.seq + 1:
            cursor.seq += 1
            yield event
        return True


class _Cursor:
    """Up to where the events have been told."""

    def __init__(self, epoch: int | str, seq: int) -> None:
        self.epoch = epoch
        self.seq = seq

    def fill(self, found: Mapping[str, Any]) -> Generator[Event, int, None]:
        """What the daemon remembers, with a word where it was restarted or does not reach back far enough."""
        if found["epoch"] != self.epoch:
            self.epoch, self.seq = found["epoch"], 0
            yield {"event": "events.restarted", "epoch": self.epoch, "seq": 0}
        if found["lost"]:
            yield {"event": "events.lost", "epoch": self.epoch, "seq": self.seq + found["lost"], "count": found["lost"]}
        for event in found["events"]:
            if event["seq"] > self.seq:
                self.seq = event["seq"]
                yield event
        self.seq = max(self.seq, found["seq"])


# --- small parts -------------------------------------------------------------------------------------------------


def least(deadline_s: float | None, at_most_s: float) -> float:
    return at_most_s if deadline_s is None else min(deadline_s, at_most_s)


def _may_end(event: Event, swap_id: int) -> bool:
    if event["event"] in ("events.restarted", "events.lost"):
        return True
    if event.get("swap_id") != swap_id:
        return False
    return event["event"] == "swap.finished" or event.get("phase") in control.PHASES_AT_REST


def _until(end: float | None, at_most_s: float) -> float:
    return at_most_s if end is None else max(0.0, min(at_most_s, end - time.monotonic()))


def _ready(client: zmq.Socket[bytes], flag: int) -> bool:
    ready = client.getsockopt(zmq.EVENTS)
    assert isinstance(ready, int)
    return bool(ready & flag)
