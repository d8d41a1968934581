"""What one worker is told before it starts: `spec.json` in its directory, written by the daemon.

Unknown keys are ignored, so that a newer daemon can spawn an older worker's code. Knows nothing of what the
values are used for.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from swapd.core.errors import BAD_REQUEST, SwapdError

PROTOCOL: Final = 1
SPEC_NAME: Final = "spec.json"
CONTROL_NAME: Final = "control.sock"
HTTP_NAME: Final = "http.sock"
MAX_SPEC_BYTES: Final = 1024 * 1024
KINDS: Final = ("asgi", "gate", "engine")
ENGINE_SOCKET: Final = "engine/http.sock"  # of a server that swapd has not written, in a directory of its own


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """The server that a worker of kind "engine" runs."""

    argv: tuple[str, ...]  # {socket}, {port} and {device} are filled in
    socket: str  # what {socket} stands for, in a directory of the server's own
    device: str
    user: str  # "": the daemon's
    stop_signal: str  # "SIGTERM"
    stop_timeout_s: float  # from the signal until the whole tree is killed
    ready_timeout_s: float
    hooks: Mapping[str, str]  # "park" and "wake": what is POSTed to it
    ports_dir: str  # where workers keep each other off their ports


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """The worker's identity, its model, and the settings of its front."""

    worker_dir: str  # absolute
    worker_id: str
    nonce: str
    kind: str  # "asgi" | "gate" | "engine"
    service: str
    revision: int
    model: str
    app: str
    directory: str  # the model's cwd and import path; "" leaves the cwd as it is
    health_path: str
    daemon_uid: int
    hold_timeout_s: float
    queue_limit: int
    keep_alive_s: float
    retry_after_s: int
    trust_forwarded: bool = False  # a gate: what stands before us may say where requests came from
    tcp: bool = False  # a gate: bytes are relayed, whatever they mean
    server: ServerSpec | None = None  # of kind "engine"
    gpu_cap_bytes: int = 0  # what it may take of its GPU at the most; 0: not limited

    @property
    def control_path(self) -> str:
        return os.path.join(self.worker_dir, CONTROL_NAME)

    @property
    def http_path(self) -> str:
        return os.path.join(self.worker_dir, HTTP_NAME)

    @property
    def is_gate(self) -> bool:
        return self.kind == "gate"


def read_spec(worker_dir: str) -> WorkerSpec:
    """The spec in `worker_dir`. Raises SwapdError(BAD_REQUEST) naming the file and what is wrong in it."""
    path = Path(worker_dir).absolute() / SPEC_NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SPEC_BYTES + 1)
        if len(data) > MAX_SPEC_BYTES:
            raise ValueError(f"larger than {MAX_SPEC_BYTES} bytes")
        body = json.loads(data)
        if not isinstance(body, dict):
            raise ValueError("not a JSON object")
        return decode_spec(str(path.parent), body)
    except (OSError, ValueError, RecursionError) as error:
        raise SwapdError(BAD_REQUEST, f"{path}: {error}") from None


def decode_spec(worker_dir: str, body: Mapping[str, Any]) -> WorkerSpec:
    """Raises ValueError naming the key."""
    protocol = _take(body, "protocol", int)
    if protocol != PROTOCOL:
        raise ValueError(f"protocol {protocol}: this worker understands {PROTOCOL}")
    kind = _take(body, "kind", str)
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, not {kind!r}")
    return WorkerSpec(
        worker_dir=worker_dir,
        worker_id=_take(body, "worker_id", str),
        nonce=_take(body, "nonce", str),
        kind=kind,
        service=_take(body, "service", str),
        revision=_take(body, "revision", int, 0 if kind == "gate" else None),
        model=_take(body, "model", str, "" if kind == "gate" else None),
        app=_take(body, "app", str, None if kind == "asgi" else ""),
        directory=_take(body, "directory", str, ""),
        health_path=_take(body, "health_path", str, "/-/swapd/health"),
        daemon_uid=_take(body, "daemon_uid", int),
        hold_timeout_s=float(_take(body, "hold_timeout_s", float, 120.0)),
        queue_limit=_take(body, "queue_limit", int, 4096),
        keep_alive_s=float(_take(body, "keep_alive_s", float, 75.0)),
        retry_after_s=_take(body, "retry_after_s", int, 5),
        trust_forwarded=body.get("trust_forwarded") is True,
        tcp=body.get("tcp") is True,
        gpu_cap_bytes=_take(body, "gpu_cap_bytes", int, 0),
        server=_decode_server(worker_dir, _take(body, "server", dict)) if kind == "engine" else None,
    )


def _decode_server(worker_dir: str, body: Mapping[str, Any]) -> ServerSpec:
    argv = _take(body, "argv", list)
    if not argv or not all(isinstance(word, str) for word in argv):
        raise ValueError("argv: expected a list of strings")
    stop_signal = _take(body, "stop_signal", str, "SIGTERM")
    if stop_signal not in signal.Signals.__members__:
        raise ValueError(f"stop_signal: {stop_signal!r} is not the name of a signal")
    return ServerSpec(
        argv=tuple(argv),
        socket=os.path.join(worker_dir, ENGINE_SOCKET),
        device=_take(body, "device", str, "cpu"),
        user=_take(body, "user", str, ""),
        stop_signal=stop_signal,
        stop_timeout_s=float(_take(body, "stop_timeout_s", float, 10.0)),
        ready_timeout_s=float(_take(body, "ready_timeout_s", float, 600.0)),
        hooks=dict(_take(body, "hooks", dict, {})),
        ports_dir=_take(body, "ports_dir", str),
    )


def _take(body: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    value = body.get(key, default)
    if value is None:
        if default is not None:
            return default
        raise ValueError(f"{key}: missing")
    accepted = (int, float) if kind is float else (kind,)
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"{key}: expected {_WORDS[kind]}, not {value!r}")
    if kind in (int, float) and cast("float", value) < 0:
        raise ValueError(f"{key}: must not be negative")
    return value


_WORDS: Final = {int: "an integer", float: "a number", str: "a string", list: "a list", dict: "an object"}
