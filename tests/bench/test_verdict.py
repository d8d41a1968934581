"""The judge's proof: at least 95 % of 40 runs of each candidate, with seeds, are judged rightly; a look each second."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.verdict import CANARY, FAILING, LEAKING, PERFECT, SHADOW, SLOWER, WRONG, Candidate, Stage, run
from swapd.core.verdict import Outcome

RUNS = 40
CANARIES = Stage()
COPIES = replace(CANARIES, copies=True)


def outcomes(candidate: Candidate, stage: Stage) -> list[Outcome]:
    rules = SHADOW if stage.copies else CANARY
    return [run(seed, candidate, stage, rules).verdict.outcome for seed in range(RUNS)]


@pytest.mark.parametrize(
    ("candidate", "stage"),
    [(SLOWER, CANARIES), (FAILING, CANARIES), (LEAKING, CANARIES), (WRONG, COPIES), (SLOWER, COPIES)],
    ids=["slower", "failing", "leaking", "wrong", "slower-shadow"],
)
def test_a_bad_candidate_fails(candidate, stage):
    assert outcomes(candidate, stage).count(Outcome.FAIL) >= 0.95 * RUNS


@pytest.mark.parametrize("stage", [CANARIES, COPIES], ids=["canary", "shadow"])
def test_a_perfect_candidate_passes_and_is_not_failed_by_looking_often(stage):
    found = outcomes(PERFECT, stage)
    assert found.count(Outcome.PASS) >= 0.95 * RUNS
    assert found.count(Outcome.FAIL) <= 0.05 * RUNS


def test_one_that_fails_late_alone_and_one_that_slows_down_alone_fail():
    late = Candidate("failing late", fails=0.1, leaking=True)
    slower = Candidate("slowing down", slower_by=2.0, leaking=True)
    for candidate in (late, slower):
        found = [run(seed, candidate, CANARIES, CANARY).verdict.outcome for seed in range(10)]
        assert found.count(Outcome.FAIL) >= 9


def test_little_traffic_is_not_judged_before_its_time():
    """One request in ten seconds for the candidate: nothing is wrong with it, and nothing is known."""
    found = run(0, PERFECT, Stage(requests_per_s=2.0, share=0.05), CANARY)
    assert (found.verdict.outcome, found.seconds) == (Outcome.INCONCLUSIVE, 900)
