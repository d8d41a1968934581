"""Rules about times and speeds: `p95 < 200ms`, `ttfb_p95 <= 1.2 x stable`, `tokens_per_s >= 0.9 x stable`.

Duty: to tell a slow model from a slow moment. Requests that come together share their moment (cold caches at the start,
a pause), and no test that takes them one by one knows that. So what fails a candidate must be seen in each quarter of
its requests. May not know: what other rules say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from swapd.core.evidence import Evidence, Outcome, RuleVerdict, Sides, in_order, tails
from swapd.core.figures import count, milliseconds, plain
from swapd.core.looks import (
    LAST_LOOK_Z,
    LAST_PASS_Z,
    LATE_SHARE,
    LOOK_Z,
    PASS_Z,
    against,
    late_starts,
    of_the_last,
    rate_test,
    totals,
)
from swapd.core.rules import Metric, Rule
from swapd.core.statistics import quantile_ratio, rank_test, requests_for_quantile
from swapd.core.window import Histogram, Slice, Window, merged

_QUARTERS: Final = 4
_QUARTER_Z: Final = 1.65  # in each of them, beside LOOK_Z in all
_LAST_QUARTER_Z: Final = 0.5
_QUARTER_WORSE: Final = 2.5  # requests beyond the quantile in each, if the quantile is to say something
_SOONEST_S: Final = 10.0  # a pause of a second or two is no more than one quarter of it
_LATE_LOOKS: Final = 4  # times `min_requests`: the fewest late ones that say something
_LATE_AFTER_S: Final = 60.0


def judge_latency(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    return _compared(rule, evidence, both) if rule.relative else _bounded(rule, evidence, both)


def _histogram(rule: Rule, window: Window) -> Histogram:
    if rule.metric is Metric.LATENCY:
        return window.latency
    return window.first_byte if rule.metric is Metric.FIRST_BYTE else window.tokens_per_s


# --- by itself ---------------------------------------------------------------------------------------------


def _bounded(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    """p95 < 200 ms says that of 100 requests fewer than 5 take longer: a rate, judged as one."""
    slices = both.candidate.slices if rule.metric is Metric.LATENCY else []
    parts = [part.latency for part in slices] or [_histogram(rule, both.candidate)]
    counts = [(part.total, part.above(rule.bound)) for part in parts]
    if not rule.below:
        counts = [(total, total - above) for total, above in counts]
    share, few = 1.0 - rule.quantile, evidence.min_requests
    outcome, needed = rate_test(counts, share, few)
    seen, worse = totals(counts)
    found = merged(parts).quantile(rule.quantile)
    if found is None:
        return RuleVerdict(rule.text, Outcome.INCONCLUSIVE, f"{_nothing(rule)} was seen", 0, needed)
    if outcome is Outcome.FAIL and (seen < few or not _lasting(rule, evidence, slices)):
        outcome, needed = Outcome.INCONCLUSIVE, max(few, seen + 1)
    show = _showing(rule)
    text = f"{rule.name} {show(found, rule.bound)} of {count(seen)} requests"
    side = ("more than", "less than") if rule.below else ("less than", "more than")
    text += against(outcome, *side, show(rule.bound))
    if outcome is not Outcome.FAIL and evidence.elapsed_s >= _LATE_AFTER_S:
        for start in late_starts(counts, share):
            late, late_worse = totals(counts[start:])
            if late >= _LATE_LOOKS * few and _each_breaks(rule, in_order(slices[start:], 2)):
                outcome = Outcome.FAIL
                text = f"{of_the_last(late)}{count(late_worse)} took longer than {show(rule.bound)}"
                break
    if outcome is Outcome.FAIL and _stable_slowed_down(rule, evidence):
        outcome = Outcome.INCONCLUSIVE
        text += "; the stable breaks it too, which kept it before they shared the device"
    figures = {rule.name: found, "requests": seen, "worse": worse}
    return RuleVerdict(rule.text, outcome, text, seen, needed, figures)


def _stable_slowed_down(rule: Rule, evidence: Evidence) -> bool:
    """The stable breaks the bound too, and kept it as long as it had the device for itself."""
    before = _histogram(rule, evidence.before) if evidence.before is not None else Histogram()
    now = _histogram(rule, evidence.stable)
    kept, keeps = before.quantile(rule.quantile), now.quantile(rule.quantile)
    if kept is None or keeps is None or min(before.total, now.total) < evidence.min_requests:
        return False
    return rule.holds(kept) and not rule.holds(keeps)


# --- beside the stable -------------------------------------------------------------------------------------


def _compared(rule: Rule, evidence: Evidence, both: Sides) -> RuleVerdict:
    ours, theirs = _histogram(rule, both.candidate), _histogram(rule, both.reference)
    if both.copies and theirs.total < evidence.min_requests:
        text = (
            f"the stable was asked {count(theirs.total)} of the copies again: too few to tell; clients' requests will"
        )
        return RuleVerdict(rule.text, None, text, theirs.total, evidence.min_requests)
    slices = (both.candidate.slices, both.reference.slices) if rule.metric is Metric.LATENCY else ([], [])
    outcome, needed = _ratio_test(rule, evidence, ours, theirs)
    if outcome is Outcome.FAIL and not _lasting(rule, evidence, *slices):
        outcome, needed = Outcome.INCONCLUSIVE, ours.total + evidence.min_requests
    lately, ends = "", [merged(part.latency for part in end) for end in tails(*slices, LATE_SHARE)]
    if outcome is not Outcome.FAIL and _worse_lately(rule, evidence, *ends):
        outcome, (ours, theirs) = Outcome.FAIL, ends
        lately = of_the_last(ours.total)
    mine, other = ours.quantile(rule.quantile), theirs.quantile(rule.quantile)
    seen = min(ours.total, theirs.total)
    if mine is None or other is None:
        who = "the candidate" if mine is None else both.reference_name
        return RuleVerdict(rule.text, Outcome.INCONCLUSIVE, f"{_nothing(rule)} of {who} was seen", seen, needed)
    show, ratio = _showing(rule), mine / other
    side = ("more than", "within") if rule.below else ("less than", "at least")
    text = (
        f"{lately}{rule.name} {show(mine, other)} against {show(other, mine)} of {both.reference_name}:"
        f" {plain(ratio, rule.bound)} times{against(outcome, *side, plain(rule.bound))};"
        f" {count(ours.total)} and {count(theirs.total)} requests"
    )
    figures = {rule.name: mine, f"stable_{rule.name}": other, "ratio": ratio}
    figures |= {"requests": ours.total, "stable_requests": theirs.total}
    return RuleVerdict(rule.text, outcome, text, seen, needed, figures)


def _ratio_test(rule: Rule, evidence: Evidence, ours: Histogram, theirs: Histogram) -> tuple[Outcome, int]:
    """(outcome, requests that it takes at least). It fails if it is worse than the rule allows, and ranks or quantiles
    show that this is no chance: surely worse than half of what is allowed. It passes if it is surely within."""
    worse, better, limit, edge = _worse_and_better(rule, ours, theirs)
    fail_z, pass_z = (LAST_LOOK_Z, LAST_PASS_Z) if evidence.last_look else (LOOK_Z, PASS_Z)
    needed = max(evidence.min_requests, requests_for_quantile(rule.quantile, pass_z))
    seen = min(ours.total, theirs.total)
    narrow, wide = (quantile_ratio(worse, better, rule.quantile, z) for z in (pass_z, fail_z))
    if narrow is None or wide is None or seen < evidence.min_requests:
        return Outcome.INCONCLUSIVE, needed
    if narrow.ratio > limit and (wide.low >= edge or rank_test(worse, better, edge).z >= fail_z):
        return Outcome.FAIL, seen
    if narrow.high <= limit:
        return Outcome.PASS, seen
    if narrow.high < math.inf:  # the interval shrinks with the root of the requests, and must exclude the bound
        distance = max(abs(math.log(limit / narrow.ratio)), abs(math.log(limit)) / 4, 0.02)
        needed = max(needed, math.ceil(seen * (math.log(narrow.high / narrow.ratio) / distance) ** 2))
    return Outcome.INCONCLUSIVE, max(needed, seen + 1)


def _worse_lately(rule: Rule, evidence: Evidence, ours: Histogram, theirs: Histogram) -> bool:
    """By ranks alone: a pause that a few requests found themselves in moves a quantile, and the ranks hardly."""
    worse, better, limit, edge = _worse_and_better(rule, ours, theirs)
    if min(ours.total, theirs.total) < _LATE_LOOKS * evidence.min_requests or evidence.elapsed_s < _LATE_AFTER_S:
        return False
    found = quantile_ratio(worse, better, rule.quantile, 0.0)
    return found is not None and found.ratio > limit and rank_test(worse, better, edge).z >= LOOK_Z


def _worse_and_better(rule: Rule, ours: Histogram, theirs: Histogram) -> tuple[Histogram, Histogram, float, float]:
    """(what may not be larger, than what, by which factor, and from which factor on it must be told apart)."""
    limit = rule.bound if rule.below else 1.0 / rule.bound
    edge = math.sqrt(limit) if limit > 1 else limit
    return (ours, theirs, limit, edge) if rule.below else (theirs, ours, limit, edge)


# --- both --------------------------------------------------------------------------------------------------


def _lasting(rule: Rule, evidence: Evidence, ours: Sequence[Slice], theirs: Sequence[Slice] = ()) -> bool:
    """Each quarter breaks the rule, or is slower by its ranks. Taken for granted where the order is not known."""
    if len(ours) < 2 or (rule.relative and len(theirs) < 2):
        return True
    if evidence.elapsed_s < _SOONEST_S:
        return False
    mine, others = in_order(ours, _QUARTERS), in_order(theirs, _QUARTERS)
    if _each_breaks(rule, mine, others):
        return True
    if not (rule.relative and mine and others):
        return False
    pairs = [_worse_and_better(rule, *pair) for pair in zip(mine, others, strict=True)]
    z = _LAST_QUARTER_Z if evidence.last_look else _QUARTER_Z
    return all(rank_test(worse, better, edge).z >= z for worse, better, _, edge in pairs)


def _each_breaks(rule: Rule, ours: Sequence[Histogram], theirs: Sequence[Histogram] = ()) -> bool:
    """By the figure that the rule names, from enough requests."""
    if not ours or (rule.relative and not theirs):
        return False
    for index, part in enumerate(ours):
        mine = part.quantile(rule.quantile)
        other = theirs[index].quantile(rule.quantile) if rule.relative else 1.0
        if mine is None or other is None or part.total * (1.0 - rule.quantile) < _QUARTER_WORSE:
            return False
        if rule.holds(mine / other):
            return False
    return True


def _nothing(rule: Rule) -> str:
    return {Metric.FIRST_BYTE: "no first byte", Metric.TOKENS_PER_S: "no stream of tokens"}.get(
        rule.metric, "no request"
    )


def _showing(rule: Rule) -> Callable[..., str]:
    return plain if rule.metric is Metric.TOKENS_PER_S else milliseconds
