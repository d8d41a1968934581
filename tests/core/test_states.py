"""The worker's table: total, closed, and its names are those of the protocol."""

from pathlib import Path

import pytest

from swapd.core import states
from swapd.core.errors import BAD_REQUEST, Problem
from swapd.core.states import WORKER_TABLE, WorkerState, step_worker
from swapd.wire import worker as wire


@pytest.mark.parametrize("state", WorkerState)
def test_every_state_answers_every_event(state):
    for event in (*states.VERBS, *states.OUTCOMES, "nonsense"):
        after = step_worker(state, event)
        if isinstance(after, Problem):
            assert after.code == BAD_REQUEST
            assert event in after.message
            assert state.value in after.message
        else:
            assert after in WORKER_TABLE


def test_the_table_has_only_known_events():
    assert set(WORKER_TABLE) == set(WorkerState)
    known = {*states.VERBS, *states.OUTCOMES}
    assert all(set(row) <= known for row in WORKER_TABLE.values())


def test_an_illegal_verb_names_the_legal_ones():
    problem = step_worker(WorkerState.SPAWNED, states.HAND_OVER)
    assert isinstance(problem, Problem)
    assert problem.message == ("hand_over is not possible while the worker is spawned; possible now: stage, load, stop")
    assert problem.details["possible"] == ["stage", "load", "stop"]


def test_verbs_are_those_of_the_protocol():
    always_legal = {wire.HELLO, wire.STATS, wire.LEND, wire.ACCESS_LOG}
    protocol = {
        getattr(wire, name) for name in dir(wire) if name.isupper() and isinstance(getattr(wire, name), str)
    } - {wire.PROGRESS, wire.NEEDS_SUCCESSOR, wire.PAGE_CACHE}
    assert set(states.VERBS) - {states.DRAIN_UPSTREAM, states.DRAIN_AND_CLOSE} == protocol - always_legal


@pytest.mark.parametrize("state", WorkerState)
def test_stop_is_possible_until_the_worker_is_gone(state):
    after = step_worker(state, states.STOP)
    if state is WorkerState.GONE:
        assert isinstance(after, Problem)
    else:
        assert after is WorkerState.STOPPING


@pytest.mark.parametrize("state", WorkerState)
def test_every_worker_ends(state):
    assert step_worker(state, states.EXITED) is WorkerState.GONE


def walk(*events):
    state = WorkerState.SPAWNED
    for event in events:
        after = step_worker(state, event)
        assert isinstance(after, WorkerState), after
        state = after
    return state


def test_the_life_of_a_worker_that_is_swapped_out_and_rolled_back_to():
    loaded = ("stage", "done", "load", "done")
    serving = (*loaded, "receive", "started")
    parked = (*serving, "hand_over", "handed_over", "drain", "park", "done")
    assert walk(*serving) is WorkerState.SERVING
    assert walk(*serving, "hand_over", "resumed") is WorkerState.SERVING
    assert walk(*serving, "hand_over", "handed_over", "receive", "started") is WorkerState.SERVING
    assert walk(*parked, "wake", "done", "receive", "started") is WorkerState.SERVING


def test_only_the_owner_hands_over_and_the_owner_is_never_parked():
    legal = {state for state in WorkerState if not isinstance(step_worker(state, "hand_over"), Problem)}
    assert legal == {WorkerState.SERVING}
    assert isinstance(step_worker(WorkerState.SERVING, "park"), Problem)
    assert isinstance(step_worker(WorkerState.SERVING, "drain"), Problem)


def test_asking_again_joins_the_step_under_way():
    for verb, state in (("stage", "staging"), ("load", "loading"), ("park", "parking"), ("wake", "waking")):
        assert step_worker(WorkerState(state), verb) is WorkerState(state)


def test_a_failed_step_leaves_nothing_but_the_end():
    for state in (WorkerState.STAGING, WorkerState.LOADING, WorkerState.PARKING, WorkerState.WAKING):
        assert step_worker(state, states.STEP_FAILED) is WorkerState.FAILED
    assert isinstance(step_worker(WorkerState.FAILED, "load"), Problem)


def drawn():
    """The table as docs/worker-protocol.md shows it."""
    lines = ["| State | Verbs | Outcomes |", "|---|---|---|"]
    for state, row in WORKER_TABLE.items():

        def cell(names, row=row, state=state):
            shown = [
                f"`{name}`" if row[name] is state else f"`{name}` → {row[name].value}"
                for name in names
                if name in row and name not in ("stop", "exited")
            ]
            return ", ".join(shown) or "—"

        lines.append(f"| `{state.value}` | {cell(states.VERBS)} | {cell(states.OUTCOMES)} |")
    return "\n".join(lines)


def test_the_documentation_shows_this_table():
    page = (Path(__file__).parents[2] / "docs" / "worker-protocol.md").read_text()
    assert drawn() in page, f"docs/worker-protocol.md must contain:\n{drawn()}"
