"""The processes behind worker ids: started, spoken to, watched, ended.

Duty: a worker's directory, its process tree and its channel, as one thing with one owner. May not know: why a
worker is started or ended; that is the core's, and arrives as operations through the executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import swapd
from swapd.core.config import CONTROL_SOCKET, HTTP_SOCKET, Config, ModelConfig, ServiceConfig
from swapd.core.errors import OUT_OF_MEMORY, WORKER_EXITED, Problem, SwapdError
from swapd.core.launch import Command, Confinement
from swapd.core.model import DeviceReading, Kind, Revision, Slot, Worker
from swapd.core.out_of_memory import told_by_its_log
from swapd.core.presets import blocked_paths, launch_of, reuses_connections, smallest_gpu_bytes
from swapd.daemon import access_logs
from swapd.daemon.hosting import WorkerHost, WorkerProcess, choose_host, confine, cpu_weight, share, user_of
from swapd.daemon.live import Live
from swapd.daemon.spec import (
    Facts,
    environment_of,
    forget,
    gpu_cap,
    let_pass,
    ports_dir,
    server_spec,
    spec_of,
    uid_of,
    write_spec,
)
from swapd.host.deadlines import within
from swapd.host.logs import cap, prune, tail
from swapd.host.processes import Supervisor
from swapd.host.worker_channel import WorkerChannel

log = logging.getLogger("swapd.workers")

LAUNCHER: Final = str(Path(swapd.__file__).parent / "worker" / "launch.py")
EXIT_NOTICED_S: Final = 2.0  # a dying process closes its channel before its exit is seen; one with much to free, long
HELLO_DEADLINE_S: Final = 30.0  # an interpreter on a cold disk, with nothing of the model imported yet
LOG_TAIL_LINES: Final = 20
SEARCHED_LINES: Final = 400  # for why it ended: the trace of a front end that has lost its engine comes after that
OWN_STOP_MARGIN_S: Final = 3.0  # for the runner of a server to end what the server has left behind, and itself


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
        self._host: WorkerHost = Supervisor()
        self._watchers: set[asyncio.Task[None]] = set()

    def start(self, *, managed: bool = False) -> None:
        """`managed`: a service manager has started this daemon."""
        self._host = choose_host(managed)

    async def close(self) -> None:
        """Let go of whatever still runs: it serves on, for the next daemon to find."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        for live in self.live.values():
            log.info("worker.left worker=%s pid=%d", live.id, live.process.pid)
            if live.channel is not None:
                live.channel.close()
            live.process.let_go()
        self._host.close()

    async def favour(self, servers: Collection[str]) -> None:
        """Give those that serve the CPU weight of their model: until then each has a part of it."""
        for live in [live for live in self.live.values() if live.id in servers]:
            model = self.config.models.get(live.facts.revision.model) if live.facts.revision is not None else None
            weight = cpu_weight(model, serves=True)
            if live.cpu_weight != weight:
                live.cpu_weight = weight  # once, whatever comes of it: it serves as well without
                try:
                    await self._host.set_limits(live.id, cpu_weight=weight)
                except SwapdError as error:
                    log.warning("worker.cpu_weight_not_set worker=%s because=%s", live.id, error.message)

    async def pids(self) -> dict[str, set[int]]:
        """Every process of each worker."""
        roots = {live.process.marker: live.process.pid for live in self.live.values()}
        trees = await self._host.pids(roots)
        return {live.id: trees.get(live.process.marker, set()) for live in list(self.live.values())}

    def log_path(self, worker_id: str) -> Path:
        """Of one that runs, where it writes: `log_dir` may have been another one when it was started."""
        live = self.live.get(worker_id)
        return Path(live.facts.log_path if live else f"{self.config.daemon.log_dir}/{worker_id}.log")

    async def spawn(
        self,
        worker: Worker,
        service: ServiceConfig,
        model: ModelConfig | None,
        readings: Sequence[DeviceReading],
        revision: Revision | None = None,
        slot: Slot | None = None,
    ) -> Mapping[str, Any]:
        """Start the process and say hello; `readings` are of its devices. On failure nothing of it is left. Raises
        SwapdError."""
        live = await self._start(worker, service, model, readings, revision, slot)
        self._own(live)
        try:
            return await self._connect(live, HELLO_DEADLINE_S)
        except SwapdError as error:
            if error.code != WORKER_EXITED:  # it lives, and will never be of use; its exit tells the rest otherwise
                live.reported = True
                await live.process.kill_tree(0.0)
            raise

    async def find(self, markers: Mapping[str, str]) -> dict[str, WorkerProcess]:
        """The processes of workers that an earlier daemon has started, and those that have ended where that is known;
        `markers` and result by worker."""
        found = await self._host.find(set(markers.values()))
        return {worker_id: found[marker] for worker_id, marker in markers.items() if marker in found}

    async def adopt(
        self, worker_id: str, directory: Path, process: WorkerProcess, facts: Facts, deadline_s: float
    ) -> Live:
        """Take over a worker that an earlier daemon has started. One that does not answer is ended: SwapdError."""
        live = Live(worker_id, directory, process, facts, address=f"unix:{directory / HTTP_SOCKET}")
        try:
            await self._connect(live, deadline_s)
        except SwapdError:
            await live.process.kill_tree(0.0)
            forget(directory)
            raise
        live.address = live.hello.get("address") or live.address
        self._own(live)
        return live

    def _own(self, live: Live) -> None:
        self.live[live.id] = live
        watcher = asyncio.get_running_loop().create_task(self._watch(live))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _connect(self, live: Live, deadline_s: float) -> Mapping[str, Any]:
        path = str(live.directory / CONTROL_SOCKET)
        live.channel, live.hello = await WorkerChannel.connect(
            path, worker_id=live.id, deadline_s=deadline_s, alive=live.alive
        )
        live.connected.set()
        live.channel.on_event = lambda name, params: self._on_event(live.id, name, params)
        if live.kind is Kind.GATE:
            await access_logs.connected(live, self.config)
        return live.hello

    async def _start(
        self,
        worker: Worker,
        service: ServiceConfig,
        model: ModelConfig | None,
        readings: Sequence[DeviceReading],
        revision: Revision | None,
        slot: Slot | None,
    ) -> Live:
        """The process, in a directory of its own. Raises SwapdError(SPAWN_FAILED) with nothing left of it."""
        directory = Path(self.config.daemon.worker_dir(worker.id))
        nonce = secrets.token_hex(8)
        cap_bytes = slot.cap_bytes if slot is not None else None
        spec = spec_of(worker, service, model, nonce, gpu_cap(readings, cap_bytes))
        launch = None
        user = user_of(self._host, model, worker.kind)
        server_user = model.user if model is not None and not user else None  # whom a server of its own changes to
        if worker.kind is Kind.ENGINE and model is not None:
            launch = launch_of(model, smallest_gpu_bytes(readings))
            spec["server"] = server_spec(model, launch, readings, self.config.daemon.runtime_dir, server_user or "")
        log_path = self.log_path(worker.id)
        facts = Facts(
            service=worker.service,
            kind=worker.kind,
            revision=revision,
            nonce=nonce,
            started_at=self._clock(),
            log_path=str(log_path),
            slot=slot,
            made_of=worker.made_of,
            blocked=blocked_paths(model) if model is not None else (),
            reuse=model is None or reuses_connections(model),
            uid=uid_of(own_user) if (own_user := user or server_user) else None,
            own_stop_s=launch.stop_timeout_s + OWN_STOP_MARGIN_S if launch is not None else 0.0,
        )
        write_spec(directory, spec, facts)
        if server_user is not None:
            let_pass(directory, Path(self.config.daemon.runtime_dir))
        log_path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        own_python = model.python if model is not None and worker.kind is Kind.DIRECT else None
        flags = ["--gate"] if worker.kind is Kind.GATE else []
        confinement = Confinement()
        if user:
            ports = ports_dir(self.config.daemon.runtime_dir)
            share(ports)
            confinement = confine(user, model, readings, own_python or sys.executable, ports, cap_bytes)
        command = Command(
            name=worker.id,
            marker=marker_of(worker.id, nonce),
            argv=(own_python or sys.executable, LAUNCHER, *flags, str(directory)),
            env=environment_of(model, readings, launch, confinement.cache_dir if user else None, cap_bytes),
            cwd=model.directory if model is not None else None,
            log_path=str(log_path),
            directory=str(directory),
            confinement=confinement,
        )
        try:
            process = await self._host.spawn(command)
        except BaseException:
            forget(directory)
            raise
        return Live(worker.id, directory, process, facts, address=f"unix:{directory / HTTP_SOCKET}")

    async def stop(self, worker_id: str, *, force: bool) -> None:
        """Ask it to end, then end its whole tree. `on_exit` follows. Raises SwapdError(TIMEOUT) if that fails."""
        live = self.live.get(worker_id)
        if live is None:
            self._on_exit(worker_id, Problem(WORKER_EXITED, f"{worker_id} is not running."), ())
            return
        live.stopping = True
        live.reported = False  # the operation that was to tell of its end is void now
        if not force and live.channel is not None:
            patience_s = max(self.config.daemon.stop_timeout_s, live.facts.own_stop_s)
            with contextlib.suppress(SwapdError, asyncio.TimeoutError):
                await live.request("stop", deadline_s=patience_s)
                await within(patience_s, live.process.wait())
            if live.alive():  # its model hangs in its own shutdown, or blocks its loop
                log.warning("worker.stop_timeout worker=%s limit_s=%g", worker_id, patience_s)
        await live.process.kill_tree(0.0)

    async def condemn(self, worker_id: str, problem: Problem) -> None:
        """Kill its whole tree at once; `on_exit` follows with this problem. Raises SwapdError(TIMEOUT)."""
        live = self.live.get(worker_id)
        if live is not None:
            live.condemned = problem
            await live.process.kill_tree(0.0)

    async def _watch(self, live: Live) -> None:
        """Until the worker's end: then its tree, its channel and its directory go, and the core is told."""
        await _first(live.process.wait(), live.connected.wait())
        if live.channel is not None:
            await _first(live.process.wait(), live.channel.closed.wait())
        # Killed by us while it ends by itself, it would be told as killed by us. `stop` gives it the time that it has.
        stop_s = max(self.config.daemon.stop_timeout_s, live.facts.own_stop_s)
        patience_s = stop_s if live.stopping else EXIT_NOTICED_S
        with contextlib.suppress(asyncio.TimeoutError):
            await within(patience_s, live.process.wait())
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
        forget(live.directory)
        lines = await asyncio.to_thread(self.last_lines, live.id)
        reasons = await asyncio.to_thread(self.reasons, live.id)
        # Not earlier: until the core is told, an operation that finds it gone must wait for that, not fail by itself.
        self.live.pop(live.id, None)
        if not live.reported:
            problem = live.condemned or exit_problem(live.id, live.process, reasons)
            self._on_exit(live.id, problem, lines)

    def tidy_logs(self, keep_per_service: int) -> None:
        """Forget the oldest logs of workers that have ended, and bound those of the running ones. Blocks."""
        prune(self.log_path("x").parent, keep_per_service=keep_per_service, running=tuple(self.live))
        for live in list(self.live.values()):
            cap(Path(live.facts.log_path), self.config.daemon.log_max_bytes, self.config.daemon.log_rotate)

    def last_lines(self, worker_id: str, count: int = LOG_TAIL_LINES, since: int = 0) -> tuple[str, ...]:
        """The end of its log, after an offset; empty when that cannot be read. Blocks."""
        with contextlib.suppress(OSError):
            return tuple(tail(self.log_path(worker_id), count, since=since))
        return ()

    def reasons(self, worker_id: str) -> tuple[str, ...]:
        """Lines of its log that may say why it fails: those since it was seen ready, if it was. Blocks."""
        live = self.live.get(worker_id)
        return self.last_lines(worker_id, SEARCHED_LINES, live.ready_in_log if live is not None else 0)

    async def note_ready(self, worker_id: str) -> None:
        """It is ready now, whatever it has complained of."""
        live = self.live.get(worker_id)
        if live is not None:
            with contextlib.suppress(OSError):
                live.ready_in_log = (await asyncio.to_thread(self.log_path(worker_id).stat)).st_size


def marker_of(worker_id: str, nonce: str) -> str:
    """What every process of a worker carries in its environment."""
    return f"{worker_id}:{nonce}"


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def exit_problem(worker_id: str, process: WorkerProcess, lines: tuple[str, ...]) -> Problem:
    """Why it ended, by what the kernel and its own last lines say."""
    code = OUT_OF_MEMORY if process.oom_killed else WORKER_EXITED
    problem = Problem(code, f"{worker_id} ended: {process.exit_text}.", {"exit": process.exit_text})
    return told_by_its_log(problem, lines)
