"""Is one rate, or one set of latencies, worse than it may be? The few tests that the judge needs, on counts.

Duty: figures in, evidence out: how sure it is, never what follows. All of them may be asked again and again as requests
come in ("peeking"): the likelihood ratios because of Ville's inequality, the tests of latencies because they are asked
with a z that leaves room for it (`verdict`). No scipy: importing it takes 0.9 s and 94 MB; the tests have its figures.
Sources: Wald, Sequential Analysis (1947); Mann and Whitney (1947); Zou and Donner (2008), the MOVER interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from swapd.core.window import RATIO, Histogram

# A rate is told apart from its bound when its odds are half as much again, or that much less. What lies in between may
# be judged either way: the closer, the longer it takes, and clients wait for the verdict meanwhile.
ODDS: Final = 1.5


def rates_about(bound: float) -> tuple[float, float]:
    """The rate that must pass, and the one that must fail, for a rate that may be `bound` (0 < bound < 1)."""
    odds = bound / (1.0 - bound)
    low, high = odds / ODDS, odds * ODDS
    return low / (1.0 + low), high / (1.0 + high)


def rate_evidence(trials: int, events: int, low: float, high: float) -> float:
    """The logarithm of how much likelier so many events are at the rate `high` than at `low` (Wald's SPRT)."""
    return events * math.log(high / low) + (trials - events) * math.log((1.0 - high) / (1.0 - low))


def ratio_evidence(trials: int, events: int, others: int, other_events: int, low: float, high: float) -> float:
    """The same for the ratio of two unknown rates: given how many events there were in both, how many of them are the
    first's says all that is known of the ratio (a conditional binomial)."""
    if not trials or not others:
        return 0.0
    share_low, share_high = (ratio * trials / (ratio * trials + others) for ratio in (low, high))
    return rate_evidence(events + other_events, events, share_low, share_high)


def agreement_evidence(
    compared: int, differed: int, noise_compared: int, noise_differed: int, low: float, high: float
) -> float:
    """The same for answers that differ by a fault of their own (a rate from `low` to `high`) or by noise, of which only
    a sample is known: each rate is given the noise that suits it best (a likelihood ratio with the noise profiled out).
    Without a sample any share of differing answers may be noise, so that nothing speaks against the candidate."""

    def best(fault: float) -> float:
        kept = 1.0 - fault  # of answers that noise did not change
        same = compared - differed + noise_compared - noise_differed
        # The likelihood's derivative by the share x that noise leaves alone is a quadratic over x (1 - x) (1 - kept x).
        a = kept * (compared + noise_compared)
        b = same * (1.0 + kept) + differed * kept + noise_differed
        x = (b - math.sqrt(max(b * b - 4.0 * a * same, 0.0))) / (2.0 * a)
        agreed = _log_likelihood(compared - differed, differed, kept * x)
        return agreed + _log_likelihood(noise_compared - noise_differed, noise_differed, x)

    return best(high) - best(low) if compared else 0.0


def _log_likelihood(yes: int, no: int, chance: float) -> float:
    tiny = 1e-300  # 0 log 0 is 0
    return yes * math.log(max(chance, tiny)) + no * math.log(max(1.0 - chance, tiny))


@dataclass(frozen=True, slots=True)
class RankTest:
    """`z`: how many standard errors the first's values lie above the second's. `larger`: how often a value of the first
    is the larger one of a pair, ties half (0.5: no difference)."""

    z: float
    larger: float


def rank_test(first: Histogram, second: Histogram, scale: float = 1.0) -> RankTest:
    """Mann and Whitney's, with the correction for ties, of `first` against `second` with all its values times `scale`
    (to a bucket). Nothing is told from an empty histogram."""
    if not first.total or not second.total:
        return RankTest(0.0, 0.5)
    shift = round(math.log(scale) / math.log(RATIO))
    ours, theirs = dict(first), {bucket + shift: count for bucket, count in second}
    below, wins, ties = 0, 0.0, 0
    for bucket in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(bucket, 0), theirs.get(bucket, 0)
        wins += mine * (below + other / 2)
        below += other
        tied = mine + other
        ties += tied**3 - tied
    count = first.total + second.total
    pairs = first.total * second.total
    variance = pairs / 12.0 * (count + 1 - ties / (count * (count - 1)))
    z = (wins - pairs / 2.0) / math.sqrt(variance) if variance > 0 else 0.0
    return RankTest(z, wins / pairs)


@dataclass(frozen=True, slots=True)
class QuantileRatio:
    """A quantile of one over that of another. `low` and `high` enclose the true ratio, as surely as `z` says; 0 and
    infinity where too little was seen."""

    ratio: float
    low: float
    high: float


def quantile_ratio(first: Histogram, second: Histogram, q: float, z: float) -> QuantileRatio | None:
    """Distribution-free: each quantile's own interval is that between two ranks, and the two are combined as MOVER has
    it. None where one has seen nothing."""
    ours, theirs = _log_quantile(first, q, z), _log_quantile(second, q, z)
    if ours is None or theirs is None:
        return None
    difference = ours[1] - theirs[1]
    low = difference - math.hypot(ours[1] - ours[0], theirs[2] - theirs[1])
    high = difference + math.hypot(ours[2] - ours[1], theirs[1] - theirs[0])
    return QuantileRatio(math.exp(difference), math.exp(low), math.exp(high))


def _log_quantile(histogram: Histogram, q: float, z: float) -> tuple[float, float, float] | None:
    """The quantile's logarithm between its bounds."""
    if not histogram.total:
        return None
    rank = q * histogram.total
    width = z * math.sqrt(rank * (1.0 - q))
    lowest, highest = math.floor(rank - width), math.ceil(rank + width)
    low = math.log(histogram.at_rank(lowest)) if lowest >= 1 else -math.inf
    high = math.log(histogram.at_rank(highest)) if highest <= histogram.total else math.inf
    return low, math.log(histogram.at_rank(math.ceil(rank))), high


def requests_for_quantile(q: float, z: float) -> int:
    """How many a quantile's interval needs to be bounded on both sides."""
    return math.ceil(z * z * max(q / (1.0 - q), (1.0 - q) / q)) + 1
