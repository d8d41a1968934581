"""The daemon's end of the channel to one worker or gate: requests with deadlines over a SOCK_SEQPACKET socket.

Duty: connect, say hello, match replies to requests, pass descriptors along, report events and the end. May not
know: what a verb means beyond `hello`. `wire.worker` has the encoding. Source: unix(7), SCM_RIGHTS in cmsg(3).

The worker binds the socket itself, so SO_PEERCRED here names the worker. Nothing that it sends can do more harm
than close this channel: a message over the limit, or one that is not of the protocol, ends it with the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from swapd.core.errors import BAD_REQUEST, TIMEOUT, VERSION_MISMATCH, WORKER_EXITED, SwapdError
from swapd.host.deadlines import within
from swapd.wire import worker as wire

_RETRY_FIRST_S: Final = 0.005  # a gate binds its socket some 50 ms after the spawn, a model's interpreter much later
_RETRY_MAX_S: Final = 0.1
# Connecting again may help: nothing is there yet, nobody listens yet, or its queue is full for the moment.
_NOT_YET: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED, errno.EAGAIN, errno.EPIPE, errno.ECONNRESET})
_MAX_EARLY_EVENTS: Final = 256
_UCRED: Final = struct.Struct("3i")

_log = logging.getLogger("swapd.worker_channel")


@dataclass(frozen=True, slots=True)
class PeerCredentials:
    """Who called listen() on the other end, by the kernel's word."""

    pid: int
    uid: int
    gid: int


@dataclass(eq=False, slots=True)
class _Outgoing:
    """One message that waits for room in the socket's buffer."""

    data: bytes
    fds: Sequence[int]
    reply: asyncio.Future[Mapping[str, Any]]


