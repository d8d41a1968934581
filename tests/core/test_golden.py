"""What becomes of the answers to golden requests."""

import json

from swapd.core.golden import KEPT_DIFFERENCES, failure, summary


def test_all_right_is_no_failure_and_has_its_latencies():
    golden = summary(100, [0.001 * n for n in range(1, 101)], [])
    assert (golden.right, golden.wrong, golden.differences) == (100, 0, ())
    assert (golden.p50_ms, golden.p95_ms, golden.slowest_ms) == (50.0, 95.0, 100.0)
    assert failure("b", golden) is None


def test_one_wrong_answer_fails_and_the_first_differences_are_named_within_bounds():
    golden = summary(1000, [0.2], [f"golden {n}: no" for n in range(999)])
    problem = failure("b", golden)
    assert problem.code == "GOLDEN_FAILED"
    assert problem.message == (
        "b has answered 999 of 1000 golden requests wrongly: golden 0: no; golden 1: no; golden 2: no; and 996 more"
    )
    assert len(problem.details["golden"]["differences"]) == KEPT_DIFFERENCES
    assert json.loads(json.dumps(problem.details))["golden"]["wrong"] == 999


def test_none_answered_has_no_latencies():
    assert summary(3, [], ["x"]).p50_ms is None
