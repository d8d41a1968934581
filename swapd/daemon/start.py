"""What a daemon does before its first worker: directories, locks, listeners."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from swapd.core.config import Config
from swapd.core.errors import CONFIG_INVALID, LISTEN_FAILED, Problem, SwapdError
from swapd.host import listeners as listening

log = logging.getLogger("swapd")

DIRECTORIES: Final = ("runtime_dir", "state_dir")
FORBIDDEN: Final = (errno.EACCES, errno.EPERM)


def make_directories(config: Config) -> None:
    for key in DIRECTORIES:
        path = getattr(config.daemon, key)
        try:
            os.makedirs(path, mode=0o750, exist_ok=True)
        except OSError as error:
            cure = f"write another daemon.{key} in {config.file}"
            if error.errno in FORBIDDEN:
                cure += ", or run swapd as a user that may make it"
            raise SwapdError(CONFIG_INVALID, f"{path} cannot be made: {error.strerror}; {cure}.") from None


@contextlib.contextmanager
def only_one(config: Config) -> Iterator[None]:
    """No other daemon has these directories: it would take our workers for leftovers, or write our journal.

    The directories themselves are locked: a file in them might be tidied away. The lock ends with its last
    descriptor, so also with a SIGKILL, and no worker gets one (close-on-exec).
    """
    locked = set()
    with contextlib.ExitStack() as stack:
        for key in DIRECTORIES:
            path = getattr(config.daemon, key)
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
                found = os.fstat(descriptor)
                if (found.st_dev, found.st_ino) not in locked:  # one directory may be both
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked.add((found.st_dev, found.st_ino))
            except BlockingIOError:
                cure = f"stop it, or write another daemon.{key} in {config.file}"
                raise SwapdError(LISTEN_FAILED, f'Another swapd runs with {key} = "{path}": {cure}.') from None
            except OSError as error:
                cure = "run swapd as the user that owns it" if error.errno in FORBIDDEN else f"write another {key}"
                raise SwapdError(CONFIG_INVALID, f"{path} cannot be locked: {error.strerror}; {cure}.") from None
        yield


def bind_all(
    config: Config,
    given: Mapping[str, socket.socket],
    kept: Mapping[str, socket.socket],
    lent: Mapping[str, socket.socket],
) -> dict[str, dict[str, socket.socket]]:
    """Every listener, bound once, by whomever: `given` ones by a socket unit, by the name of the service; `kept` ones
    by an earlier daemon, perhaps under another name; `lent` ones, by address, come from the workers of an earlier
    daemon. Only an address that nobody has is bound by us.

    Several addresses may be in use: all of them are named.
    """
    bound: dict[str, dict[str, socket.socket]] = {}
    problems: list[Problem] = []
    new: list[socket.socket] = []
    for name, service in config.services.items():
        bound[name] = {}
        for number, address in enumerate(service.listen):
            key = _key(name, number)
            try:
                sock = _given(given, key, address) or _kept(kept, key, address) or _kept(lent, address, address)
                if sock is None:
                    sock = listening.bind(address)
                    new.append(sock)
                bound[name][address] = sock
            except SwapdError as error:
                problems.append(error.problem)
    used = [sock for socks in bound.values() for sock in socks.values()]
    for sock in (*kept.values(), *lent.values()):
        if sock not in used and not _same_as_one(sock, used):  # nobody's address any more
            listening.unbind(sock)
        elif sock not in used:
            sock.close()
    if problems:
        for sock in new:
            listening.unbind(sock)
        raise SwapdError(LISTEN_FAILED, "\nswapd: ".join(p.message for p in problems))
    return bound


def _given(given: Mapping[str, socket.socket], key: str, address: str) -> socket.socket | None:
    sock = given.get(key)
    if sock is not None and not listening.is_at(sock, address):
        where = sock.getsockname()
        raise SwapdError(
            LISTEN_FAILED,
            f'the socket unit with FileDescriptorName={key} listens on {where}, and the service on "{address}": '
            "write the same address in both",
        )
    return sock


def _kept(kept: Mapping[str, socket.socket], key: str, address: str) -> socket.socket | None:
    first = [kept[key]] if key in kept else []
    return next((sock for sock in (*first, *kept.values()) if listening.is_at(sock, address)), None)


def _same_as_one(sock: socket.socket, others: Collection[socket.socket]) -> bool:
    """Another duplicate of one of them: its file must stay."""
    return any(sock.family == other.family and sock.getsockname() == other.getsockname() for other in others)


def listener_names(config: Config, bound: Mapping[str, Mapping[str, socket.socket]]) -> dict[str, socket.socket]:
    """Every listener under the name that it is inherited by."""
    return {
        _key(name, number): bound[name][address]
        for name, service in config.services.items()
        for number, address in enumerate(service.listen)
        if address in bound.get(name, {})
    }


def _key(service: str, number: int) -> str:
    return service if number == 0 else f"{service}-{number + 1}"
