"""The processes behind worker ids: started, spoken to, watched, ended.

Duty: a worker's directory, its process tree and its channel, as one thing with one owner. May not know: why a
worker is started or ended; that is the core's, and arrives as operations through the executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pwd
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import swapd
from swapd.core.config import CONTROL_SOCKET, HTTP_SOCKET, Config, ModelConfig, ServiceConfig
from swapd.core.errors import OUT_OF_MEMORY, WORKER_EXITED, Problem, SwapdError
from swapd.core.model import DeviceKind, DeviceReading, Kind, Worker
from swapd.core.presets import Launch, blocked_paths, launch_of, reuses_connections, visible_devices
from swapd.host.logs import cap, prune, tail
from swapd.host.processes import Process, Supervisor
from swapd.host.worker_channel import WorkerChannel

log = logging.getLogger("swapd.workers")

LAUNCHER: Final = str(Path(swapd.__file__).parent / "worker" / "launch.py")
EXIT_NOTICED_S: Final = 2.0  # a dying process closes its channel before its exit is seen; one with much to free, long
HELLO_DEADLINE_S: Final = 30.0  # an interpreter on a cold disk, with nothing of the model imported yet
LOG_TAIL_LINES: Final = 20
MAX_LOG_BYTES: Final = 64 * 1024 * 1024
RETRY_AFTER_S: Final = 5
OWN_STOP_MARGIN_S: Final = 3.0  # for the runner of a server to end what the server has left behind, and itself
# What a worker's environment has besides its model's own: nothing of the daemon's, which may hold secrets.
PASSED_ON: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "XDG_CACHE_HOME")


@dataclass(slots=True)
class Live:
    """One worker on the host."""

    id: str
    service: str
    directory: Path
    log_path: Path
    process: Process
    started_at: float
    kind: Kind
    revision: int
    address: str  # where it answers, to the daemon and a gate alone: unix:/path; or host:port, once it is loaded
    blocked: tuple[str, ...] = ()  # paths that clients may not ask it for
    reuse: bool = True  # its connections may carry one request after the other
    uid: int | None = None  # of the user that its server runs as, where it has one of its own
    hello: Mapping[str, Any] = field(default_factory=dict)
    channel: WorkerChannel | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    stats: Mapping[str, Any] = field(default_factory=dict)
    stopping: bool = False
    upstreams: set[str] = field(default_factory=set)  # a gate's: every worker that it was ever pointed to
    reported: bool = False  # its failure to start is told by the operation, so its exit needs no telling
    own_stop_s: float = 0.0  # that an engine with a server of its own may take to end it

    @property
    def route(self) -> dict[str, Any]:
        """Of a gate's table, to this worker."""
        named = {"worker": self.id, "revision": self.revision, "address": self.address}
        return {**named, "blocked": list(self.blocked), "uid": self.uid, "reuse": self.reuse}

    def alive(self) -> bool:
        return self.process.alive

    async def request(
        self, verb: str, params: Mapping[str, Any] | None = None, *, fds: tuple[int, ...] = (), deadline_s: float
    ) -> Mapping[str, Any]:
        if self.channel is None:
            raise SwapdError(WORKER_EXITED, f"{self.id} does not answer yet.")
        return await self.channel.request(verb, params, fds=fds, deadline_s=deadline_s)


