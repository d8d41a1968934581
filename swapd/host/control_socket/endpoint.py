"""One bound zmq socket on the event loop.

Duty: options, limits, reading and sending without ever waiting, how many are connected, and who a peer is. It knows
nothing of what the messages say.

Source: zmq_setsockopt(7), zmq_getsockopt(7) on ZMQ_FD; unix(7) on SO_PEERCRED.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import zmq

from swapd.core import errors
from swapd.core.errors import SwapdError
from swapd.host.control_socket.socket_file import MAX_PATH_BYTES, SocketFile
from swapd.wire import control

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 512  # per socket
PUMP_MESSAGES: Final = 64  # read in one turn of the loop, before others get theirs
RECEIVE_MESSAGES: Final = 16  # queued unread per client: with MAX_REQUEST_BYTES, 16 MiB
SEND_MESSAGES: Final = 64  # answers queued for a client that does not read; the next are dropped
EVENT_MESSAGES: Final = 4096  # events queued for a subscriber that does not read; as many as the ring can repeat
MAX_SUBSCRIPTION_BYTES: Final = 4096
HANDSHAKE_MS: Final = 5000
LINGER_MS: Final = 250


class Endpoint:
    """A bound zmq socket on the loop.

    zmq's descriptor is edge-triggered and shared by both directions: after it fires, read until there is nothing,
    and look again after each send, which may have used up the edge.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        address: str,
        loop: asyncio.AbstractEventLoop,
        on_message: Callable[[list[zmq.Frame]], None],
        max_connections: int,
    ) -> None:
        self.address = address
        self._loop = loop
        self._on_message = on_message
        self._file: SocketFile | None = None
        self.listener: socket.socket | None = None  # a duplicate of what zmq has
        self._reading = False
        self._pump_due = False
        self._socket = context.socket(kind)
        for option, value in (
            (zmq.LINGER, LINGER_MS),
            (zmq.MAXMSGSIZE, MAX_SUBSCRIPTION_BYTES if kind == zmq.PUB else control.MAX_REQUEST_BYTES),
            (zmq.RCVHWM, RECEIVE_MESSAGES),
            (zmq.SNDHWM, EVENT_MESSAGES if kind == zmq.PUB else SEND_MESSAGES),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
        ):
            self._socket.setsockopt(option, value)
        if kind == zmq.ROUTER:
            self._socket.setsockopt(zmq.ROUTER_MANDATORY, 0)  # a client that is gone or does not read loses its answer
            self._socket.setsockopt(zmq.ROUTER_HANDOVER, 0)  # nobody takes over another's identity, and its answers
        # Never near the limit of descriptors, of which two endpoints, the journal and the workers take their part.
        self._max_connections = min(max_connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        self._connections: set[int] = set()
        self._monitor: zmq.Socket[bytes] | None = None

    def bind(self, kept: socket.socket | None = None) -> None:
        """`kept`: the listener of an earlier daemon, which becomes ours. Raises SwapdError(LISTEN_FAILED)."""
        self._file = SocketFile(self.address[len("ipc://") :])
        watched = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
        self._monitor = self._socket.get_monitor_socket(watched)
        self._loop.add_reader(_number(self._monitor, zmq.FD), self._on_connections)
        self._on_connections()  # the descriptor stays silent until what is there at first has been looked at
        # Bound by us, so that its mode is right from the first instant; libzmq owns this duplicate.
        descriptor = self._file.adopt(kept) if kept is not None else None
        if kept is not None and descriptor is None:
            kept.close()
        if kept is None or descriptor is None:
            descriptor = self._file.bind()
            kept = socket.socket(fileno=os.dup(descriptor))
        self.listener = kept
        self._socket.setsockopt(zmq.USE_FD, descriptor)
        try:
            self._socket.bind(self.address)
        except zmq.ZMQError as failed:
            raise SwapdError(errors.LISTEN_FAILED, f"cannot listen on {self.address}: {failed.strerror}") from None
        self._reading = True
        self._loop.add_reader(_number(self._socket, zmq.FD), self._pump)
        self._schedule_pump()

    def send(self, frames: Sequence[bytes]) -> None:
        """Never waits: what does not fit is dropped, as both kinds of socket do by themselves."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        if self._reading and _number(self._socket, zmq.EVENTS) & zmq.POLLIN:
            self._schedule_pump()

    def _schedule_pump(self) -> None:
        if not self._pump_due:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        for _ in range(PUMP_MESSAGES):
            # EVENTS also works off commands of the I/O thread: on a PUB that is how subscriptions arrive.
            if not self._reading or not _number(self._socket, zmq.EVENTS) & zmq.POLLIN:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:
                return
            self._on_message(frames)
        self._schedule_pump()

    def _on_connections(self) -> None:
        """Counts connections, and takes the socket file out of sight while there are too many: libzmq aborts the
        process when accept() finds no free descriptor (ipc_listener.cpp; pyzmq #1591), so that one monitoring
        script that leaks its sockets would end the daemon."""
        monitor = self._monitor
        while monitor is not None and _number(monitor, zmq.EVENTS) & zmq.POLLIN:
            head, *_ = monitor.recv_multipart(zmq.NOBLOCK)
            event, descriptor = struct.unpack("=HI", head)
            if event == zmq.EVENT_ACCEPTED:
                self._connections.add(descriptor)
            else:
                self._connections.discard(descriptor)
        count = len(self._connections)
        if self._file is None:
            return
        if count >= self._max_connections and not self._file.hidden:
            pid, holds = _busiest(self._connections)
            log.warning("control.full endpoint=%s connections=%d pid=%d holds=%d", self.address, count, pid, holds)
            self._file.hide()
        elif self._file.hidden and count <= self._max_connections * 3 // 4:
            log.warning("control.open endpoint=%s connections=%d", self.address, count)
            self._file.show()

    def stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(_number(self._socket, zmq.FD))

    def close(self, *, leave: bool = False) -> None:
        """`leave`: the file stays, for clients to wait there for the next daemon."""
        self.stop_reading()
        if self._monitor is not None:
            self._loop.remove_reader(_number(self._monitor, zmq.FD))
            self._socket.disable_monitor()
            self._monitor.close(linger=0)  # disable_monitor only forgets it, and an open socket holds up the context
            self._monitor = None
        if self._file is not None and not leave:
            self._file.remove()
        if self.listener is not None:
            self.listener.close()
        self._socket.close()


def check_endpoint(endpoint: str) -> None:
    """Raises SwapdError(LISTEN_FAILED): an endpoint that cannot be bound, or must not."""
    scheme, separator, address = endpoint.partition("://")
    if scheme == "ipc" and separator:
        if not address.startswith("/"):
            # "@name" has no file, so no permission either: anybody on the host could give orders.
            raise SwapdError(
                errors.LISTEN_FAILED, f"{endpoint}: expected an absolute path, as in ipc:///run/swapd/x.sock"
            )
        length = len(os.fsencode(address))
        if length > MAX_PATH_BYTES:
            raise SwapdError(
                errors.LISTEN_FAILED, f"{endpoint}: the path has {length} bytes, {MAX_PATH_BYTES} are possible"
            )
    else:
        raise SwapdError(errors.LISTEN_FAILED, f"{endpoint}: expected ipc:///path")


def peer_ids(frame: zmq.Frame) -> tuple[int, int] | None:
    """(uid, pid) by SO_PEERCRED. libzmq keeps what it saw when it accepted, as `localhost:uid:gid:pid`; the
    descriptor (SRCFD) is the second choice, because it may belong to somebody else by now."""
    with contextlib.suppress(zmq.ZMQError, ValueError, AttributeError):
        _, uid, _, pid = str(frame.get("Peer-Address")).split(":")
        return int(uid), int(pid)
    with contextlib.suppress(zmq.ZMQError, OSError, TypeError, ValueError):
        return _credentials(int(frame.get(zmq.SRCFD)))
    return None


def _credentials(descriptor: int) -> tuple[int, int] | None:
    """(uid, pid) at the other end. Raises OSError."""
    with socket.socket(fileno=os.dup(descriptor)) as peer:
        if peer.family != socket.AF_UNIX:
            return None
        pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return uid, pid


def _busiest(descriptors: set[int]) -> tuple[int, int]:
    """(pid, connections) of the process that holds the most: for the log, so that somebody can end it."""
    pids: Counter[int] = Counter()
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            ids = _credentials(descriptor)
            if ids is not None:
                pids[ids[1]] += 1
    return pids.most_common(1)[0] if pids else (0, 0)


def _number(socket_: zmq.Socket[bytes], option: int) -> int:
    value = socket_.getsockopt(option)
    assert isinstance(value, int)
    return value
