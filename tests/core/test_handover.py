"""The table of the hand-over: total, and deaf to what is illegal or of another epoch."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.handover import FREE, OPENING, TABLE, Effect, Event, Kind, Phase, State, step

STATES = st.builds(
    State,
    st.sampled_from(Phase),
    st.integers(0, 5),
    st.integers(0, 5),
    st.booleans(),
    st.none() | st.integers(1, 3),
    st.integers(0, 3),
)
EVENTS = st.builds(Event, st.sampled_from(Kind), st.integers(0, 7), st.integers(1, 3))


def run(state, *events):
    """The state after the events, and the effects of the last one."""
    effects = ()
    for event in events:
        state, effects = step(state, event)
    return state, effects


@given(STATES, EVENTS)
def test_every_state_has_an_answer_to_every_event(state, event):
    new, effects = step(state, event)
    assert isinstance(new, State)
    assert all(isinstance(effect, Effect) for effect in effects)
    assert new.epoch >= state.epoch


@given(STATES, EVENTS)
def test_an_event_of_another_epoch_changes_nothing(state, event):
    if event.kind not in OPENING | FREE and event.epoch != state.epoch:
        assert step(state, event) == (state, ())


@given(STATES, EVENTS)
def test_an_order_that_is_not_newer_changes_nothing(state, event):
    if event.kind in OPENING and event.epoch <= state.epoch:
        assert step(state, event) == (state, ())


@pytest.mark.parametrize(("phase", "kind"), list(product(Phase, Kind)), ids=str)
def test_what_the_table_does_not_know_changes_nothing(phase, kind):
    state = State(phase, 3)
    counted = phase is Phase.OFFERING and kind in (Kind.HELD, Kind.SEALED)
    if (phase, kind) not in TABLE and not counted:
        assert step(state, Event(kind, 4 if kind in OPENING else 3, 1)) == (state, ())


def test_a_whole_hand_over_on_the_sources_side():
    state, effects = run(State(), Event(Kind.ADOPT, 1))
    assert (state, effects) == (State(Phase.OWNER, 1, owned=1), (Effect.START,))
    state, effects = run(state, Event(Kind.HAND_OVER, 2))
    assert (state.phase, effects) == (Phase.OFFERING, (Effect.QUIESCE,))
    state, effects = run(state, Event(Kind.SEALED, 2, 2), Event(Kind.HELD, 2))
    assert (state.phase, effects) == (Phase.OFFERING, ())
    state, effects = run(state, Event(Kind.HELD, 2))
    assert (state.phase, effects) == (Phase.COMMITTED, (Effect.SEND_COMMIT,))
    state, effects = run(state, Event(Kind.STARTED, 2))
    assert (state, effects) == (State(Phase.VACANT, 2, owned=1, gave=True), (Effect.CLOSE_COPIES,))


def test_the_commit_waits_for_the_last_batch_to_be_sent():
    state, effects = run(State(Phase.OWNER, 1, 1), Event(Kind.HAND_OVER, 2), Event(Kind.HELD, 2), Event(Kind.HELD, 2))
    assert (state.phase, effects) == (Phase.OFFERING, ())
    assert run(state, Event(Kind.SEALED, 2, 2))[1] == (Effect.SEND_COMMIT,)


def test_a_whole_hand_over_on_the_targets_side():
    state, _ = run(State(), Event(Kind.RECEIVE, 2))
    assert run(state, Event(Kind.OFFER, 2))[1] == (Effect.HOLD, Effect.SEND_HELD)
    state, effects = run(state, Event(Kind.OFFER, 2), Event(Kind.COMMIT, 2))
    assert state == State(Phase.OWNER, 2, owned=2)
    assert effects == (Effect.SEND_STARTED, Effect.START)  # in this order: see the module


@pytest.mark.parametrize("kind", [Kind.DEADLINE, Kind.PEER_GONE, Kind.DAEMON_GONE, Kind.HELD, Kind.SOURCE_DEAD])
def test_after_commit_only_proof_lets_the_source_resume(kind):
    committed = State(Phase.COMMITTED, 2, owned=1, offered=1, held=1)
    assert run(committed, Event(kind, 2)) == (committed, ())


@pytest.mark.parametrize("kind", [Kind.TARGET_DEAD, Kind.ABORT])
def test_proof_that_the_target_will_never_read_lets_the_source_resume(kind):
    committed = State(Phase.COMMITTED, 2, owned=1, offered=1, held=1)
    assert run(committed, Event(kind, 2)) == (State(Phase.OWNER, 2, owned=1), (Effect.RESUME,))


def test_a_target_whose_source_is_silent_holds_on():
    armed = State(Phase.ARMED, 2)
    assert run(armed, Event(Kind.PEER_GONE, 2)) == (armed, ())
    assert run(armed, Event(Kind.SOURCE_DEAD, 2))[1] == (Effect.START,)


def test_a_target_that_let_go_says_so_to_a_late_commit():
    state, _ = run(State(), Event(Kind.RECEIVE, 2), Event(Kind.DEADLINE, 2))
    assert run(state, Event(Kind.COMMIT, 2)) == (state, (Effect.SEND_ABORT,))


def test_a_failed_attempt_uses_up_its_epoch():
    state, _ = run(State(Phase.OWNER, 1, 1), Event(Kind.HAND_OVER, 2), Event(Kind.DEADLINE, 2))
    assert state == State(Phase.OWNER, 2, owned=1)
    assert run(state, Event(Kind.HAND_OVER, 2)) == (state, ())
    assert run(state, Event(Kind.HAND_OVER, 3))[1] == (Effect.QUIESCE,)


@pytest.mark.parametrize(
    ("state", "effects"),
    [
        (State(Phase.OWNER, 5, 5), (Effect.SEND_ADOPTED, Effect.TAKE)),
        (State(Phase.VACANT, 5, 4, gave=True), (Effect.SEND_ADOPTED, Effect.KEEP)),
        (State(Phase.ARMED, 5), (Effect.SEND_ADOPTED, Effect.KEEP)),
        (State(Phase.OFFERING, 5, 4), (Effect.SEND_ADOPTED, Effect.KEEP)),
        (State(Phase.COMMITTED, 5, 4), (Effect.SEND_ADOPTED, Effect.KEEP)),
        (State(Phase.VACANT, 5), (Effect.SEND_REFUSED,)),
    ],
    ids=lambda value: value.phase.value if isinstance(value, State) else "",
)
def test_stragglers_go_to_the_owner_whatever_their_epoch(state, effects):
    assert run(state, Event(Kind.STRAGGLER, 2)) == (state, effects)
