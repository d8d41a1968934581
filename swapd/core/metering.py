"""The counters of the Prometheus endpoint: what gates' windows, fronts' figures and the state's changes add up to.

Duty: never to go back while the daemon lives, and never to count anything twice: each figure is a difference from the
last look at the same front under the same table. A front that an earlier daemon has started counts from the first look
on: what it had seen by then is that daemon's. Pure, but for the sums that it keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from swapd.core.events import Event, OpDone, OpFailed, Outcome, WorkerExited, WorkerHung
from swapd.core.metrics import RATES, SECONDS, Values
from swapd.core.model import OpKind, State, Swap
from swapd.core.report import strategy_of
from swapd.core.window import Histogram, Window

MAX_REVISIONS: Final = 10  # of one service: those that have been quiet for longest lose their series
_OPS: Final = {OpKind.HAND_OVER: "swapd_hand_overs_total", OpKind.POINT: "swapd_tables_total"}
_SHADOW: Final = ("copied", "dropped", "compared", "agreed", "failed")


@dataclass(slots=True)
class _Gate:
    """What was last seen of a gate: of its present table, and of the one before."""

    epoch: int = -1
    windows: dict[tuple[int, int], Window] = field(default_factory=dict)  # by table and revision


class Meter:
    def __init__(self) -> None:
        self.values = Values()
        self._gates: dict[str, _Gate] = {}
        self._fronts: dict[str, dict[str, int]] = {}
        self._shadows: dict[str, tuple[Any, dict[str, int]]] = {}
        self._order: dict[tuple[str, int], None] = {}  # of revisions, by when each was last counted for

    def keep(self, services: set[str], workers: set[str]) -> None:
        """Forget all others: they are gone. Every counter's first label is its service."""
        for worker in (self._gates.keys() | self._fronts.keys() | self._shadows.keys()) - workers:
            self._gates.pop(worker, None)
            self._fronts.pop(worker, None)
            self._shadows.pop(worker, None)
        for key in [key for key in self._order if key[0] not in services]:
            del self._order[key]
        for gone in {key[0] for series in self.values.found.values() for key in series} - services:
            self.values.forget({"service": gone})

    # --- requests ------------------------------------------------------------------------------------------------

    def windows(
        self, service: str, gate: str, told: Mapping[str, Any], models: Mapping[int, str], *, fresh: bool
    ) -> None:
        """What a gate tells of its windows. `models` by revision; `fresh`: this daemon has started the gate. Raises
        ValueError where they are none."""
        known = self._gates.get(gate)
        base = known is None and not fresh
        seen = known or _Gate()
        found: dict[tuple[int, int], Window] = {}
        for period in (told, told.get("before")):
            if not isinstance(period, Mapping):
                continue
            epoch, revisions = period.get("epoch"), period.get("revisions")
            if type(epoch) is not int or not isinstance(revisions, Mapping):
                raise ValueError("a gate's windows have an epoch and revisions")
            for number, content in revisions.items():
                key = (epoch, int(number))
                window = Window.from_json(content)
                if key in seen.windows or epoch > seen.epoch:
                    found[key] = window
                    if not base:
                        self._add(service, key[1], models.get(key[1], ""), window, seen.windows.get(key) or Window())
        self._gates[gate] = _Gate(max(told["epoch"], seen.epoch), found)

    def _add(self, service: str, revision: int, model: str, now: Window, before: Window) -> None:
        if now.requests <= before.requests:
            return
        labels: dict[str, object] = {"service": service, "revision": revision, "model": model}
        values, answered = self.values, 0
        for kind, count in now.statuses.items():
            answered += count
            if (more := count - before.statuses.get(kind, 0)) > 0:
                values.count("swapd_requests_total", more, **labels, code=f"{kind}xx")
        none = (now.requests - answered) - (before.requests - sum(before.statuses.values()))
        if none > 0:
            values.count("swapd_requests_total", none, **labels, code="none")
        values.count("swapd_requests_failed_total", max(0, now.failed - before.failed), **labels)
        values.count("swapd_streamed_bytes_total", max(0, now.streamed_bytes - before.streamed_bytes), **labels)
        for name, bounds, one, other in (
            ("swapd_request_duration_seconds", SECONDS, now.latency, before.latency),
            ("swapd_request_first_byte_seconds", SECONDS, now.first_byte, before.first_byte),
            ("swapd_stream_events_per_second", RATES, now.tokens_per_s, before.tokens_per_s),
        ):
            values.spread(name, **labels).add_all(bounds, _less(one, other))
        self._note(service, revision)

    def _note(self, service: str, revision: int) -> None:
        self._order.pop((service, revision), None)
        self._order[service, revision] = None
        mine = [number for name, number in self._order if name == service]
        if len(mine) > MAX_REVISIONS:
            del self._order[service, mine[0]]
            self.values.forget({"service": service, "revision": str(mine[0])})

    def front(self, service: str, worker: str, kind: str, stats: Mapping[str, Any], *, fresh: bool) -> None:
        """A front's own figures. `kind`: gate or direct."""
        now = {name: figure for name in ("requests", "cut") if type(figure := stats.get(name)) is int}
        before = self._fronts.get(worker)
        self._fronts[worker] = now
        if before is None and not fresh:
            return
        for name, metric in (("requests", "swapd_front_requests_total"), ("cut", "swapd_front_cut_requests_total")):
            more = now.get(name, 0) - (before or {}).get(name, 0)
            self.values.count(metric, max(0, more), service=service, front=kind)

    def shadow(
        self, service: str, gate: str, told: Mapping[str, Any], models: Mapping[int, str], *, fresh: bool
    ) -> None:
        """What has come of a gate's copies, since its present shadow began."""
        revision = told.get("revision")
        if type(revision) is not int:
            return
        now = {name: figure for name in _SHADOW if type(figure := told.get(name)) is int}
        epoch, before = self._shadows.get(gate, (None, {}))
        known = gate in self._shadows
        self._shadows[gate] = (told.get("epoch"), now)
        if not known and not fresh:
            return
        for name, figure in now.items():
            last = before.get(name, 0) if epoch == told.get("epoch") else 0
            more = figure - last if figure >= last else figure  # the process that counts was started anew
            labels: dict[str, object] = {"service": service, "revision": revision, "model": models.get(revision, "")}
            self.values.count("swapd_shadow_requests_total", more, **labels, result=name)

    # --- what changes --------------------------------------------------------------------------------------------

    def step(self, before: State, event: Event, outcome: Outcome) -> None:
        """One step of the loop."""
        if isinstance(event, OpDone | OpFailed):
            self._op(before, event)
        elif isinstance(event, WorkerExited):
            worker = before.worker(event.worker)
            if worker is not None and not worker.ending and not before.stopping:
                labels: dict[str, object] = {
                    "service": worker.service,
                    "kind": worker.kind.value,
                    "code": event.problem.code,
                }
                self.values.count("swapd_worker_exits_total", **labels)
        elif isinstance(event, WorkerHung) and before != outcome.state:
            hung = before.worker(event.worker)
            if hung is not None:
                self.values.count("swapd_worker_hangs_total", service=hung.service)
        ended = {swap.id: swap for swap in outcome.finished}
        going = {service.swap.id: service.swap for service in outcome.state.services if service.swap is not None}
        old = {service.swap.id: service.swap for service in before.services if service.swap is not None}
        for number, swap in (going | ended).items():
            self._times(swap, old.get(number))
        for swap in ended.values():
            name = swap.service
            told = {"service": name, "strategy": strategy_of(swap), "outcome": swap.phase.value.lower()}
            self.values.count("swapd_swaps_total", **told)
            self.values.count("swapd_swap_cut_requests_total", swap.cut_requests, service=name)
            self.values.count("swapd_swap_refused_requests_total", swap.refused_requests, service=name)

    def _op(self, before: State, event: OpDone | OpFailed) -> None:
        found = next((w for w in before.workers if w.op is not None and w.op.id == event.op), None)
        if found is None or found.op is None:
            return
        outcome = "done" if isinstance(event, OpDone) else "failed"
        if found.op.kind is OpKind.SPAWN:
            told = {"service": found.service, "kind": found.kind.value, "outcome": outcome}
            self.values.count("swapd_worker_starts_total", **told)
        elif found.op.kind in _OPS:
            self.values.count(_OPS[found.op.kind], service=found.service, outcome=outcome)

    def _times(self, now: Swap, before: Swap | None) -> None:
        """Once, when each becomes known."""
        labels: dict[str, object] = {"service": now.service, "strategy": strategy_of(now)}
        for name, ms, known in (
            ("swapd_swap_outage_seconds", now.outage_ms, before.outage_ms if before is not None else None),
            ("swapd_swap_cutover_seconds", now.cutover_ms, before.cutover_ms if before is not None else None),
        ):
            if ms is not None and known is None:
                self.values.spread(name, **labels).add(SECONDS, ms / 1000)


def _less(now: Histogram, before: Histogram) -> Histogram:
    known = dict(before)
    return Histogram({bucket: more for bucket, count in now if (more := count - known.get(bucket, 0)) > 0})
