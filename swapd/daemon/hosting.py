"""Where workers live: transient units of systemd where it has started this daemon, plain processes elsewhere.

Chosen once, at start. The two hosts have the same methods; what differs for a worker is decided here: whom it runs as,
and what it may touch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import swapd
from swapd.core.config import ModelConfig
from swapd.core.errors import NOT_SUPPORTED, SwapdError
from swapd.core.launch import NVIDIA, Command, Confinement
from swapd.core.model import DeviceKind, DeviceReading, Kind
from swapd.core.unit_settings import USER, WORKERS_GROUP
from swapd.host.pids import ProcessIdentity
from swapd.host.processes import Supervisor
from swapd.host.units import Units, why_not

log = logging.getLogger("swapd.hosting")

CPU_WEIGHT: Final = 100  # systemd's own default, and so everybody's
CANDIDATE_PART: Final = 5  # what its weight is divided by until it serves: a load must not slow down who serves
CACHE_DIR: Final = "/var/cache/swapd"  # CacheDirectory= of the unit


class WorkerProcess(Protocol):
    """A worker's main process and all that belongs to it."""

    exit_code: int | None

    @property
    def identity(self) -> ProcessIdentity: ...
    @property
    def marker(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def alive(self) -> bool: ...
    @property
    def exit_text(self) -> str: ...
    @property
    def oom_killed(self) -> bool: ...
    async def wait(self) -> int: ...
    async def kill_tree(self, grace_s: float) -> None: ...
    def let_go(self) -> None: ...


class WorkerHost(Protocol):
    """`host.units.Units` or `host.processes.Supervisor`."""

    async def spawn(self, command: Command) -> WorkerProcess: ...
    async def find(self, markers: Collection[str]) -> Mapping[str, WorkerProcess]: ...
    async def pids(self, roots: Mapping[str, int]) -> dict[str, set[int]]: ...
    async def set_limits(
        self, name: str, *, cpu_weight: int | None = None, memory_max_bytes: int | None = None
    ) -> None: ...
    def close(self) -> None: ...


def choose_host(managed: bool) -> WorkerHost:
    """`managed`: a service manager has started this daemon. Needs a running loop."""
    reason = why_not() if managed else "systemd has not started this daemon"
    if reason is None:
        log.info("hosting.units")
        return Units()
    log.info("hosting.processes because=%r", reason)
    supervisor = Supervisor()
    supervisor.become_subreaper()
    return supervisor


def user_of(host: WorkerHost, model: ModelConfig | None, kind: Kind) -> str:
    """Whom a worker runs as from its start; "": as the daemon does, and a server may change to its own user then.

    Raises SwapdError(NOT_SUPPORTED): a model that runs in the worker itself would run as the daemon.
    """
    if not isinstance(host, Units):
        if model is not None and model.user and kind is Kind.DIRECT:
            why = f'user = "{model.user}" of model "{model.name}" needs a swapd that systemd has started, as root'
            raise SwapdError(NOT_SUPPORTED, f"{why}: start swapd.service, or leave the user out")
        return ""
    return model.user if model is not None and model.user else USER


def share(directory: str) -> None:
    """A directory in which workers of different users make files, each its own: /tmp in small."""
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o1777)


def cpu_weight(model: ModelConfig | None, *, serves: bool) -> int:
    full = model.cpu_weight if model is not None and model.cpu_weight is not None else CPU_WEIGHT
    return full if serves else max(1, full // CANDIDATE_PART)


def confine(
    user: str,
    model: ModelConfig | None,
    readings: Sequence[DeviceReading],
    interpreter: str,
    shared: str,
    cap_bytes: int | None = None,
) -> Confinement:
    """What a worker that runs as `user` may touch; of a gate (no model) next to nothing."""
    if model is None:
        return Confinement(user=user, group=WORKERS_GROUP)
    needed = [model.directory, *model.weights, *_prefixes(interpreter), str(Path(swapd.__file__).parent)]
    return Confinement(
        user=user,
        group=WORKERS_GROUP if user == USER else "",
        devices=(NVIDIA,) if any(reading.kind is DeviceKind.NVML for reading in readings) else (),
        read_paths=model.read_paths,
        needed_paths=tuple(dict.fromkeys(path for path in needed if os.path.exists(path))),
        write_paths=(*model.write_paths, shared),
        cache_dir=f"{CACHE_DIR}/{user}",
        memory_max_bytes=_memory_max(model, readings, cap_bytes),
        cpu_weight=cpu_weight(model, serves=False),
    )


def _memory_max(model: ModelConfig, readings: Sequence[DeviceReading], cap_bytes: int | None) -> int | None:
    """What the model's settings say; on the host's own memory no more than its worker may take of the device."""
    on_host = any(reading.kind is DeviceKind.HOST for reading in readings)
    limits = [limit for limit in (model.memory_max_bytes, cap_bytes if on_host else None) if limit is not None]
    return min(limits) if limits else None


def _prefixes(interpreter: str) -> list[str]:
    """Where a Python and its packages lie: its virtual environment, and the installation that this was made from."""
    own = Path(os.path.abspath(interpreter))
    return [str(own.parent.parent), str(own.resolve().parent.parent)]
