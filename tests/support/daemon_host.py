"""A real swapd in the foreground of a temporary directory, and clients that count everything that goes wrong."""

from __future__ import annotations

import asyncio
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
from pathlib import Path

import zmq

from swapd.host.processes import kill_leftovers

APPS = Path(__file__).parent / "apps"
DEADLINE_S = 30.0


class Refused(Exception):
    """The daemon's error object."""

    def __init__(self, error):
        super().__init__(error["message"])
        self.code = error["data"]["code"]
        self.message = error["message"]
        self.details = error["data"]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def until(condition, *, deadline_s=DEADLINE_S, what="the condition"):
    """The first true value of `condition()`. Fails at the deadline."""
    ends = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < ends, f"{what} did not come within {deadline_s} s"
        time.sleep(0.01)


def model(name, *, probes=True, memory="100MiB", extra="", **env):
    """A [models.NAME] block of the test model; keyword arguments are its environment."""
    values = ", ".join(f'{k} = "{v}"' for k, v in {"NAME": name, **env}.items())
    probe = f"""
[[models.{name}.probes]]
request = {{ method = "POST", path = "/probe", json = {{ prompt = "hi" }} }}
expect = {{ status = 200, within = "1s", json = "/model" }}
repeat = 2
"""
    return f"""
[models.{name}]
engine = "asgi"
app = "model_app:app"
directory = "{APPS}"
device_memory = "{memory}"
env = {{ {values} }}
{extra}
{probe if probes else ""}
"""


def server(name, *, probes=True, memory="100MiB", extra="", **env):
    """A [models.NAME] block of the same test model in a server that knows nothing of swapd: an unmodified uvicorn."""
    values = ", ".join(f'{k} = "{v}"' for k, v in {"NAME": name, **env}.items())
    probe = f"""
[[models.{name}.probes]]
request = {{ method = "POST", path = "/probe", json = {{ prompt = "hi" }} }}
expect = {{ status = 200, within = "5s", json = "/model" }}
"""
    return f"""
[models.{name}]
engine = "command"
command = ["{sys.executable}", "-m", "uvicorn", "model_app:app", "--uds", "{{socket}}", "--log-level", "warning"]
directory = "{APPS}"
device_memory = "{memory}"
env = {{ {values} }}
{extra}
[models.{name}.ready]
path = "/ready"
{probe if probes else ""}
"""


class Control:
    """A daemon, as whoever gives it orders sees it. `control` is its socket's path, `context` a zmq.Context."""

    patience_s = DEADLINE_S

    def call(self, method, *, deadline_s=DEADLINE_S, **params):
        """One raw JSON-RPC request over ZeroMQ. Raises Refused."""
        sock = self.context.socket(zmq.REQ)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RCVTIMEO, int(deadline_s * 1000))
        sock.connect(f"ipc://{self.control}")
        try:
            sock.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            reply = sock.recv_json()
        finally:
            sock.close()
        if "error" in reply:
            raise Refused(reply["error"])
        return reply["result"]

    def service(self, name="chat"):
        return self.call("status", service=name)["services"][0]

    def swap(self, to, **params):
        """A swap, waited for until clients are served or it has ended."""
        record = self.call("swap", service=params.pop("service", "chat"), to=to, **params)
        return self.wait(record["id"])

    def wait(self, swap_id, phases=("Soaking", "Succeeded", "Canceled", "Failed")):
        def arrived():
            record = self.call("show", id=swap_id)
            return record if record["phase"] in phases else None

        return until(arrived, deadline_s=self.patience_s, what=f"swap {swap_id} in {phases}")


