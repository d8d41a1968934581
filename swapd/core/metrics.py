"""Every metric of the Prometheus endpoint: its name, its kind, its labels and what it means.

Duty: the one list that the endpoint, docs/metrics.md, the board and the alert rules go by. Units are in the names: base
units, seconds and bytes. May not know: where values come from, or how they are served.
Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from swapd.core.window import Histogram, middle_of


class MetricKind(str, Enum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: MetricKind
    labels: tuple[str, ...]
    text: str
    bounds: tuple[float, ...] = ()  # of a histogram's buckets, each with what is equal


# From a small model's answer to the longest generation that somebody waits for.
SECONDS: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
RATES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
_G, _C, _H = MetricKind.GAUGE, MetricKind.COUNTER, MetricKind.HISTOGRAM
_REVISION: Final = ("service", "revision", "model")
_WORKER: Final = ("worker", "service", "revision", "model")

METRICS: Final = (
    # The daemon.
    Metric("swapd_build_info", _G, ("version",), "1, with the version of the daemon."),
    Metric("swapd_start_time_seconds", _G, (), "When the daemon was started, in Unix time: its counters began then."),
    Metric("swapd_stopping", _G, (), "1 while everything is being stopped."),
    Metric("swapd_journal_up", _G, (), "1 while the journal can be written; 0: no new swaps are begun."),
    Metric("swapd_workers", _G, ("service", "kind", "state"), "Workers, by what they are and where they stand."),
    # Services.
    Metric("swapd_service_info", _G, ("service", "revision", "model", "front"), "1, with what answers the clients."),
    Metric("swapd_service_health", _G, ("service", "health"), "1 for the health of now, 0 for the others."),
    Metric("swapd_service_holding", _G, ("service",), "1 while nobody answers: clients wait, or are turned away."),
    Metric("swapd_service_crash_loop", _G, ("service",), "1 while its model fails again and again."),
    Metric("swapd_service_paused", _G, ("service",), "1 while nothing is begun for it until an operator says so."),
    Metric("swapd_service_failures", _G, ("service",), "Failures in a row of the revision that should serve."),
    Metric("swapd_service_drifted", _G, ("service",), "1 while another model serves than the configuration names."),
    Metric("swapd_service_epoch", _G, ("service",), "The number of its last hand-over or table."),
    # Fronts: gates, and models that answer their clients themselves.
    Metric("swapd_front_connections", _G, ("service",), "Client connections that are open."),
    Metric("swapd_front_requests_in_flight", _G, ("service",), "Requests that are being answered."),
    Metric("swapd_front_streams", _G, ("service",), "Requests in flight whose answers have begun."),
    Metric("swapd_front_upgraded_connections", _G, ("service",), "WebSockets, and other connections of bytes."),
    Metric("swapd_front_held_requests", _G, ("service",), "Connections whose requests wait unread for a model."),
    Metric("swapd_front_oldest_request_seconds", _G, ("service",), "How long the oldest of them has taken so far."),
    Metric("swapd_front_requests_total", _C, ("service", "front"), "Requests answered by a front (gate, direct)."),
    Metric("swapd_front_cut_requests_total", _C, ("service", "front"), "Requests cut, or turned away, by a front."),
    # Requests, as gates measure them.
    Metric("swapd_requests_total", _C, (*_REVISION, "code"), "Requests by status: 2xx to 5xx; none: no answer."),
    Metric("swapd_requests_failed_total", _C, _REVISION, "Requests that the model answered 5xx, cut, or not at all."),
    Metric("swapd_request_duration_seconds", _H, _REVISION, "Time to the end of good answers.", SECONDS),
    Metric("swapd_request_first_byte_seconds", _H, _REVISION, "Time to the first byte of good answers.", SECONDS),
    Metric("swapd_stream_events_per_second", _H, _REVISION, "Events (tokens) a second of streamed answers.", RATES),
    Metric("swapd_streamed_bytes_total", _C, _REVISION, "Bytes of streamed answers."),
    Metric("swapd_split_set_ratio", _G, _REVISION, "The share of requests that a revision is to get, 0 to 1."),
    Metric("swapd_split_actual_ratio", _G, _REVISION, "The share that it has got under the gate's present table."),
    Metric("swapd_shadow_share_ratio", _G, _REVISION, "The share of requests that is copied to it now, 0 to 1."),
    Metric("swapd_shadow_requests_total", _C, (*_REVISION, "result"), "Copies that were dropped, compared, …"),
    # What changes.
    Metric("swapd_hand_overs_total", _C, ("service", "outcome"), "Hand-overs of listeners and clients."),
    Metric("swapd_tables_total", _C, ("service", "outcome"), "Tables that gates were pointed by: done, failed."),
    Metric("swapd_worker_starts_total", _C, ("service", "kind", "outcome"), "Starts of workers: done, failed."),
    Metric("swapd_worker_exits_total", _C, ("service", "kind", "code"), "Ends of workers that nobody asked for."),
    Metric("swapd_worker_hangs_total", _C, ("service",), "Workers that gave no sign of life and were replaced."),
    Metric("swapd_swaps_total", _C, ("service", "strategy", "outcome"), "Swaps that ended, by how."),
    Metric("swapd_swap_outage_seconds", _H, ("service", "strategy"), "Time that clients had to wait.", SECONDS),
    Metric("swapd_swap_cutover_seconds", _H, ("service", "strategy"), "Time that the switch itself took.", SECONDS),
    Metric("swapd_swap_cut_requests_total", _C, ("service",), "Requests in flight that swaps have cut."),
    Metric("swapd_swap_refused_requests_total", _C, ("service",), "Requests that swaps held too long: 503."),
    # The swap under way.
    Metric("swapd_swap_id", _G, ("service",), "The number of the swap under way; its series end with it."),
    Metric("swapd_swap_phase", _G, ("service", "phase"), "1 for the phase of the swap under way, 0 for the others."),
    Metric("swapd_swap_start_time_seconds", _G, ("service",), "When the swap under way was asked for, in Unix time."),
    Metric("swapd_swap_stage", _G, ("service",), "Of a swap in stages: the number of the stage, from 0."),
    Metric("swapd_swap_stages", _G, ("service",), "Of a swap in stages: how many there are."),
    Metric("swapd_swap_paused", _G, ("service",), "1 while the swap under way waits for somebody to decide."),
    Metric("swapd_swap_verdict", _G, ("service", "verdict"), "1 for the newest verdict on it, 0 for the others."),
    # Device memory.
    Metric("swapd_device_up", _G, ("device", "kind"), "1 while the device is well."),
    Metric("swapd_device_state", _G, ("device", "state"), "1, with the state that the device is in."),
    Metric("swapd_device_memory_total_bytes", _G, ("device",), "All its memory, or the budget."),
    Metric("swapd_device_memory_free_bytes", _G, ("device",), "What is free, as measured."),
    Metric("swapd_device_memory_headroom_bytes", _G, ("device",), "What is never planned into."),
    Metric("swapd_device_memory_reserved_bytes", _G, ("device",), "What workers are promised."),
    Metric("swapd_device_memory_available_bytes", _G, ("device",), "What another model could be given now."),
    Metric("swapd_device_memory_foreign_bytes", _G, ("device",), "What processes of others hold."),
    Metric("swapd_worker_memory_used_bytes", _G, ("device", *_WORKER), "What a worker holds of a device."),
    Metric("swapd_worker_memory_reserved_bytes", _G, ("device", *_WORKER), "What a worker is promised of a device."),
    Metric(
        "swapd_model_memory_needed_bytes", _G, (*_REVISION, "source"),
        "What is planned for a revision: declared, learned from its last run, or estimated.",
    ),
    # What is told to others.
    Metric("swapd_notifications_total", _C, ("notify", "outcome"), "Events told: delivered, failed, dropped."),
    Metric("swapd_notifications_queued", _G, ("notify",), "Events that wait to be told."),
)  # fmt: skip
BY_NAME: Final[Mapping[str, Metric]] = {metric.name: metric for metric in METRICS}


@dataclass(slots=True)
class Spread:
    """A histogram's value: how many in each bucket (the last: beyond every bound), and the sum of all."""

    counts: list[int]
    total: float = 0.0

    def add(self, bounds: tuple[float, ...], value: float, count: int = 1) -> None:
        at = next((n for n, bound in enumerate(bounds) if value <= bound), len(bounds))
        self.counts[at] += count
        self.total += value * count

    def add_all(self, bounds: tuple[float, ...], histogram: Histogram) -> None:
        """By the middle of each of its buckets: 1 % off at most."""
        for bucket, count in histogram:
            self.add(bounds, middle_of(bucket), count)


