"""Calls of systemd-run and systemctl, each with a deadline, none through a shell; and the cgroups that systemd keeps.

As root both speak to systemd's own socket, so no D-Bus daemon is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from swapd.core.errors import SPAWN_FAILED, TIMEOUT, SwapdError
from swapd.core.unit_settings import OLDEST_SYSTEMD, SHOWN, UnitState, parse_show
from swapd.host.deadlines import within

CALL_DEADLINE_S: Final = 30.0  # systemd answers in milliseconds; while it reloads a big host, in seconds
_CGROUP_ROOTS: Final = tuple(map(Path, ("/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified", "/sys/fs/cgroup")))
_NOT_LOADED: Final = 5  # exit status of systemctl: there is no such unit (any more)


def why_not() -> str | None:
    """Why workers cannot be services of systemd here; None: they can. Blocks for some milliseconds."""
    if os.geteuid() != 0:
        return "swapd does not run as root"
    if not os.path.isdir("/run/systemd/system"):  # sd_booted(3)
        return "systemd does not run this host"
    try:
        done = subprocess.run(
            ["systemctl", "--version"], env=_environment(), capture_output=True, text=True, timeout=CALL_DEADLINE_S
        )
        version = int(done.stdout.split()[1])
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
        return f"systemctl does not tell its version: {error}"
    return None if version >= OLDEST_SYSTEMD else f"systemd {version} is older than {OLDEST_SYSTEMD}"


def missing_controllers() -> tuple[str, ...]:
    """Which of "cpu" and "memory" no limit can be set by on this host."""
    with contextlib.suppress(OSError):
        there = Path("/sys/fs/cgroup/cgroup.controllers").read_text(encoding="ascii").split()
        return tuple(name for name in ("cpu", "memory") if name not in there)
    return tuple(name for name in ("cpu", "memory") if not Path("/sys/fs/cgroup", name).is_dir())  # version 1


class Systemd:
    """The system's manager. Raises SwapdError: TIMEOUT, or SPAWN_FAILED with what systemd says."""

    def __init__(self) -> None:
        self._asked: dict[str, asyncio.Future[UnitState]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def run(self, unit: str, slice_name: str, properties: Iterable[str], argv: Sequence[str]) -> str:
        """Starts a service, and returns once it executes its command. What systemd-run has said against it, or ""."""
        options = [f"--property={each}" for each in properties]
        call = ["systemd-run", "--quiet", f"--slice={slice_name}", f"--unit={unit}", *options, "--", *argv]
        status, said = await _call(call)
        return (said or f"exit status {status}") if status else ""

    async def state(self, unit: str) -> UnitState:
        """What is asked for within one turn of the loop is asked of systemd in one call."""
        answer = self._asked.get(unit)
        if answer is None:
            answer = self._asked[unit] = asyncio.get_running_loop().create_future()
            if self._asking is None:
                self._asking = asyncio.get_running_loop().create_task(self._ask())
        return await asyncio.shield(answer)

    async def states(self, pattern: str) -> list[UnitState]:
        """Of every unit that systemd has in memory."""
        return await self._show(["--all", "--", pattern])

    async def _show(self, which: Sequence[str]) -> list[UnitState]:
        status, said = await _call(["systemctl", "show", f"--property={','.join(SHOWN)}", *which])
        if status:
            raise SwapdError(SPAWN_FAILED, f"systemctl show failed: {said.strip()[:500] or f'status {status}'}")
        return parse_show(said)

    async def _ask(self) -> None:
        await asyncio.sleep(0)
        asked, self._asked, self._asking = self._asked, {}, None
        try:
            states = await self._show(["--", *asked])
        except Exception as error:
            for answer in asked.values():
                answer.set_exception(error)
                answer.exception()  # whoever asked may have been cancelled
        else:
            for answer, state in zip(asked.values(), states, strict=True):
                answer.set_result(state)

    async def signal(self, unit: str, whom: str, number: signal.Signals) -> None:
        """To its "main" process, or to "all" of its cgroup. None left is no error."""
        await _call(["systemctl", "kill", f"--kill-who={whom}", f"--signal={number.name}", "--", unit])

    async def stop(self, unit: str, deadline_s: float = CALL_DEADLINE_S) -> None:
        """Returns when nothing of it runs, as far as systemd knows."""
        # In the order of units a worker ends after the daemon, and so this would wait for the end of a daemon that is
        # being stopped, and waits for it.
        status, said = await _call(["systemctl", "stop", "--job-mode=ignore-dependencies", "--", unit], deadline_s)
        if status not in (0, _NOT_LOADED):
            raise SwapdError(SPAWN_FAILED, f"systemd does not stop {unit}: {said.strip()}")

    async def forget(self, unit: str) -> None:
        """Whatever is kept of a unit that has failed: its name is free again."""
        await _call(["systemctl", "reset-failed", "--", unit])

    async def set_properties(self, unit: str, properties: Sequence[str]) -> None:
        """Until the unit ends."""
        status, said = await _call(["systemctl", "set-property", "--runtime", "--", unit, *properties])
        if status:
            raise SwapdError(SPAWN_FAILED, f"systemd does not set {', '.join(properties)} of {unit}: {said.strip()}")


def cgroup_pids(cgroup: str) -> set[int]:
    """Every process in it and below, as /proc numbers them. Blocks."""
    found: set[int] = set()
    for root in _CGROUP_ROOTS:
        directory = root / cgroup.lstrip("/")
        if cgroup and directory.is_dir():
            for path, _, _ in os.walk(directory):
                with contextlib.suppress(OSError):
                    found.update(map(int, Path(path, "cgroup.procs").read_text(encoding="ascii").split()))
            break
    return found


async def _call(argv: Sequence[str], deadline_s: float = CALL_DEADLINE_S) -> tuple[int, str]:
    """(exit status, what it has said). Raises SwapdError(TIMEOUT)."""
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=_environment(),
        )
    except OSError as error:
        raise SwapdError(SPAWN_FAILED, f"cannot start {argv[0]}: {error.strerror}") from None
    try:
        said, _ = await within(deadline_s, process.communicate())
    except asyncio.TimeoutError:
        raise SwapdError(TIMEOUT, f"{argv[0]} {argv[1]} did not return in {deadline_s:g} s") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return process.returncode or 0, said.decode("utf-8", "replace")


def _environment() -> dict[str, str]:
    """Nothing of the daemon's own; and systemd's words are in English, whatever the host speaks."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