class Daemon(Control):
    def __init__(
        self,
        models,
        *,
        service="",
        budget="1GiB",
        devices="",
        services=None,
        daemon="",
        port=None,
        env=None,
        patience_s=DEADLINE_S,  # with servers that are slow to start
        program=("-m", "swapd.daemon.main"),
    ):
        self.program = program
        self.env = env
        self.patience_s = patience_s
        self.devices = devices
        self.dir = Path(tempfile.mkdtemp(prefix="sw", dir="/tmp"))
        self.control = self.dir / "r/control.sock"
        self.port = port or free_port()
        self.config = self.dir / "swapd.toml"
        self.write(models, service=service, budget=budget, services=services, daemon=daemon)
        self.process = None
        self.context = zmq.Context()
        self.output = self.dir / "output"

    def write(self, models, *, service="", budget="1GiB", services=None, daemon=""):
        services = services or f'[services.chat]\nlisten = "127.0.0.1:{self.port}"\nmodel = "a"\n{service}\n'
        host = f'[devices.host]\nkind = "host"\nmemory = "{budget}"'
        self.config.write_text(
            f'[daemon]\nruntime_dir = "{self.dir}/r"\nstate_dir = "{self.dir}/s"\n{daemon}\n'
            f"{self.devices or host}\n{''.join(models)}\n{services}"
        )

    def __enter__(self):
        self.start()
        return self

    @property
    def argv(self):
        return [sys.executable, *map(str, self.program), "--config", str(self.config)]

    def start(self, *, healthy=True):
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                self.argv,
                stdout=output,
                stderr=output,
                env={**os.environ, **(self.env or {})},
                start_new_session=True,
            )
        until(lambda: self.control.exists() or self.process.poll() is not None, what="control")
        assert self.process.poll() is None, self.output.read_text()
        if healthy:
            self.wait_healthy()

    def wait_healthy(self, service="chat"):
        healthy = f"{service} healthy"
        until(lambda: self.service(service)["health"] == "Healthy", deadline_s=self.patience_s, what=healthy)

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            self.end_workers()
            self.context.destroy(linger=0)
        shutil.rmtree(self.dir, ignore_errors=True)

    def end_workers(self):
        """Those that a daemon has left which was killed."""
        for record in (self.dir / "r/w").glob("*.json"):
            told = json.loads(record.read_text())
            asyncio.run(kill_leftovers(f"{told['worker_id']}:{told['host']['nonce']}"))

    def stop(self, number=signal.SIGTERM):
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise AssertionError("swapd did not stop:\n" + self.output.read_text()[-3000:]) from None
        self.control.unlink(missing_ok=True)  # of a killed one: the next one's is waited for

    # --- clients -----------------------------------------------------------------------------------------

    def get(self, path="/", *, timeout=DEADLINE_S, method="GET", body=None, port=None):
        """One request on its own connection: (status, revision, document, headers)."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout)
        with contextlib.closing(connection):
            connection.request(method, path, body=body)
            response = connection.getresponse()
            data = response.read()
            headers = {k.lower(): v for k, v in response.getheaders()}
        document = json.loads(data) if headers.get("content-type") == "application/json" else data
        return response.status, int(headers.get("x-swapd-revision", 0)), document, headers

    def model(self):
        return self.get("/")[2]["model"]


class Crowd:
    """Closed-loop clients on threads. They never retry; every trouble is counted under its name."""

    def __init__(self, port, *, keep_alive=6, reconnecting=2, streaming=1, pause_s=0.002, first_answers=50):
        self.port = port
        self.first_answers = first_answers
        self.errors = {}
        self.answers = []  # (begun, ended, revision, model), by time.monotonic()
        self.reconnects = 0
        self.marks = []
        self.pause_s = pause_s
        self._lock = threading.Lock()
        self._ending = threading.Event()
        kinds = [self._keep_alive] * keep_alive + [self._reconnecting] * reconnecting + [self._streaming] * streaming
        self._threads = [threading.Thread(target=self._run, args=(kind,), daemon=True) for kind in kinds]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.answers) > self.first_answers, what="the first answers")
        return self

    def __exit__(self, *_):
        self._ending.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "a client hangs"

    def more(self, count=100, *, deadline_s=DEADLINE_S):
        """Wait for further answers."""
        goal = len(self.answers) + count
        until(lambda: len(self.answers) >= goal, deadline_s=deadline_s, what=f"{count} more answers")

    def check(self):
        """Nothing went wrong, and no request begun after a newer revision's first answer got an older one."""
        self.check_monotonic()
        assert not self.errors, self.errors
        assert self.reconnects == 0, f"{self.reconnects} keep-alive connections were closed"

    def mark(self):
        """Call it before each further swap: within the stretch between two marks there is one switch at most."""
        self.more(2 * len(self._threads))  # or a stretch would not know what it ended with
        self.marks.append(time.monotonic())

    def check_monotonic(self):
        """After the first answer of a stretch's new revision, no request that began later got the old one.

        The old one is what the stretch before ended with: a quick switch's first answer may end before an old one's.
        What was asked before a mark and answered after it may have met the next switch, and is left out.
        """
        before = None
        for start, end in zip([0.0, *self.marks], [*self.marks, float("inf")], strict=True):
            stretch = sorted((a for a in self.answers if start <= a[0] and a[1] < end), key=lambda a: a[1])
            revisions = list(dict.fromkeys(revision for _, _, revision, _ in stretch))
            if before in revisions:
                revisions.sort(key=lambda revision: revision != before)
            before = revisions[-1] if revisions else before
            assert len(revisions) <= 2, f"three revisions between two marks: {revisions}"
            if len(revisions) == 2:
                first = next(ended for _, ended, revision, _ in stretch if revision == revisions[1])
                late = [begun for begun, _, revision, _ in stretch if revision == revisions[0] and begun > first]
                assert not late, f"{len(late)} requests got revision {revisions[0]} after {revisions[1]} had answered"

    def _run(self, kind):
        while not self._ending.is_set():
            try:
                kind()
            except Exception as error:
                name = f"{kind.__name__[1:]}: {type(error).__name__}: {error}"
                with self._lock:
                    self.errors[name] = self.errors.get(name, 0) + 1
                time.sleep(0.05)

    def _ask(self, connection, path="/"):
        begun = time.monotonic()
        connection.request("GET", path)
        response = connection.getresponse()
        data = response.read()
        ended = time.monotonic()
        if response.status != 200:
            raise ValueError(f"status {response.status}: {data[:200]!r}")
        revision = int(response.getheader("x-swapd-revision") or -1)
        if path == "/":
            self.answers.append((begun, ended, revision, json.loads(data)["model"]))
        elif not data.endswith(b"data: [DONE]\n\n"):
            raise ValueError(f"truncated stream: {data[-80:]!r}")
        time.sleep(self.pause_s)
        return response

    def _connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)

    def _keep_alive(self):
        connection = self._connect()
        connection.connect()
        first = connection.sock
        with contextlib.closing(connection):
            while not self._ending.is_set():
                self._ask(connection)
                if connection.sock is not first:
                    self.reconnects += 1
                    return

    def _reconnecting(self):
        with contextlib.closing(self._connect()) as connection:
            self._ask(connection)

    def _streaming(self):
        with contextlib.closing(self._connect()) as connection:
            self._ask(connection, "/stream?n=20&s=0.01")
