"""What `--offline` answers with: the journal, the workers and their logs, asked without the daemon.

Duty: the same methods as `client.Client` for the verbs that only look, with the same records as far as they can be
known (`core.offline`). It changes nothing and waits for nobody longer than a moment, so that it works beside a daemon
that hangs as well.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from swapd.core import errors
from swapd.core.config import Config, ModelConfig
from swapd.core.devices import default_devices
from swapd.core.errors import SwapdError
from swapd.core.model import DeviceKind, Kind
from swapd.core.offline import Known, Seen, known_services, service_record, worker_record
from swapd.core.redact import Redactor, secrets_of, secrets_of_model
from swapd.core.report import measured_device
from swapd.host import locks, logs
from swapd.host.config_file import ConfigError, load_partly
from swapd.host.host_memory import HostMemory
from swapd.host.journal_reader import JournalReader
from swapd.host.nvml import Nvml
from swapd.host.pids import age_s, read_row
from swapd.host.processes import trees_pids
from swapd.host.worker_channel import WorkerChannel
from swapd.host.worker_dirs import WorkerDir, listener_pid, worker_dirs
from swapd.wire import saved

DEFAULT_CONFIG: Final = "/etc/swapd/swapd.toml"
REVISIONS: Final = "revisions"  # in runtime_dir
ANSWER_S: Final = 1.0  # a worker answers from a thread of its own in a millisecond, also while its model is busy
NEWEST_SWAPS: Final = 50  # of each service, to tell who brought what serves
DEFAULT_HISTORY: Final = 20
DEFAULT_LINES: Final = 100
STOPPED: Final = ("T", "t")  # in /proc/PID/stat


def config_path(given: str | None) -> Path:
    return Path(given or os.environ.get("SWAPD_CONFIG") or DEFAULT_CONFIG)


class Offline:
    """Raises SwapdError as the daemon would; CONFIG_INVALID when not even the configuration's tables can be read."""

    def __init__(self, config_file: Path) -> None:
        config, problems = load_partly(config_file)
        if config is None:
            raise ConfigError(problems)
        self.config: Final[Config] = config
        self.config_problems: Final = [str(problem) for problem in problems]
        former, all_read = _former_secrets(Path(config.daemon.runtime_dir))
        self.redactor: Final = Redactor(secrets_of(config) | former)
        # What could not be read of a model may have been its secrets.
        doubtful = (each for each in problems if each.key.startswith("models") or each.file != config.file)
        self.secrets_unknown: Final = not all_read or any(doubtful)

    def __enter__(self) -> Offline:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    # --- what the client has -----------------------------------------------------------------------------------

    def status(self, service: str | None = None) -> Any:
        journal_problem = None
        try:
            found = self._known()
        except SwapdError as error:
            if error.code != errors.JOURNAL_FAILED:
                raise
            journal_problem, found = error.message, self._known(read_journal=False)
        if service is not None:
            found = [known for known in found if known.name == service] or [self._no_service(service, found)]
        pid = self.daemon_pid()
        process = read_row(pid) if pid is not None else None
        daemon = {
            **{"version": None, "pid": pid, "uptime_s": age_s(pid) if pid is not None else None},
            **{"config": self.config.file, "epoch": None, "stopping": None, "journal": journal_problem},
            "offline": True,
            "running": pid is not None,
            "stopped": process is not None and process.state in STOPPED,
            "config_problems": self.config_problems,
        }
        return {"daemon": daemon, "services": [service_record(known, daemon_runs=pid is not None) for known in found]}

    def workers(self) -> Any:
        try:
            found = self._known()
        except SwapdError as error:
            if error.code != errors.JOURNAL_FAILED:
                raise
            found = self._known(read_journal=False)
        return [worker_record(known, worker) for known in found for worker in known.workers]

    def history(self, service: str | None = None, limit: int | None = None) -> Any:
        with self.journal() as journal:
            if service is not None and service not in (*self.config.services, *journal.services()):
                self._no_service(service, self._known())
            return journal.swaps(service, DEFAULT_HISTORY if limit is None else limit)

    def show(self, id: int) -> Any:
        with self.journal() as journal:
            record = journal.swap(id)
            if record is None:
                last = journal.last_swap_id()
                text = f"There is no swap {id}; the newest is {last}." if last else "There has been no swap yet."
                raise SwapdError(errors.UNKNOWN_SWAP, text)
            return {**record, "transitions": journal.transitions(id)}

    def logs(self, target: str, lines: int | None = None, *, offset: int | None = None) -> Any:
        try:
            started = {each.id: each.log_path or self._log_path(each.id) for each in self._directories()}
            worker = self._log_target(target, started)
            path, ended = started.get(worker, self._log_path(worker)), worker not in started
            if offset is None:
                chunk = logs.read_end(path, DEFAULT_LINES if lines is None else lines, ended=ended)
            else:
                chunk = logs.read_from(path, offset, ended=ended)
        except PermissionError as error:
            raise SwapdError(errors.BAD_REQUEST, f"{error.filename} is not for you to read: use sudo.") from None
        shown = [self.redactor.text(line) for line in chunk.text.splitlines()]
        return {"worker": worker, "lines": shown, "offset": chunk.offset, "restarted": chunk.restarted}

    async def devices(self) -> list[dict[str, Any]]:
        """Device memory measured here and now. What is reserved is not known."""
        directories = await asyncio.to_thread(self._directories)
        roots = {f"{d.id}:{d.spec.get('nonce')}": _pid_or_none(d) or 0 for d in directories}
        trees = await asyncio.to_thread(trees_pids, roots)
        pids = {marker.rpartition(":")[0]: found for marker, found in trees.items()}
        nvml = Nvml()
        try:
            configs = list(self.config.devices.values()) or list(default_devices(await nvml.list_devices()))
            gpus = [c for c in configs if c.kind is DeviceKind.NVML]
            host = HostMemory()
            ours = [c for c in configs if c.kind is DeviceKind.HOST]
            readings = await nvml.read_all(gpus, pids) if gpus else []
            for c in ours:
                here = {d.id: pids.get(d.id, set()) for d in directories if c.name in d.devices}
                readings.append(await host.read_async(c.name, c.memory_bytes, c.headroom_bytes, here))
        finally:
            await nvml.stop()
        return [measured_device(reading) for reading in readings]

    # --- where it comes from -----------------------------------------------------------------------------------

    @property
    def log_dir(self) -> Path:
        return Path(self.config.daemon.log_dir)

    @property
    def journal_path(self) -> Path:
        return Path(self.config.daemon.state_dir) / "journal.db"

    def journal(self) -> JournalReader:
        """Open for reading; to be closed. Raises SwapdError(JOURNAL_FAILED)."""
        return JournalReader(self.journal_path)

    def daemon_pid(self) -> int | None:
        """Of the daemon that has these directories, by its lock. None: there is none, or it cannot be told."""
        found = (locks.holder(Path(d)) for d in (self.config.daemon.runtime_dir, self.config.daemon.state_dir))
        return next((pid for pid in found if pid is not None), None)

    def _known(self, *, read_journal: bool = True) -> list[Known]:
        rows: Mapping[str, Any] = {}
        swaps: dict[str, list[dict[str, Any]]] = {}
        seen = asyncio.run(_ask_all(self._directories()))
        configured = [(name, each.listen, each.model) for name, each in self.config.services.items()]
        if read_journal:
            with self.journal() as journal:
                rows = journal.services()
                names = {*self.config.services, *rows, *(worker.service for worker in seen)}
                swaps = {name: journal.swaps(name, NEWEST_SWAPS) for name in names}
        return known_services(configured, rows, seen, swaps)

    def _directories(self) -> list[WorkerDir]:
        try:
            return worker_dirs(Path(self.config.daemon.runtime_dir))
        except PermissionError:
            text = f"The workers in {self.config.daemon.runtime_dir} answer to root and the daemon's user: use sudo."
            raise SwapdError(errors.BAD_REQUEST, text) from None

    def _no_service(self, name: str, found: list[Known]) -> Any:
        there_are = ", ".join(known.name for known in found) or "none"
        raise SwapdError(errors.UNKNOWN_SERVICE, f"There is no service {name!r}; there are: {there_are}.")

    def _log_path(self, worker: str) -> Path:
        return self.log_dir / f"{worker}.log"

    def _log_target(self, target: str, started: Mapping[str, Path]) -> str:
        """A worker that has a log: of a service its newest that runs, else the one that wrote last."""
        models = (d.id for d in self._directories() if d.spec.get("service") == target and not _is_gate(d))
        written = [worker for worker in models if started[worker].exists()]
        latest = max(written, key=lambda worker: int(worker.rpartition("-")[2]), default=None)
        found = latest or logs.newest(self.log_dir, target)
        if found is not None:
            return found
        if "/" not in target and started.get(target, self._log_path(target)).exists():
            return target
        text = f"There is no log of a service or worker {target!r} in {self.log_dir}"
        raise SwapdError(errors.UNKNOWN_WORKER, f"{text}; services: {', '.join(self.config.services) or 'none'}.")


