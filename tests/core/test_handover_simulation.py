"""Hand-overs in a simulated world: any front or the daemon may die between any two effects, messages of different
channels arrive in any order, several epochs follow on each other. Planted bugs must be found."""

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as HypothesisPhase
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from support.front_world import Broken, World

from swapd.core.handover import Effect, Event, Kind, Phase, step

PICK = st.integers(0, 1000)


class Simulation(RuleBasedStateMachine):
    step = staticmethod(step)

    def __init__(self):
        super().__init__()
        self.world = World("ABCD", self.step)
        self.world.adopt(self.world.fronts["A"])
        self.world.run(self.world.fronts["A"])
        for _ in range(3):
            self.world.connect()

    @invariant()
    def nobody_reads_what_another_reads(self):
        self.world.check()

    @rule(pick=PICK)
    def the_daemon_orders(self, pick):
        """A sane daemon: the owner gives, somebody with nothing undecided takes."""
        alive = self.world.alive()
        sources = [front for front in alive if front.state.phase is Phase.OWNER and front.idle]
        targets = [front for front in alive if front.state.phase is Phase.VACANT and front.idle]
        if sources and targets:
            self.world.order(sources[pick % len(sources)], targets[pick // 7 % len(targets)])

    @rule(pick=PICK)
    def much_time_passes(self, pick):
        self.time_passes(pick, 12)

    def time_passes(self, pick, times):
        """Effects are carried out, or messages arrive."""
        for turn in range(times):
            moves = [front for front in self.world.alive() if front.effects]
            arrivals = self.world.deliverable()
            if not moves and not arrivals:
                return
            at = (pick + turn * 31) % (len(moves) + len(arrivals))
            if at < len(moves):
                self.world.run_one(moves[at])
            else:
                self.world.deliver(*arrivals[at - len(moves)])

    @rule()
    def a_client_connects(self):
        self.world.connect()

    def at(self, mode):
        return [
            (front, connection)
            for front in self.world.alive()
            for connection, what in front.copies.items()
            if what == mode and connection != 0
        ]

    @precondition(lambda self: self.at("read"))
    @rule(pick=PICK)
    def a_request_comes(self, pick):
        choices = self.at("read")
        self.world.request(*choices[pick % len(choices)])

    @precondition(lambda self: self.at("busy"))
    @rule(pick=PICK)
    def an_answer_is_out(self, pick):
        choices = self.at("busy")
        self.world.finish(*choices[pick % len(choices)])

    @rule(pick=PICK, times=st.integers(1, 3))
    def a_little_time_passes(self, pick, times):
        self.time_passes(pick, times)

    @precondition(lambda self: len(self.world.alive()) > 1)
    @rule(pick=PICK)
    def a_front_dies(self, pick):
        if pick % 4:  # not too often: the living do the interesting things
            return
        alive = self.world.alive()
        self.world.crash(alive[pick % len(alive)])

    @precondition(lambda self: len(self.world.alive()) > 1)
    @rule(pick=PICK)
    def a_front_dies_between_two_effects(self, pick):
        for turn in range(pick % 20):
            halfway = [front for front in self.world.alive() if len(front.effects) > 1]
            if halfway and turn >= pick % 7:
                self.world.run_one(halfway[0])
                self.world.crash(halfway[0])
                return
            self.time_passes(pick, 1)

    @rule()
    def the_daemon_dies(self):
        """Its connections break; what it had ordered and is not committed is taken back."""
        for front in self.world.alive():
            if front.idle:
                self.world.event(front, Kind.DAEMON_GONE, front.state.epoch)

    @rule(pick=PICK)
    def a_deadline_passes(self, pick):
        sources = [
            front
            for front in self.world.alive()
            if front.idle and front.state.phase in (Phase.OFFERING, Phase.COMMITTED)
        ]
        if sources:
            self.world.deadline(sources[pick % len(sources)])

    @rule(pick=PICK)
    def a_target_gives_up(self, pick):
        for front in self.world.alive():
            link = self.world.armed_link(front)
            if front.idle and front.state.phase is Phase.ARMED and link is not None and link.source.alive:
                self.world.deadline(front)
                return

    @rule()
    def the_daemon_proves_deaths(self):
        """Only of the dead, and only after what they had said has been heard."""
        for front in self.world.alive():
            link = front.out
            if not front.idle or front.state.phase not in (Phase.OFFERING, Phase.COMMITTED) or link is None:
                continue
            if not link.target.alive and not link.to_source:
                self.world.event(front, Kind.TARGET_DEAD, link.epoch)

    @rule(pick=PICK)
    def a_late_message_turns_up(self, pick):
        """Whatever an older epoch may still say is void."""
        for front in self.world.alive():
            if front.idle and front.state.epoch > 1:
                kinds = [Kind.HELD, Kind.STARTED, Kind.COMMIT, Kind.ABORT, Kind.SOURCE_DEAD, Kind.TARGET_DEAD]
                late = Event(kinds[pick % len(kinds)], front.state.epoch - 1)
                if self.step(front.state, late) != (front.state, ()):
                    raise Broken(f"{late} did something to {front.state}")

    def teardown(self):
        self.world.settle()


def simulate(examples, variant=step, **more):
    machine = type("Simulation", (Simulation,), {"step": staticmethod(variant)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
            **more,
        ),
    )


def test_the_promises_hold_whoever_dies_when():
    simulate(600)


# --- planted bugs: each must be caught -------------------------------------------------------------------------


def target_reads_before_commit(state, event):
    new, effects = step(state, event)
    return new, tuple(Effect.START if effect is Effect.SEND_HELD else effect for effect in effects) + (
        (Effect.SEND_HELD,) if Effect.SEND_HELD in effects else ()
    )


def source_resumes_after_commit(state, event):
    if state.phase is Phase.COMMITTED and event == Event(Kind.DEADLINE, state.epoch):
        return replace(state, phase=Phase.OWNER, offered=None, held=0), (Effect.SEND_ABORT, Effect.RESUME)
    return step(state, event)


def source_closes_before_started(state, event):
    new, effects = step(state, event)
    return new, (*effects, Effect.CLOSE_COPIES) if Effect.SEND_COMMIT in effects else effects


def target_starts_before_it_says_so(state, event):
    new, effects = step(state, event)
    return new, tuple(reversed(effects)) if Effect.SEND_STARTED in effects else effects


def epochs_are_not_compared(state, event):
    if event.kind in (Kind.ADOPT, Kind.RECEIVE, Kind.HAND_OVER):
        return step(state, event)
    return step(state, replace(event, epoch=state.epoch))


def target_drops_when_the_source_is_dead(state, event):
    if state.phase is Phase.ARMED and event.kind is Kind.SOURCE_DEAD and event.epoch == state.epoch:
        return replace(state, phase=Phase.VACANT), (Effect.DROP,)
    return step(state, event)


@pytest.mark.parametrize(
    "variant",
    [
        target_reads_before_commit,
        source_resumes_after_commit,
        source_closes_before_started,
        target_starts_before_it_says_so,
        epochs_are_not_compared,
        target_drops_when_the_source_is_dead,
    ],
    ids=lambda variant: variant.__name__,
)
def test_a_planted_bug_is_found(variant):
    with pytest.raises((Broken, AssertionError)) as caught:
        simulate(3000, variant, phases=[HypothesisPhase.generate], print_blob=False, derandomize=True)
    assert isinstance(caught.value, Broken), caught.value
