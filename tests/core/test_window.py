"""Windows: what is kept of requests, to which precision, and what of another process's JSON is believed."""

from __future__ import annotations

import json
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.window import MAX_BUCKET, MAX_SLICES, Histogram, Window, bucket_of

TIMES = st.floats(min_value=2e-5, max_value=10_000)


def histogram(*values: float) -> Histogram:
    made = Histogram()
    for value in values:
        made.add(value)
    return made


@given(st.lists(TIMES, min_size=1), st.sampled_from((0.01, 0.5, 0.95, 0.99, 1.0)))
def test_a_quantile_is_the_nearest_rank_to_one_percent(values, q):
    exact = sorted(values)[math.ceil(q * len(values)) - 1]
    assert histogram(*values).quantile(q) == pytest.approx(exact, rel=0.0101)


def test_what_is_too_small_or_too_large_is_counted_all_the_same():
    ends = histogram(0.0, -1.0, 1e-9, 1e30)
    assert ends.to_json() == {"0": 3, str(MAX_BUCKET): 1}


def test_nothing_has_no_quantile():
    assert Histogram().quantile(0.5) is None
    with pytest.raises(ValueError, match="empty"):
        Histogram().at_rank(1)


def test_a_rank_outside_is_the_first_or_the_last():
    two = histogram(0.1, 1.0)
    assert two.at_rank(-3) == two.at_rank(1) == pytest.approx(0.1, rel=0.0101)
    assert two.at_rank(9) == pytest.approx(1.0, rel=0.0101)


def test_above_counts_larger_values_and_not_the_bucket_itself():
    assert histogram(0.1, 0.2, 0.2001, 0.3, 0.4).above(0.2) == 2


@given(st.lists(TIMES), st.lists(TIMES))
def test_merging_is_adding_both(first, second):
    both = histogram(*first)
    both.merge(histogram(*second))
    assert both == histogram(*first, *second)
    assert both.total == len(first) + len(second)


@given(st.lists(TIMES))
def test_a_histogram_comes_back_from_json(values):
    made = histogram(*values)
    assert Histogram.from_json(json.loads(json.dumps(made.to_json()))) == made


@given(st.lists(TIMES))
def test_a_histogram_comes_back_from_its_short_form(values):
    made = histogram(*values)
    assert Histogram.from_json(json.loads(json.dumps(made.to_dense()))) == made


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [-1],
        [3, -1],
        [3, True],
        [MAX_BUCKET, 1, 1],
        {"x": 1},
        {"-1": 1},
        {"1": -1},
        {"1": 1.5},
        {"1": True},
        {str(MAX_BUCKET + 1): 1},
        {"²": 1},
    ],
)
def test_what_is_no_histogram_is_refused(wrong):
    with pytest.raises(ValueError, match="histogram"):
        Histogram.from_json(wrong)


def test_a_window_counts_statuses_failures_and_times():
    window = Window()
    window.add(0.2, first_byte=0.1, tokens_per_s=40.0, streamed_bytes=300)
    window.add(0.001, status=404)
    window.add(0.001, status=500, failed=True)
    window.add(0.5, status=0, failed=True)
    assert (window.requests, window.failed) == (4, 2)
    assert window.statuses == {"2": 1, "4": 1, "5": 1}
    assert window.latency == histogram(0.2, 0.001)  # a failure's time is nobody's latency
    assert (window.first_byte, window.tokens_per_s) == (histogram(0.1), histogram(40.0))
    assert window.streamed_bytes == 300


def test_a_run_of_failures_is_remembered_after_it_has_ended():
    window = Window()
    for failed in (True, True, True, False, True):
        window.add(0.1, failed=failed)
    assert (window.consecutive_failed, window.longest_failed) == (1, 3)


@pytest.mark.parametrize("requests", [0, 1, 16, 17, 256, 257, 5000, 70_000])
def test_slices_are_few_and_equal_and_lose_nothing(requests):
    window = Window()
    for number in range(requests):
        window.add(0.1, failed=number % 10 == 0)
    sizes = [part.requests for part in window.slices]
    assert len(sizes) <= MAX_SLICES
    assert sum(sizes) == window.requests == requests
    assert len(set(sizes[:-1])) <= 1
    assert sizes[-1] <= sizes[0]
    assert window.failed == sum(part.failed for part in window.slices) == -(-requests // 10)


def test_what_begins_late_is_in_the_last_slices_only():
    window = Window()
    for number in range(4000):
        window.add(0.1, failed=number >= 3900)
    assert [bool(part.failed) for part in window.slices] == [False] * (len(window.slices) - 1) + [True]


def test_a_window_comes_back_from_json():
    window = Window()
    for number in range(600):
        window.add(0.01 * (number + 1), failed=number % 7 == 0, first_byte=0.01, tokens_per_s=9.0, streamed_bytes=5)
    sent = json.loads(json.dumps(window.to_json()))
    assert Window.from_json(sent).to_json() == sent
    assert (sent["requests"], sent["failed"]) == (600, 86)


def test_a_window_of_many_requests_is_told_in_few_bytes():
    """Two of them and one without slices go into one message of 128 KiB, with other figures beside them."""
    chance, window = random.Random(1), Window()
    for _ in range(50_000):
        took = 0.12 * math.exp(chance.gauss(0.0, 1.0))
        window.add(took, first_byte=took / 2, tokens_per_s=3 / took)
    told = window.to_json()
    assert len(window.slices) > MAX_SLICES / 2
    assert len(json.dumps(told["slices"])) < 20_000
    assert len(json.dumps(told)) < 36_000


def test_a_window_without_slices_is_one():
    window = Window.from_json({"requests": 3, "failed": 1, "latency": {"12": 2}})
    assert (window.requests, window.failed, window.latency.total, len(window.slices)) == (3, 1, 2, 1)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        {"requests": -1},
        {"requests": 1, "failed": 2},
        {"requests": 1, "latency": {"3": 2}},
        {"statuses": {"9": 1}},
        {"statuses": []},
        {"slices": "x"},
        {"slices": [3]},
        {"slices": [{}] * (MAX_SLICES + 1)},
        {"consecutive_failed": "1"},
    ],
)
def test_what_is_no_window_is_refused(wrong):
    with pytest.raises(ValueError, match="window"):
        Window.from_json(wrong)


def test_buckets_are_as_they_are_told_to_other_parts():
    """bucket = floor(log(s / 1e-5) / log(1.02)); the gate and the shadow send these."""
    for seconds in (0.00123, 0.1, 0.231, 7.7):
        assert bucket_of(seconds) == math.floor(math.log(seconds / 1e-5) / math.log(1.02))


@given(st.lists(st.floats(1e-6, 50.0), max_size=400), st.integers(0, 130))
def test_many_at_once_are_the_same_as_one_after_the_other(seconds, before):
    """Across the ends of slices too, and after a failure."""
    one, many = Window(), Window()
    for window in (one, many):
        for _ in range(before):
            window.add(0.1, status=503, failed=True)
    for value in seconds:
        one.add(value, first_byte=value)
    many.add_whole(seconds)
    assert many.to_json() == one.to_json()
