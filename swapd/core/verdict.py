"""May the candidate go on? One verdict from all rules and everything that was measured in a stage.

Duty: pass, fail or inconclusive, why, and how far it is. It may be asked as often as one likes; a stage ends at the
first FAIL, or at a PASS that its time allows. No traffic is inconclusive, never a failure.
May not know: what follows a verdict (`delivery`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from swapd.core.evidence import Evidence, Outcome, RuleVerdict, Shadow, Sides, sides
from swapd.core.figures import count, milliseconds, plain
from swapd.core.looks import LAST_LOOK_Z
from swapd.core.rule_tests import judge_rule
from swapd.core.rules import Metric, Rule, parse_rule
from swapd.core.statistics import rank_test

__all__ = ["Evidence", "Outcome", "Progress", "RuleVerdict", "Shadow", "Verdict", "judge"]

# So many failures in a row end any stage at once, where no rule says how many: at a rate of 10 %, which no rule that
# makes sense allows, that is a chance of one in ten thousand millions.
GUARD: Final = parse_rule("consecutive_errors < 10")
_SLOWER_BY: Final = 1.1  # a stable that is slower by less than this is not worth a sentence


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the verdict is: requests seen of those needed, which are more where the figures are close to a bound."""

    seen: int
    needed: int
    expected_s: float | None  # until then, at the rate of this stage so far; None where nothing was seen


@dataclass(frozen=True, slots=True)
class Verdict:
    """`text` is a sentence for people; `note` says what the candidate does to the stable beside it, if anything."""

    outcome: Outcome
    text: str
    rules: tuple[RuleVerdict, ...]
    progress: Progress
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome.value,
            "text": self.text,
            "rules": [rule.to_json() for rule in self.rules],
            "seen": self.progress.seen,
            "needed": self.progress.needed,
            "expected_s": self.progress.expected_s,
            "note": self.note,
        }


def judge(rules: Iterable[Rule], evidence: Evidence) -> Verdict:
    """A FAIL is final; a PASS is what is known now."""
    rules = list(rules)
    if all(rule.metric is not Metric.CONSECUTIVE_ERRORS for rule in rules):
        rules.append(GUARD)
    both = sides(evidence)
    found = tuple(judge_rule(rule, evidence, both) for rule in rules)
    outcome = _outcome(found, evidence, both)
    progress = _progress(outcome, found, evidence, both)
    return Verdict(outcome, _text(outcome, found, progress, both), found, progress, _contention(evidence))


def _outcome(found: Sequence[RuleVerdict], evidence: Evidence, both: Sides) -> Outcome:
    outcomes = {rule.outcome for rule in found}
    if not both.candidate.requests:
        return Outcome.INCONCLUSIVE
    if Outcome.FAIL in outcomes:
        return Outcome.FAIL
    if Outcome.INCONCLUSIVE in outcomes or both.candidate.requests < evidence.min_requests:
        return Outcome.INCONCLUSIVE
    return Outcome.PASS


def _furthest(found: Sequence[RuleVerdict]) -> RuleVerdict | None:
    """The rule that still takes the most requests."""
    open_ones = [rule for rule in found if rule.outcome is Outcome.INCONCLUSIVE]
    return max(open_ones, key=lambda rule: rule.needed - rule.seen, default=None)


def _progress(outcome: Outcome, found: Sequence[RuleVerdict], evidence: Evidence, both: Sides) -> Progress:
    seen = both.candidate.requests
    needed, last = max(seen, evidence.min_requests), _furthest(found)
    if outcome is Outcome.INCONCLUSIVE and last is not None:
        seen, needed = last.seen, max(last.seen, last.needed)
    elif outcome is Outcome.FAIL:
        needed = seen
    expected_s = None
    if seen and evidence.elapsed_s > 0:
        expected_s = math.ceil((needed - seen) * evidence.elapsed_s / seen)
    return Progress(seen, needed, expected_s)


def _text(outcome: Outcome, found: Sequence[RuleVerdict], progress: Progress, both: Sides) -> str:
    if not both.candidate.requests:
        return "the candidate has had no request yet"
    what = "copies of requests" if both.copies else "requests"
    told = [rule for rule in found if rule.outcome is outcome]
    if outcome is Outcome.PASS:
        return f"{'the rule is' if len(told) == 1 else 'all rules are'} kept after {count(progress.seen)} {what}"
    if outcome is Outcome.FAIL:
        return "; ".join(f"{rule.rule}: {rule.text}" for rule in told)
    last = _furthest(found)
    so_far = f"{count(progress.seen)} of at least {count(progress.needed)} {what}"
    return f"{so_far}; {last.rule}: {last.text}" if last else so_far


def _contention(evidence: Evidence) -> str:
    """How much slower the stable itself has become: it shares its device with the candidate."""
    if evidence.before is None:
        return ""
    now, before = evidence.stable.latency, evidence.before.latency
    middle, middle_before = now.quantile(0.5), before.quantile(0.5)
    if middle is None or middle_before is None or min(now.total, before.total) < evidence.min_requests:
        return ""
    slower = middle / middle_before
    if slower < _SLOWER_BY or rank_test(now, before).z < LAST_LOOK_Z:
        return ""
    return (
        f"the stable itself is {plain(slower)} times slower than before (p50 {milliseconds(middle, middle_before)}"
        f" against {milliseconds(middle_before, middle)}): it shares the device with the candidate"
    )
