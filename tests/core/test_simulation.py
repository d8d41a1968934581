"""The daemon in a simulated world where anything may fail and anybody may die at any instant: the promises hold.

`make soak` runs the same for a million moves and more; `support.simulation.moves` says what may happen.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from support.simulation.moves import MOVES, calm
from support.simulation.story import begin, draw_moves, make, tell

OFTEN = [name for name, (weight, _) in MOVES.items() for _ in range(weight)]


class Simulation(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 63))
    def a_world(self, seed):
        self.world = begin(seed)

    @rule(name=st.sampled_from(OFTEN), pick=st.integers(0, 10_000))
    def something_happens(self, name, pick):
        make(self.world, name, pick)

    @rule()
    def nothing_happens_for_long(self):
        calm(self.world)

    def teardown(self):
        if hasattr(self, "world"):
            calm(self.world)


def test_the_promises_hold_whatever_fails_and_whoever_dies():
    run_state_machine_as_test(
        Simulation,
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_story_told_at_random_breaks_no_promise(seed):
    found = tell(seed, list(draw_moves(seed, 120)))
    assert found is None, f"python tests/simulate.py --seed {seed} --steps 1: {found[1]}"
