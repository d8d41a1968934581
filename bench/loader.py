"""Starts a load (bench/load.py) in its own process and reads what it saw.

Duty: the spec of a load as values, its process, its report. Used by the benches, the demo and the load's tests.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.records import Records

ROOT = Path(__file__).resolve().parent.parent


def http_request(method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of one keep-alive request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: swapd.test"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + (body or b"")


@dataclass(slots=True)
class ClientGroup:
    """Clients of one kind (the kinds: bench/load.py). `keys` name the requests that they choose from."""

    kind: str
    keys: Sequence[str]
    count: int = 1
    name: str = ""
    think_s: float = 0.0
    interval_s: float = 0.0
    rate_per_s: float = 0.0
    parts: int = 1
    pause_s: float = 0.0

    def __post_init__(self) -> None:
        self.name = self.name or self.kind
        self.keys = list(self.keys)


@dataclass(slots=True)
class LoadSpec:
    address: str  # host:port or unix:/path
    groups: Sequence[ClientGroup]
    requests: Mapping[str, bytes]  # key -> the bytes to send
    answers: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)  # key -> label -> body; {}: unchecked
    timeout_s: float = 30.0  # a client's patience; longer than the longest hold that is expected
    require_revision: bool = True


@dataclass(slots=True)
class LoadReport:
    records: Records
    summary: dict[str, Any]

    @property
    def lost(self) -> int:
        """Requests lost, connections that the server ended, bytes nobody asked for: all that must be zero."""
        seen = self.summary
        return int(sum(seen["errors"].values()) + seen["forced_reconnects"] + seen["unasked_bytes"])


class LoadProcess:
    """A running load. Use as a context manager: leaving it ends the process whatever happened."""

    def __init__(self, spec: LoadSpec, cpus: set[int] | None = None) -> None:
        self._spec, self._cpus = spec, cpus
        self._folder = tempfile.TemporaryDirectory(prefix="swapd-load-")
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""

    def __enter__(self) -> LoadProcess:
        spec, folder = self._spec, Path(self._folder.name)
        plain = {
            "address": spec.address,
            "groups": [asdict(group) for group in spec.groups],
            "requests": {key: base64.b64encode(raw).decode() for key, raw in spec.requests.items()},
            "answers": {
                key: {label: base64.b64encode(body).decode() for label, body in labels.items()}
                for key, labels in spec.answers.items()
            },
            "timeout_s": spec.timeout_s,
            "require_revision": spec.require_revision,
            "records": str(folder / "records"),
        }
        (folder / "spec.json").write_text(json.dumps(plain))
        command = [sys.executable, "-m", "bench.load", str(folder / "spec.json")]
        if self._cpus is not None:
            command = ["taskset", "-c", ",".join(map(str, sorted(self._cpus))), *command]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        assert process is not None
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait_ready(self, deadline_s: float = 60.0) -> None:
        """Returns once each client has had its first answer (or failure)."""
        self._event("ready", deadline_s)

    def report(self) -> dict[str, Any]:
        self._say("report")
        return self._event("report", 30.0)

    def ask(self, key: str) -> None:
        """All clients send the request of that key from now on."""
        self._say(f"ask {key}")

    def stop(self) -> LoadReport:
        """Lets the requests under way end; returns everything that was seen."""
        self._say("stop")
        summary = self._event("done", self._spec.timeout_s + 60.0)
        return LoadReport(Records.load(Path(self._folder.name) / "records"), summary)

    def _say(self, word: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()

    def _event(self, name: str, deadline_s: float) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        until = time.monotonic() + deadline_s
        while True:
            while b"\n" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\n")
                message: dict[str, Any] = json.loads(line)
                if message["event"] == name:
                    return message
            if not select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError(f"the load did not say {name!r} within {deadline_s:g} s")
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise RuntimeError(f"the load ended (status {self._process.wait()}) before {name!r}")
            self._buffer += data
