"""The worker's end of the control channel: a thread of its own, so that a model which blocks the event loop
neither looks dead nor stalls a hand-over.

Owns control.sock and its connections: who may speak (SO_PEERCRED), `hello` first, message bounds, descriptors
that nobody took. Knows nothing of what the verbs do: a `Handler` is called on this thread, and may reply from
any. Every helloed connection is served alike, for a restarted daemon comes back while the kernel still closes
its predecessor's connection; past MAX_LINKS the oldest is closed, so that the newest always gets in.
Sources: unix(7), recvmsg(2); the listener is this process's own, because SO_PEERCRED names who called listen().
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

from swapd.core.errors import BAD_REQUEST, INTERNAL, VERSION_MISMATCH, Problem, SwapdError
from swapd.wire import worker as wire
from swapd.worker.sockets import FDS_SPACE, Descriptors, peer_of

log = logging.getLogger("swapd.worker.channel")

MAX_LINKS: Final = 8
MAX_PENDING_REQUESTS: Final = 64  # of one connection; the daemon has one or two under way
MAX_OUTBOX: Final = 256  # messages that wait for a peer who does not read
ACCEPT_PAUSE_S: Final = 0.5  # when the process is out of descriptors


class Link:
    """One connection of a daemon. Its fields belong to the channel's thread."""

    __slots__ = ("greeted", "outbox", "peer_pid", "pending", "sock")

    def __init__(self, sock: socket.socket, peer_pid: int) -> None:
        self.sock = sock
        self.peer_pid = peer_pid
        self.greeted = False
        self.pending = 0
        self.outbox: deque[bytes] = deque()


class Handler(Protocol):
    """What the channel calls, always on its own thread."""

    def hello(self) -> Mapping[str, Any]: ...

    def greeted(self, link: Link) -> None:
        """After the reply to a hello: say what this connection has missed."""

    def request(self, link: Link, request: wire.Request, fds: Descriptors) -> None:
        """Take the descriptors that are wanted, reply now or later with `Channel.reply`. SwapdError replies."""

    def lost(self, link: Link) -> None: ...


def hello_problem(params: Mapping[str, Any], worker_id: str) -> Problem | None:
    """Why this hello is not accepted."""
    for key in ("protocol", "min_protocol"):
        value = params.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            return Problem(BAD_REQUEST, f"hello: {key} must be an integer")
    if params["min_protocol"] > wire.PROTOCOL or params["protocol"] < wire.MIN_PROTOCOL:
        theirs = f"{params['min_protocol']} to {params['protocol']}"
        ours = {"protocol": wire.PROTOCOL, "min_protocol": wire.MIN_PROTOCOL}
        text = f"the daemon speaks protocol {theirs}, this worker {wire.MIN_PROTOCOL} to {wire.PROTOCOL}"
        return Problem(VERSION_MISMATCH, f"{text}; swap to a worker of the daemon's version", ours)
    if params.get("worker_id") != worker_id:
        return Problem(BAD_REQUEST, f"this is worker {worker_id}, not {params.get('worker_id')}")
    return None


