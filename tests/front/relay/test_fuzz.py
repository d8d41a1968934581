"""A few seconds of what `make fuzz` does for as long as it is told."""

from fuzz_relay import fuzz


def test_a_gate_stands_what_is_thrown_at_it_for_a_few_seconds():
    count, failures = fuzz(3.0, seed=5)
    assert failures == []
    assert count > 50
