"""The daemon in a simulated world where anything may fail and anybody may die at any instant: the promises hold.

`make soak` runs the same for a million moves and more; `support.simulation.moves` says what may happen.
"""

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from support.simulation.moves import MOVES, calm
from support.simulation.story import begin, draw_moves, make, tell

from swapd.core import advance, events, recovery, results, rollout
from swapd.core.model import OpKind

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
            max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("seed", range(6))
def test_a_story_told_at_random_breaks_no_promise(seed):
    found = tell(seed, list(draw_moves(seed, 120)))
    assert found is None, f"python tests/simulate.py --seed {seed} --steps 1: {found[1]}"


# --- planted bugs: each must be found ------------------------------------------------------------------------------


def redo_not_made(patch):
    """An operation of the last daemon's is believed to be in flight."""
    conclude = recovery._conclude

    def plant(d, worker, seen):
        if worker.op is None or recovery._end_of(worker, worker.op, seen) is not None:
            conclude(d, worker, seen)

    patch.setattr(recovery, "_conclude", plant)


def owner_taken_from_the_journal(patch):
    patch.setattr(recovery, "_find_owner", lambda d, name, living, seen: d.settle_roles(name))


def target_dead_without_proof(patch):
    def plant(d, source, op, seen):
        d.run(OpKind.TARGET_DEAD, source, epoch=op.epoch, step=op.step)

    patch.setattr(recovery, "_end_hand_over", plant)


def reservation_kept_for_a_dead_worker(patch):
    def plant(d, event):
        kept = d.reservations.get(event.worker)
        results.worker_exited(d, event)
        if kept is not None:
            d.reservations[event.worker] = kept

    patch.setitem(rollout._HANDLERS, events.WorkerExited, plant)


def end_of_the_soak_forgotten(patch):
    """By who starts in the middle of one: its time is in the journal, and nobody looks at the clock."""
    end_soak = advance._end_soak

    def plant(d, service):
        if d.at >= (service.swap.soak_until or d.at) if service.swap is not None else True:
            end_soak(d, service)

    patch.setattr(advance, "_end_soak", plant)


def recoveries_never_counted(patch):
    patch.setattr(recovery, "_count", lambda d, name: None)


def late_orders_taken_for_void(patch):
    patch.setattr(recovery, "_LATE", frozenset())


def drain_not_made_again(patch):
    """What was being drained is stopped."""
    conclude = recovery._conclude

    def plant(d, worker, seen):
        if worker.op is not None and worker.op.kind is OpKind.DRAIN:
            d.set_worker(worker.id, drained=True)
        conclude(d, d.workers[worker.id], seen)

    patch.setattr(recovery, "_conclude", plant)


def probes_left_out(patch):
    """A worker that was being verified when the daemon died is taken for verified."""
    conclude = recovery._conclude

    def plant(d, worker, seen):
        if worker.op is not None and worker.op.kind is OpKind.VERIFY:
            d.set_worker(worker.id, verified=True)
        conclude(d, d.workers[worker.id], seen)

    patch.setattr(recovery, "_conclude", plant)


def a_swap_forgotten(patch):
    """Nobody tells how a swap ended that was cut short with all its workers."""
    patch.setattr(recovery, "_begin_anew", lambda d, name: d.set_service(name, swap=None, owner=None))


BUGS = {
    bug.__name__: bug
    for bug in (
        *(redo_not_made, owner_taken_from_the_journal, target_dead_without_proof, reservation_kept_for_a_dead_worker),
        *(end_of_the_soak_forgotten, recoveries_never_counted, late_orders_taken_for_void, drain_not_made_again),
        *(probes_left_out, a_swap_forgotten),
    )
}


# Where the search begins, so that it is short; docs/promises.md tells how long it takes from the first story on.
FROM = {"target_dead_without_proof": 141, "late_orders_taken_for_void": 315, "recoveries_never_counted": 28}


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug, monkeypatch):
    BUGS[bug](monkeypatch)
    made = 0
    for seed in range(FROM.get(bug, 0), 800):
        moves = list(draw_moves(seed, 120))
        found = tell(seed, moves)
        if found is not None:
            print(f"{made + found[0]} moves, seed {seed}: {found[1]}")
            return
        made += len(moves)
    pytest.fail(f"not found in {made} moves")