class Workers:
    """All workers of this daemon. `on_exit` is told once a worker's whole tree is gone."""

    def __init__(
        self,
        config: Config,
        *,
        on_exit: Callable[[str, Problem, tuple[str, ...]], None],
        on_event: Callable[[str, str, Mapping[str, Any]], None],
        clock: Callable[[], float],
    ) -> None:
        self.live: dict[str, Live] = {}
        self.config = config
        self._on_exit = on_exit
        self._on_event = on_event
        self._clock = clock
        self._supervisor = Supervisor()
        self._watchers: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._supervisor.become_subreaper()

    async def close(self) -> None:
        """End whatever still runs, at once: in the ordinary case every worker was stopped before."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for live in self.live.values():
            log.warning("worker.killed worker=%s", live.id)
            with contextlib.suppress(SwapdError):
                await live.process.kill_tree(0.0)
            shutil.rmtree(live.directory, ignore_errors=True)
        self._supervisor.close()

    def log_path(self, worker_id: str) -> Path:
        return Path(self.config.daemon.state_dir) / "logs" / f"{worker_id}.log"

    async def spawn(
        self, worker: Worker, service: ServiceConfig, model: ModelConfig | None, reading: DeviceReading | None
    ) -> Mapping[str, Any]:
        """Start the process and say hello. On failure nothing of it is left. Raises SwapdError."""
        live = await self._start(worker, service, model, reading)
        self.live[worker.id] = live
        watcher = asyncio.get_running_loop().create_task(self._watch(live))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        try:
            channel, hello = await WorkerChannel.connect(
                str(live.directory / CONTROL_SOCKET),
                worker_id=worker.id,
                deadline_s=HELLO_DEADLINE_S,
                alive=live.alive,
            )
        except SwapdError as error:
            if error.code != WORKER_EXITED:  # it lives, and will never be of use; its exit tells the rest otherwise
                live.reported = True
                await live.process.kill_tree(0.0)
            raise
        live.channel, live.hello = channel, hello
        live.connected.set()
        channel.on_event = lambda name, params: self._on_event(worker.id, name, params)
        return hello

    async def _start(
        self, worker: Worker, service: ServiceConfig, model: ModelConfig | None, reading: DeviceReading | None
    ) -> Live:
        """The process, in a directory of its own. Raises SwapdError(SPAWN_FAILED) with nothing left of it."""
        directory = Path(self.config.daemon.worker_dir(worker.id))
        nonce = secrets.token_hex(8)
        spec = _spec(worker, service, model, nonce)
        launch = None
        if worker.kind is Kind.ENGINE and model is not None:
            launch = launch_of(model, reading.gpu_bytes if reading is not None else None)
            spec["server"] = _server_spec(model, launch, reading, self.config.daemon.runtime_dir)
        _make_directory(directory, spec)
        if model is not None and model.user is not None:
            _let_pass(directory, Path(self.config.daemon.runtime_dir))
        log_path = self.log_path(worker.id)
        log_path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        own_python = model.python if model is not None and worker.kind is Kind.DIRECT else None
        flags = ["--gate"] if worker.kind is Kind.GATE else []
        try:
            process = await self._supervisor.spawn(
                [own_python or sys.executable, LAUNCHER, *flags, str(directory)],
                env=_environment(model, reading, launch),
                cwd=model.directory if model is not None else None,
                log_path=log_path,
                marker=f"{worker.id}:{nonce}",
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return Live(
            worker.id,
            worker.service,
            directory,
            log_path,
            process,
            self._clock(),
            worker.kind,
            worker.revision,
            address=f"unix:{directory / HTTP_SOCKET}",
            blocked=blocked_paths(model) if model is not None else (),
            reuse=model is None or reuses_connections(model),
            uid=_uid(model.user) if model is not None and model.user is not None else None,
            own_stop_s=launch.stop_timeout_s + OWN_STOP_MARGIN_S if launch is not None else 0.0,
        )

    async def stop(self, worker_id: str, *, force: bool) -> None:
        """Ask it to end, then end its whole tree. `on_exit` follows. Raises SwapdError(TIMEOUT) if that fails."""
        live = self.live.get(worker_id)
        if live is None:
            self._on_exit(worker_id, Problem(WORKER_EXITED, f"{worker_id} is not running."), ())
            return
        live.stopping = True
        live.reported = False  # the operation that was to tell of its end is void now
        if not force and live.channel is not None:
            patience_s = max(self.config.daemon.stop_timeout_s, live.own_stop_s)
            with contextlib.suppress(SwapdError, asyncio.TimeoutError):
                await live.request("stop", deadline_s=patience_s)
                await asyncio.wait_for(live.process.wait(), patience_s)
            if live.alive():  # its model hangs in its own shutdown, or blocks its loop
                log.warning("worker.stop_timeout worker=%s limit_s=%g", worker_id, patience_s)
        await live.process.kill_tree(0.0)

    async def _watch(self, live: Live) -> None:
        """Until the worker's end: then its tree, its channel and its directory go, and the core is told."""
        await _first(live.process.wait(), live.connected.wait())
        if live.channel is not None:
            await _first(live.process.wait(), live.channel.closed.wait())
        # Killed by us while it ends by itself, it would be told as killed by us. `stop` gives it the time that it has.
        stop_s = max(self.config.daemon.stop_timeout_s, live.own_stop_s)
        patience_s = stop_s if live.stopping else EXIT_NOTICED_S
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(live.process.wait(), patience_s)
        if live.channel is not None and live.alive() and not live.stopping:
            # A worker that cannot be spoken to cannot be handed over, drained or measured: it is of no use.
            log.warning("worker.unreachable worker=%s because=%r", live.id, live.channel.closed_because)
        while True:
            try:
                await live.process.kill_tree(0.0)
                break
            except SwapdError as error:
                log.error("worker.will_not_end worker=%s error=%s", live.id, error.message)
                await asyncio.sleep(1.0)
        if live.channel is not None:
            live.channel.close()
        shutil.rmtree(live.directory, ignore_errors=True)
        lines = await asyncio.to_thread(self.last_lines, live.id)
        # Not earlier: until the core is told, an operation that finds it gone must wait for that, not fail by itself.
        self.live.pop(live.id, None)
        if not live.reported:
            self._on_exit(live.id, exit_problem(live.id, live.process, lines), lines)

    def tidy_logs(self, keep_per_service: int) -> None:
        """Forget the oldest logs of workers that have ended, and bound those of the running ones. Blocks."""
        prune(self.log_path("x").parent, keep_per_service=keep_per_service, running=tuple(self.live))
        for live in list(self.live.values()):
            cap(live.log_path, MAX_LOG_BYTES)

    def last_lines(self, worker_id: str) -> tuple[str, ...]:
        """The end of its log; empty when that cannot be read. Blocks."""
        with contextlib.suppress(OSError):
            return tuple(tail(self.log_path(worker_id), LOG_TAIL_LINES))
        return ()


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def exit_problem(worker_id: str, process: Process, lines: tuple[str, ...]) -> Problem:
    """Why it ended, by what the kernel and its own last lines say."""
    said = "out of memory" in "\n".join(lines).lower()
    code = OUT_OF_MEMORY if said or process.oom_killed else WORKER_EXITED
    return Problem(code, f"{worker_id} ended: {process.exit_text}.", {"exit": process.exit_text})


