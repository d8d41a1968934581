"""How soon does the judge know, and how often is it wrong? `python -m bench.verdict [--quick]`

`core.verdict.judge`, asked once a second about simulated traffic with seeds: candidates that are perfect, slower by
30 %, failing 2 % (the stable fails 0.1 %), leaking (slower and slower, and failing late), good but rough (its first
requests take five times as long, and it pauses for a second every five minutes or so), or wrong in 3 % of answers
where the stable disagrees with itself in 1 %. Each run is a stage as a service has it: it ends at the first FAIL, at a
PASS once its time is over, or at its deadline. No process takes part. Goals: right in 95 % of the runs of each at 50
requests a second of which 25 % are the candidate's, at most 5 % of the good ones failed at any traffic, and 5 ms of
processor time for a look.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.harness import facts, write_result
from swapd.core.rules import Rule, parse_rule
from swapd.core.verdict import Evidence, Outcome, Shadow, Verdict, judge
from swapd.core.window import Histogram, Window

GOAL_RIGHT, GOAL_FALSE_ALARMS, GOAL_MS = 0.95, 0.05, 5.0
STABLE_FAILS = 0.001
PAUSE_S = 1.0
MEDIAN_S, SIGMA = 0.12, 0.5  # lognormal: p95 is 2.3 times the median


@dataclass(frozen=True)
class Candidate:
    """What it does worse than the stable; where it is leaking, at the end of the stage's time."""

    name: str
    good: bool = False
    slower_by: float = 1.0
    fails: float = STABLE_FAILS
    wrong: float = 0.0
    leaking: bool = False
    cold: int = 0  # so many requests first take five times as long
    pauses_every_s: float = math.inf

    def at(self, done: float) -> tuple[float, float]:
        """(times as slow, share that fails) when so much of the stage's time is over."""
        if not self.leaking:
            return self.slower_by, self.fails
        return 1.0 + (self.slower_by - 1.0) * done, self.fails if done > 0.75 else STABLE_FAILS


@dataclass(frozen=True)
class Stage:
    """`share` of so many requests a second goes to the candidate; or, in a shadow, is copied to it."""

    requests_per_s: float = 50.0
    share: float = 0.25
    copies: bool = False
    step_time_s: int = 120
    deadline_s: int = 900
    noise: float = 0.01  # of the stable's answers are different when it is asked again
    noise_share: float = 0.5  # of the compared ones, for which it is asked again

    @property
    def candidate_per_s(self) -> float:
        return self.requests_per_s * self.share


@dataclass(frozen=True)
class Run:
    verdict: Verdict
    seconds: int
    requests: int  # of the candidate
    looks_s: float  # processor time of all looks

    def right(self, candidate: Candidate) -> bool:
        return self.verdict.outcome is (Outcome.PASS if candidate.good else Outcome.FAIL)


PERFECT = Candidate("perfect", good=True)
ROUGH = Candidate("good but rough", good=True, cold=20, pauses_every_s=300.0)
SLOWER = Candidate("slower by 30 %", slower_by=1.3)
FAILING = Candidate("failing 2 %", fails=0.02)
LEAKING = Candidate("leaking", slower_by=1.6, fails=0.08, leaking=True)
WRONG = Candidate("3 % wrong", wrong=0.03)
CANARY = [parse_rule(text) for text in ("error_rate < 1%", "error_rate <= 2 x stable", "p95 <= 1.2 x stable")]
SHADOW = [parse_rule(text) for text in ("error_rate < 1%", "p95 <= 1.2 x stable", "agreement >= 0.98")]


