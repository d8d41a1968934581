"""What a Prometheus is told: asks gates for their windows, puts everything together at a scrape, and serves it.

The counters are this daemon's own: they begin with it, as `swapd_start_time_seconds` says.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import swapd
from swapd.core import gauges
from swapd.core.errors import SwapdError
from swapd.core.events import Event, Outcome
from swapd.core.metering import Meter
from swapd.core.metrics import Values
from swapd.core.model import Kind, Service, State
from swapd.daemon.devices import Devices
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.live import Live
from swapd.daemon.loop import Loop
from swapd.daemon.notices import Notices
from swapd.daemon.workers import Workers
from swapd.host import listeners
from swapd.host.clock import wall_s as now
from swapd.host.metrics import MetricsServer, render

log = logging.getLogger("swapd.metrics")

LOOK_S: Final = 1.0
STATS_S: Final = 5.0
BIND_AGAIN_S: Final = 5.0


class Metrics:
    def __init__(self, loop: Loop, workers: Workers, devices: Devices, knowledge: Knowledge, notices: Notices) -> None:
        self.meter = Meter()
        self._loop = loop
        self._workers = workers
        self._devices = devices
        self._knowledge = knowledge
        self._notices = notices
        self._started_at = now()
        self._told: dict[str, str] = {}  # of gates whose windows could not be read
        self._threads = ThreadPoolExecutor(1, "metrics")  # to write the text: one scrape at a time, off the loop
        loop.observe = self._step

    async def run(self, address: str | None) -> None:
        """Measure and serve until cancelled. None: nobody asks, so nothing is measured."""
        if address is None:
            return
        server = MetricsServer(await _bound(address), self.read)
        try:
            await server.start()
            log.info("metrics.served address=%s", address)
            while True:
                await self._look()
                await asyncio.sleep(LOOK_S)
        finally:
            await server.close()
            self._threads.shutdown(wait=False)

    def _step(self, before: State, event: Event, outcome: Outcome) -> None:
        try:
            self.meter.step(before, event, outcome)
        except Exception:  # a bug of ours: a count is lost, and nothing else
            log.exception("metrics.bug event=%s", type(event).__name__)

    async def _look(self) -> None:
        state, live = self._loop.state, self._workers.live
        names = {service.name for service in state.services}
        self.meter.keep(names, set(live))
        for front in list(live.values()):
            if front.kind is not Kind.ENGINE and front.facts.service in names:
                kind = "gate" if front.kind is Kind.GATE else "direct"
                self.meter.front(front.facts.service, front.id, kind, front.stats, fresh=self._is_ours(front))
        gates = [(s, gate) for s in state.services for gate in self._gates(s)]
        await asyncio.gather(*(self._measure(service, gate) for service, gate in gates))

    async def _measure(self, service: Service, gate: Live) -> None:
        """One that does not answer is asked again: its windows are kept until then."""
        fresh, models = self._is_ours(gate), {r.number: r.model for r in service.revisions}
        try:
            stats = await gate.request("stats", {"windows": True}, deadline_s=STATS_S)
        except SwapdError:
            return
        try:
            self.meter.windows(service.name, gate.id, stats["windows"], models, fresh=fresh)
            if stats.get("shadow") is not None:
                self.meter.shadow(service.name, gate.id, stats["shadow"], models, fresh=fresh)
            gate.shadow = stats.get("shadow")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if self._told.get(gate.id) != str(error):
                self._told[gate.id] = str(error)
                log.warning("metrics.not_measured service=%s gate=%s why=%s", service.name, gate.id, error)

    def _is_ours(self, front: Live) -> bool:
        """This daemon has started it: all that it has counted is this daemon's to tell."""
        return front.facts.started_at >= self._started_at

    def _gates(self, service: Service) -> Iterator[Live]:
        """Beside the one that answers now, one that has handed over, and finishes what is in flight."""
        for worker in self._loop.state.workers_of(service.name):
            live = self._workers.live.get(worker.id)
            if live is not None and live.kind is Kind.GATE and live.channel is not None:
                yield live

    # --- a scrape ------------------------------------------------------------------------------------------------

    async def read(self) -> bytes:
        """All metrics as they are now, in Prometheus' text format."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, render, self.values())

    def values(self) -> Values:
        state, live = self._loop.state, self._workers.live
        values = self.meter.values.copied()
        values.set("swapd_build_info", 1, version=swapd.__version__)
        values.set("swapd_start_time_seconds", self._started_at)
        values.set("swapd_journal_up", self._loop.journal_problem is None)
        configured = {name: each.model for name, each in self._knowledge.config.services.items()}
        gauges.of_services(values, state, configured)
        gauges.of_devices(values, state, self._devices.latest())
        for name, (counts, queued) in self._notices.figures().items():
            values.set("swapd_notifications_queued", queued, notify=name)
            for outcome in ("delivered", "failed", "dropped"):
                values.count("swapd_notifications_total", counts.get(outcome, 0), notify=name, outcome=outcome)
        for service in state.services:
            fronts = [live[w.id] for w in state.workers_of(service.name) if w.id in live]
            told = (front.stats for front in fronts if front.kind is not Kind.ENGINE)
            gauges.of_fronts(values, service.name, told)
            owner = live.get(service.owner or "")
            if owner is not None and owner.kind is Kind.GATE:
                gauges.of_gate(values, service, {"split": owner.stats.get("split"), "shadow": owner.shadow})
        return values


async def _bound(address: str) -> socket.socket:
    """An address that is taken is tried again: metrics are nothing that services should wait for."""
    told = ""
    while True:
        try:
            return listeners.bind(address)
        except SwapdError as error:
            if error.message != told:
                log.error("metrics.not_served because=%s", error.message)
            told = error.message
            await asyncio.sleep(BIND_AGAIN_S)
