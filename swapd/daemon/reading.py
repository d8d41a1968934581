"""The control socket's methods that only look: each answers with records, and changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import swapd
from swapd.core import errors
from swapd.core.errors import SwapdError
from swapd.core.ledger import most_used
from swapd.core.model import Kind, Revision, Service
from swapd.core.redact import Redactor
from swapd.core.report import device_record, devices_of, drifted, service_record, swap_record, worker_record
from swapd.core.states import Phase
from swapd.daemon.devices import Devices
from swapd.daemon.draining import in_flight_through
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.loop import Loop
from swapd.daemon.workers import Workers
from swapd.host.clock import wall_s as now
from swapd.host.journal import Journal
from swapd.host.logs import newest, read_end, read_from

STATS_S: Final = 0.5
STATS_PERIOD_S: Final = 1.0
_BROUGHT: Final = (Phase.SOAKING.value, Phase.SUCCEEDED.value)
DEFAULT_HISTORY: Final = 20
DEFAULT_LINES: Final = 100

Params = Mapping[str, Any]


class Reading:
    def __init__(self, loop: Loop, workers: Workers, devices: Devices, knowledge: Knowledge, journal: Journal) -> None:
        self._loop = loop
        self._workers = workers
        self._devices = devices
        self._knowledge = knowledge
        self._journal = journal
        self._started_s = time.monotonic()
        self._look_again = asyncio.Event()

    def service(self, name: str) -> Service:
        """Raises UNKNOWN_SERVICE, naming those that there are."""
        service = self._loop.state.service(name)
        if service is None:
            known = ", ".join(s.name for s in self._loop.state.services)
            raise SwapdError(errors.UNKNOWN_SERVICE, f"There is no service {name!r}; there are: {known}.")
        return service

    async def poll_stats(self) -> None:
        """Keep each worker's figures fresh, so that `status` never waits for a worker."""
        while True:
            self._look_again.clear()
            await asyncio.gather(*(self.fresh_stats(worker_id) for worker_id in list(self._workers.live)))
            # Not wait_for: before Python 3.12 it may lose the cancellation that ends this loop.
            period = asyncio.get_running_loop().call_later(STATS_PERIOD_S, self._look_again.set)
            await self._look_again.wait()
            period.cancel()

    def hear(self, event: str) -> None:
        """The daemon's events: who has just become an owner may never have been asked for its figures."""
        if event == "service.changed":
            self._look_again.set()

    async def fresh_stats(self, worker_id: str | None) -> Mapping[str, Any]:
        live = self._workers.live.get(worker_id or "")
        if live is None or live.channel is None:
            return {}
        with contextlib.suppress(SwapdError):  # the last known figures stand; a dead worker is told as such
            live.stats = await live.request("stats", deadline_s=STATS_S)
        return live.stats

    async def open_requests(self, service: Service) -> Mapping[str, Any]:
        """The figures of what answers the service's clients: those of its own front, and what its gate relays to it.
        Empty: not known."""
        server = self._loop.state.server_of(service.name)
        if server is None or server.id == service.owner:
            return await self.fresh_stats(service.owner)
        gate = in_flight_through(await self.fresh_stats(service.owner), server.id)
        own = await self.fresh_stats(server.id) if server.kind is Kind.DIRECT else {}
        if not gate:
            return {}
        return {
            "in_flight": gate["in_flight"] + own.get("in_flight", 0),
            "streams": gate["streams"] + own.get("streams", 0),
            "upgraded": gate["upgraded"] + own.get("upgraded", 0),
            "oldest_in_flight_s": max(gate["oldest_in_flight_s"], own.get("oldest_in_flight_s", 0.0)),
        }

    async def status(self, params: Params) -> Any:
        wanted = params.get("service")
        services = [self.service(wanted)] if wanted is not None else self._loop.state.services
        return {
            "daemon": {
                "version": swapd.__version__,
                "pid": os.getpid(),
                "uptime_s": round(time.monotonic() - self._started_s, 1),
                "config": self._knowledge.config.file,
                "epoch": self._journal.boot,
                "stopping": self._loop.state.stopping,
                "journal": self._loop.journal_problem.message if self._loop.journal_problem else None,
            },
            "services": [self._service_record(s) for s in services],
        }

    def _service_record(self, service: Service) -> dict[str, Any]:
        config = self._knowledge.config.services.get(service.name)  # None: it was removed, and has not ended yet
        config_model = config.model if config is not None else service.config_model
        live = self._workers.live.get(service.owner or "")
        return service_record(
            self._loop.state,
            service,
            listen=config.listen if config is not None else (),
            config_model=config_model,
            stats=live.stats if live is not None else None,
            brought_by=self._who_brought(drifted(service, config_model)),
            troubles=self._devices.troubles(devices_of(self._loop.state, service.name)),
        )

    def _who_brought(self, revision: Revision | None) -> str | None:
        """Who asked for the swap to this revision. A journal that fails is told elsewhere."""
        if revision is None:
            return None
        with contextlib.suppress(SwapdError):
            record = self._journal.last_swap_to(revision.service, revision.number, _BROUGHT)
            return str(record["actor"]) if record is not None else None
        return None

    async def devices(self, params: Params) -> Any:
        readings = await self._devices.read_all()
        return [device_record(r, self._loop.state) for r in readings]

    async def workers(self, params: Params) -> Any:
        readings = await self._devices.read_all()
        state = self._loop.state
        reserved = {r.worker_id: r.bytes for r in state.reservations}
        records = []
        for worker in state.workers:
            live = self._workers.live.get(worker.id)
            stats = live.stats if live is not None else {}
            record = worker_record(state, worker, reserved)
            records.append(
                record
                | {
                    "pid": live.process.pid if live is not None else None,
                    "used_bytes": most_used([r for r in readings if r.name in record["devices"]], worker.id),
                    "uptime_s": round(now() - live.facts.started_at, 1) if live is not None else None,
                    "in_flight": stats.get("in_flight"),
                    "connections": stats.get("connections"),
                    "version": live.hello.get("version") if live is not None else None,
                }
            )
        return records

    async def models(self, params: Params) -> Any:
        return [
            {"name": m.name, "engine": m.engine, "app": m.app, "device_memory_bytes": m.device_memory_bytes}
            for m in self._knowledge.config.models.values()
        ]

    async def history(self, params: Params) -> Any:
        service = params.get("service")
        if service is not None:
            self.service(service)
        return self._journal.swaps(service, params.get("limit", DEFAULT_HISTORY))

    async def show(self, params: Params) -> Any:
        under_way = [s.swap for s in self._loop.state.services if s.swap is not None and s.swap.id == params["id"]]
        record = swap_record(under_way[0]) if under_way else self._journal.swap(int(params["id"]))
        if record is None:
            last = self._journal.last_swap_id()
            text = f"There is no swap {params['id']}; the newest is {last}." if last else "There has been no swap yet."
            raise SwapdError(errors.UNKNOWN_SWAP, text)
        return {**record, "transitions": self._journal.transitions(record["id"])}

    async def logs(self, params: Params) -> Any:
        worker_id = self._log_target(params["target"])
        path = self._workers.log_path(worker_id)
        offset, lines = params.get("offset"), params.get("lines", DEFAULT_LINES)
        ended = worker_id not in self._workers.live
        found = await asyncio.to_thread(_read_log, path, lines, offset, ended, self._loop.redactor)
        return {"worker": worker_id, **found}

    def _log_target(self, target: str) -> str:
        """A worker that has a log: one that waits for its (next) start has none."""
        if self._loop.state.service(target) is not None:
            workers = [w.id for w in self._loop.state.workers_of(target) if w.kind is not Kind.GATE]
            written = [worker_id for worker_id in workers if self._workers.log_path(worker_id).exists()]
            latest = max(written, key=lambda worker_id: int(worker_id.rpartition("-")[2]), default=None)
            found = latest or newest(self._workers.log_path("x").parent, target)
            if found is not None:
                return found
            text = f"No worker of {target} has a log: none has been started yet, or its log is gone (log_keep)."
            raise SwapdError(errors.UNKNOWN_WORKER, f"{text} What it waits for: swapd-cli status {target}.")
        if "/" not in target and self._workers.log_path(target).exists():
            return target
        names = ", ".join(s.name for s in self._loop.state.services)
        raise SwapdError(errors.UNKNOWN_WORKER, f"There is no service or worker {target!r}; services: {names}.")


def _read_log(path: Path, lines: int, offset: int | None, ended: bool, redactor: Redactor) -> dict[str, Any]:
    chunk = read_end(path, lines, ended=ended) if offset is None else read_from(path, offset, ended=ended)
    shown = [redactor.text(line) for line in chunk.text.splitlines()]
    return {"lines": shown, "offset": chunk.offset, "restarted": chunk.restarted}