class Channel:
    """The thread. `start` it, `reply` and `broadcast` from any thread, `close` it at the end."""

    def __init__(self, listener: socket.socket, worker_id: str, allowed: Collection[int], handler: Handler) -> None:
        self._listener = listener
        self._worker_id = worker_id
        self._allowed_uids = frozenset(allowed)
        self._handler = handler
        self._selector = selectors.DefaultSelector()
        self._links: dict[Link, None] = {}  # in order of arrival
        self._calls: deque[Callable[[], None]] = deque()  # from other threads; deque's ends are atomic
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_ids = itertools.count()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="swapd-channel", daemon=True)

    # --- from any thread ---

    def start(self) -> None:
        self._thread.start()

    def call(self, function: Callable[[], None]) -> None:
        """Run `function` on the channel's thread, soon."""
        self._calls.append(function)
        with contextlib.suppress(BlockingIOError, OSError):  # full: it is awake anyway; closed: nothing to do
            self._wake_out.send(b"\0")

    def reply(self, link: Link, re: int, result: Mapping[str, Any] | Problem) -> None:
        """Answer one request. A link that is gone swallows it."""
        self.call(lambda: self._reply(link, re, result))

    def broadcast(self, event: wire.WorkerEvent, *, may_be_lost: bool = False) -> None:
        """Tell every helloed connection. `may_be_lost`: drop it rather than the peer when the peer is slow."""
        self.call(lambda: self._broadcast(event, may_be_lost))

    def close(self, timeout_s: float = 1.0) -> None:
        """Send what is still in the outboxes, then close all. Returns after at most `timeout_s`."""
        self.call(self._begin_close)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    # --- on the channel's thread ---

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._timer_ids), function))

    def send(self, link: Link, event: wire.WorkerEvent) -> None:
        self._post(link, wire.encode(event))

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._drain_wakes)
        while not self._closing:
            timeout_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
            for key, events in self._selector.select(timeout_s):
                if isinstance(key.data, Link):
                    self._serve(key.data, events)
                else:
                    key.data()
            self._run_calls()
        for link in list(self._links):
            self._drop(link)
        for sock in (self._listener, self._wake_in, self._wake_out):
            sock.close()
        self._selector.close()

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)

    def _run_calls(self) -> None:
        while self._timers and self._timers[0][0] <= time.monotonic():
            self._guarded(heapq.heappop(self._timers)[2])
        while self._calls:
            self._guarded(self._calls.popleft())

    def _guarded(self, function: Callable[[], None]) -> None:
        try:
            function()
        except Exception:  # a bug, but one that must not take the worker's voice away
            log.exception("worker.channel_bug")

    def _begin_close(self) -> None:
        for link in list(self._links):
            self._flush(link)
        self._closing = True

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:  # out of descriptors: without a pause this would spin
            log.warning("worker.accept_failed error=%s", error)
            self._selector.unregister(self._listener)
            self.call_later(
                ACCEPT_PAUSE_S,
                lambda: (self._selector.register(self._listener, selectors.EVENT_READ, self._accept), None)[1],
            )
            return
        sock.setblocking(False)
        pid, uid = peer_of(sock)
        if uid not in self._allowed_uids:
            log.warning("worker.peer_refused pid=%d uid=%d", pid, uid)
            sock.close()
            return
        while len(self._links) >= MAX_LINKS:
            self._drop(next(iter(self._links)))
        link = Link(sock, pid)
        self._links[link] = None
        self._selector.register(sock, selectors.EVENT_READ, link)

    def _serve(self, link: Link, events: int) -> None:
        if link not in self._links:  # dropped earlier in the same round
            return
        if events & selectors.EVENT_WRITE:
            self._flush(link)
        if events & selectors.EVENT_READ and link in self._links:
            self._receive(link)

    def _receive(self, link: Link) -> None:
        try:
            data, ancillary, flags, _ = link.sock.recvmsg(wire.MAX_MESSAGE_BYTES, FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            self._drop(link)
            return
        fds = Descriptors(ancillary)
        try:
            if not data:
                self._drop(link)
            elif flags & socket.MSG_TRUNC:
                raise wire.WireError(f"a message over the limit of {wire.MAX_MESSAGE_BYTES} bytes")
            else:
                self._dispatch(link, wire.decode(data), fds, lost_fds=bool(flags & socket.MSG_CTRUNC))
        except wire.WireError as error:
            log.warning("worker.bad_message pid=%d error=%s", link.peer_pid, error)
            self._drop(link)
        finally:
            fds.close()

    def _dispatch(self, link: Link, message: wire.Message, fds: Descriptors, lost_fds: bool) -> None:
        if not isinstance(message, wire.Request):
            raise wire.WireError("only requests come from the daemon")
        link.pending += 1
        try:
            if lost_fds:
                text = f"only {len(fds)} of the descriptors arrived: raise the worker's limit of open files"
                raise SwapdError(INTERNAL, f"{text} (LimitNOFILE=)")
            if message.verb == wire.HELLO:
                self._hello(link, message)
            elif not link.greeted:
                raise SwapdError(BAD_REQUEST, f"{message.verb}: say hello first")
            elif link.pending > MAX_PENDING_REQUESTS:
                raise SwapdError(BAD_REQUEST, f"more than {MAX_PENDING_REQUESTS} requests wait for their reply")
            else:
                self._handler.request(link, message, fds)
        except SwapdError as error:
            self._reply(link, message.id, error.problem)
        except Exception as error:
            log.exception("worker.request_bug verb=%s", message.verb)
            text = f"a bug in swapd's worker: {type(error).__name__}: {error}"
            self._reply(link, message.id, Problem(INTERNAL, text))

    def _hello(self, link: Link, request: wire.Request) -> None:
        problem = hello_problem(request.params, self._worker_id)
        if problem is not None:
            raise SwapdError.of(problem)
        self._reply(link, request.id, self._handler.hello())
        link.greeted = True
        self._handler.greeted(link)

    def _reply(self, link: Link, re: int, result: Mapping[str, Any] | Problem) -> None:
        link.pending -= 1
        if isinstance(result, Problem):
            self._post(link, encode_error(re, result))
        else:
            self._post(link, wire.encode(wire.Reply(re, ok=result)))

    def _broadcast(self, event: wire.WorkerEvent, may_be_lost: bool) -> None:
        data = wire.encode(event)
        for link in list(self._links):
            if link.greeted and not (may_be_lost and link.outbox):
                self._post(link, data)

    def _post(self, link: Link, data: bytes) -> None:
        if link not in self._links:
            return
        if len(link.outbox) >= MAX_OUTBOX:
            log.warning("worker.slow_peer pid=%d", link.peer_pid)
            self._drop(link)
            return
        link.outbox.append(data)
        self._flush(link)

    def _flush(self, link: Link) -> None:
        try:
            while link.outbox:
                link.sock.send(link.outbox[0], socket.MSG_NOSIGNAL)
                link.outbox.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._drop(link)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.outbox else 0)
        self._selector.modify(link.sock, wanted, link)

    def _drop(self, link: Link) -> None:
        if link not in self._links:
            return
        del self._links[link]
        self._selector.unregister(link.sock)
        link.sock.close()
        link.outbox.clear()
        self._guarded(lambda: self._handler.lost(link))


def encode_error(re: int, problem: Problem) -> bytes:
    """An error reply that always fits: what is too long is cut, never lost."""
    cut = Problem(problem.code, problem.message[:8000], problem.details)
    try:
        return wire.encode(wire.Reply(re, error=cut))
    except wire.WireError:
        return wire.encode(wire.Reply(re, error=Problem(cut.code, cut.message)))
