"""A port of 127.0.0.1 for a server that cannot listen on a Unix socket, and the proof that it has it.

Duty: choose outside the range that the kernel gives to clients, keep other workers off by a lock, see that nobody
listens, and tell afterwards whether who does listen is one of the given processes. Between the look and the server's
own bind anybody may take the port: only the look afterwards decides. Sources: ip_sysctl.rst (ip_local_port_range),
proc_pid_net(5), flock(2).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
from collections.abc import Collection, Iterator
from typing import Final

FIRST, LAST = 20_000, 65_535  # below that are ports that people know by heart
_LISTEN: Final = "0A"
# As /proc/net writes the addresses whose listeners get what is sent to 127.0.0.1: itself, any, and the same in IPv6.
_REACHING: Final = frozenset(
    {"0100007F", "00000000", "00000000000000000000000000000000", "0000000000000000FFFF00000100007F"}
)


class Port:
    """One port, kept for this process until `release`, or its end."""

    def __init__(self, number: int, lock_fd: int) -> None:
        self.number = number
        self._lock_fd = lock_fd

    def release(self) -> None:
        os.close(self._lock_fd)


def reserve(directory: str) -> Port | None:
    """A port that no other worker with this `directory` has, and that nobody listens on now. None: there is none."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    for number in _candidates():
        try:
            lock_fd = os.open(os.path.join(directory, str(number)), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError:  # of a worker that runs as another user
            continue
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _bind(number)
        except OSError:
            os.close(lock_fd)
            continue
        return Port(number, lock_fd)
    return None


def listens_for(port: int, pids: Collection[int]) -> bool | None:
    """Whether it is only these processes that listen where clients of 127.0.0.1 arrive; None: nobody does."""
    inodes = set(_listeners(port))
    if not inodes:
        return None
    for pid in pids:
        inodes -= set(_sockets_of(pid))
    return not inodes


def _candidates() -> Iterator[int]:
    kept = {number for low, high in _ranges("ip_local_reserved_ports") for number in range(low, high + 1)}
    clients = _ranges("ip_local_port_range")
    outside = [n for n in range(FIRST, LAST + 1) if not any(low <= n <= high for low, high in clients)]
    numbers = [number for number in outside or range(FIRST, LAST + 1) if number not in kept]
    random.shuffle(numbers)
    yield from numbers


def _ranges(name: str) -> list[tuple[int, int]]:
    """`32768 60999`, or `8080,9000-9100`."""
    found = []
    with contextlib.suppress(OSError, ValueError), open(f"/proc/sys/net/ipv4/{name}", encoding="ascii") as file:
        for word in "-".join(file.read().split()).split(","):
            low, _, high = word.partition("-")
            found.append((int(low), int(high or low)))
    return found


def _bind(number: int) -> None:
    """Raises OSError when somebody listens there."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: TIME_WAIT does not count
        probe.bind(("127.0.0.1", number))


def _listeners(port: int) -> Iterator[str]:
    """The inodes of the listening sockets that a connection to 127.0.0.1:`port` may reach."""
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/self/net/{name}", encoding="ascii") as file:
            for line in file.readlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].partition(":")
                if fields[3] == _LISTEN and int(number, 16) == port and address in _REACHING:
                    yield fields[9]


def _sockets_of(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{name}")
                if target.startswith("socket:["):
                    yield target[len("socket:[") : -1]
