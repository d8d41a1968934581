"""Whether a candidate keeps one rule: pass, fail, or not to be told yet, with the figures and a sentence for people.

Duty: to choose the test for a rule and to say what it found; here are the rules about failures and answers.
May not know: what other rules say, or what follows (`verdict`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from swapd.core.evidence import Evidence, Outcome, RuleVerdict, Sides, tails
from swapd.core.figures import count, percent, plain
from swapd.core.latency_rules import judge_latency
from swapd.core.looks import (
    FAILS,
    FAILS_LATE,
    LATE_SHARE,
    PASSES,
    against,
    late_starts,
    of_the_last,
    rate_test,
    ratio,
    totals,
)
from swapd.core.rules import Metric, Rule
from swapd.core.statistics import agreement_evidence, rate_evidence, rates_about, ratio_evidence
from swapd.core.window import Slice

# A candidate that surely fails less often than this is not compared with a stable that fails even less.
_NEGLIGIBLE: Final = 0.005
_RATIO_STEP: Final = 1.5  # as `statistics.ODDS`, for ratios


def judge_rule(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    return _TESTS[rule.metric](rule, evidence, both)


def _errors(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    if rule.relative:
        return _errors_compared(rule, evidence, both)
    counts = [(part.requests, part.failed) for part in both.candidate.slices]
    outcome, needed = rate_test(counts, rule.bound, evidence.min_requests)
    requests, failed = totals(counts)
    lately = ""
    start = next(late_starts(counts, rule.bound), None)
    if outcome is not Outcome.FAIL and start is not None:
        outcome, (requests, failed) = Outcome.FAIL, totals(counts[start:])
        lately = of_the_last(requests)
    rate = ratio(failed, requests)
    text = f"{lately}{percent(rate, rule.bound)} failed ({count(failed)} of {count(requests)})"
    text += against(outcome, "more than", "less than", percent(rule.bound))
    figures = {"error_rate": rate, "failed": failed, "requests": requests}
    return RuleVerdict(rule.text, outcome, text, both.candidate.requests, needed, figures)


def _errors_compared(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    ours, theirs = both.candidate, both.reference
    whole = ours.requests, ours.failed, theirs.requests, theirs.failed
    ends = tails(ours.slices, theirs.slices, LATE_SHARE)
    late = *_counted(ends[0]), *_counted(ends[1])
    low, high = max(1.0, rule.bound / _RATIO_STEP), rule.bound * _RATIO_STEP
    found = ratio_evidence(*whole, low, high)
    negligible, needed = rate_test([whole[:2]], _NEGLIGIBLE, evidence.min_requests)
    outcome, shown, lately = Outcome.INCONCLUSIVE, whole, ""
    if found >= FAILS:
        outcome = Outcome.FAIL
    elif ratio_evidence(*late, low, high) >= FAILS_LATE:
        outcome, shown, lately = Outcome.FAIL, late, of_the_last(late[0])
    elif min(ours.requests, theirs.requests) >= evidence.min_requests and (
        negligible is Outcome.PASS or (found <= -PASSES and whole[1] * whole[2] <= rule.bound * whole[3] * whole[0])
    ):
        outcome, needed = Outcome.PASS, ours.requests
    rate, other = ratio(shown[1], shown[0]), ratio(shown[3], shown[2])
    text = (
        f"{lately}{percent(rate, other)} failed ({count(shown[1])} of {count(shown[0])}) against {percent(other, rate)}"
        f" of {both.reference_name} ({count(shown[3])} of {count(shown[2])})"
    )
    if outcome is Outcome.PASS and rate > rule.bound * other:
        text += f": surely less than {percent(_NEGLIGIBLE)}, and so little is not compared"
    else:
        text += f": {plain(rate / other, rule.bound)} times" if other else ""
        text += against(outcome, "more than", "within", f"{plain(rule.bound)}{'' if other else ' times that'}")
    figures = {"error_rate": rate, "stable_error_rate": other, "requests": shown[0], "stable_requests": shown[2]}
    return RuleVerdict(rule.text, outcome, text, ours.requests, max(needed, ours.requests), figures)


def _counted(slices: Sequence[Slice]) -> tuple[int, int]:
    return totals([(part.requests, part.failed) for part in slices])


def _consecutive(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    if both.copies:
        return RuleVerdict(rule.text, None, "copies are not counted in their order")
    window = both.candidate
    seen, most = window.requests, window.longest_failed
    figures = {"consecutive_errors": most, "requests": seen}
    if not rule.holds(most):
        text = f"{count(most)} requests failed in a row"
        return RuleVerdict(rule.text, Outcome.FAIL, text, seen, seen, figures)
    outcome = Outcome.PASS if seen >= evidence.min_requests else Outcome.INCONCLUSIVE
    text = f"{count(most)} failed in a row at most, of {count(seen)} requests"
    return RuleVerdict(rule.text, outcome, text, seen, max(seen, evidence.min_requests), figures)


def _agreement(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    shadow = evidence.shadow
    if shadow is None:
        return RuleVerdict(rule.text, None, "no answers are compared in this stage")
    compared, differed = shadow.compared, shadow.compared - shadow.agreed
    noise = shadow.noise_compared
    low, high = rates_about(1.0 - rule.bound)
    if noise is None:
        found = rate_evidence(compared, differed, low, high)
    else:
        found = agreement_evidence(compared, differed, noise, noise - shadow.noise_agreed, low, high)
    share, own = ratio(shadow.agreed, compared), ratio(shadow.noise_agreed, noise) if noise else 1.0
    of_own = share / own if own else 1.0
    outcome, needed = Outcome.INCONCLUSIVE, compared
    if found >= FAILS and of_own < rule.bound:
        outcome = Outcome.FAIL
    elif found <= -PASSES and of_own >= rule.bound and compared >= evidence.min_requests:
        outcome = Outcome.PASS
    else:
        gain = -rate_evidence(1, 0, low, high)
        needed = max(evidence.min_requests, compared + max(math.ceil((found + PASSES) / gain), 1))
    text = f"{percent(share, rule.bound)} of {count(compared)} answers agreed"
    if noise:
        text += f", against {percent(own)} of {count(noise)} for which the stable was asked twice"
        text += f": {plain(of_own, rule.bound)} of that"
    text += against(outcome, "less than", "at least", plain(rule.bound) if noise else percent(rule.bound))
    figures = {"agreement": share, "compared": compared, "stable_agreement": own, "stable_compared": noise or 0}
    return RuleVerdict(rule.text, outcome, text, compared, needed, figures)


def _query(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    """Its value is taken as it is, but not before the candidate has served: it is of others until then."""
    value, seen = evidence.values.get(rule.text), both.candidate.requests
    if value is None or not math.isfinite(value):
        return RuleVerdict(rule.text, Outcome.INCONCLUSIVE, "the query has no value", seen, evidence.min_requests)
    kept = rule.holds(value)
    outcome = Outcome.PASS if kept else Outcome.FAIL
    text = f"the query's value is {plain(value)}, {'which is' if kept else 'not'} {rule.sign} {plain(rule.bound)}"
    if seen < evidence.min_requests:
        outcome, text = Outcome.INCONCLUSIVE, f"{text}; only {count(seen)} requests were seen"
    return RuleVerdict(rule.text, outcome, text, seen, evidence.min_requests, {"value": value})


_TESTS: Final[dict[Metric, Callable[[Rule, Evidence, Sides], RuleVerdict]]] = {
    Metric.ERROR_RATE: _errors,
    Metric.CONSECUTIVE_ERRORS: _consecutive,
    Metric.LATENCY: judge_latency,
    Metric.FIRST_BYTE: judge_latency,
    Metric.TOKENS_PER_S: judge_latency,
    Metric.AGREEMENT: _agreement,
    Metric.QUERY: _query,
}
