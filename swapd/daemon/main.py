"""`swapd`: reads the configuration, wires the parts together, and runs until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import swapd
from swapd.core.config import Config
from swapd.core.errors import CONFIG_INVALID, Problem, SwapdError
from swapd.core.events import ShutdownRequested, SuccessorNeeded, WorkerExited
from swapd.core.model import State
from swapd.core.redact import Redactor, secrets_of
from swapd.daemon.api import Api
from swapd.daemon.closing import Closing
from swapd.daemon.devices import Devices
from swapd.daemon.executor import Executor
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.loop import Loop
from swapd.daemon.reading import Reading
from swapd.daemon.restart import Restart
from swapd.daemon.start import bind_all, end_leftovers, make_directories, only_one
from swapd.daemon.workers import Workers
from swapd.host.clock import wall_s as now
from swapd.host.config_file import check, load_config
from swapd.host.control_socket import ControlSocket, Peer
from swapd.host.journal import Journal
from swapd.host.service_manager import ServiceManager

log = logging.getLogger("swapd")

STATUS_PERIOD_S: Final = 1.0
MAX_FILES: Final = 65536
TIDY_PERIOD_S: Final = 10.0
PRUNE_PERIOD_S: Final = 3600.0
EXIT_CONFIG: Final = 2
EXIT_FAILED: Final = 1


def main(argv: Sequence[str] | None = None) -> int:
    """The entry point. Returns the exit status: 0 stopped, 1 could not start, 2 the configuration is wrong."""
    arguments = _parse(argv)
    if arguments.check_config:
        mistakes = check(Path(arguments.check_config))
        print("\n".join(mistakes) if mistakes else f"{arguments.check_config}: ok")
        return EXIT_CONFIG if mistakes else 0
    try:
        config = load_config(Path(arguments.config))
        _set_up_logging(config.daemon.log_level)
        _raise_file_limit()
        return asyncio.run(_run(config))
    except SwapdError as error:
        print(f"swapd: {error.message}", file=sys.stderr)
        return EXIT_CONFIG if error.code == CONFIG_INVALID else EXIT_FAILED
    except KeyboardInterrupt:
        return 130


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="swapd",
        description="Runs model servers behind fixed addresses and replaces them without their clients noticing.",
        epilog="Talk to it with swapd-cli. Example: swapd --config /etc/swapd/swapd.toml",
    )
    parser.add_argument("--config", metavar="FILE", default="/etc/swapd/swapd.toml", help="default: %(default)s")
    parser.add_argument(
        "--check-config", metavar="FILE", help="name every mistake in FILE, and exit (2 if there is any)"
    )
    parser.add_argument("--version", action="version", version=f"swapd {swapd.__version__}")
    return parser.parse_args(argv)


def _raise_file_limit() -> None:
    """libzmq ends the process when accept() finds no descriptor free (pyzmq issue 1591), and 1,024 are soon used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _set_up_logging(level: str) -> None:
    """One line an event on stderr; under systemd the journal adds the time."""
    stamp = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=level.upper(), format=f"{stamp}%(levelname).1s %(name)s: %(message)s", stream=sys.stderr)


async def _run(config: Config) -> int:
    async with contextlib.AsyncExitStack() as stack:
        daemon = await _Daemon.build(config, stack)
        return await daemon.run()


