"""A synchronous test client: spawns a real worker and speaks the channel's protocol to it.

Deliberately apart from `swapd.host.worker_channel`: a second implementation of the protocol.
"""

from __future__ import annotations

import array
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
LAUNCH = REPO / "swapd" / "worker" / "launch.py"
APPS = REPO / "tests" / "support" / "apps"
DEADLINE_S = 20.0


def wait_until(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The condition's first true value. Polls, because what is waited for is another process."""
    until_s = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until_s, f"not within {deadline_s:g} s: {what}"
        time.sleep(0.005)


class Refused(Exception):
    """The worker's error reply."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code: str = error["code"]
        self.message: str = error["message"]
        self.details: Mapping[str, Any] = error["details"]


class Client:
    """One connection to a worker's control socket."""

    def __init__(self, path: Path | str, deadline_s: float = DEADLINE_S) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(deadline_s)
        try:
            self.sock.connect(str(path))
        except OSError:
            self.sock.close()
            raise
        self.events: list[dict[str, Any]] = []
        self._replies: dict[int, dict[str, Any]] = {}
        self.last = 0

    def send(self, verb: str, params: Mapping[str, Any] | None = None, fds: tuple[int, ...] = ()) -> int:
        self.last += 1
        body = {"id": self.last, "verb": verb, "params": dict(params or {})}
        self.send_raw(json.dumps(body).encode(), fds)
        return self.last

    def send_raw(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.sock.sendmsg([data], rights)

    def receive(self) -> dict[str, Any] | None:
        """The next message, or None at the end."""
        try:
            data = self.sock.recv(1 << 20)
        except ConnectionResetError:
            return None
        return json.loads(data) if data else None

    def reply(self, number: int) -> dict[str, Any]:
        while number not in self._replies:
            message = self.receive()
            if message is None:
                raise EOFError("the worker closed the connection")
            if "event" in message:
                self.events.append(message)
            else:
                self._replies[message["re"]] = message
        message = self._replies.pop(number)
        if "error" in message:
            raise Refused(message["error"])
        return message["ok"]

    def request(self, verb: str, fds: tuple[int, ...] = (), **params: Any) -> dict[str, Any]:
        return self.reply(self.send(verb, params, fds))

    def hello(self, worker_id: str, **changed: Any) -> dict[str, Any]:
        return self.request("hello", **{"protocol": 1, "min_protocol": 1, "worker_id": worker_id, **changed})

    def close(self) -> None:
        self.sock.close()

    def at_end(self) -> bool:
        """Waits until the worker closes the connection."""
        while True:
            message = self.receive()
            if message is None:
                return True
            if "event" in message:
                self.events.append(message)


@dataclass
class SpawnedWorker:
    """A real worker process in its own directory."""

    id: str
    dir: Path
    process: subprocess.Popen[bytes]
    clients: list[Client] = field(default_factory=list)

    @property
    def control(self) -> Path:
        return self.dir / "control.sock"

    @property
    def http(self) -> Path:
        return self.dir / "http.sock"

    @property
    def log(self) -> str:
        return (self.dir / "log").read_text()

    def connect(self) -> Client:
        """A connection, as soon as the worker listens."""

        def there() -> bool:
            assert self.process.poll() is None, f"{self.id} ended: {self.log}"
            return self.control.exists()

        wait_until(there, f"{self.control} of {self.id}")
        client = Client(self.control)
        self.clients.append(client)
        return client

    def greeted(self) -> Client:
        client = self.connect()
        client.hello(self.id)
        return client

    def loaded(self) -> Client:
        client = self.greeted()
        client.request("load")
        return client

    def wait(self, deadline_s: float = DEADLINE_S) -> int:
        return self.process.wait(deadline_s)


class Spawner:
    """Spawns workers and ends them all."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="sw-", dir="/tmp"))  # short: a socket's path has 107 bytes
        self.workers: list[SpawnedWorker] = []

    def __call__(
        self,
        app: str = "echo_app:app",
        *,
        worker_id: str | None = None,
        kind: str = "asgi",
        revision: int = 1,
        directory: Path | str = APPS,
        python: str = sys.executable,
        env: Mapping[str, str] | None = None,
        prefix: tuple[str, ...] = (),
        **spec: Any,
    ) -> SpawnedWorker:
        worker_id = worker_id or f"w-{len(self.workers) + 1}"
        path = self.root / worker_id
        path.mkdir(mode=0o700)
        body = {
            **{"protocol": 1, "worker_id": worker_id, "nonce": "n0", "kind": kind, "service": "w"},
            **{"revision": revision, "model": "m", "app": app, "directory": str(directory)},
            **{"health_path": "/-/swapd/health", "daemon_uid": os.geteuid()},
            **{"hold_timeout_s": 30.0, "queue_limit": 100, "keep_alive_s": 75.0, "retry_after_s": 5},
            **spec,
        }
        (path / "spec.json").write_text(json.dumps(body))
        gate = ["--gate"] if kind == "gate" else []
        with (path / "log").open("ab") as log:
            process = subprocess.Popen(
                [*prefix, python, str(LAUNCH), *gate, str(path)],
                env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        worker = SpawnedWorker(worker_id, path, process)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        for worker in self.workers:
            for client in worker.clients:
                client.close()
            if worker.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(worker.process.pid, signal.SIGKILL)
                worker.process.wait(DEADLINE_S)
        shutil.rmtree(self.root, ignore_errors=True)


@contextlib.contextmanager
def spawner() -> Iterator[Spawner]:
    spawn = Spawner()
    try:
        yield spawn
    finally:
        spawn.close()


class UnixHttp(http.client.HTTPConnection):
    """http.client over a Unix socket."""

    def __init__(self, path: Path | str, timeout_s: float = DEADLINE_S) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask(connection: http.client.HTTPConnection, path: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    connection.request("POST" if body else "GET", path, body or None)
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def ask_once(path: Path | str, target: str = "/", body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    connection = UnixHttp(path)
    try:
        return ask(connection, target, body)
    finally:
        connection.close()


@contextlib.contextmanager
def blocked_loop(worker: SpawnedWorker, ask_app: Callable[[str, bytes], Any]) -> Iterator[list[Any]]:
    """The worker's echo app blocks its event loop within; at the end the block is over, and its answer in the list."""
    release = worker.dir / "release"
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask_app("/block", str(release).encode())))
    client = worker.greeted()

    def is_blocked() -> bool:
        stats = client.request("stats")
        return bool(stats["loop_blocked_s"] > 0.3)

    thread.start()
    try:
        wait_until(is_blocked, "the loop is blocked")
        yield answers
    finally:
        release.touch()
        thread.join(DEADLINE_S)
        release.unlink()
