"""What a gate measured, in one message: the present table's windows, and the last one's that saw requests."""

import json
import random

from swapd.core.window import Window
from swapd.front.relay.measure import MAX_TOLD_BYTES, Measure
from swapd.front.relay.routing import Route, Table


def table(epoch, *revisions):
    return Table(epoch, tuple(Route(f"chat-{n}", n, "unix:/x") for n in revisions))


def measure(*revisions):
    return Measure(table(1, *revisions), 10.0)


def counts(told):
    return {revision: window["requests"] for revision, window in told["revisions"].items()}


def test_windows_begin_with_their_table_and_the_last_that_saw_requests_is_kept():
    measured = measure(41)
    measured.samples_of(41).queue.extend([0.1, 0.2])
    told = measured.stats(12.5)
    assert (told["epoch"], told["since"], counts(told), told["before"]) == (1, 2.5, {"41": 2}, None)
    for epoch in (2, 3):
        measured.point(table(epoch, 41, 42), 20.0)
        measured.beat()
    told = measured.stats(21.0)
    assert (told["epoch"], told["since"], counts(told)) == (3, 1.0, {"41": 0, "42": 0})
    assert (told["before"]["epoch"], counts(told["before"])) == (1, {"41": 2})


def test_a_request_in_flight_counts_for_the_table_it_began_with():
    measured = measure(41)
    samples = measured.samples_of(41)
    measured.point(table(2, 42), 20.0)
    measured.beat()
    assert measured.stats(20.0)["before"] is None
    samples.queue.append(0.1)
    assert counts(measured.stats(20.0)["before"]) == {"41": 1}


def test_of_many_tables_few_are_remembered():
    measured = measure(41)
    measured.samples_of(41).queue.append(0.1)
    for epoch in range(2, 500):
        measured.point(table(epoch, 41), float(epoch))
        measured.beat()
        assert len(measured._past) <= 2
    assert counts(measured.stats(500.0)["before"]) == {"41": 1}


def test_order_is_kept_where_it_matters():
    measured = measure(42)
    samples = measured.samples_of(42)
    samples.queue.append(0.1)
    samples.failed()
    samples.failed(200)
    window = measured.stats(11.0)["revisions"]["42"]
    assert (window["consecutive_failed"], window["failed"], window["statuses"]) == (2, 2, {"2": 2})
    samples.queue.append(0.1)
    assert measured.stats(11.0)["revisions"]["42"]["consecutive_failed"] == 0


def test_two_workers_of_one_revision_share_its_window():
    routes = (Route("chat-1", 41, "unix:/x"), Route("chat-2", 41, "unix:/y"))
    measured = Measure(Table(1, routes), 0.0)
    assert measured.samples_of(41) is measured.samples_of(41)
    assert list(measured.stats(0.0)["revisions"]) == ["41"]


def test_however_widely_latencies_spread_they_are_told_in_one_message():
    rng = random.Random(1)
    measured = measure(41, 42)
    for epoch in (2, 3):
        for revision in (41, 42):
            for _ in range(20_000):
                seconds = 10 ** rng.uniform(-5, 4.4)
                measured.samples_of(revision).queue.append(seconds)
        told = measured.stats(20.0)
        assert len(json.dumps(told)) <= MAX_TOLD_BYTES
        assert [Window.from_json(window).requests for window in told["revisions"].values()] == [20_000, 20_000]
        measured.point(table(epoch, 41, 42), 20.0)


def test_busy_windows_keep_their_slices_which_tell_a_slow_moment_from_a_slow_model():
    rng = random.Random(2)
    measured = measure(41, 42)
    for epoch in (2, 3):
        for revision in (41, 42):
            measured.samples_of(revision).queue.extend(0.12 * rng.lognormvariate(0.0, 0.5) for _ in range(30_000))
        told = measured.stats(20.0)
        assert all(len(window["slices"]) > 8 for window in told["revisions"].values())
        measured.point(table(epoch, 41, 42), 20.0)
    assert told["before"] is not None
