"""Counters that never go back and count nothing twice."""

import random

import pytest

from swapd.core.metering import MAX_REVISIONS, Meter
from swapd.core.metrics import BY_NAME, METRICS, SECONDS, MetricKind, Values
from swapd.core.window import Window

MODELS = {41: "a", 42: "b"}


class Gate:
    """Windows as a gate keeps them: of its table, and of the last before it that saw requests."""

    def __init__(self):
        self.epoch = 1
        self.windows = {41: Window()}
        self.before = None

    def point(self, *revisions):
        if any(window.requests for window in self.windows.values()):
            self.before = (self.epoch, self.windows)
        self.epoch += 1
        self.windows = {revision: Window() for revision in revisions}

    def told(self):
        before = None
        if self.before is not None:
            epoch, windows = self.before
            before = {"epoch": epoch, "revisions": {str(n): w.to_json() for n, w in windows.items()}}
        revisions = {str(n): w.to_json() for n, w in self.windows.items()}
        return {"epoch": self.epoch, "revisions": revisions, "before": before}


def look(meter, gate, *, name="chat-gate-1", fresh=True):
    meter.windows("chat", name, gate.told(), MODELS, fresh=fresh)


def total(meter, name, **labels):
    found = meter.values.found.get(name, {})
    wanted = [(BY_NAME[name].labels.index(label), value) for label, value in labels.items()]
    chosen = [value for key, value in found.items() if all(key[at] == each for at, each in wanted)]
    return sum(value if isinstance(value, float) else sum(value.counts) for value in chosen)


def test_looking_again_counts_nothing_again():
    meter, gate = Meter(), Gate()
    for _ in range(3):
        gate.windows[41].add(0.02)
        look(meter, gate)
        look(meter, gate)
    assert total(meter, "swapd_requests_total") == 3
    assert total(meter, "swapd_request_duration_seconds") == 3


def test_every_request_is_counted_once_over_any_course_of_tables():
    """Of what is told at all: not of a table that came and went with another one between two looks."""
    rng = random.Random(7)
    for _ in range(50):
        meter, gate, sent, last = Meter(), Gate(), 0, 0
        for _ in range(60):
            act = rng.randrange(5)
            if act == 0:
                look(meter, gate)
                gate.point(*rng.choice([(41,), (41, 42), (42,), ()]))
                if rng.random() < 0.5:
                    gate.point(*rng.choice([(41,), (42,)]))  # one that saw nothing between
            elif act == 1:
                look(meter, gate)
            elif act == 2 and gate.before is not None:  # one that was in flight when its table ended
                rng.choice(list(gate.before[1].values())).add(0.5)
                sent += 1
            elif gate.windows:
                rng.choice(list(gate.windows.values())).add(rng.random(), status=rng.choice([200, 404, 200]))
                sent += 1
            assert total(meter, "swapd_requests_total") >= last
            last = total(meter, "swapd_requests_total")
        look(meter, gate)
        assert total(meter, "swapd_requests_total") == sent


def test_statuses_failures_and_no_answers_are_told_apart():
    meter, gate = Meter(), Gate()
    window = gate.windows[41]
    window.add(0.1)
    window.add(0.1, status=404)
    window.add(0.1, status=503, failed=True)
    window.add(0.1, status=0, failed=True)
    look(meter, gate)
    for code in ("2xx", "4xx", "5xx", "none"):
        assert total(meter, "swapd_requests_total", code=code, revision="41", model="a") == 1
    assert total(meter, "swapd_requests_failed_total") == 2
    assert total(meter, "swapd_request_duration_seconds") == 2


def test_a_gate_that_an_earlier_daemon_has_started_counts_from_the_first_look_on():
    meter, gate = Meter(), Gate()
    gate.windows[41].add(0.1)
    look(meter, gate, fresh=False)
    assert total(meter, "swapd_requests_total") == 0
    gate.windows[41].add(0.1)
    look(meter, gate, fresh=False)
    assert total(meter, "swapd_requests_total") == 1


def test_a_gate_that_takes_over_goes_on_with_the_same_counters():
    meter, gate, successor = Meter(), Gate(), Gate()
    gate.windows[41].add(0.1)
    look(meter, gate)
    successor.windows[41].add(0.1)
    look(meter, successor, name="chat-gate-2")
    gate.windows[41].add(0.1)  # its last, which was in flight
    look(meter, gate)
    assert total(meter, "swapd_requests_total") == 3


def test_buckets_and_sum_are_right_to_a_percent():
    meter, gate, seconds = Meter(), Gate(), [0.004, 0.03, 0.07, 0.07, 2.0]
    for each in seconds:
        gate.windows[41].add(each)
    look(meter, gate)
    spread = meter.values.spread("swapd_request_duration_seconds", service="chat", revision=41, model="a")
    at = dict(zip((*SECONDS, "more"), spread.counts, strict=True))
    assert {bound: count for bound, count in at.items() if count} == {0.005: 1, 0.05: 1, 0.1: 2, 2.5: 1}
    assert spread.total == pytest.approx(sum(seconds), rel=0.01)


def test_a_service_that_is_gone_has_no_series():
    meter, gate = Meter(), Gate()
    gate.windows[41].add(0.1)
    look(meter, gate)
    meter.keep(set(), set())
    assert not any(meter.values.found.values())


def test_revisions_of_long_ago_lose_their_series():
    meter, gate = Meter(), Gate()
    for number in range(100, 130):
        gate.point(number)
        gate.windows[number].add(0.1)
        look(meter, gate)
    series = meter.values.found["swapd_requests_total"]
    assert sorted(int(key[1]) for key in series) == list(range(130 - MAX_REVISIONS, 130))


def test_a_shadow_whose_process_was_started_anew_counts_on():
    meter = Meter()
    for copied in (5, 9, 2):
        told = {"epoch": 3, "revision": 42, "copied": copied, "agreed": 0}
        meter.shadow("chat", "chat-gate-1", told, MODELS, fresh=True)
    assert total(meter, "swapd_shadow_requests_total", result="copied") == 11


def test_nonsense_of_a_gate_is_refused():
    for nonsense in ({}, {"epoch": "x", "revisions": {}}, {"epoch": 1, "revisions": {"41": {"requests": -1}}}):
        with pytest.raises((ValueError, KeyError)):
            Meter().windows("chat", "g", nonsense, MODELS, fresh=True)


def test_names_say_their_kinds_and_units():
    for metric in METRICS:
        counts = metric.name.endswith("_total")
        assert counts == (metric.kind is MetricKind.COUNTER), metric.name
        assert metric.name.startswith("swapd_")
        assert (metric.kind is MetricKind.HISTOGRAM) == bool(metric.bounds)
        assert not set(metric.labels) & {"le", "quantile", "job", "instance"}
    assert len(BY_NAME) == len(METRICS)


def test_a_series_with_other_labels_than_its_metric_has_is_a_bug():
    with pytest.raises(AssertionError):
        Values().set("swapd_build_info", 1, service="chat")