Value = float | Spread


@dataclass(slots=True)
class Values:
    """Metrics at one moment: by name, and by the values of the labels in the metric's order."""

    found: dict[str, dict[tuple[str, ...], Value]] = field(default_factory=dict)

    def set(self, name: str, value: float, /, **labels: object) -> None:
        self.found.setdefault(name, {})[_key(BY_NAME[name], labels)] = float(value)

    def one_of(self, name: str, label: str, values: tuple[str, ...], now: str | None, **labels: object) -> None:
        """1 for what it is now, 0 for all else that it may be."""
        for value in values:
            self.set(name, value == now, **labels, **{label: value})

    def count(self, name: str, amount: float = 1, /, **labels: object) -> None:
        series = self.found.setdefault(name, {})
        key = _key(BY_NAME[name], labels)
        before = series.get(key, 0.0)
        assert isinstance(before, float)
        series[key] = before + amount

    def spread(self, name: str, /, **labels: object) -> Spread:
        """The histogram, to be added to."""
        metric = BY_NAME[name]
        series = self.found.setdefault(name, {})
        value = series.setdefault(_key(metric, labels), Spread([0] * (len(metric.bounds) + 1)))
        assert isinstance(value, Spread)
        return value

    def forget(self, wanted: Mapping[str, str]) -> None:
        """Every series that has all of these labels."""
        for name, series in self.found.items():
            labels = BY_NAME[name].labels
            if set(wanted) <= set(labels):
                places = [(labels.index(label), value) for label, value in wanted.items()]
                for key in [key for key in series if all(key[at] == value for at, value in places)]:
                    del series[key]

    def copied(self) -> Values:
        """As it is now: to be read elsewhere while this one goes on."""
        return Values(
            {
                name: {
                    key: Spread(list(value.counts), value.total) if isinstance(value, Spread) else value
                    for key, value in series.items()
                }
                for name, series in self.found.items()
            }
        )


def _key(metric: Metric, labels: Mapping[str, object]) -> tuple[str, ...]:
    assert set(labels) == set(metric.labels), f"{metric.name} has {metric.labels}, not {tuple(labels)}"
    return tuple(str(labels[label]) for label in metric.labels)
