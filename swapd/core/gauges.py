"""The gauges of the Prometheus endpoint: how things stand, from the state, the fronts' figures and the readings.

Pure. What is not known has no series: it is never told as zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from swapd.core.crash_loop import crash_loops
from swapd.core.evidence import Outcome
from swapd.core.metrics import Values
from swapd.core.model import DeviceReading, DeviceState, Health, Kind, Revision, Service, State, Swap, Worker
from swapd.core.report import device_record, drifted, health
from swapd.core.states import TERMINAL, Phase

_WELL: Final = (DeviceState.OK, DeviceState.UNMEASURED)
_HEALTHS: Final = tuple(each.value for each in Health)
_PHASES: Final = tuple(each.value for each in Phase)
_VERDICTS: Final = tuple(each.value for each in Outcome)
_FIGURES: Final = {
    "connections": "swapd_front_connections",
    "in_flight": "swapd_front_requests_in_flight",
    "streams": "swapd_front_streams",
    "upgraded": "swapd_front_upgraded_connections",
    "held": "swapd_front_held_requests",
}
_OLDEST: Final = "oldest_in_flight_s"


def of_services(values: Values, state: State, config_models: Mapping[str, str]) -> None:
    """`config_models`: by service, the model that the configuration names."""
    values.set("swapd_stopping", state.stopping)
    workers = Counter((worker.service, worker.kind.value, worker.state.value) for worker in state.workers)
    for (name, kind, where), count in workers.items():
        values.set("swapd_workers", count, service=name, kind=kind, state=where)
    for service in state.services:
        _service(values, state, service, config_models.get(service.name, service.config_model))
        if service.swap is not None:
            _swap(values, service.swap)


def _service(values: Values, state: State, service: Service, config_model: str) -> None:
    name, server, owner = service.name, state.server_of(service.name), state.worker(service.owner)
    serving = service.revision(server.revision) if server is not None else None
    if serving is not None and owner is not None:
        front = "gate" if owner.kind is Kind.GATE else "direct"
        values.set("swapd_service_info", 1, front=front, **labels_of(serving))
    values.one_of("swapd_service_health", "health", _HEALTHS, health(state, service).value, service=name)
    for metric, figure in (
        ("swapd_service_holding", server is None),
        ("swapd_service_crash_loop", crash_loops(service)),
        ("swapd_service_paused", service.paused is not None),
        ("swapd_service_failures", service.failures),
        ("swapd_service_drifted", drifted(service, config_model) is not None),
        ("swapd_service_epoch", service.epoch),
    ):
        values.set(metric, figure, service=name)
    for number in {worker.revision for worker in state.workers_of(name)}:
        revision, slot = service.revision(number), service.slot(number)
        if revision is not None and slot is not None and slot.need_bytes is not None:
            source = slot.source.value
            values.set("swapd_model_memory_needed_bytes", slot.need_bytes, source=source, **labels_of(revision))


def _swap(values: Values, swap: Swap) -> None:
    name, delivery, ended = swap.service, swap.delivery, swap.phase in TERMINAL
    values.set("swapd_swap_id", swap.id, service=name)
    values.set("swapd_swap_start_time_seconds", swap.created_at, service=name)
    values.one_of("swapd_swap_phase", "phase", _PHASES, swap.phase.value, service=name)
    waits = swap.paused is not None or swap.phase is Phase.PAUSED
    values.set("swapd_swap_paused", waits and not ended, service=name)
    if delivery is None:
        return
    values.set("swapd_swap_stage", swap.stage, service=name)
    values.set("swapd_swap_stages", len(delivery.stages), service=name)
    verdict = swap.finding.outcome.value if swap.finding is not None else None
    values.one_of("swapd_swap_verdict", "verdict", _VERDICTS, verdict, service=name)


def of_fronts(values: Values, service: str, fronts: Iterable[Mapping[str, Any]]) -> None:
    """The figures of all fronts of a service together: the last requests of one that has handed over are clients'
    requests too."""
    told = list(fronts)
    for key, metric in _FIGURES.items():
        figures = [figure for stats in told if type(figure := stats.get(key)) is int]
        if figures:
            values.set(metric, sum(figures), service=service)
    oldest = [float(figure) for stats in told if isinstance(figure := stats.get(_OLDEST), int | float)]
    if oldest:
        values.set("swapd_front_oldest_request_seconds", max(oldest), service=service)


def of_gate(values: Values, service: Service, stats: Mapping[str, Any]) -> None:
    """What the service's gate tells of shares and copies."""
    split, shadow = stats.get("split"), stats.get("shadow")
    weights = split.get("weights") if isinstance(split, Mapping) else None
    for number, told in (weights or {}).items():
        revision = service.revision(int(number))
        if revision is not None:
            values.set("swapd_split_set_ratio", told["set"] / 100, **labels_of(revision))
            if told.get("actual") is not None:
                values.set("swapd_split_actual_ratio", told["actual"] / 100, **labels_of(revision))
    if isinstance(shadow, Mapping):
        revision = service.revision(shadow.get("revision", 0))
        share = shadow.get("throttled")
        if revision is not None and isinstance(share, int | float):
            values.set("swapd_shadow_share_ratio", share, **labels_of(revision))


def of_devices(values: Values, state: State, readings: Iterable[DeviceReading]) -> None:
    for reading in readings:
        record, name = device_record(reading, state), reading.name
        values.set("swapd_device_up", reading.state in _WELL, device=name, kind=reading.kind.value)
        values.set("swapd_device_state", 1, device=name, state=reading.state.value)
        for key in ("total", "free", "headroom", "reserved", "available"):
            size = record[f"{key}_bytes"]
            if size is not None:
                values.set(f"swapd_device_memory_{key}_bytes", size, device=name)
        if reading.holders_known:
            foreign = sum(size or 0 for _, size, _ in reading.foreign)
            values.set("swapd_device_memory_foreign_bytes", foreign, device=name)
        for told in record["workers"]:
            worker = state.worker(told["id"])
            if worker is not None:
                _held(values, state, worker, name, told)


def _held(values: Values, state: State, worker: Worker, device: str, told: Mapping[str, Any]) -> None:
    service = state.service(worker.service)
    revision = service.revision(worker.revision) if service is not None else None
    if revision is None:
        return
    for key in ("used", "reserved"):
        if told[f"{key}_bytes"] is not None:
            labels = {**labels_of(revision), "device": device, "worker": worker.id}
            values.set(f"swapd_worker_memory_{key}_bytes", told[f"{key}_bytes"], **labels)


def labels_of(revision: Revision) -> dict[str, object]:
    return {"service": revision.service, "revision": revision.number, "model": revision.model}