def _is_gate(directory: WorkerDir) -> bool:
    return directory.spec.get("kind") == Kind.GATE.value


def _former_secrets(runtime_dir: Path) -> tuple[set[str], bool]:
    """Of the settings that revisions were made with, which the daemon keeps: the configuration may say others by now.
    And whether all of them could be read."""
    found: set[str] = set()
    all_read = True
    try:
        paths = [path for path in (runtime_dir / REVISIONS).iterdir() if path.suffix == ".json"]
    except FileNotFoundError:
        return found, True
    except OSError:
        return found, False
    for path in paths:
        try:
            found |= secrets_of_model(saved.load(ModelConfig, path.read_bytes()))
        except FileNotFoundError:
            continue  # forgotten meanwhile
        except (OSError, ValueError):
            all_read = False
    return found, all_read


# --- asking the workers --------------------------------------------------------------------------------------------


async def _ask_all(directories: list[WorkerDir]) -> list[Seen]:
    return list(await asyncio.gather(*(_ask(directory) for directory in directories)))


def _pid_or_none(directory: WorkerDir) -> int | None:
    try:
        return listener_pid(directory.control)
    except OSError:
        return None


async def _ask(directory: WorkerDir) -> Seen:
    """One worker's own words, or why there are none."""
    spec = directory.spec
    seen = Seen(
        directory.id,
        str(spec.get("service", "")),
        str(spec.get("kind", "")),
        int(spec.get("revision") or 0),
        str(spec.get("model") or ""),
        directory.devices,
    )
    try:
        pid = listener_pid(directory.control)
    except OSError as error:
        if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
            return replace(seen, gone=True)
        return replace(seen, problem=f"its control socket says: {error.strerror}")
    seen = replace(seen, pid=pid, uptime_s=age_s(pid))
    try:
        channel, hello = await WorkerChannel.connect(
            str(directory.control), worker_id=directory.id, deadline_s=ANSWER_S, alive=lambda: True
        )
        try:
            stats = await channel.request("stats", deadline_s=ANSWER_S)
        finally:
            channel.close()
    except SwapdError as error:
        return replace(seen, problem=error.message)
    return replace(seen, stats=stats, version=hello.get("version"))
