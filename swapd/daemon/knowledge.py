"""What the daemon knows of models: their settings by revision, their content, their need, and how long they took.

Duty: gather the figures for one decision, just before it. May not know: what is decided with them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from swapd.core.config import Config, ModelConfig
from swapd.core.config_views import settings_digest
from swapd.core.errors import UNKNOWN_MODEL, SwapdError
from swapd.core.events import Measurement
from swapd.core.footprint import Learned, WeightsSummary, estimate, learn
from swapd.core.model import DeviceKind, DeviceReading, Kind, Op, Revision
from swapd.core.placement import ExpectedTimes
from swapd.daemon.devices import Devices
from swapd.daemon.loop import Loop
from swapd.host.clock import wall_s as now
from swapd.host.fingerprint import fingerprint, weight_files
from swapd.host.journal import Journal
from swapd.host.weights import summarize

log = logging.getLogger("swapd.knowledge")


class Knowledge:
    def __init__(self, config: Config, journal: Journal, devices: Devices) -> None:
        self.loop: Loop
        self.config = config
        self._journal = journal
        self._devices = devices
        self._models: dict[tuple[str, int], ModelConfig] = {}  # settings are frozen per revision

    def remember(self, revision: Revision, model: ModelConfig) -> None:
        self._models[revision.service, revision.number] = model

    def model_of(self, service: str, revision: int) -> ModelConfig:
        return self._models[service, revision]

    def model_named(self, name: str) -> ModelConfig:
        model = self.config.models.get(name)
        if model is None:
            known = ", ".join(sorted(self.config.models)) or "none"
            raise SwapdError(UNKNOWN_MODEL, f"There is no model {name!r}; the configuration has: {known}.")
        return model

    async def revision(self, service: str, model: ModelConfig, number: int = 0) -> Revision:
        """The revision that this model would be now: its settings and the content of its files."""
        content = await asyncio.to_thread(fingerprint, model)
        return Revision(number, service, model.name, settings_digest(model), content)

    async def measure(self, service: str, revision: int) -> Measurement:
        return await self.measure_model(service, self.model_of(service, revision))

    async def measure_model(self, service: str, model: ModelConfig, streams_s: float | None = None) -> Measurement:
        """Figures for placing one worker of the model: its need, the devices it may use, how long it may take."""
        allowed = self.config.services[service].devices or self._devices.names()
        readings = await self._devices.read(allowed)
        kind = readings[0].kind if readings else DeviceKind.HOST
        digest = settings_digest(model)
        footprint = estimate(
            await asyncio.to_thread(_weights, model) if model.device_memory_bytes is None else None,
            model.device_memory_bytes,
            self._learned(model.name, digest, kind),
            kind,
        )
        times = self._journal.timing(model.name, digest)
        expected = ExpectedTimes(drain_s=streams_s, load_s=times.get("load"), warm_s=times.get("verify"))
        return Measurement(footprint, tuple(readings), expected, can_stage=kind is DeviceKind.NVML and model.stage)

    def wake_seconds(self, model: ModelConfig) -> float | None:
        return self._journal.timing(model.name, settings_digest(model)).get("wake")

    def load_seconds(self, model: ModelConfig) -> float | None:
        return self._journal.timing(model.name, settings_digest(model)).get("load")

    # --- learning ------------------------------------------------------------------------------------------------

    def learn_time(self, op: Op, step: str, seconds: float) -> None:
        model = self._model(op)
        if model is not None:
            self._save(lambda: self._journal.save_timing(model.name, settings_digest(model), step, seconds, now()))

    def learn_footprint(self, op: Op, reading: DeviceReading) -> None:
        """The use of a worker that has just answered its probes."""
        model = self._model(op)
        used = dict(reading.used_by).get(op.worker)
        if model is None or used is None:
            return
        digest = settings_digest(model)

        def save() -> None:
            learned = learn(self._learned(model.name, digest, reading.kind), used)
            if learned is not None:
                body = {"peak_bytes": learned.peak_bytes, "runs": learned.runs}
                self._journal.save_footprint(model.name, digest, reading.kind.value, body, now())

        self._save(save)

    def _learned(self, model: str, digest: str, kind: DeviceKind) -> Learned | None:
        body: Mapping[str, Any] | None = self._journal.footprint(model, digest, kind.value)
        return Learned(int(body["peak_bytes"]), int(body["runs"])) if body is not None else None

    def _model(self, op: Op) -> ModelConfig | None:
        worker = self.loop.state.worker(op.worker)
        if worker is None or worker.kind is Kind.GATE:
            return None
        return self._models.get((op.service, worker.revision))

    def _save(self, write: Callable[[], None]) -> None:
        """What was learned is welcome, not needed: a journal that fails is told elsewhere."""
        try:
            write()
        except SwapdError as error:
            log.warning("knowledge.not_saved %s", error.message)


def _weights(model: ModelConfig) -> WeightsSummary | None:
    return summarize(weight_files(model))