class WorkerChannel:
    """One connection to one worker. Made by `connect`; `close` it in the end. Belongs to the loop's thread."""

    def __init__(self, sock: socket.socket, worker_id: str) -> None:
        """Takes over `sock`, a connected non-blocking SOCK_SEQPACKET socket; `connect` makes one."""
        self.worker_id: Final = worker_id
        self.closed: Final = asyncio.Event()
        self.closed_because = ""
        self.broke_protocol = False
        self._on_event: Callable[[str, Mapping[str, Any]], None] | None = None
        self._early: deque[wire.WorkerEvent] = deque(maxlen=_MAX_EARLY_EVENTS)
        pid, uid, gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        self.peer: Final = PeerCredentials(pid, uid, gid)
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._last_id = 0
        self._pending: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._outgoing: deque[_Outgoing] = deque()
        self._loop.add_reader(self._fd, self._on_readable)

    @classmethod
    async def connect(
        cls, path: str, *, worker_id: str, deadline_s: float, alive: Callable[[], bool]
    ) -> tuple[WorkerChannel, Mapping[str, Any]]:
        """Connects, trying again until the worker's socket is there, and says hello. Returns its answer as
        well.

        Raises SwapdError: WORKER_EXITED when `alive` says no, or another worker answers; TIMEOUT at the
        deadline; VERSION_MISMATCH when neither side speaks the other's protocol.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + deadline_s
        pause_s = _RETRY_FIRST_S
        why = "its control socket is not there"
        while True:
            if not alive():
                raise SwapdError(WORKER_EXITED, f"{worker_id} ended before it answered on its control socket")
            if loop.time() >= until_s:
                message = f"{worker_id} did not answer on its control socket within {deadline_s:g} s: {why}"
                raise SwapdError(TIMEOUT, message, {"verb": wire.HELLO, "deadline_s": deadline_s})
            try:
                channel = cls(_open(path), worker_id)
            except OSError as error:
                if error.errno not in _NOT_YET:
                    text = error.strerror or str(error)
                    raise SwapdError(WORKER_EXITED, f"cannot connect to {worker_id} at {path}: {text}") from None
                why = f"connecting to it says: {error.strerror}"
            else:
                try:
                    return channel, await channel._greet(until_s - loop.time())
                except SwapdError as error:
                    channel.close()
                    if error.code not in (WORKER_EXITED, TIMEOUT) or channel.broke_protocol:
                        raise
                    why = "it accepts, but does not say hello"
                except BaseException:
                    channel.close()
                    raise
            await asyncio.sleep(min(pause_s, max(until_s - loop.time(), 0)))
            pause_s = min(pause_s * 2, _RETRY_MAX_S)

    @property
    def on_event(self) -> Callable[[str, Mapping[str, Any]], None] | None:
        """Called with the name and the parameters of each event, in order.

        A worker repeats after hello what it has missed to say, so events may come before `connect` has returned:
        they wait, and are delivered when this is set.
        """
        return self._on_event

    @on_event.setter
    def on_event(self, handler: Callable[[str, Mapping[str, Any]], None]) -> None:
        self._on_event = handler
        while self._early:
            self._deliver(self._early.popleft())

    async def request(
        self, verb: str, params: Mapping[str, Any] | None = None, *, fds: Sequence[int] = (), deadline_s: float
    ) -> Mapping[str, Any]:
        """Sends one request and waits for its reply. `fds` stay the caller's: the worker gets duplicates.

        Raises SwapdError: the worker's own error as it came, TIMEOUT (the worker may still act on it; its late
        reply is dropped), WORKER_EXITED when the channel breaks, BAD_REQUEST when the message cannot be sent at
        all.
        """
        if self.closed.is_set():
            raise self._gone(verb)
        number = next(self._ids)
        try:
            data = wire.encode(wire.Request(number, verb, params or {}))
        except wire.WireError as error:
            raise SwapdError(BAD_REQUEST, f"{verb} to {self.worker_id} cannot be sent: {error}") from None
        if len(fds) > wire.MAX_FDS:
            message = f"{verb} to {self.worker_id} cannot be sent: {len(fds)} descriptors, at most {wire.MAX_FDS}"
            raise SwapdError(BAD_REQUEST, message)
        self._last_id = number
        reply: asyncio.Future[Mapping[str, Any]] = self._loop.create_future()
        reply.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, also if nobody waits
        self._pending[number] = reply
        outgoing = _Outgoing(data, tuple(fds), reply)
        self._outgoing.append(outgoing)
        try:
            self._flush()
            return await within(deadline_s, reply)
        except asyncio.TimeoutError:
            unsent = (
                "; it was not even sent: the worker does not read its channel" if outgoing in self._outgoing else ""
            )
            message = f"{self.worker_id} did not answer {verb!r} within {deadline_s:g} s{unsent}"
            raise SwapdError(TIMEOUT, message, {"verb": verb, "deadline_s": deadline_s}) from None
        except _Closed:
            raise self._gone(verb) from None
        finally:
            del self._pending[number]
            with contextlib.suppress(ValueError):
                self._outgoing.remove(outgoing)  # the caller may now close its descriptors

    def close(self) -> None:
        """Ends the connection from our side; what is pending fails with WORKER_EXITED. May be called again."""
        self._end("the daemon closed the channel")

    # --- hello ---------------------------------------------------------------------------------------------

    async def _greet(self, deadline_s: float) -> Mapping[str, Any]:
        versions = {"protocol": wire.PROTOCOL, "min_protocol": wire.MIN_PROTOCOL}
        hello = await self.request(
            wire.HELLO, {**versions, "worker_id": self.worker_id}, deadline_s=max(deadline_s, 0.001)
        )
        theirs, oldest = hello.get("protocol"), hello.get("min_protocol")
        if not isinstance(theirs, int) or not isinstance(oldest, int):
            self._break("its hello names no protocol")
            raise self._gone(wire.HELLO)
        hooks = hello.get("hooks", [])
        if not isinstance(hooks, list) or not all(isinstance(hook, str) for hook in hooks):
            self._break("the hooks in its hello are not a list of names")
            raise self._gone(wire.HELLO)
        if theirs < wire.MIN_PROTOCOL or oldest > wire.PROTOCOL:
            raise SwapdError(
                VERSION_MISMATCH,
                f"{self.worker_id} speaks worker protocol {oldest} to {theirs}, this daemon"
                f" {wire.MIN_PROTOCOL} to {wire.PROTOCOL}: restart the service, so that"
                " its worker runs this version of swapd",
                {"theirs": [oldest, theirs], "ours": [wire.MIN_PROTOCOL, wire.PROTOCOL]},
            )
        if hello.get("worker_id") != self.worker_id:
            self._break(f"{hello.get('worker_id')!r:.64} answers on its socket")
            raise self._gone(wire.HELLO)
        return hello

    # --- bytes ---------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        while self._outgoing:
            outgoing = self._outgoing[0]
            try:
                socket.send_fds(self._sock, [outgoing.data], outgoing.fds, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._fd, self._flush)
                return
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:  # the kernel's bound on descriptors in flight: room comes
                    self._loop.call_later(_RETRY_FIRST_S, self._flush_again)
                    return
                if error.errno != errno.EBADF:
                    self._on_readable()  # what it said before it went
                    self._end(f"sending to it failed: {error.strerror}")
                    return
                if not outgoing.reply.done():  # a descriptor that the caller has closed
                    message = f"a request to {self.worker_id} cannot be sent: {error.strerror}"
                    outgoing.reply.set_exception(SwapdError(BAD_REQUEST, message))
            self._outgoing.popleft()
        self._loop.remove_writer(self._fd)

    def _flush_again(self) -> None:
        if not self.closed.is_set():
            self._flush()

    def _on_readable(self) -> None:
        # A bounded number a turn: a worker that floods its channel must not take the daemon's loop for itself.
        for _ in range(16):
            try:
                data, _ancillary, flags, _address = self._sock.recvmsg(wire.MAX_MESSAGE_BYTES + 1)
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionResetError:
                continue  # it closed with a request of ours unread; what it sent before that comes after this error
            except OSError as error:
                self._end(f"reading from it failed: {error.strerror}")
                return
            if not data:
                self._end("the worker closed it")
                return
            try:
                if flags & socket.MSG_TRUNC:
                    raise wire.WireError(f"a message is over the limit of {wire.MAX_MESSAGE_BYTES} bytes")
                self._take(wire.decode(data))
            except wire.WireError as error:
                self._break(f"the worker broke the protocol: {error}")
            if self.closed.is_set():
                return

    def _take(self, message: wire.Message) -> None:
        if isinstance(message, wire.WorkerEvent):
            self._deliver(message)
        elif isinstance(message, wire.Request):
            raise wire.WireError("a worker does not send requests")
        elif not 0 < message.re <= self._last_id:
            raise wire.WireError(f"a reply to request {message.re}, which was never sent")
        else:
            reply = self._pending.get(message.re)
            if reply is None or reply.done():  # came after its deadline
                return
            if message.error is not None:
                reply.set_exception(SwapdError.of(message.error))
            else:
                reply.set_result(message.ok or {})

    def _deliver(self, event: wire.WorkerEvent) -> None:
        if self._on_event is None:
            self._early.append(event)
            return
        try:
            self._on_event(event.name, event.params)
        except Exception:
            _log.exception("worker_channel.event_failed worker=%s event=%s", self.worker_id, event.name)

    # --- the end -------------------------------------------------------------------------------------------

    def _break(self, why: str) -> None:
        self.broke_protocol = True
        self._end(why)

    def _end(self, why: str) -> None:
        if self.closed.is_set():
            return
        self.closed_because = why
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        self.closed.set()
        for reply in self._pending.values():
            if not reply.done():
                reply.set_exception(_Closed())

    def _gone(self, verb: str) -> SwapdError:
        message = f"{self.worker_id} is gone ({verb!r} was not answered): {self.closed_because}"
        return SwapdError(WORKER_EXITED, message, {"verb": verb})


class _Closed(Exception):
    """The channel ended while a request was pending."""


def _open(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # AF_UNIX connects at once or not at all: EAGAIN means that the queue is full.
        sock.connect(os.fspath(path))
    except BaseException:
        sock.close()
        raise
    return sock
