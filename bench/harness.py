"""What benches and demo have in common: a real swapd in a directory of its own, its control socket, host facts.

Duty: start and end swapd, speak its documented JSON-RPC over ZeroMQ, and write results down with the facts
without which they mean nothing. It uses none of swapd's own code: what it does, any client can do.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
CLIENTS_SERVED = ("Soaking", "Succeeded", "Failed", "Canceled")  # the phases in which `swap` returns
LOG_TAIL_LINES = 40


class Refused(Exception):
    """swapd answered with an error."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error.get("message", "refused"))
        self.code: str = (error.get("data") or {}).get("code", str(error.get("code")))


class DaemonFailed(Exception):
    """swapd did not do what it is there for."""


class Control:
    """A raw JSON-RPC client: one DEALER socket, one request at a time."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(endpoint)
        self._ids = itertools.count(1)

    def call(self, method: str, deadline_s: float = 30.0, **params: Any) -> Any:
        """The result. Raises Refused, or TimeoutError."""
        number = next(self._ids)
        self._socket.send_json({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        until = time.monotonic() + deadline_s
        while True:
            left_ms = int((until - time.monotonic()) * 1000)
            if left_ms <= 0 or not self._socket.poll(left_ms):
                raise TimeoutError(f"swapd did not answer {method!r} within {deadline_s:g} s")
            reply = json.loads(self._socket.recv_multipart()[-1])
            if reply.get("id") != number:
                continue  # the answer to a request given up earlier
            if "error" in reply:
                raise Refused(reply["error"])
            return reply["result"]

    def echo(self) -> None:
        """One frame there and back, to whatever answers there."""
        self._socket.send(b"status")
        if not self._socket.poll(30_000):
            raise TimeoutError("no echo within 30 s")
        self._socket.recv_multipart()

    def close(self) -> None:
        self._socket.close()
        self._context.term()


def swapd_command() -> list[str]:
    """The `swapd` of the running interpreter: its script, or the module where there is none."""
    script = Path(sys.executable).parent / "swapd"
    if script.exists():
        return [str(script)]
    return [sys.executable, "-c", "import sys; from swapd.daemon.main import main; sys.exit(main())"]


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """All different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class Swapd:
    """A running swapd. Use as a context manager; leaving it stops swapd and its workers, whatever happened.

    `config` is TOML without the [daemon] table. The directory is short (Unix socket paths are bounded) and goes
    away at the end, unless swapd failed.
    """

    def __init__(
        self, config: str, cpus: set[int] | None = None, *, daemon: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="swapd-", dir="/tmp"))
        self.config_path = self.folder / "swapd.toml"
        self.endpoint = f"ipc://{self.folder}/run/control.sock"
        self._cpus = cpus
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        runtime, state = self.folder / "run", self.folder / "state"
        runtime.mkdir(mode=0o750)
        state.mkdir(mode=0o750)
        table = f"[daemon]\nruntime_dir = {quoted(runtime)}\nstate_dir = {quoted(state)}\n{daemon}\n\n"
        self.config_path.write_text(table + config)
        self.control = Control(self.endpoint)

    def __enter__(self) -> Swapd:
        self.start()
        return self

    def start(self) -> None:
        command = [*swapd_command(), "--config", str(self.config_path)]
        if self._cpus is not None:
            command = ["taskset", "-c", ",".join(map(str, sorted(self._cpus))), *command]
        with (self.folder / "swapd.log").open("ab") as log:
            # Its own session: a Ctrl-C at the terminal is ours to pass on, once.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, env=self._env
            )

    def kill(self) -> None:
        """SIGKILL. Its workers live on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.control.close()
        process = self._process
        assert process is not None
        if process.poll() == -signal.SIGKILL:  # its workers live on: another one ends them
            self.start()
            process = self._process
            time.sleep(1.0)  # for its signal handlers
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if kind is None or issubclass(kind, KeyboardInterrupt):
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            print(f"swapd's log ({self.folder}/swapd.log) ends:\n{self.log_tail()}", file=sys.stderr)

    def log_tail(self) -> str:
        text = (self.folder / "swapd.log").read_text(errors="replace")
        return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait_healthy(self, deadline_s: float = 60.0) -> dict[str, Any]:
        """Until each service serves; its last status."""

        def healthy() -> dict[str, Any] | None:
            try:
                status: dict[str, Any] = self.control.call("status", deadline_s=2.0)
            except TimeoutError:
                return None
            return status if all(s["health"] == "Healthy" for s in status["services"]) else None

        return self._until(healthy, deadline_s, "every service is Healthy")

    def wait_swap(self, swap_id: Any, deadline_s: float = 120.0) -> dict[str, Any]:
        """Until the clients are served by the new revision, or it is clear that they will not be."""

        def settled() -> dict[str, Any] | None:
            record: dict[str, Any] = self.control.call("show", id=swap_id)
            return record if record["phase"] in CLIENTS_SERVED else None

        return self._until(settled, deadline_s, f"swap {swap_id} has settled")

    def wait_no_swap(self, deadline_s: float = 120.0) -> None:
        """Until no soak is left either: then a swap to the old model is one, and not a return."""

        def over() -> dict[str, Any] | None:
            status: dict[str, Any] = self.control.call("status")
            return status if all(service["swap"] is None for service in status["services"]) else None

        self._until(over, deadline_s, "every swap is over")

    def _until(self, check: Callable[[], dict[str, Any] | None], deadline_s: float, what: str) -> dict[str, Any]:
        until = time.monotonic() + deadline_s
        while time.monotonic() < until:
            assert self._process is not None
            if self._process.poll() is not None:
                raise DaemonFailed(f"swapd exited with status {self._process.returncode}")
            found = check()
            if found is not None:
                return found
            time.sleep(0.02)
        raise DaemonFailed(f"not within {deadline_s:g} s: {what}")


def quoted(value: object) -> str:
    """As a TOML string."""
    return json.dumps(str(value))


def wall_to_monotonic() -> float:
    """Add this to a wall-clock time of a swap's record to get CLOCK_MONOTONIC."""
    return time.monotonic() - time.time()


def facts() -> dict[str, Any]:
    """The host and the versions that a result was measured on."""
    model = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    packages = ("swapd", "uvicorn", "uvloop", "httptools", "pyzmq")
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None,
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
        "load_average_before": os.getloadavg()[0],
    }


def write_result(name: str, result: Mapping[str, Any], host: Mapping[str, Any], quick: bool) -> Path:
    """Stores a result. A smoke run must not overwrite a real one."""
    folder = RESULTS if not quick else Path(tempfile.gettempdir()) / "swapd-bench-quick"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"bench": name, "host": host, **result}, indent=1) + "\n")
    return path
