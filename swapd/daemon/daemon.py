"""The daemon: its parts, wired, and its own life: recovery, signals, what it does from time to time, the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import swapd
from swapd.core.config import Config
from swapd.core.errors import Problem, SwapdError
from swapd.core.events import Event, ShutdownRequested, SuccessorNeeded, WorkerExited
from swapd.core.model import State
from swapd.core.redact import Redactor, secrets_of
from swapd.daemon import access_logs
from swapd.daemon.adoption import borrow_listeners, observe
from swapd.daemon.analysis import Analysis
from swapd.daemon.api import Api
from swapd.daemon.closing import Closing
from swapd.daemon.devices import Devices
from swapd.daemon.executor import Executor
from swapd.daemon.keeping import CONTROL, Keeper
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.liveness import Liveness
from swapd.daemon.loop import Loop
from swapd.daemon.metrics import Metrics
from swapd.daemon.notices import Notices
from swapd.daemon.reading import Reading
from swapd.daemon.records import Records
from swapd.daemon.reload import Reload
from swapd.daemon.renaming import follow_names
from swapd.daemon.restart import Restart
from swapd.daemon.start import bind_all, listener_names, make_directories, only_one
from swapd.daemon.workers import Workers
from swapd.host.clock import wall_s as now
from swapd.host.control_socket import ControlSocket, Peer
from swapd.host.journal import Journal
from swapd.host.service_manager import ServiceManager
from swapd.host.succession import hold_signals, inherited_listeners, rehearse, repeat_signals

log = logging.getLogger("swapd")

STATUS_PERIOD_S: Final = 1.0
TIDY_PERIOD_S: Final = 10.0
PRUNE_PERIOD_S: Final = 3600.0
PRUNE_PAUSE_S: Final = 0.05  # between pieces of some 10 ms, so that the loop is free for most of the time
START_EXTENSION_S: Final = 30.0
MEND_PERIOD_S: Final = 5.0


class Daemon:
    """`build` registers the end of each part with the stack, in order. Whatever the end, workers live on that were not
    stopped before."""

    def __init__(self, config: Config, journal: Journal, manager: ServiceManager) -> None:
        self.config = config
        self.journal = journal
        self.manager = manager
        self.records = Records(journal)
        self.done = asyncio.Event()
        self._leaving = False
        self._recovered = False
        self._early: list[Event] = []  # what happens before the state is the host's
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    async def build(cls, config: Config, stack: contextlib.AsyncExitStack) -> Daemon:
        make_directories(config)
        stack.enter_context(only_one(config))
        journal = Journal(Path(config.daemon.state_dir) / "journal.db")
        stack.callback(journal.close)
        manager = ServiceManager()  # takes the environment's variables away: there is one
        stack.callback(manager.close)
        daemon = cls(config, journal, manager)
        stack.push_async_callback(daemon._end_tasks)
        await daemon._assemble(stack)
        return daemon

    async def _assemble(self, stack: contextlib.AsyncExitStack) -> None:
        config = self.config
        state = follow_names(self.records.read(), config)
        self.workers = Workers(config, on_exit=self.on_worker_exit, on_event=self.on_worker_event, clock=now)
        self.workers.start(managed=self.manager.present)
        stack.push_async_callback(self.workers.close)
        self._begin(self._ask_for_time())
        observed = await observe(self.workers, state, 2 * config.daemon.hand_over_timeout_s)
        self.keeper = Keeper(self.manager)
        kept = {**inherited_listeners(), **self.keeper.kept}
        kept_control = kept.pop(CONTROL, None)
        known = {address for service in config.services.values() for address in service.listen}
        known |= {address for service in state.services for address in service.settings.listen}
        lent = await borrow_listeners(self.workers, known)
        self.listeners = bind_all(config, self.keeper.given, kept, lent)
        self.closing = Closing(config, self.listeners, self.keeper.given.values())

        self.notices = Notices(config, lambda: self.loop.redactor)
        stack.push_async_callback(self.notices.close)
        self.devices = Devices(config.devices, self.workers, lambda: self.loop.state, self.publish)
        self.knowledge = Knowledge(config, self.journal, self.devices)
        self.executor = Executor(
            config, self.workers, self.devices, self.knowledge, self.listeners, self.publish, self.done.set
        )
        self.loop = Loop(state, self.records, self.executor, self.publish, Redactor(secrets_of(config)))
        self.executor.loop = self.knowledge.loop = self.loop
        self.metrics = Metrics(self.loop, self.workers, self.devices, self.knowledge, self.notices)
        self.reading = Reading(self.loop, self.workers, self.devices, self.knowledge, self.journal)
        self.api = Api(self.loop, self.reading, self.knowledge, self.journal, self.stop)
        self.api.contracts = self.executor.contracts
        self.api.reloading = Reload(
            *(self.api, self.loop, self.knowledge, self.devices, self.journal, self.listeners, self.closing, self.apply)
        )
        self.restart = Restart(self.loop, self.knowledge, self.api)
        await self.devices.start()
        stack.push_async_callback(self.devices.close)
        stack.push_async_callback(self.executor.close)
        epoch = self.journal.boot
        self.control = ControlSocket(config.daemon.control, config.daemon.events, self.handle, epoch=epoch)
        await self.restart.recover(config, observed, crashed=self.records.crashed)
        self._recovered = True
        for event in self._early:
            self.loop.take(replace(event, at=now()))  # in the order in which they are told
        self._end_strangers()
        self._install_signals()  # not earlier: a stop that the recovery overtakes would be forgotten
        await self.control.start(kept_control)  # last: whoever asks finds every service
        stack.push_async_callback(self._close_control)
        self.keeper.keep(self._successors())

    def _successors(self) -> dict[str, socket.socket]:
        """The listeners that a next daemon shall have."""
        found = listener_names(self.config, self.listeners)
        if (control := self.control.listener) is not None:
            found[CONTROL] = control
        return found

    async def _close_control(self) -> None:
        await self.control.close(leave=self._leaving)

    def _end_strangers(self) -> None:
        """Workers whose service neither the journal nor the configuration knows: they would run for ever."""
        known = {worker.id for worker in self.loop.state.workers}
        for worker_id in self.workers.live.keys() - known:
            log.warning("recovery.stranger_ends worker=%s: its service is not known any more", worker_id)
            self._begin(_end(worker_id, self.workers.stop(worker_id, force=False)))

    def _install_signals(self) -> None:
        loop = asyncio.get_running_loop()
        handlers: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGTERM: self.stop,
            signal.SIGINT: self.stop,
            signal.SIGUSR2: lambda: self._begin(self.leave()),
            signal.SIGHUP: lambda: self._begin(self._reload()),
        }
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        repeat_signals()

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_tell_its_bug)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def apply(self, config: Config) -> None:
        """Go by a new configuration from now on."""
        self.config = self.executor.config = self.knowledge.config = self.workers.config = config
        self.closing.configure(config)
        self.notices.configure(config)
        self.loop.redactor = self.loop.redactor.also(secrets_of(config))  # workers of before live on, and so do logs
        logging.getLogger().setLevel(config.daemon.log_level.upper())

    # --- what others call ----------------------------------------------------------------------------------------

    async def handle(self, method: str, params: Mapping[str, Any], peer: Peer) -> Any:
        return await self.api.handle(method, params, peer)

    def publish(self, event: str, body: Mapping[str, Any]) -> None:
        self.control.publish(event, body)
        self.notices.hear(event, body)
        self.restart.stirred.set()
        self.reading.hear(event)
        if event == "service.removed":
            self.closing.look(self.loop.state)

    def on_worker_exit(self, worker: str, problem: Problem, log_tail: tuple[str, ...]) -> None:
        self._take(WorkerExited(now(), worker, problem, log_tail))
        if self._recovered:
            self.closing.look(self.loop.state)

    def on_worker_event(self, worker: str, name: str, params: Mapping[str, Any]) -> None:
        if name == "needs_successor":
            self._take(SuccessorNeeded(now(), worker))
        elif name == "progress" and self._recovered:
            self.executor.publish_progress(worker, self.loop.redactor.value(params))

    def _take(self, event: Event) -> None:
        if self._recovered:
            self.loop.take(event)
        else:
            self._early.append(event)

    # --- the run of it -------------------------------------------------------------------------------------------

    async def run(self) -> dict[str, int] | None:
        """Until the end. The listeners for a successor in this process, if there shall be one."""
        loop = asyncio.get_running_loop()
        self.manager.ready()
        log.info("daemon.ready version=%s control=%s", swapd.__version__, self.config.daemon.control)
        periodic = (
            *(self.reading.poll_stats(), self._report(), self._tidy_logs(), self._prune_journal()),
            access_logs.keep(lambda: self.config, lambda: list(self.workers.live.values())),
            *(self._mend_journal(), self._favour_servers(), self.restart.follow_changes()),
            *(Liveness(self.loop, self.workers, self.knowledge).run(), self.devices.watch()),
            *(Analysis(self.loop, self.workers).run(), self.metrics.run(self.config.daemon.metrics)),
        )
        tasks = [loop.create_task(each) for each in periodic]
        for task in tasks:
            task.add_done_callback(_tell_its_bug)
        try:
            await self.done.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self.records.end()
        if not self._leaving:
            self.keeper.keep({})
            await self.closing.close()
            self.knowledge.end()
            log.info("daemon.stopped")
            return None
        log.info("daemon.left workers=%d", len(self.workers.live))
        if self.manager.present:
            return None  # it starts the successor
        return {name: os.dup(sock.fileno()) for name, sock in self._successors().items()}

    def stop(self) -> None:
        """Drain and stop everything; the second time, at once. A successor in this process is told instead."""
        if self._leaving:
            if not self.manager.present:
                os.kill(os.getpid(), signal.SIGTERM)
            return
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
            self._begin(_end(worker_id, live.process.kill_tree(0.0)))

    async def leave(self) -> None:
        """Make way for a successor, which finds the fronts and workers as they are. One that could not start is not
        made way for."""
        if self.loop.state.stopping or self._leaving:
            return
        if not self.manager.present:
            try:
                await rehearse(self.config.file)
            except SwapdError as error:
                log.error("daemon.stays because=%s", error.message)
                return
            if self.loop.state.stopping or self._leaving:  # meanwhile: a successor would go on as if it had not been
                return
            hold_signals()
        self._leaving = True
        self.done.set()

    async def _reload(self) -> None:
        """By SIGHUP: as the command, with nobody to answer."""
        try:
            await self.api.reload({}, "SIGHUP")
        except SwapdError as error:
            log.error("daemon.reload_refused because=%s", error.message)

    # --- from time to time -----------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Tell systemd that the loop lives, and in a line how things stand."""
        while True:
            self.manager.watchdog()
            self.manager.status(_summary(self.loop.state))
            # A reload may have changed them. One that stops has no successor.
            self.keeper.keep({} if self.loop.state.stopping else self._successors())
            await asyncio.sleep(STATUS_PERIOD_S)

    async def _favour_servers(self) -> None:
        while True:
            servers = (self.loop.state.server_of(service.name) for service in self.loop.state.services)
            await self.workers.favour({server.id for server in servers if server is not None})
            await asyncio.sleep(STATUS_PERIOD_S)

    async def _ask_for_time(self) -> None:
        """A start waits for workers that do not answer, and looks at every file of a model that is not up."""
        while not self._recovered:
            self.manager.extend_timeout(START_EXTENSION_S)
            await asyncio.sleep(START_EXTENSION_S / 3)

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
            more = self._prune()
            await asyncio.sleep(PRUNE_PAUSE_S if more else PRUNE_PERIOD_S)

    def _prune(self) -> bool:
        """A piece of it. Whether there may be more."""
        keep, max_age_s = self.config.daemon.history_keep, self.config.daemon.history_max_age_s
        try:
            return self.journal.prune(keep, now() - max_age_s if max_age_s else 0.0)
        except SwapdError as error:
            log.warning("daemon.journal_not_pruned error=%s", error.message)
            return False

    async def _mend_journal(self) -> None:
        """One that could not be opened may be there later: locked, on a full disk, moved away. One that could not be
        written is behind until it is: another daemon would go by what it says."""
        while True:
            await asyncio.sleep(MEND_PERIOD_S)
            found = self.records.find_again(now())
            if found is not None:
                self.loop.take(found)
            else:
                self.records.catch_up(self.loop.state)


async def _end(worker_id: str, ending: Awaitable[None]) -> None:
    """What the kernel keeps is told, and asked again by whoever watches it."""
    try:
        await ending
    except SwapdError as error:
        log.error("daemon.will_not_end worker=%s because=%s", worker_id, error.message)


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
