"""How sure a rule's test must be, so that it may be asked once a second: what the tests of all rules share.

However often it is looked at, a rule fails a candidate that keeps it in about 1 of 100 runs, and passes one that breaks
it in 2. "Keeps" and "breaks" leave a gap about the bound, and who is in it may be judged either way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from swapd.core.evidence import Outcome
from swapd.core.figures import count
from swapd.core.statistics import rate_evidence, rates_about
from swapd.core.window import MAX_SLICES

FAILS: Final = math.log(1 / 0.01)  # of likelihood ratios
PASSES: Final = math.log(1 / 0.02)
# What begins late is looked for from every slice on, and so many starts need so much more evidence.
FAILS_LATE: Final = FAILS + math.log(MAX_SLICES)
LATE_SHARE: Final = 0.25  # of a window's requests, where the late ones of two are compared
# Standard errors: 3.5 bears a look at any time while the requests grow a hundredfold; the last look is one.
LOOK_Z: Final = 3.5
LAST_LOOK_Z: Final = 2.33
PASS_Z: Final = 2.33
LAST_PASS_Z: Final = 1.28

Counts = Sequence[tuple[int, int]]  # trials and events, in order of time


def rate_test(counts: Counts, bound: float, min_requests: int) -> tuple[Outcome, int]:
    """(outcome, trials that it takes at least) of events that may have the rate `bound`."""
    low, high = rates_about(bound)
    trials, events = totals(counts)
    found = rate_evidence(trials, events, low, high)
    if found >= FAILS:
        return Outcome.FAIL, trials
    if found <= -PASSES and events <= bound * trials and trials >= min_requests:
        return Outcome.PASS, trials
    gain = -rate_evidence(1, 0, low, high)
    return Outcome.INCONCLUSIVE, max(min_requests, trials + math.ceil((found + PASSES) / gain))


def late_starts(counts: Counts, bound: float) -> Iterator[int]:
    """From where on the later ones alone have surely too many events; the shortest such part first."""
    low, high = rates_about(bound)
    for start in range(len(counts) - 1, 0, -1):
        if rate_evidence(*totals(counts[start:]), low, high) >= FAILS_LATE:
            yield start


def totals(counts: Counts) -> tuple[int, int]:
    return sum(one[0] for one in counts), sum(one[1] for one in counts)


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def against(outcome: Outcome, broken: str, kept: str, bound: str) -> str:
    """The end of a sentence about a figure and its bound."""
    if outcome is Outcome.INCONCLUSIVE:
        return f", not yet surely {kept} {bound}"
    return f", {broken if outcome is Outcome.FAIL else kept} {bound}"


def of_the_last(requests: int) -> str:
    return f"of the last {count(requests)} requests "
