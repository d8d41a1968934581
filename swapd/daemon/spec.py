"""What a worker is started with: its directory, its spec.json, its environment.

The spec is the worker's to read. Beside its directory lies the daemon's record of it, ID.json: the same, with `host`,
what the next daemon must know of a worker that it has not started. Not within: under systemd the directory is the
worker's own, and a model's code must not tell a daemon that is root which log to cut. Both are written before the
process is begun, so that no worker is without.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import msgspec

from swapd.core.config import MIB, ModelConfig, ServiceConfig
from swapd.core.model import DeviceKind, DeviceReading, Kind, Revision, Slot, Worker
from swapd.core.presets import Launch, visible_devices

SPEC_FILE: Final = "spec.json"
RECORD_SUFFIX: Final = ".json"
MAX_SPEC_BYTES: Final = 1024 * 1024
RETRY_AFTER_S: Final = 5
# What a worker's environment has besides its model's own: nothing of the daemon's, which may hold secrets.
MPS_LIMIT: Final = "CUDA_MPS_PINNED_DEVICE_MEM_LIMIT"  # of a client of an MPS server; without one it means nothing
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Of one worker, beside what it tells itself."""

    service: str
    kind: Kind
    revision: Revision | None  # None: a gate
    nonce: str
    started_at: float  # wall time
    log_path: str
    slot: Slot | None = None
    made_of: str = ""
    blocked: tuple[str, ...] = ()  # paths that clients may not ask it for
    reuse: bool = True  # its connections may carry one request after the other
    uid: int | None = None  # of the user that its server runs as, where it has one of its own
    own_stop_s: float = 0.0  # that an engine with a server of its own may take to end it


def write_spec(directory: Path, spec: Mapping[str, Any], facts: Facts) -> None:
    """Into a directory of the worker's own, 0700: its sockets are as private as this."""
    directory.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    forget(directory)
    _write(_record(directory), {**spec, "host": msgspec.to_builtins(facts)})
    directory.mkdir(mode=0o700)
    _write(directory / SPEC_FILE, spec)


def _write(path: Path, body: Mapping[str, Any]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(body, file)


def _record(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}{RECORD_SUFFIX}")


def forget(directory: Path) -> None:
    """Of a worker that has ended nothing is left but its log."""
    shutil.rmtree(directory, ignore_errors=True)
    _record(directory).unlink(missing_ok=True)


def recorded(workers: Path) -> list[Path]:
    """The directories of the workers that have a record in this one."""
    records = workers.glob(f"*{RECORD_SUFFIX}")
    return sorted(path.with_name(path.name.removesuffix(RECORD_SUFFIX)) for path in records)


def read_facts(directory: Path) -> Facts:
    """Of a worker that an earlier daemon has started. Raises OSError or ValueError."""
    with _record(directory).open("rb") as file:
        body = msgspec.json.decode(file.read(MAX_SPEC_BYTES))
    try:
        return msgspec.convert(body["host"], Facts)
    except (KeyError, TypeError, msgspec.ValidationError) as error:
        raise ValueError(f"{_record(directory)} is not of this version: {error}") from None


def rename_service(directory: Path, names: Mapping[str, str]) -> None:
    """In the daemon's record of a worker, if its service has got another name. Raises OSError or ValueError."""
    facts, record = read_facts(directory), _record(directory)
    if facts.service not in names:
        return
    name = names[facts.service]
    revision = replace(facts.revision, service=name) if facts.revision is not None else None
    with record.open("rb") as file:
        body = msgspec.json.decode(file.read(MAX_SPEC_BYTES))
    partial = record.with_suffix(".new")
    partial.unlink(missing_ok=True)
    _write(partial, {**body, "host": msgspec.to_builtins(replace(facts, service=name, revision=revision))})
    partial.replace(record)


def gpu_cap(readings: Sequence[DeviceReading], cap_bytes: int | None) -> int:
    """What a worker may take of each of its GPUs at the most; 0: it is not limited, or has none."""
    return cap_bytes or 0 if readings and readings[0].kind is DeviceKind.NVML else 0


def spec_of(
    worker: Worker, service: ServiceConfig, model: ModelConfig | None, nonce: str, gpu_cap_bytes: int = 0
) -> dict[str, Any]:
    return {
        "protocol": 1,
        "worker_id": worker.id,
        "nonce": nonce,
        "kind": worker.kind.value,
        "service": worker.service,
        "revision": worker.revision,
        "model": model.name if model is not None else "",
        "app": model.app if model is not None else "",
        "directory": model.directory if model is not None else "",
        "daemon_uid": os.getuid(),
        "gpu_cap_bytes": gpu_cap_bytes,
        **front_settings(service),
    }


def front_settings(service: ServiceConfig) -> dict[str, Any]:
    """What the front in a worker, or a gate, is started with. A gate of other settings is replaced by a new one."""
    return {
        "health_path": service.health_path,
        "hold_timeout_s": service.hold_timeout_s,
        "queue_limit": service.queue_limit,
        "keep_alive_s": service.keep_alive_s,
        "retry_after_s": RETRY_AFTER_S,
        "trust_forwarded": service.trust_forwarded,
        "tcp": service.protocol == "tcp",
    }


def server_spec(
    model: ModelConfig, launch: Launch, readings: Sequence[DeviceReading], runtime_dir: str, user: str
) -> dict[str, Any]:
    """`user`: whom the server becomes; "": it runs as its runner does."""
    return {
        "argv": launch.argv,
        "device": ",".join(r.uuid for r in readings if r.kind is DeviceKind.NVML) or "cpu",
        "user": user,
        "stop_signal": launch.stop_signal,
        "stop_timeout_s": launch.stop_timeout_s,
        "ready_timeout_s": model.ready.timeout_s,
        "hooks": launch.hooks,
        "ports_dir": ports_dir(runtime_dir),
    }


def ports_dir(runtime_dir: str) -> str:
    """Where workers keep each other off their ports."""
    return f"{runtime_dir}/ports"


def uid_of(user: str) -> int | None:
    """None: there is no such user, which its runner will say."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(user).pw_uid
    return None


def let_pass(directory: Path, top: Path) -> None:
    """Let a server with a user of its own through to its directory. What lies on the way stays closed to it."""
    while directory != top.parent:
        directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXOTH)
        directory = directory.parent


def environment_of(
    model: ModelConfig | None,
    readings: Sequence[DeviceReading],
    launch: Launch | None,
    home: str | None = None,
    cap_bytes: int | None = None,
) -> dict[str, str]:
    """Of the worker. What its model says itself comes last. `home`: of one that runs as another user from its start."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment.setdefault("PATH", os.defpath)
    environment["PYTHONUNBUFFERED"] = "1"
    if home is not None or (model is not None and model.user is not None):
        for name in ("HOME", "XDG_CACHE_HOME"):  # the daemon's
            environment.pop(name, None)
    if home:
        environment["HOME"] = home
    if model is None:
        return environment
    environment |= visible_devices(model, readings)
    if cap := gpu_cap(readings, cap_bytes):
        environment[MPS_LIMIT] = ",".join(f"{number}={-(-cap // MIB)}M" for number in range(len(readings)))
    if launch is not None:
        environment |= launch.environment
    return environment | model.environment
