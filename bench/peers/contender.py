"""What every contender has: a place of its own, the questions that it is asked, its processes and their memory.

Duty: the base class of the contenders, the start and end of their processes, the memory of all that they started. The
bench makes itself the parent of orphans (PR_SET_CHILD_SUBREAPER), so that what a script leaves behind is found as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil

from bench.harness import free_port
from bench.loader import ClientGroup, http_request
from bench.swaps import ANSWERS, APPS

PR_SET_CHILD_SUBREAPER = 36
SAMPLE_S = 0.1
KEEP_ALIVE_S = "75"  # as nginx and swapd keep idle connections; uvicorn's own default is 5
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    body: bytes | None = None

    def raw(self) -> bytes:
        headers = {"Content-Type": "application/json"} if self.body else {}
        return http_request(self.method, self.path, self.body, headers)


@dataclass(frozen=True, slots=True)
class Questions:
    """What the clients ask, and what each model answers. `key_of`: which request shows that this model serves."""

    requests: Mapping[str, Request]
    answers: Mapping[str, Mapping[str, bytes]]
    groups: Sequence[ClientGroup]
    key_of: Mapping[str, str]
    streams: Sequence[str] = ()
    clients_choose: bool = False  # the model is named in the request: a change is that clients ask for the other one


APP = Questions(
    requests={"hello": Request("GET", "/hello"), "stream": Request("GET", "/stream")},
    answers={key: ANSWERS[key] for key in ("hello", "stream")},
    groups=[
        ClientGroup("open", ["hello"], name="open loop", rate_per_s=200.0),
        ClientGroup("closed", ["hello"], 8, "keep-alive", think_s=0.05),
        ClientGroup("fresh", ["hello"], 4, "reconnecting", think_s=0.05),
        ClientGroup("closed", ["stream"], 4, "streaming", think_s=0.1),
    ],
    key_of={"a": "hello", "b": "hello"},
    streams=("streaming",),
)


@dataclass(slots=True)
class Site:
    """Where one contender lives."""

    folder: Path
    weights: Path
    port: int = field(default_factory=free_port)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def current(self) -> Path:
        """The file that names the model to load: the symlink `current` of many deployments."""
        return self.folder / "current"

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "WEIGHTS": str(self.weights), **more}

    @property
    def uvicorn(self) -> list[str]:
        """The server as it is, without its address."""
        options = ["--app-dir", str(APPS), "--no-access-log", "--timeout-keep-alive", KEEP_ALIVE_S]
        return [sys.executable, "-m", "uvicorn", *options, "weighty:app"]


class Contender:
    """One way to replace a model. `start` returns when a serves, `change` when the tool says that it has done it."""

    name: ClassVar[str]
    title: ClassVar[str]
    in_place: ClassVar[bool] = False
    ours: ClassVar[bool] = False
    questions: Questions = APP

    def __init__(self, site: Site) -> None:
        self.site = site
        self.processes: list[subprocess.Popen[bytes]] = []

    @classmethod
    def missing(cls) -> str:
        """What it would need, in words; empty: nothing."""
        return ""

    def start(self) -> None:
        raise NotImplementedError

    def change(self, to: str) -> dict[str, float]:
        """The steps as the tool tells them, in seconds."""
        raise NotImplementedError

    def stop(self) -> None:
        for process in reversed(self.processes):
            end(process)

    def spawn(self, name: str, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        with (self.site.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stderr=log, start_new_session=True, **{"stdin": subprocess.DEVNULL, "stdout": log, **options}
            )
        self.processes.append(process)
        return process

    def until_answers(self, model: str) -> None:
        """Until a client that comes anew is answered by that model."""
        key = self.questions.key_of[model]
        wanted = self.questions.answers[key][model]
        until(lambda: ask(self.site.address, self.questions.requests[key]) == wanted, f"{model} answers")

    def load_s(self) -> float | None:
        """How long the model that now serves took to load, by its own clock."""
        answer = ask(self.site.address, Request("GET", "/load"))
        return None if answer is None else float(json.loads(answer)["load_s"])


class Bare(Contender):
    """The server as it is, and nothing else."""

    name = "bare"
    title = "uvicorn"

    def start(self) -> None:
        address = ["--host", "127.0.0.1", "--port", str(self.site.port)]
        self.spawn("bare", [*self.site.uvicorn, *address], env=self.site.environment(MODEL="a"))
        self.until_answers("a")


def until(condition: Callable[[], bool], what: str, deadline_s: float = PATIENCE_S) -> None:
    ends = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.02)


def ask(address: str, request: Request) -> bytes | None:
    """The body of a 200; None of everything else."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)
    try:
        headers = {"Content-Type": "application/json"} if request.body else {}
        connection.request(request.method, request.path, request.body, headers)
        response = connection.getresponse()
        body = response.read()
        return body if response.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def end(process: subprocess.Popen[bytes], deadline_s: float = 20.0) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def adopt_orphans() -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def reap(pids: Iterable[int]) -> None:
    """Takes the exit status of ended orphans, as init would: a script that waits for one to go must see it go."""
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def end_what_is_left() -> list[str]:
    """Kills what a contender left running; its names."""
    left = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.name())
                process.kill()
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            os.waitpid(process.pid, 0)
    return left


class Memory(threading.Thread):
    """Looks ten times a second at the memory of everything below this process, but for what is not the contender's.

    Anonymous and shared-anonymous pages (RssAnon, RssShmem of /proc/PID/status): what is mapped from files counts for
    nobody, or it would count once a process.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.not_counted: set[int] = set()
        self.peak_bytes = 0
        self.most_processes = 0
        self._ended = threading.Event()

    def run(self) -> None:
        this = psutil.Process()
        while not self._ended.wait(SAMPLE_S):
            pids = [p.pid for p in this.children(recursive=True) if p.pid not in self.not_counted]
            self.most_processes = max(self.most_processes, len(pids))
            self.peak_bytes = max(self.peak_bytes, sum(map(anonymous_bytes, pids)))

    def stop(self) -> None:
        self._ended.set()
        self.join()


def anonymous_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
    return 0