class Traffic:
    """One seed's requests, second by second."""

    def __init__(self, seed: int, candidate: Candidate, stage: Stage) -> None:
        self._chance = random.Random(f"{candidate.name} {seed}")
        self._candidate, self._stage = candidate, stage
        self.ours, self.stable = Window(), Window()
        self.shadow = Shadow(latency=Histogram(), noise_latency=Histogram())
        self._owed = 0.0
        self._paused_until_s = 0.0

    def second(self, at_s: int) -> None:
        slower, fails = self._candidate.at(min(at_s / self._stage.step_time_s, 1.0))
        arrivals = self._arrivals()
        for number in range(arrivals):
            took = self._took()
            chosen = self._chance.random() < self._stage.share
            if not chosen or self._stage.copies:
                self.stable.add(took, failed=self._chance.random() < STABLE_FAILS)
            if chosen and self._stage.copies:
                self._copy(slower, fails)
            elif chosen:
                took = self._roughly(took * slower, at_s + number / arrivals)
                self.ours.add(took, failed=self._chance.random() < fails)

    def _roughly(self, took: float, at_s: float) -> float:
        """With what is no fault of the model: cold caches, and pauses that all who come in them wait for."""
        if self.ours.requests < self._candidate.cold:
            took *= 5.0
        if self._paused_until_s <= at_s:  # requests come so often that the next pause is drawn by them
            pause = self._chance.random() < 1.0 / (self._candidate.pauses_every_s * self._stage.candidate_per_s)
            self._paused_until_s = at_s + PAUSE_S * pause
        return took + max(self._paused_until_s - at_s, 0.0)

    def _arrivals(self) -> int:
        self._owed += self._stage.requests_per_s
        whole = int(self._owed)
        self._owed -= whole
        return whole

    def _copy(self, slower: float, fails: float) -> None:
        chance, shadow, noise = self._chance, self.shadow, self._stage.noise
        if chance.random() < fails:
            self.shadow = replace(shadow, failed=shadow.failed + 1)
            return
        shadow.latency.add(self._took() * slower)
        agrees = chance.random() >= noise and chance.random() >= self._candidate.wrong
        again = chance.random() < self._stage.noise_share
        if again:
            shadow.noise_latency.add(self._took())
        assert shadow.noise_compared is not None
        self.shadow = replace(
            shadow,
            compared=shadow.compared + 1,
            agreed=shadow.agreed + agrees,
            noise_compared=shadow.noise_compared + again,
            noise_agreed=shadow.noise_agreed + (again and chance.random() >= noise),
        )

    def _took(self) -> float:
        return MEDIAN_S * math.exp(self._chance.gauss(0.0, SIGMA))


def run(seed: int, candidate: Candidate, stage: Stage, rules: list[Rule]) -> Run:
    """A stage, looked at once a second."""
    traffic = Traffic(seed, candidate, stage)
    looks_s = 0.0
    for at_s in range(1, stage.deadline_s + 1):
        traffic.second(at_s)
        evidence = Evidence(
            traffic.ours,
            traffic.stable,
            float(at_s),
            traffic.shadow if stage.copies else None,
            last_look=at_s == stage.deadline_s,
        )
        begun = time.process_time()
        verdict = judge(rules, evidence)
        looks_s += time.process_time() - begun
        over = at_s >= stage.step_time_s
        if verdict.outcome is Outcome.FAIL or (over and verdict.outcome is Outcome.PASS):
            break
    requests = traffic.shadow.compared + traffic.shadow.failed if stage.copies else traffic.ours.requests
    return Run(verdict, at_s, requests, looks_s / at_s)


def cases(requests_per_s: float, share: float) -> list[tuple[Candidate, Stage, list[Rule]]]:
    canary = Stage(requests_per_s, share)
    shadow = replace(canary, copies=True)
    found = [(candidate, canary, CANARY) for candidate in (PERFECT, ROUGH, SLOWER, FAILING, LEAKING)]
    return [*found, (PERFECT, shadow, SHADOW), (WRONG, shadow, SHADOW)]


def measured(candidate: Candidate, stage: Stage, rules: list[Rule], runs: int) -> Mapping[str, Any]:
    found = [run(seed, candidate, stage, rules) for seed in range(runs)]
    seconds, requests = sorted(one.seconds for one in found), sorted(one.requests for one in found)
    outcomes = [one.verdict.outcome for one in found]
    return {
        "candidate": candidate.name,
        "stage": "shadow" if stage.copies else "canary",
        "requests_per_s": stage.requests_per_s,
        "share": stage.share,
        "runs": runs,
        "outcomes": {outcome.value: outcomes.count(outcome) for outcome in Outcome},
        "right": sum(one.right(candidate) for one in found) / runs,
        "seconds": {"median": seconds[runs // 2], "p95": seconds[math.ceil(0.95 * runs) - 1]},
        "candidate_requests": {"median": requests[runs // 2], "p95": requests[math.ceil(0.95 * runs) - 1]},
        "look_ms": round(1000 * max(one.looks_s for one in found), 3),
    }


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.verdict", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    told = facts()
    runs = 10 if chosen.quick else 100
    traffics = [(50.0, 0.25)] if chosen.quick else [(10.0, 0.25), (50.0, 0.05), (50.0, 0.25), (200.0, 0.25)]
    rows = []
    for requests_per_s, share in traffics:
        for case in cases(requests_per_s, share):
            rows.append(measured(*case, runs))
            print(f"  {rows[-1]}", flush=True)
    judged = [row for row in rows if (row["requests_per_s"], row["share"]) == (50.0, 0.25)]
    alarms = max(row["outcomes"]["fail"] / runs for row in rows if row["candidate"] in (PERFECT.name, ROUGH.name))
    met = {
        "right": all(row["right"] >= GOAL_RIGHT for row in judged),
        "false_alarms": alarms <= GOAL_FALSE_ALARMS,
        "look": max(row["look_ms"] for row in rows) <= GOAL_MS,
    }
    path = write_result("verdict", {"runs": rows, "false_alarms": alarms, "met": met}, told, chosen.quick)
    print(f"  {met}\n{path}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
