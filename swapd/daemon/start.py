"""What a daemon does before its first worker: directories, locks, the leftovers of a dead daemon, listeners."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from swapd.core.config import Config
from swapd.core.errors import CONFIG_INVALID, LISTEN_FAILED, Problem, SwapdError
from swapd.host import listeners as listening
from swapd.host.processes import kill_leftovers

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


async def end_leftovers(directory: Path) -> None:
    """End the workers of a daemon that died: nobody speaks to them any more, and they hold the addresses."""
    for spec in await asyncio.to_thread(lambda: list(directory.glob("*/spec.json"))):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(spec.read_text())
            log.warning("daemon.leftover worker=%s", told["worker_id"])
            await kill_leftovers(f"{told['worker_id']}:{told['nonce']}")
        shutil.rmtree(spec.parent, ignore_errors=True)


def bind_all(config: Config, inherited: Mapping[str, socket.socket]) -> dict[str, dict[str, socket.socket]]:
    """Every listener, bound once: taken from systemd when a socket unit of that name passed it, else by us.

    Several addresses may be in use: all of them are named.
    """
    bound: dict[str, dict[str, socket.socket]] = {}
    problems: list[Problem] = []
    for name, service in config.services.items():
        bound[name] = {}
        for number, address in enumerate(service.listen):
            key = name if number == 0 else f"{name}-{number + 1}"
            try:
                bound[name][address] = inherited[key] if key in inherited else listening.bind(address)
            except SwapdError as error:
                problems.append(error.problem)
    if problems:
        for socks in bound.values():
            for sock in socks.values():
                listening.unbind(sock)
        raise SwapdError(LISTEN_FAILED, "\nswapd: ".join(p.message for p in problems))
    return bound
