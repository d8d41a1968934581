"""The figures of bench.peers: an outage must not be made to look short, nor a goal met that was not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.peers.figures import Change, look, summary, until_good
from bench.peers.verdict import judge
from bench.records import CODE, OK, Records

LABELS = {1: "a", 2: "b"}
CHANGE = Change("b", commanded_at=10.0, done_at=12.0)
LOST = CODE["bad_status"]


def seen_by_clients(*others: tuple[float, float, int, str, int]) -> Records:
    """An open loop, ten a second: a answers until 10.5, everything is lost until 11.5, then b answers."""
    records = Records(["open loop", "streaming"])
    for tenth in range(90, 140):
        at = tenth / 10
        revision, outcome = (1, OK) if at < 10.5 else (2, OK) if at >= 11.5 else (0, LOST)
        records.add(at - 0.01, at, revision, 0, outcome)
    for start, end, revision, group, outcome in others:
        records.add(start, end, revision, records.groups.index(group), outcome)
    return records


def test_the_outage_is_the_longest_time_without_a_good_answer() -> None:
    seen = look(seen_by_clients(), LABELS, CHANGE)
    assert seen.outage_s == pytest.approx(1.1)
    assert seen.first_new_s == pytest.approx(1.5)
    assert (seen.errors, seen.late) == (10, 0)


def test_a_stream_that_ends_in_an_outage_does_not_shorten_it() -> None:
    records = seen_by_clients((10.4, 11.0, 1, "streaming", OK))
    assert look(records, LABELS, CHANGE, ["streaming"]).outage_s == pytest.approx(1.1)
    assert look(records, LABELS, CHANGE).outage_s == pytest.approx(0.6)


def test_without_any_good_answer_the_outage_is_all_that_was_looked_at() -> None:
    records = Records(["open loop"])
    records.add(10.0, 10.1, 0, 0, LOST)
    seen = look(records, LABELS, CHANGE)
    assert seen.outage_s == pytest.approx(3.5)
    assert seen.first_new_s is None


def test_an_old_answer_after_the_first_new_one_is_late() -> None:
    assert look(seen_by_clients((11.6, 11.7, 1, "open loop", OK)), LABELS, CHANGE).late == 1
    assert look(seen_by_clients((11.4, 11.7, 1, "open loop", OK)), LABELS, CHANGE).late == 0


def test_a_lost_request_counts_until_the_next_good_answer() -> None:
    waits = until_good(seen_by_clients(), ["open loop"], [CHANGE.window])
    assert len(waits) == 35
    assert waits[-1] == pytest.approx(1.01)  # lost at 10.5, sent 0.01 before; good again at 11.5
    assert sum(wait > 0.05 for wait in waits) == 10


def test_the_summary_tells_calm_from_change() -> None:
    figures = summary(seen_by_clients(), LABELS, [CHANGE], (9.0, 14.0), ["streaming"])
    assert figures["errors"] == {"bad_status": 10}
    assert figures["errors_around_changes"] == 10
    assert figures["calm_ms"]["count"] + figures["around_changes_ms"]["count"] + 10 == figures["requests"] - 1
    assert figures["around_changes_until_good_ms"]["p99"] > 1000 > figures["around_changes_ms"]["p99"]


def contender(outage_s: float, *, ours: bool = True, errors: int = 0) -> dict[str, object]:
    faults = {"errors_total": errors, "late_old_answers": 0, "unasked_bytes": 0, "forced_reconnects": 0}
    changes = [{"steps_s": {"drain": 0.4}}]
    return {"ours": ours, "outage_median_s": outage_s, "engine_load_median_s": 1.8, "changes": changes, **faults}


ALONE = {"load_s": 1.8, "start_beside_load_s": 0.2, "end_s": 0.1}


@pytest.mark.parametrize(("script_s", "own_s", "met"), [(4.0, 2.5, True), (4.0, 2.8, False), (15.0, 2.9, True)])
def test_an_in_place_swap_beats_the_script_or_comes_near_the_floor(script_s: float, own_s: float, met: bool) -> None:
    results = {"swapd-in-place": contender(own_s), "script-in-place": contender(script_s, ours=False, errors=500)}
    verdict = judge(results, ALONE)
    assert verdict["in_place"]["swapd-in-place"]["floor_s"] == pytest.approx(2.2)
    assert list(verdict["met"].values()) == [True, met]


def test_a_server_as_it_is_has_its_own_end_and_start_to_wait_for() -> None:
    results = {"swapd-uvicorn-in-place": contender(2.6), "script-in-place": contender(4.0, ours=False)}
    figures = judge(results, ALONE)["in_place"]["swapd-uvicorn-in-place"]
    assert figures["floor_s"] == pytest.approx(2.5)
    assert figures["script_polling_s"] == pytest.approx(1.5)
    assert figures["shortest_possible"] == pytest.approx(1.6)


def test_a_lost_request_of_swapd_is_a_goal_missed_and_one_of_a_peer_is_not() -> None:
    results = {"swapd-dual": contender(0.0, errors=1), "gunicorn": contender(2.0, ours=False, errors=9)}
    assert judge(results, ALONE)["met"] == {"swapd-dual loses nothing": False}
    skipped = {"ours": True, "skipped": "not here"}
    assert judge({"swapd-dual": skipped}, ALONE)["met"] == {}