def _make_directory(directory: Path, spec: Mapping[str, Any]) -> None:
    """The worker's own directory, 0700: its sockets are as private as this."""
    directory.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
    descriptor = os.open(directory / "spec.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(spec, file)


def _spec(worker: Worker, service: ServiceConfig, model: ModelConfig | None, nonce: str) -> dict[str, Any]:
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


def _server_spec(model: ModelConfig, launch: Launch, reading: DeviceReading | None, runtime_dir: str) -> dict[str, Any]:
    return {
        "argv": launch.argv,
        "device": reading.uuid if reading is not None and reading.kind is DeviceKind.NVML else "cpu",
        "user": model.user or "",
        "stop_signal": launch.stop_signal,
        "stop_timeout_s": launch.stop_timeout_s,
        "ready_timeout_s": model.ready.timeout_s,
        "hooks": launch.hooks,
        "ports_dir": f"{runtime_dir}/ports",
    }


def _uid(user: str) -> int | None:
    """None: there is no such user, which its runner will say."""
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(user).pw_uid
    return None


def _let_pass(directory: Path, top: Path) -> None:
    """Let a server with a user of its own through to its directory. What lies on the way stays closed to it."""
    while directory != top.parent:
        directory.chmod(stat.S_IMODE(directory.stat().st_mode) | stat.S_IXOTH)
        directory = directory.parent


def _environment(model: ModelConfig | None, reading: DeviceReading | None, launch: Launch | None) -> dict[str, str]:
    """Of the worker. What its model says itself comes last."""
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    environment.setdefault("PATH", os.defpath)
    environment["PYTHONUNBUFFERED"] = "1"
    if model is None:
        return environment
    if model.user is not None:
        for name in ("HOME", "XDG_CACHE_HOME"):  # the daemon's
            environment.pop(name, None)
    if reading is not None:
        environment |= visible_devices(model, reading)
    if launch is not None:
        environment |= launch.environment
    return environment | model.environment
