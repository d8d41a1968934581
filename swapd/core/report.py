"""What users see of the state: the JSON records of `show`, `history`, `status` and `workers`.

Pure. The shapes are public interface (docs/control.md); figures that only the host has (requests in flight,
measured memory) are handed in by the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from swapd.core.controls import possible
from swapd.core.crash_loop import crash_loops
from swapd.core.errors import Problem
from swapd.core.ledger import available_bytes
from swapd.core.model import (
    RESTORE,
    DeviceReading,
    Golden,
    Health,
    Kind,
    OpKind,
    Revision,
    Service,
    State,
    Swap,
    Worker,
)
from swapd.core.states import FORWARD, TERMINAL, Phase, WorkerState
from swapd.core.to_come import promised


def swap_record(swap: Swap) -> dict[str, Any]:
    """The record of one swap, as `swap`, `show` and `history` answer it."""
    return {
        "id": swap.id,
        "service": swap.service,
        "from": revision_record(swap.source),
        "to": revision_record(swap.target),
        "strategy": strategy_of(swap),
        "why": swap.why,
        "fell_back": problem_record(swap.fell_back),
        "phase": swap.phase.value,
        "reason": swap.reason,
        "error": _error(swap),
        "actor": swap.actor,
        "asked_reason": swap.asked_reason,
        "created_at": swap.created_at,
        "finished_at": swap.finished_at,
        "soak_until": swap.soak_until,
        "kept": swap.kept if swap.phase is Phase.SOAKING else None,
        "outage_ms": swap.outage_ms,
        "cutover_ms": swap.cutover_ms,
        "return_outage_ms": swap.return_outage_ms,
        "return_cutover_ms": swap.return_cutover_ms,
        "cut_requests": swap.cut_requests,
        "refused_requests": swap.refused_requests,
        "allow_breaking": swap.allow_breaking,
        "differences": list(swap.differences),
        "delivery": _delivery(swap),
        "golden": golden_record(swap.golden),
        "steps": [
            {
                "name": s.name,
                "status": s.status,
                "started_at": s.started_at,
                "ms": None if s.finished_at is None else round((s.finished_at - s.started_at) * 1000, 1),
                "detail": s.detail,
            }
            for s in swap.steps
        ],
        "peak_memory_bytes": dict(swap.peak_memory_bytes),
    }


def strategy_of(swap: Swap) -> str:
    """As it was asked for, where the candidate proves itself in stages."""
    delivery = swap.delivery
    return delivery.name if delivery is not None and delivery.shares else swap.strategy.value


def _delivery(swap: Swap) -> dict[str, Any] | None:
    """How the candidate proves itself, and how far it is: `stage` counts from 0; past the last all clients follow."""
    delivery, finding, paused = swap.delivery, swap.finding, swap.paused
    if delivery is None:
        return None
    return {
        "name": delivery.name,
        "rehearsal": delivery.rehearsal,
        "stages": [{"name": s.name, "kind": s.kind.value, "percent": s.percent} for s in delivery.stages],
        "stage": swap.stage,
        "stage_at": swap.stage_at,
        "rules": [rule.text for rule in delivery.rules],
        "verdict": None
        if finding is None
        else {"verdict": finding.outcome.value, "text": finding.text, "at": finding.at},
        "paused": None if paused is None else {"at": paused.at, "why": paused.why, "actor": paused.actor or None},
        "possible": [] if swap.phase in TERMINAL else list(possible(swap)),
    }


def golden_record(golden: Golden | None) -> dict[str, Any] | None:
    return None if golden is None else {**asdict(golden), "differences": list(golden.differences)}


def problem_record(problem: Problem | None) -> dict[str, Any] | None:
    if problem is None:
        return None
    return {"code": problem.code, "message": problem.message, "details": dict(problem.details)}


def _error(swap: Swap) -> dict[str, Any] | None:
    """With the step that ended the swap: the last that failed on the way forth (a failed `park` ends nothing). What may
    fail on the way back comes after it, and is told by itself."""
    error = problem_record(swap.error)
    if error is not None:
        failed = [s.name for s in swap.steps if s.status == "failed" and not s.name.startswith(RESTORE)]
        error |= {"step": failed[-1] if failed else None, "log_tail": list(swap.log_tail)}
    return error


def revision_record(revision: Revision | None) -> dict[str, Any] | None:
    return None if revision is None else {"revision": revision.number, "model": revision.model}


def health(state: State, service: Service) -> Health:
    """Healthy: the wanted revision serves. Unavailable: nothing does, and starting it failed. Degraded: clients wait,
    or are turned away because it has failed too often in a row."""
    return health_with(service, state.server_of(service.name))


def health_with(service: Service, server: Worker | None) -> Health:
    """`server`: as `State.server_of`."""
    if server is not None and not server.ending and service.paused is None:
        return Health.HEALTHY
    if (
        service.paused is not None
        or crash_loops(service)
        or (service.swap is not None and service.swap.phase not in TERMINAL)
    ):
        return Health.DEGRADED
    return Health.UNAVAILABLE if service.problem is not None else Health.DEGRADED


def rollback_kind(state: State, service: Service) -> str:
    """How long a rollback takes, in a word: instant, parked, cold, or none when there is nothing to go back to."""
    swap = service.swap
    if swap is not None and swap.phase is Phase.SOAKING and swap.source is not None:
        for worker in state.workers_of(service.name):
            if worker.revision == swap.source.number and not worker.ending:
                return "parked" if worker.state is WorkerState.PARKED else "instant"
        return "cold"
    return "cold" if service.previous else "none"


def drifted(service: Service, config_model: str) -> Revision | None:
    """The stable revision, where it is of another model than the configuration names."""
    stable = service.revision(service.stable)
    return stable if stable is not None and stable.model != config_model else None


def devices_of(state: State, service: str) -> tuple[str, ...]:
    """On which any of its workers stands."""
    known = {r.worker_id: r.devices for r in state.reservations}
    return tuple(dict.fromkeys(name for w in state.workers_of(service) for name in known.get(w.id, ())))


def service_record(
    state: State,
    service: Service,
    *,
    listen: Sequence[str],
    config_model: str,
    stats: Mapping[str, Any] | None,
    brought_by: str | None = None,
    troubles: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """`brought_by`: who asked for the swap to the revision that has drifted, where that is known. `troubles`: of
    devices on which it stands, each `{"device", "state", "trouble"}`."""
    owner, server = state.worker(service.owner), state.server_of(service.name)
    swap = service.swap
    serving = service.revision(server.revision) if server is not None else None
    running = service.revision(service.stable)
    soak = None
    if swap is not None and swap.phase is Phase.SOAKING:
        soak = {"until": swap.soak_until, "previous": revision_record(swap.source)}
    astray = drifted(service, config_model)
    drift = None
    if astray is not None:
        whence = f"#{astray.number}, {brought_by}" if brought_by else f"#{astray.number}"
        drift = f"config {config_model}, running {astray.model} ({whence})"
    front = "none" if owner is None else ("gate" if owner.kind is Kind.GATE else "direct")
    return {
        "name": service.name,
        "listen": list(listen),
        "health": health(state, service).value,
        "model": serving.model if serving else (running.model if running else None),
        "revision": serving.number if serving else None,
        "config_model": config_model,
        "drift": drift,
        "front": front,
        "holding": server is None,
        "leaving": service.leaving,
        "swap": swap_record(swap) if swap is not None else None,
        "soak": soak,
        "rollback": rollback_kind(state, service),
        "workers": [w.id for w in state.workers_of(service.name)],
        "requests": (stats or {}).get("requests"),
        "in_flight": (stats or {}).get("in_flight"),
        "streams": (stats or {}).get("streams"),
        "held": (stats or {}).get("held"),
        "failures": service.failures,
        "retry_at": service.retry_at if health(state, service) is Health.UNAVAILABLE or crash_loops(service) else None,
        "problem": problem_record(service.paused or service.problem),
        "device_troubles": list(troubles),
        "split": (stats or {}).get("split"),
    }


def role(service: Service, worker: Worker) -> str:
    if worker.kind is Kind.GATE:
        return "gate"
    swap = service.swap
    if swap is not None and worker.revision == swap.target.number and swap.phase in FORWARD:
        return "candidate"
    return "stable" if worker.revision == service.stable else "previous"


def worker_state(worker: Worker) -> str:
    """The state, with what is being done about it: `spawned (load)`."""
    busy = f" ({worker.op.kind.value})" if worker.op is not None and worker.op.kind is not OpKind.STOP else ""
    return worker.state.value + busy


def worker_record(state: State, worker: Worker, reserved: Mapping[str, int | None]) -> dict[str, Any]:
    service = state.service(worker.service)
    assert service is not None
    slot = service.slot(worker.revision)
    revision = service.revision(worker.revision)
    return {
        "id": worker.id,
        "service": worker.service,
        "revision": worker.revision or None,
        "model": revision.model if revision is not None else None,
        "role": role(service, worker),
        "state": worker_state(worker),
        "device": slot.device if slot is not None else None,
        "devices": list(slot.devices) if slot is not None else [],
        "reserved_bytes": reserved.get(worker.id),
    }


def device_record(reading: DeviceReading, state: State) -> dict[str, Any]:
    all_promised = promised(state)
    here = [r for r in all_promised if reading.name in r.devices]
    used = dict(reading.used_by)
    return measured_device(reading) | {
        "reserved_bytes": sum(r.bytes or 0 for r in here),
        "available_bytes": available_bytes(reading, all_promised),
        "workers": [{"id": r.worker_id, "reserved_bytes": r.bytes, "used_bytes": used.get(r.worker_id)} for r in here],
    }


def measured_device(reading: DeviceReading) -> dict[str, Any]:
    """As `device_record`, of a measurement alone: what is promised on it is not known."""
    held = [(worker, used) for worker, used in reading.used_by if used]
    return {
        "name": reading.name,
        "kind": reading.kind.value,
        "uuid": reading.uuid,
        "detail": reading.detail,
        "state": reading.state.value,
        "trouble": reading.trouble or None,
        "holders_known": reading.holders_known,
        "total_bytes": reading.total_bytes,
        "free_bytes": reading.free_bytes,
        "headroom_bytes": reading.headroom_bytes,
        "reserved_bytes": None,
        "available_bytes": None,
        "workers": [{"id": worker, "reserved_bytes": None, "used_bytes": used} for worker, used in held],
        "foreign": [{"pid": pid, "bytes": size, "name": name} for pid, size, name in reading.foreign],
    }
