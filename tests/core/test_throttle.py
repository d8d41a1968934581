"""The throttle: fewer copies where they make the stable slower, more again where not, and never none for good."""

import random

import pytest

from swapd.core.throttle import ENOUGH, LEAST, Throttle


def feed(throttle, alone_s, disturbed_s, count=ENOUGH, now=0.0):
    for _ in range(count):
        throttle.observe(now, alone_s, disturbed=False)
    for _ in range(count):
        throttle.observe(now, disturbed_s, disturbed=True)


def test_the_share_is_halved_while_copies_slow_the_stable_and_grows_back():
    throttle = Throttle(0.2)
    feed(throttle, 0.010, 0.013)
    assert throttle.share == pytest.approx(0.1)
    feed(throttle, 0.010, 0.020)
    assert throttle.share == pytest.approx(0.05)
    feed(throttle, 0.010, 0.012)
    assert throttle.share == pytest.approx(0.07)
    for _ in range(20):
        feed(throttle, 0.010, 0.010)
    assert throttle.share == 0.2


def test_it_never_ends_copying_altogether():
    throttle = Throttle(0.2)
    for _ in range(50):
        feed(throttle, 0.01, 0.1)
    assert throttle.share == pytest.approx(0.2 * LEAST)
    for _ in range(50):
        feed(throttle, 0.01, 0.01)
    assert throttle.share == pytest.approx(0.2)


def test_few_requests_decide_nothing():
    throttle = Throttle(1.0)
    feed(throttle, 0.01, 9.0, count=ENOUGH - 1)
    assert throttle.share == 1.0


def test_where_copies_leave_no_request_alone_they_pause():
    throttle = Throttle(1.0)
    for _ in range(ENOUGH):
        assert not throttle.quiet
        throttle.observe(0.0, 0.02, disturbed=True)
    assert throttle.quiet
    for _ in range(ENOUGH):
        throttle.observe(0.0, 0.01, disturbed=False)
    assert not throttle.quiet
    assert throttle.share == 0.5


def test_what_was_seen_long_ago_says_nothing():
    throttle = Throttle(1.0)
    for _ in range(ENOUGH):
        throttle.observe(0.0, 0.01, disturbed=False)
    for _ in range(ENOUGH):
        throttle.observe(100.0, 0.5, disturbed=True)
    assert throttle.share == 1.0
    assert throttle.quiet


def test_noise_alone_does_not_throttle_for_long():
    rng = random.Random(1)
    throttle = Throttle(1.0)
    shares = []
    for at in range(20_000):
        throttle.observe(at * 0.01, rng.lognormvariate(-4, 0.5), disturbed=rng.random() < 0.5)
        shares.append(throttle.share)
    assert sum(shares) / len(shares) > 0.8