class _Daemon:
    """The parts, wired. `build` registers the end of each with the stack, in order."""

    def __init__(
        self, config: Config, loop: Loop, executor: Executor, knowledge: Knowledge, journal: Journal, workers: Workers
    ) -> None:
        self.config = config
        self.loop = loop
        self.executor = executor
        self.knowledge = knowledge
        self.journal = journal
        self.workers = workers
        self.done = asyncio.Event()
        self.manager: ServiceManager
        self.reading: Reading
        self.api: Api
        self.restart: Restart
        self.control: ControlSocket
        self.closing: Closing

    @classmethod
    async def build(cls, config: Config, stack: contextlib.AsyncExitStack) -> _Daemon:
        make_directories(config)
        stack.enter_context(only_one(config))
        await end_leftovers(Path(config.daemon.runtime_dir) / "w")
        journal = Journal(Path(config.daemon.state_dir) / "journal.db")
        stack.callback(journal.close)
        manager = ServiceManager()  # takes the environment's variables away: there is one
        stack.callback(manager.close)
        inherited = manager.listen_fds()
        bound = bind_all(config, inherited)
        closing = Closing(config, bound, inherited.values())
        stack.push_async_callback(closing.close)

        loop: Loop
        daemon: _Daemon
        workers = Workers(
            config,
            on_exit=lambda worker, problem, lines: daemon.on_worker_exit(worker, problem, lines),
            on_event=lambda worker, name, params: daemon.on_worker_event(worker, name, params),
            clock=now,
        )
        devices = Devices(config.devices, workers, lambda: loop.state)
        knowledge = Knowledge(config, journal, devices)

        def publish(event: str, body: Mapping[str, Any]) -> None:
            daemon.control.publish(event, body)
            daemon.restart.stirred.set()
            daemon.reading.hear(event)

        executor = Executor(config, workers, devices, knowledge, bound, publish, lambda: daemon.done.set())
        state = State(next_swap=journal.last_swap_id() + 1, next_worker=journal.number("next_worker"))
        loop = Loop(state, journal, executor, publish, Redactor(secrets_of(config)))
        executor.loop = knowledge.loop = loop
        daemon = cls(config, loop, executor, knowledge, journal, workers)
        daemon.closing = closing
        daemon.manager = manager
        daemon.reading = Reading(loop, workers, devices, knowledge, journal)
        daemon.api = Api(loop, daemon.reading, knowledge, journal, daemon.apply, daemon.stop)
        daemon.restart = Restart(loop, knowledge, journal, daemon.api)
        workers.start()
        stack.push_async_callback(workers.close)
        await devices.start()
        stack.push_async_callback(devices.close)
        stack.push_async_callback(executor.close)
        epoch = journal.boot
        daemon.control = ControlSocket(config.daemon.control, config.daemon.events, daemon.handle, epoch=epoch)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, daemon.stop)
        journal.prune(config.daemon.history_keep)
        daemon.restart.close_unfinished_swaps()
        await daemon.restart.add_services(config)
        await daemon.control.start()  # last: whoever asks finds every service
        stack.push_async_callback(daemon.control.close)
        return daemon

    def apply(self, config: Config) -> None:
        """Go by a new configuration from now on."""
        self.config = self.executor.config = self.knowledge.config = self.workers.config = config
        self.loop.redactor = self.loop.redactor.also(secrets_of(config))  # workers of before live on, and so do logs
        logging.getLogger().setLevel(config.daemon.log_level.upper())

    async def handle(self, method: str, params: Mapping[str, Any], peer: Peer) -> Any:
        return await self.api.handle(method, params, peer)

    def on_worker_exit(self, worker: str, problem: Problem, log_tail: tuple[str, ...]) -> None:
        self.loop.take(WorkerExited(now(), worker, problem, log_tail))
        self.closing.look(self.loop.state)

    def on_worker_event(self, worker: str, name: str, params: Mapping[str, Any]) -> None:
        if name == "needs_successor":
            self.loop.take(SuccessorNeeded(now(), worker))
        elif name == "progress":
            self.executor.publish_progress(worker, self.loop.redactor.value(params))

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        self.manager.ready()
        log.info("daemon.ready version=%s control=%s", swapd.__version__, self.config.daemon.control)
        periodic = (self.reading.poll_stats(), self._report(), self._tidy_logs(), self._prune_journal())
        tasks = [loop.create_task(each) for each in (*periodic, self.restart.follow_changes())]
        for task in tasks:
            task.add_done_callback(_tell_its_bug)
        try:
            await self.done.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        log.info("daemon.stopped")
        return 0

    def stop(self) -> None:
        """Drain and stop everything; the second time, at once."""
        if self.loop.state.stopping:
            log.warning("daemon.stop_forced")
            self._force()
            return
        log.info("daemon.stopping")
        patience_s = self.config.daemon.shutdown_timeout_s
        self.manager.stopping()
        self.manager.extend_timeout(patience_s + 30)
        asyncio.get_running_loop().call_later(patience_s, self._force)
        self.loop.take(ShutdownRequested(now()))
        self.closing.look(self.loop.state)

    def _force(self) -> None:
        for worker_id, live in list(self.workers.live.items()):
            log.warning("daemon.killing worker=%s", worker_id)
            live.stopping = True
            task = asyncio.ensure_future(live.process.kill_tree(0.0))
            task.add_done_callback(lambda t: t.cancelled() or t.exception())

    async def _report(self) -> None:
        """Tell systemd that the loop lives, and in a line how things stand."""
        while True:
            self.manager.watchdog()
            self.manager.status(_summary(self.loop.state))
            await asyncio.sleep(STATUS_PERIOD_S)

    async def _tidy_logs(self) -> None:
        """Apart from `_report`: a disk that hangs or refuses must not look like a loop that does."""
        while True:
            try:
                await asyncio.to_thread(self.workers.tidy_logs, self.config.daemon.log_keep)
            except OSError as error:
                log.warning("daemon.logs_not_tidied error=%s", error)
            await asyncio.sleep(TIDY_PERIOD_S)

    async def _prune_journal(self) -> None:
        """A worker that fails again and again writes for as long as the daemon lives."""
        while True:
            await asyncio.sleep(PRUNE_PERIOD_S)
            try:
                self.journal.prune(self.config.daemon.history_keep)
            except SwapdError as error:
                log.warning("daemon.journal_not_pruned error=%s", error.message)


def _tell_its_bug(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.error("daemon.bug task=%s", task.get_coro(), exc_info=task.exception())


def _summary(state: State) -> str:
    """The STATUS line of systemd: what serves, and what is under way."""
    parts = []
    for service in state.services:
        server = state.server_of(service.name)
        revision = service.revision(server.revision) if server is not None else None
        text = f"{service.name}: {revision.model if revision is not None else 'nothing serves'}"
        if service.swap is not None:
            text += f" (#{service.swap.id} to {service.swap.target.model}: {service.swap.phase.value})"
        elif revision is None and service.problem is not None:
            text += f" ({service.problem.message})"
        parts.append(text)
    return "; ".join(parts) or "no services"


if __name__ == "__main__":
    sys.exit(main())
