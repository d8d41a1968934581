"""What a plan says beforehand: memory, reason, outage and the way back, each with its figures.

Pure. The shape is public interface (docs/control.md); `swapd-cli plan` makes a page of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from swapd.core.events import Measurement
from swapd.core.ledger import available_bytes
from swapd.core.model import DeviceReading, Forecast, Service, State, Strategy
from swapd.core.outage import ExpectedTimes
from swapd.core.placement import Placement
from swapd.core.report import device_record, revision_record
from swapd.core.to_come import promised

NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class WayBack:
    """How one would get back, and how long it takes: at once, by waking the parked model, or by loading it again.

    `later` is the same once the soak has ended. Times in seconds; None: not known, or there is no way.
    """

    kind: str  # instant, parked, cold or none
    takes_s: float | None = None
    later: str = NONE
    later_s: float | None = None


def way_back(placement: Placement, *, can_load: bool, load_s: float | None, wake_s: float | None) -> WayBack:
    """From what is planned. `can_load`: the old model's files are still those that it was loaded from."""
    if placement.is_return or placement.strategy is Strategy.START:
        return WayBack(NONE)
    later = ("cold", load_s) if can_load else (NONE, None)
    if placement.strategy is Strategy.DUAL:
        return WayBack("instant", 0.0, *later)
    if placement.parks:
        return WayBack("parked", wake_s, *later)
    return WayBack(*later, *later)


def plan_record(
    state: State,
    service: Service,
    model: str,
    placement: Placement,
    measurement: Measurement,
    *,
    back: WayBack,
    probes: int,
    stats: Mapping[str, Any],
    hold_timeout_s: float,
    flags: Sequence[str] = (),
    breaks: Sequence[str] = (),
    golden: int = 0,
) -> dict[str, Any]:
    here = [available_bytes(r, promised(state)) for r in measurement.readings if r.name in placement.devices]
    known = [room for room in here if room is not None]
    then, need = placement.room_bytes, placement.need_bytes
    return {
        "service": service.name,
        "from": revision_record(service.revision(service.stable)),
        "to": {"model": model},
        "strategy": placement.strategy.value,
        "why": placement.why,
        "device": placement.device,
        "devices": list(placement.devices),
        "memory": [_device(state, reading) for reading in measurement.readings],
        "available_bytes": min(known, default=None) if len(known) == len(here) else None,
        "available_then_bytes": then,
        "available_after_bytes": then - need if then is not None and need is not None else None,
        "alternatives": [
            {"strategy": a.strategy.value, "possible": a.possible, "why": a.why} for a in placement.alternatives
        ],
        "would_change": list(placement.would_change),
        "need_bytes": need,
        "need_source": placement.need_source.value,
        "need_detail": "promised when it was loaded" if placement.is_return else measurement.footprint.detail,
        "last_forecast": _forecast(measurement.footprint.last),
        "expected_outage_s": placement.expected_outage_s,
        "outage_terms": _terms(measurement.expected) if _has_outage(placement) else None,
        "hold_timeout_s": hold_timeout_s,
        "probes": probes,
        "golden": golden,
        "open_streams": stats.get("streams"),
        "oldest_request_s": stats.get("oldest_in_flight_s"),
        "longest_stream_s": _longest_stream_s(service, placement.strategy) if stats.get("streams") else None,
        "rollback": back.kind,
        "rollback_s": back.takes_s,
        "rollback_later": back.later,
        "rollback_later_s": back.later_s,
        "soak_s": service.settings.soak_s,
        "differences": list(breaks),  # by which clients may break, and that are allowed
        "flags": list(flags),  # what is added to the command of a server
    }


def _device(state: State, reading: DeviceReading) -> dict[str, Any]:
    """As `devices` tells it, and whose the workers are."""
    record = device_record(reading, state)
    return record | {"workers": [w | {"model": _model(state, w["id"])} for w in record["workers"]]}


def _model(state: State, worker_id: str) -> str | None:
    worker = state.worker(worker_id)
    service = state.service(worker.service) if worker is not None else None
    revision = service.revision(worker.revision) if service is not None and worker is not None else None
    return revision.model if revision is not None else None


def _forecast(last: Forecast | None) -> dict[str, Any] | None:
    if last is None:
        return None
    return {"planned_bytes": last.planned_bytes, "source": last.source.value, "seen_bytes": last.seen_bytes}


def _has_outage(placement: Placement) -> bool:
    return placement.strategy is Strategy.IN_PLACE and not placement.is_return


def _terms(expected: ExpectedTimes) -> dict[str, float | None]:
    return {
        "drain_s": expected.drain_s,
        "release_s": expected.release_s,
        "load_s": expected.load_s,
        "warm_s": expected.warm_s,
    }


def _longest_stream_s(service: Service, strategy: Strategy) -> float:
    """How long an open stream may go on: beside a new model until the soak ends, in place until the drain does."""
    return service.settings.soak_s if strategy is Strategy.DUAL else service.settings.drain_timeout_s
