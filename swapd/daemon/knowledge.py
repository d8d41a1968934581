"""What the daemon knows of models: their settings by revision, their content, their need, and how long they took.

Duty: gather the figures for one decision, just before it. May not know: what is decided with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from swapd.core.commands import leaving
from swapd.core.config import Config, ContractConfig, ModelConfig, ServiceConfig
from swapd.core.config_views import settings_digest
from swapd.core.contract import Interface, declared
from swapd.core.errors import CONTENT_CHANGED, UNKNOWN_MODEL, UNKNOWN_REVISION, SwapdError
from swapd.core.events import Measurement, Observed
from swapd.core.footprint import Learned, WeightsSummary, estimate, follow, learn
from swapd.core.host_room import HostRoom
from swapd.core.ledger import most_used
from swapd.core.model import DeviceKind, DeviceReading, Kind, Op, Revision, Service, Slot, State, Worker
from swapd.core.on_device import expected_of_declared
from swapd.core.outage import ExpectedTimes
from swapd.core.presets import cache_need, has_front, said_need
from swapd.core.redact import secrets_of_model
from swapd.core.states import WorkerState
from swapd.daemon.devices import Devices
from swapd.daemon.frozen import FrozenSettings
from swapd.daemon.loop import Loop
from swapd.host.clock import wall_s as now
from swapd.host.fingerprint import fingerprint, weight_files
from swapd.host.journal import Journal
from swapd.host.weights import largest_first, summarize
from swapd.wire import saved

log = logging.getLogger("swapd.knowledge")

T = TypeVar("T")

UNREADABLE: Final = ""  # in place of a fingerprint: equal to none that was ever taken
_GROWTH: Final = 1.01  # what grows by less is not written each time

_Key = tuple[str, str]  # of what is learned, beside the type of device: content and settings


class Knowledge:
    def __init__(self, config: Config, journal: Journal, devices: Devices) -> None:
        self.loop: Loop
        self.config = config
        self._journal = journal
        self._devices = devices
        self._settings = FrozenSettings(Path(config.daemon.runtime_dir) / "revisions")
        self._models: dict[tuple[str, int], ModelConfig] = {}  # settings are frozen per revision
        self._followed: dict[str, int] = {}  # by worker: the most that was written of it
        devices.on_reading = self._follow

    def remember(self, revision: Revision, model: ModelConfig) -> None:
        """Freeze the settings of a revision: for this daemon, and for the next."""
        self._models[revision.service, revision.number] = model
        self._settings.write(revision.service, revision.number, saved.dump(model))

    def recall(self, state: State, observed: Sequence[Observed]) -> None:
        """The frozen settings of all revisions that there are. Where they are lost (the host was started again), those
        of the configuration stand in if they are the same."""
        known = {(s.name, r.number): r for s in state.services for r in s.revisions}
        known |= {(o.revision.service, o.revision.number): o.revision for o in observed if o.revision is not None}
        secrets: set[str] = set()
        for key, revision in known.items():
            model = self._settings.read(*key) or self.config.models.get(revision.model)
            if model is not None and settings_digest(model) == revision.settings_digest:
                self._models[key] = model
                secrets |= secrets_of_model(model)  # its workers and their logs live on, the configuration may not
        self._settings.forget_all_but(known)
        self.loop.redactor = self.loop.redactor.also(secrets)

    def end(self) -> None:
        """Everything was stopped: no secret stays behind."""
        self._settings.forget_all_but(())

    def model_of(self, service: str, revision: int) -> ModelConfig:
        """The settings that a revision was made with. Raises UNKNOWN_REVISION when they are lost."""
        model = self._models.get((service, revision))
        if model is None:
            text = f"The settings that revision {revision} of {service} was started with are not known any more."
            raise SwapdError(UNKNOWN_REVISION, text)
        return model

    def model_named(self, name: str) -> ModelConfig:
        model = self.config.models.get(name)
        if model is None:
            known = ", ".join(sorted(self.config.models)) or "none"
            raise SwapdError(UNKNOWN_MODEL, f"There is no model {name!r}; the configuration has: {known}.")
        return model

    def service_config(self, name: str) -> ServiceConfig:
        """Raises SHUTTING_DOWN for one that has been removed, and may not have ended yet."""
        config = self.config.services.get(name)
        if config is None:
            raise SwapdError.of(leaving(name))
        return config

    async def revision_to_start(self, service: str, model: ModelConfig) -> Revision:
        """A model whose files cannot be read makes its service Unavailable, and keeps neither the others down nor the
        daemon: it is tried again until they are there."""
        try:
            return await self.revision(service, model)
        except SwapdError as error:
            log.error("service.model_unreadable service=%s model=%s error=%s", service, model.name, error.message)
            return Revision(0, service, model.name, settings_digest(model), UNREADABLE)

    async def revision(self, service: str, model: ModelConfig, number: int = 0) -> Revision:
        """The revision that this model would be now: its settings and the content of its files."""
        content = await asyncio.to_thread(fingerprint, model)
        return Revision(number, service, model.name, settings_digest(model), content)

    def serving(self, service: Service) -> ModelConfig | None:
        return self._models.get((service.name, service.stable))

    async def is_intact(self, service: Service) -> bool:
        """Whether the stable revision could be loaded again: its files are still those that it was loaded from."""
        stable, model = service.revision(service.stable), self.serving(service)
        if stable is None or model is None:
            return False
        try:
            return (await self.revision(service.name, model)).fingerprint == stable.fingerprint
        except SwapdError:  # they cannot even be read
            return False

    async def stable_contract(self, service: Service) -> ContractConfig:
        """The configuration's, where it is about what serves; else the one that this was started with."""
        stable, model = service.revision(service.stable), self.serving(service)
        fresh = self.config.models.get(stable.model) if stable is not None else None
        started_with = model.contract if model is not None else ContractConfig()
        if stable is None or fresh is None or fresh.contract == started_with:
            return started_with
        same = settings_digest(fresh) == stable.settings_digest and await self.is_intact(service)
        return fresh.contract if same else started_with

    async def declared_of_stable(self, service: Service) -> Interface:
        model = self.serving(service)
        return declared(model, await self.stable_contract(service)) if model is not None else Interface()

    def told(self, service: str, revision: int, questions: str) -> Interface | None:
        """What a server of this content has answered to these questions; None: that is not known."""
        key = self._key(service, revision)
        text = self._known(lambda: self._journal.footprint(*key, _interface(questions))) if key is not None else None
        try:
            return saved.load(Interface, text) if text is not None else None
        except ValueError as error:
            log.warning("knowledge.not_known %s", error)
            return None

    def keep_told(self, worker: Worker, questions: str, body: str) -> None:
        key = self._key_of(worker)
        if key is not None:
            self._save(lambda: self._journal.save_footprint(*key, _interface(questions), body, now()))

    async def model_again(self, service: Service, number: int) -> ModelConfig:
        """The settings to serve a former revision with. Raises UNKNOWN_REVISION, UNKNOWN_MODEL or CONTENT_CHANGED."""
        wanted = service.revision(number)
        if wanted is None:
            known = ", ".join(f"{r.number} ({r.model})" for r in service.revisions)
            raise SwapdError(UNKNOWN_REVISION, f"{service.name} has no revision {number}; known: {known}.")
        model = self._models.get((service.name, number)) or self.model_named(wanted.model)
        if (await self.revision(service.name, model)).fingerprint != wanted.fingerprint:
            text = (
                f"Revision {number} ({wanted.model}) cannot serve again: its files have changed since it was loaded."
                f" Put the old ones back, or swap to what is there: swapd-cli swap {service.name} --to {wanted.model}."
            )
            raise SwapdError(CONTENT_CHANGED, text)
        return model

    async def measure(self, service: str, revision: int) -> Measurement:
        model = self.model_of(service, revision)
        return await self.measure_model(service, model, (await self.revision(service, model)).fingerprint)

    async def measure_model(
        self,
        service: str,
        model: ModelConfig,
        content: str,
        *,
        drain_s: float | None = None,
        release_s: float | None = None,
    ) -> Measurement:
        """Figures for placing one worker of the model: its need, the devices it may use, how long it may take.

        `content` is the fingerprint of its files; `drain_s` and `release_s` are what an in-place swap waits for
        beforehand: the old worker's requests and its end.
        """
        allowed = self.service_config(service).devices or self._devices.names()
        readings = await self._devices.read(allowed)
        kind = readings[0].kind if readings else DeviceKind.HOST
        key = (content, settings_digest(model))
        learned = [each for t in {r.type for r in readings} if (each := self._learned(key, t)) is not None]
        need_bytes, said = said_need(model, readings) or (None, "")
        weights = await asyncio.to_thread(_weights, model) if need_bytes is None else None
        cache_bytes, cache_words = cache_need(model, weights, kind)
        footprint = estimate(
            weights,
            need_bytes,
            max(learned, key=lambda each: (each.runs > 0, each.peak_bytes), default=None),
            kind,
            said=said,
            cache_bytes=cache_bytes,
            cache_words=cache_words,
            gpus=model.gpus,
        )
        times = self._times(model)
        proof_s = times.get("warm", 0.0) + times["verify"] if "verify" in times else None
        if proof_s is not None and self.service_config(service).golden:
            proof_s += times.get("golden", 0.0)
        expected = ExpectedTimes(drain_s=drain_s, release_s=release_s, load_s=times.get("load"), warm_s=proof_s)
        can_stage = kind is DeviceKind.NVML and model.stage
        reads = await asyncio.to_thread(_file_bytes, model) > 0
        room = (
            await self._host_room(service, model if can_stage else None) if kind is DeviceKind.NVML else HostRoom(None)
        )
        old = self._stable_model(service)
        what = Kind.DIRECT if has_front(model) else Kind.ENGINE
        return Measurement(
            footprint,
            tuple(readings),
            expected,
            can_stage and room.stages,
            self._parked_residue(service, readings),
            what,
            model.gpus,
            reads,
            room.parks,
            room.words(model.name, old.name if old is not None else ""),
        )

    async def should_hold_bytes(self, op: Op, model: ModelConfig, reading: DeviceReading) -> int | None:
        """What the model should hold of its devices together, at the least of what is known; None: nothing is."""
        worker = self.loop.state.worker(op.worker)
        key = self._key_of(worker) if worker is not None else None
        learned = self._learned(key, reading.type) if key is not None else None
        weights = None
        with contextlib.suppress(SwapdError):  # it has loaded: whatever is wrong with a file, it is none that it needs
            weights = await asyncio.to_thread(_weights, model)
        said = [learned.peak_bytes * model.gpus] if learned is not None and learned.runs else []
        said += [weights.bytes] if weights is not None and weights.bytes else []
        if not said and model.device_memory_bytes is not None:
            return expected_of_declared(model.device_memory_bytes * model.gpus)
        return min(said, default=None)

    async def _host_room(self, service: str, staged: ModelConfig | None) -> HostRoom:
        """What the host's memory is asked for: by a model that stages, and by one that parks without having staged,
        which copies its weights there."""
        old = self._stable_model(service)
        copies = any(w.can_park and "stage" not in w.hooks for w in self.loop.state.workers_of(service))
        stage_bytes = await asyncio.to_thread(_file_bytes, staged) if staged is not None else 0
        park_bytes = await asyncio.to_thread(_file_bytes, old) if old is not None and copies else 0
        if not stage_bytes and not park_bytes:
            return HostRoom(None)
        return HostRoom(await self._devices.host_free_bytes(), stage_bytes, park_bytes)

    def _stable_model(self, service: str) -> ModelConfig | None:
        known = self.loop.state.service(service)
        return self.serving(known) if known is not None else None

    def release_s(self, model: ModelConfig, *, parked: bool) -> float | None:
        """How long one worker took to give its memory back."""
        return self._times(model).get("park" if parked else "stop")

    def return_s(self, model: ModelConfig, *, parked: bool) -> float | None:
        """How long the model took the last time from nothing, or from parked, until it had proved itself."""
        times = self._times(model)
        begun = times.get("wake" if parked else "load")
        return None if begun is None else begun + times.get("warm", 0.0) + times.get("verify", 0.0)

    def _times(self, model: ModelConfig) -> Mapping[str, float]:
        return self._known(lambda: self._journal.timing(model.name, settings_digest(model))) or {}

    # --- learning ------------------------------------------------------------------------------------------------

    def learn_time(self, model: ModelConfig, step: str, seconds: float) -> None:
        self._save(lambda: self._journal.save_timing(model.name, settings_digest(model), step, seconds, now()))

    def learn_footprint(self, op: Op, slot: Slot, readings: Sequence[DeviceReading]) -> None:
        """The use of a worker that has just answered its probes, beside what was planned for it: on that of its devices
        on which it is most."""
        worker = self.loop.state.worker(op.worker)
        used = most_used(readings, op.worker)
        if worker is not None and used is not None:
            used = max(used, self._followed.get(worker.id, 0))
            self._learn(worker, readings[0], lambda before: learn(before, used, slot.need_bytes, slot.source))

    def _follow(self, reading: DeviceReading) -> None:
        """Every reading teaches. One of a worker that has not proved itself, and may never, that it takes this much."""
        for worker_id, used in reading.used_by:
            worker = self.loop.state.worker(worker_id)
            if worker is None or not used or used < self._followed.get(worker_id, 0) * _GROWTH:
                continue
            self._followed[worker_id] = used
            self._learn(worker, reading, partial(follow, seen_bytes=used, proved=worker.verified))
        for gone in self._followed.keys() - {worker.id for worker in self.loop.state.workers}:
            del self._followed[gone]

    def _learn(
        self, worker: Worker, reading: DeviceReading, change: Callable[[Learned | None], Learned | None]
    ) -> None:
        key = self._key_of(worker)
        if key is None:
            return
        before = self._learned(key, reading.type)
        after = change(before)
        if after is not None and after != before:
            self._save(lambda: self._journal.save_footprint(*key, reading.type, saved.dump(after), now()))

    def learn_residues(self, service: str, readings: Sequence[DeviceReading]) -> None:
        """What the service's parked worker still holds, long enough after it was parked."""
        for worker in self.loop.state.workers_of(service):
            used, key = most_used(readings, worker.id), self._key_of(worker)
            if worker.state is WorkerState.PARKED and key is not None and used is not None:
                body, kind = saved.dump(Learned(used)), _parked(readings[0].type)
                self._save(partial(self._journal.save_footprint, *key, kind, body, now()))

    def _parked_residue(self, service: str, readings: Sequence[DeviceReading]) -> int | None:
        known = self.loop.state.service(service)
        key = self._key(service, known.stable) if known is not None else None
        if key is None:
            return None
        residues = (self._learned(key, _parked(reading.type)) for reading in readings)
        return max((each.peak_bytes for each in residues if each is not None), default=None)

    def _learned(self, key: _Key, device_type: str) -> Learned | None:
        text = self._known(lambda: self._journal.footprint(*key, device_type))
        try:
            return saved.load(Learned, text) if text is not None else None
        except ValueError as error:  # a row that somebody has changed: it is learned anew
            log.warning("knowledge.not_known %s", error)
            return None

    def _key_of(self, worker: Worker) -> _Key | None:
        return self._key(worker.service, worker.revision) if worker.kind is not Kind.GATE else None

    def _key(self, service: str, number: int) -> _Key | None:
        """None: what the revision is made of is not known."""
        known = self.loop.state.service(service)
        revision = known.revision(number) if known is not None else None
        if revision is None or revision.fingerprint == UNREADABLE:
            return None
        return revision.fingerprint, revision.settings_digest

    def model_for(self, op: Op) -> ModelConfig | None:
        """Of the worker that the operation is about; None: a gate, or it is gone."""
        worker = self.loop.state.worker(op.worker)
        if worker is None or worker.kind is Kind.GATE:
            return None
        return self._models.get((op.service, worker.revision))

    def _known(self, read: Callable[[], T | None]) -> T | None:
        """What was learned, if the journal tells it: a model is started without as well."""
        try:
            return read()
        except SwapdError as error:
            log.warning("knowledge.not_known %s", error.message)
            return None

    def _save(self, write: Callable[[], None]) -> None:
        """What was learned is welcome, not needed: a journal that fails is told elsewhere."""
        try:
            write()
        except SwapdError as error:
            log.warning("knowledge.not_saved %s", error.message)


def _interface(questions: str) -> str:
    """Beside the footprints of a content, under a key of its own."""
    return f"interface {questions}"


def _parked(device_type: str) -> str:
    """Beside the footprint of a model that serves, under a key of its own."""
    return f"{device_type}, parked"


def files_loaded(model: ModelConfig) -> list[Path]:
    """The weight files that its load will read, the largest first. Blocks on the disk."""
    return largest_first(weight_files(model))


def _file_bytes(model: ModelConfig) -> int:
    """Of its weight files; 0: none is named, or none can be read. Blocks on the disk."""
    with contextlib.suppress(OSError, SwapdError):
        return sum(path.stat().st_size for path in files_loaded(model))
    return 0


def _weights(model: ModelConfig) -> WeightsSummary | None:
    return summarize(weight_files(model))
