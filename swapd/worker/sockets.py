"""Sockets and descriptors of a worker: bound for their owner alone, and never leaked.

Knows nothing of messages. Sources: unix(7), and recvmsg(2) for what arrives beside a message.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from typing import Final

from swapd.core.errors import BAD_REQUEST, SwapdError
from swapd.wire.worker import MAX_FDS

FDS_SPACE: Final = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
HTTP_MODE: Final = 0o666
_PEERCRED: Final = struct.Struct("3i")


class Descriptors:
    """Descriptors that came with a request: whoever takes them owns them, the rest are closed."""

    def __init__(self, ancillary: list[tuple[int, int, bytes]]) -> None:
        self._numbers: list[int] = []
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                received = array.array("i")
                received.frombytes(data[: len(data) - len(data) % received.itemsize])
                self._numbers.extend(received)

    def __len__(self) -> int:
        return len(self._numbers)

    def take_sockets(self) -> list[socket.socket]:
        """All of them as sockets. Raises SwapdError(BAD_REQUEST), and closes all, when one is something else."""
        numbers, self._numbers = self._numbers, []
        sockets: list[socket.socket] = []
        try:
            for number in numbers:
                sockets.append(socket.socket(fileno=number))
        except OSError as error:
            for taken in sockets:
                taken.close()
            self._numbers = numbers[len(sockets) :]
            self.close()
            raise SwapdError(BAD_REQUEST, f"a descriptor is not a socket: {error}") from None
        return sockets

    def take(self) -> list[int]:
        """All of them as they are."""
        numbers, self._numbers = self._numbers, []
        return numbers

    def close(self) -> None:
        numbers, self._numbers = self._numbers, []
        for number in numbers:
            with contextlib.suppress(OSError):
                os.close(number)


def bind_control(path: str, backlog: int) -> socket.socket:
    """A listening SOCK_SEQPACKET socket at `path`, mode 0600 from the moment that it can be connected to.

    Bound under a shorter name beside it and renamed: umask is the whole process's, and a name that exists but
    does not listen yet would refuse the daemon. Raises OSError with the path.
    """
    return _bind(path, socket.SOCK_SEQPACKET, backlog, 0o600)


def bind_http(path: str) -> socket.socket:
    """The private HTTP socket: as `bind_control`, for streams, and for whoever may pass to its directory: the daemon,
    and a gate, which may be of another user."""
    return _bind(path, socket.SOCK_STREAM, 1024, HTTP_MODE)


def _bind(path: str, kind: int, backlog: int, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    temporary = os.path.join(os.path.dirname(path), f".{int(kind)}")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        listener.bind(temporary)
        os.chmod(temporary, mode)
        listener.listen(backlog)
        os.rename(temporary, path)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{path}: {error.strerror or error}") from None
    return listener


def allowed_uids(daemon_uid: int) -> frozenset[int]:
    """Who may speak: root, the daemon, and the worker's own user (an operator's tool under that user)."""
    return frozenset({0, daemon_uid, os.geteuid()})


def peer_of(sock: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the process at the other end, by the kernel's word."""
    pid, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return pid, uid
