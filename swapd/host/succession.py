"""A daemon that makes way for the next in its own process: the same pid, the same children, the code of now.

Duty: exec, and what outlives it: descriptors, and the signals that come meanwhile. Where a service manager starts the
daemon, that does it. May not know: what the descriptors are for. Source: execve(2), signal(7).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Final, NoReturn

from swapd.core.errors import CONFIG_INVALID, SwapdError

VARIABLE: Final = "SWAPD_LISTENERS"  # JSON: name to descriptor
REHEARSAL_S: Final = 30.0
_HELD: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)  # each would end a process that does not await it

_early: Final[list[int]] = []


def command() -> list[str]:
    """How this process was started. A script is run anew by its own first line: it may be of another version by now."""
    if sys.argv and os.path.isfile(sys.argv[0]) and os.access(sys.argv[0], os.X_OK) and sys.argv[0][-3:] != ".py":
        return [os.path.abspath(sys.argv[0]), *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


async def rehearse(config_file: str) -> None:
    """Whether a successor could start: it is asked to check the configuration, and the journal's version with it.
    Raises SwapdError(CONFIG_INVALID)."""
    argv = command()
    head = argv[: len(argv) - len(sys.argv) + 1]  # without the arguments of this run
    try:
        done = await asyncio.to_thread(
            subprocess.run,
            [*head, "--check-config", config_file],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=REHEARSAL_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise SwapdError(CONFIG_INVALID, f"a successor could not be started: {error}") from None
    if done.returncode != 0:
        said = " ".join((done.stdout + done.stderr).split())[-500:]
        raise SwapdError(CONFIG_INVALID, f"a successor would not start: {said}")


def hold_signals() -> None:
    """From here on they wait for the successor: a pending signal outlives exec, and so does its being blocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


def note_signals() -> None:
    """Of a process that starts: what comes from now on, or has been held, is only noted. Before any thread is made."""
    for number in _HELD:
        signal.signal(number, lambda number, _: _early.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def repeat_signals() -> None:
    """What was noted comes again, to whoever handles it now."""
    while _early:
        os.kill(os.getpid(), _early.pop(0))


def succeed(listeners: Mapping[str, int]) -> NoReturn:
    """Become the successor. Takes over the descriptors. Raises OSError."""
    for number in listeners.values():
        os.set_inheritable(number, True)
    argv = command()
    os.execve(argv[0], argv, {**os.environ, VARIABLE: json.dumps(listeners)})


def inherited_listeners() -> dict[str, socket.socket]:
    """What a predecessor in this process has passed on, by name; taken once."""
    found = {}
    for name, number in json.loads(os.environ.pop(VARIABLE, "{}")).items():
        sock = socket.socket(fileno=number)
        sock.set_inheritable(False)
        sock.setblocking(False)
        found[name] = sock
    return found
