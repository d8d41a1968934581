"""Which event is legal in which state: the table of a worker (and, beside it, of a swap).

Pure and total: every state answers every event, either with the next state or with a `Problem` that names what
is possible now, and an illegal event changes nothing. The names of verbs repeat `swapd.wire.worker`, which this
layer may not import; a test keeps them equal. Standard library only: it also runs in a model's interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final

from swapd.core.errors import BAD_REQUEST, Problem

# --- worker ------------------------------------------------------------------------------------------------


class WorkerState(str, Enum):
    """Where one worker is in its life. A gate has nothing to load: it begins as `loaded`."""

    SPAWNED = "spawned"  # the process answers hello; nothing of the model has been imported
    STAGING = "staging"
    STAGED = "staged"  # imported, weights in host memory, no device memory taken
    LOADING = "loading"
    LOADED = "loaded"  # answers on its private socket; owns no client
    SERVING = "serving"  # owner: the listeners and the clients are here
    HANDING_OVER = "handing_over"
    QUIESCED = "quiesced"  # handed over; finishes what is in flight, may be handed the clients again
    PARKING = "parking"
    PARKED = "parked"  # device memory given back
    WAKING = "waking"
    STOPPING = "stopping"  # accepts no more, drains, ends
    FAILED = "failed"  # a step failed: whatever the model holds is unknown, so it can only be stopped
    GONE = "gone"


# Verbs that change the state or are legal only in some. `hello` and `stats` are legal in every state.
STAGE: Final = "stage"
LOAD: Final = "load"
PARK: Final = "park"
WAKE: Final = "wake"
ADOPT: Final = "adopt"
RECEIVE: Final = "receive"
HAND_OVER: Final = "hand_over"
SUCCESSOR: Final = "successor"
SOURCE_DEAD: Final = "source_dead"
TARGET_DEAD: Final = "target_dead"
POINT: Final = "point"  # a gate's next table
DRAIN: Final = "drain"
DRAIN_UPSTREAM: Final = "drain upstream"  # the same verb to a gate, about one of its engines
DRAIN_AND_CLOSE: Final = "drain and_close"  # the verb `drain` with and_close: also legal on the owner
STOP: Final = "stop"

# What happens in the worker itself.
DONE: Final = "done"  # the step under way has ended well
STEP_FAILED: Final = "step_failed"
STARTED: Final = "started"  # the front has become the owner
HANDED_OVER: Final = "handed_over"  # another front is the owner
RESUMED: Final = "resumed"  # the hand-over failed: this front is the owner as before
EXITED: Final = "exited"

VERBS: Final = (
    *(STAGE, LOAD, PARK, WAKE, ADOPT, RECEIVE, HAND_OVER, SUCCESSOR),
    *(SOURCE_DEAD, TARGET_DEAD, POINT, DRAIN, DRAIN_UPSTREAM, DRAIN_AND_CLOSE, STOP),
)
OUTCOMES: Final = (DONE, STEP_FAILED, STARTED, HANDED_OVER, RESUMED, EXITED)

_S = WorkerState
_ALWAYS: Final = {STOP: _S.STOPPING, EXITED: _S.GONE}

# A verb that is legal in its own -ING state joins the step under way: a restarted daemon asks again.
WORKER_TABLE: Final[Mapping[WorkerState, Mapping[str, WorkerState]]] = {
    _S.SPAWNED: {**_ALWAYS, STAGE: _S.STAGING, LOAD: _S.LOADING},
    _S.STAGING: {**_ALWAYS, STAGE: _S.STAGING, DONE: _S.STAGED, STEP_FAILED: _S.FAILED},
    _S.STAGED: {**_ALWAYS, LOAD: _S.LOADING},
    _S.LOADING: {**_ALWAYS, LOAD: _S.LOADING, DONE: _S.LOADED, STEP_FAILED: _S.FAILED},
    _S.LOADED: {
        **_ALWAYS,
        ADOPT: _S.LOADED,  # the owner only once the front says so: STARTED
        RECEIVE: _S.LOADED,
        SOURCE_DEAD: _S.LOADED,
        POINT: _S.LOADED,
        STARTED: _S.SERVING,
        PARK: _S.PARKING,
        DRAIN: _S.LOADED,
        DRAIN_UPSTREAM: _S.LOADED,
        DRAIN_AND_CLOSE: _S.STOPPING,
    },
    _S.SERVING: {
        **_ALWAYS,
        HAND_OVER: _S.HANDING_OVER,
        ADOPT: _S.SERVING,  # other listeners than it had; or its source died before it had sent them
        RECEIVE: _S.SERVING,  # stragglers of an earlier owner
        SOURCE_DEAD: _S.SERVING,  # said again by a daemon that restarted in between
        TARGET_DEAD: _S.SERVING,
        POINT: _S.SERVING,
        DRAIN_UPSTREAM: _S.SERVING,
        STARTED: _S.SERVING,
        DRAIN_AND_CLOSE: _S.STOPPING,
    },
    _S.HANDING_OVER: {
        **_ALWAYS,
        SUCCESSOR: _S.HANDING_OVER,
        TARGET_DEAD: _S.HANDING_OVER,
        POINT: _S.HANDING_OVER,
        DRAIN: _S.HANDING_OVER,  # its target has started, and its blocked loop has not heard of it
        DRAIN_UPSTREAM: _S.HANDING_OVER,
        HANDED_OVER: _S.QUIESCED,
        RESUMED: _S.SERVING,
    },
    _S.QUIESCED: {
        **_ALWAYS,
        ADOPT: _S.QUIESCED,
        RECEIVE: _S.QUIESCED,
        SOURCE_DEAD: _S.QUIESCED,
        TARGET_DEAD: _S.QUIESCED,
        SUCCESSOR: _S.QUIESCED,
        POINT: _S.QUIESCED,
        STARTED: _S.SERVING,
        PARK: _S.PARKING,
        DRAIN: _S.QUIESCED,
        DRAIN_UPSTREAM: _S.QUIESCED,
        DRAIN_AND_CLOSE: _S.STOPPING,
    },
    _S.PARKING: {**_ALWAYS, PARK: _S.PARKING, DONE: _S.PARKED, STEP_FAILED: _S.FAILED},
    _S.PARKED: {**_ALWAYS, WAKE: _S.WAKING, DRAIN: _S.PARKED},
    _S.WAKING: {**_ALWAYS, WAKE: _S.WAKING, DONE: _S.LOADED, STEP_FAILED: _S.FAILED},
    _S.STOPPING: {**_ALWAYS, DRAIN: _S.STOPPING, DRAIN_UPSTREAM: _S.STOPPING, DRAIN_AND_CLOSE: _S.STOPPING},
    _S.FAILED: {**_ALWAYS, DRAIN: _S.FAILED},
    _S.GONE: {EXITED: _S.GONE},
}


def step_worker(state: WorkerState, event: str) -> WorkerState | Problem:
    """The state after `event`, or why the event is not possible now (and what is)."""
    row = WORKER_TABLE[state]
    if event in row:
        return row[event]
    possible = [verb for verb in VERBS if verb in row]
    now = f"possible now: {', '.join(possible)}" if possible else "nothing is possible any more"
    return Problem(
        BAD_REQUEST,
        f"{event} is not possible while the worker is {state.value}; {now}",
        {"state": state.value, "possible": possible},
    )


# --- swap --------------------------------------------------------------------------------------------------


class Phase(str, Enum):
    """Where a swap stands."""

    PENDING = "Pending"
    PREPARING = "Preparing"  # the candidate is made ready; clients notice nothing
    PROGRESSING = "Progressing"  # clients are being held or switched
    PAUSED = "Paused"  # it goes no further by itself; what serves goes on
    SOAKING = "Soaking"  # clients are served by the new revision; the old one is kept for an instant return
    ROLLING_BACK = "RollingBack"
    SUCCEEDED = "Succeeded"
    CANCELED = "Canceled"
    FAILED = "Failed"


_P = Phase

SWAP_TABLE: Final[Mapping[Phase, frozenset[Phase]]] = {
    _P.PENDING: frozenset({_P.PREPARING, _P.ROLLING_BACK}),
    _P.PREPARING: frozenset({_P.PROGRESSING, _P.PAUSED, _P.ROLLING_BACK}),
    _P.PROGRESSING: frozenset({_P.SOAKING, _P.PAUSED, _P.ROLLING_BACK, _P.SUCCEEDED}),  # the last: a rehearsal
    _P.PAUSED: frozenset({_P.PREPARING, _P.PROGRESSING, _P.ROLLING_BACK}),
    _P.SOAKING: frozenset({_P.SUCCEEDED, _P.ROLLING_BACK}),
    _P.ROLLING_BACK: frozenset({_P.CANCELED, _P.FAILED}),
    _P.SUCCEEDED: frozenset(),
    _P.CANCELED: frozenset(),
    _P.FAILED: frozenset(),
}
TERMINAL: Final = frozenset(phase for phase, following in SWAP_TABLE.items() if not following)
FORWARD: Final = frozenset({_P.PENDING, _P.PREPARING, _P.PROGRESSING, _P.PAUSED})  # on the way to the new revision
