"""The tests behind a verdict, against scipy's figures and against what they promise under peeking."""

from __future__ import annotations

import math
import random

import pytest

from swapd.core.statistics import (
    agreement_evidence,
    quantile_ratio,
    rank_test,
    rate_evidence,
    rates_about,
    ratio_evidence,
    requests_for_quantile,
)
from swapd.core.window import Histogram

SURE = math.log(100)


def lognormal(seed: int, *sizes: tuple[int, float]) -> list[Histogram]:
    """One histogram after the other from one chance: so many values of so much shift."""
    chance = random.Random(seed)
    made = []
    for size, shift in sizes:
        histogram = Histogram()
        for _ in range(size):
            histogram.add(0.1 * math.exp(chance.gauss(shift, 0.5)))
        made.append(histogram)
    return made


@pytest.mark.parametrize(
    ("seed", "n", "m", "shift", "u", "p"),
    [
        (0, 20, 20, 0.0, 186.0, 0.647558329886073),
        (1, 50, 200, 0.26, 6680.5, 0.00011893298050030957),
        (2, 300, 40, -0.4, 3759.5, 0.9999377829357593),
        (3, 8, 8, 0.0, 40.0, 0.2000601719873094),
        (4, 1000, 1000, 0.05, 539880.0, 0.0010056494388780578),
    ],
)
def test_the_rank_test_is_scipys(seed, n, m, shift, u, p):
    """scipy 1.17: mannwhitneyu of the buckets, method="asymptotic", use_continuity=False, alternative="greater"."""
    result = rank_test(*lognormal(seed, (n, shift), (m, 0.0)))
    assert result.larger * n * m == pytest.approx(u)
    assert math.erfc(result.z / math.sqrt(2)) / 2 == pytest.approx(p, rel=1e-9)


def test_ranks_against_slower_ones_are_lower():
    first, second = lognormal(5, (400, 0.26), (400, 0.0))
    assert rank_test(first, second).z > 5
    assert abs(rank_test(first, second, 1.3).z) < 2
    assert rank_test(first, second, 2.0).z < -5


def test_equal_values_and_none_tell_nothing():
    (same,) = lognormal(1, (1, 0.0))
    assert rank_test(same, same).z == 0.0
    assert rank_test(same, Histogram()).z == 0.0
    assert quantile_ratio(same, Histogram(), 0.5, 1.0) is None


def test_a_quantiles_interval_holds_the_truth_as_often_as_it_says():
    """95 % on both sides together: z 1.96. The true ratio is e^0.2."""
    held = 0
    for seed in range(300):
        first, second = lognormal(seed, (150, 0.2), (600, 0.0))
        found = quantile_ratio(first, second, 0.95, 1.96)
        held += found.low <= math.exp(0.2) <= found.high
    assert 0.92 <= held / 300 <= 0.995


def test_too_few_requests_bound_nothing():
    first, second = lognormal(3, (30, 0.0), (3000, 0.0))
    found = quantile_ratio(first, second, 0.99, 2.33)
    assert (found.low > 0, found.high) == (True, math.inf)
    enough = requests_for_quantile(0.99, 2.33)
    first, second = lognormal(3, (enough, 0.0), (3000, 0.0))
    assert quantile_ratio(first, second, 0.99, 2.33).high < math.inf


@pytest.mark.parametrize("bound", [0.001, 0.01, 0.05, 0.5])
def test_a_rate_at_its_bound_speaks_for_neither(bound):
    low, high = rates_about(bound)
    assert low < bound < high
    at_bound = rate_evidence(100_000, round(100_000 * bound), low, high) / 100_000
    assert abs(at_bound) < 0.03 * bound


def test_the_evidence_of_rates_is_walds():
    assert rate_evidence(10, 0, 0.01, 0.05) == pytest.approx(10 * math.log(0.95 / 0.99))
    assert rate_evidence(3, 3, 0.01, 0.05) == pytest.approx(3 * math.log(5))


def crossings(evidence, runs: int = 200) -> float:
    """How often a walk is ever sure, asked at each step."""
    return sum(evidence(random.Random(seed)) for seed in range(runs)) / runs


def test_peeking_at_a_good_rate_fails_it_hardly_ever():
    low, high = rates_about(0.01)

    def ever_sure(chance: random.Random) -> bool:
        events = 0
        for trial in range(1, 3000):
            events += chance.random() < low
            if rate_evidence(trial, events, low, high) >= SURE:
                return True
        return False

    assert crossings(ever_sure) <= 0.02


def test_peeking_at_equal_rates_fails_hardly_ever_though_neither_is_known():
    def ever_sure(chance: random.Random) -> bool:
        events = others = 0
        for look in range(1, 400):
            events += sum(chance.random() < 0.01 for _ in range(2))
            others += sum(chance.random() < 0.01 for _ in range(18))
            if ratio_evidence(2 * look, events, 18 * look, others, 1.33, 3.0) >= SURE:
                return True
        return False

    assert crossings(ever_sure, 100) <= 0.02


def test_a_ratio_without_failures_or_without_others_is_unknown():
    assert ratio_evidence(100, 0, 900, 0, 1.33, 3.0) == 0.0
    assert ratio_evidence(100, 5, 0, 0, 1.33, 3.0) == 0.0
    assert ratio_evidence(500, 10, 9500, 9, 1.33, 3.0) > SURE


def test_noise_explains_what_the_stable_does_itself():
    low, high = rates_about(0.02)
    assert agreement_evidence(2000, 100, 2000, 0, low, high) > SURE  # 5 % wrong, and the stable never differs
    assert agreement_evidence(2000, 100, 2000, 100, low, high) < -SURE  # as the stable does
    assert agreement_evidence(2000, 160, 2000, 100, low, high) > 0  # 3 % more than the stable


def test_without_a_sample_of_noise_nothing_speaks_against_answers_that_differ():
    low, high = rates_about(0.02)
    assert agreement_evidence(2000, 500, 0, 0, low, high) == pytest.approx(0.0, abs=1e-6)
    assert agreement_evidence(2000, 0, 0, 0, low, high) < -SURE  # but for those that agree
    assert agreement_evidence(0, 0, 40, 3, low, high) == 0.0


def test_the_noise_that_suits_best_is_found():
    """Against a search over all shares of noise."""

    def likelihood(fault: float, x: float) -> float:
        same = 1 - (1 - fault) * x
        return 30 * math.log(same) + 970 * math.log(1 - same) + 4 * math.log(1 - x) + 196 * math.log(x)

    grid = [step / 20_000 for step in range(1, 20_000)]
    expected = max(likelihood(0.03, x) for x in grid) - max(likelihood(0.01, x) for x in grid)
    assert agreement_evidence(1000, 30, 200, 4, 0.01, 0.03) == pytest.approx(expected, abs=1e-4)


def test_peeking_at_a_good_candidate_under_noise_fails_it_hardly_ever():
    low, high = rates_about(0.02)

    def ever_sure(chance: random.Random) -> bool:
        compared = differed = noise = noise_differed = 0
        for _ in range(300):
            compared, noise = compared + 10, noise + 1
            differed += sum(chance.random() < 0.02 for _ in range(10))
            noise_differed += chance.random() < 0.02
            if agreement_evidence(compared, differed, noise, noise_differed, low, high) >= SURE:
                return True
        return False

    assert crossings(ever_sure, 100) <= 0.02
