"""How one front gives its listeners and connections to another: every decision, in one table.

A *front* is one party. In an epoch it is the **source** (it gives) or the **target** (it takes); over several
epochs it may be each in turn, so one machine serves both roles. The promise the table keeps: at no instant do two
living fronts read from the same connection, and something living always holds what has not been closed on purpose.

    source  OWNER --hand_over--> OFFERING --all batches held--> COMMITTED --started--> VACANT (gave)
    target  VACANT --receive--> ARMED --commit--> OWNER

Before COMMIT the source resumes freely: the target has touched nothing. After it, the source resumes only on proof
that the target will never read: its death (`target_dead`, from the daemon), or its own ABORT of that very epoch.
The target reads only after COMMIT, or on proof that the source is dead. STARTED and ADOPTED leave *before* the
first byte is read, so that a source that never hears them knows that nothing was consumed.

`step` is pure and total: an event that the table does not know, or one of another epoch, changes nothing. This
module knows no sockets, no clock and no descriptors; `swapd.front` carries the effects out, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final


class Phase(str, Enum):
    VACANT = "vacant"  # owns nothing (yet, or no longer)
    ARMED = "armed"  # a target: holds what is offered, touches nothing
    OWNER = "owner"  # reads and accepts
    OFFERING = "offering"  # a source: quiesced, the target is taking hold
    COMMITTED = "committed"  # a source: quiesced, the target may have started


class Kind(str, Enum):
    # the daemon's orders and findings
    ADOPT = "adopt"  # become the owner: no living source exists
    RECEIVE = "receive"  # become the target of an epoch
    HAND_OVER = "hand_over"  # become the source of an epoch
    SOURCE_DEAD = "source_dead"
    TARGET_DEAD = "target_dead"
    DAEMON_GONE = "daemon_gone"  # the connection that ordered the hand-over broke
    # what happens here
    SEALED = "sealed"  # every batch of the offer has been sent; `count` says how many
    DEADLINE = "deadline"
    PEER_GONE = "peer_gone"  # end of file on the peer's socket: no proof of anything
    # the other front's messages
    OFFER = "offer"
    HELD = "held"
    COMMIT = "commit"
    STARTED = "started"
    ABORT = "abort"
    STRAGGLER = "straggler"


class Effect(str, Enum):
    QUIESCE = "quiesce"  # stop accepting, stop parsing, offer what can move
    HOLD = "hold"  # keep the offered descriptors, unread
    SEND_HELD = "send_held"
    SEND_COMMIT = "send_commit"
    SEND_STARTED = "send_started"
    SEND_ABORT = "send_abort"
    START = "start"  # read and accept, everything that is held
    RESUME = "resume"  # read and accept again, everything that was quiesced
    DROP = "drop"  # close the held copies (close only: the source still has its own)
    CLOSE_COPIES = "close_copies"  # the target has them: close ours
    SEND_ADOPTED = "send_adopted"
    SEND_REFUSED = "send_refused"
    TAKE = "take"  # read the straggler
    KEEP = "keep"  # keep the straggler unread: it follows to our successor, or is taken when we start


@dataclass(frozen=True, slots=True)
class Event:
    kind: Kind
    epoch: int
    count: int = 0


@dataclass(frozen=True, slots=True)
class State:
    """`epoch` is the newest epoch seen, `owned` the last one owned (0: none), `gave` whether a successor exists.

    `offered` counts the batches of the offer once all are sent (None before), `held` those acknowledged.
    """

    phase: Phase = Phase.VACANT
    epoch: int = 0
    owned: int = 0
    gave: bool = False
    offered: int | None = None
    held: int = 0


Row = tuple[Phase, tuple[Effect, ...]]

_P, _K, _E = Phase, Kind, Effect

# Events that open an epoch: theirs must be newer than any seen. Those in FREE carry their own proof of ownership
# (one descriptor, given once), so any epoch will do. All others must be of the very epoch in progress.
OPENING: Final = frozenset({Kind.ADOPT, Kind.RECEIVE, Kind.HAND_OVER})
FREE: Final = frozenset({Kind.STRAGGLER})

TABLE: Final[Mapping[tuple[Phase, Kind], Row]] = {
    (_P.VACANT, _K.ADOPT): (_P.OWNER, (_E.START,)),
    (_P.VACANT, _K.RECEIVE): (_P.ARMED, ()),
    # We let go of this epoch and shall never start it; the source may not know yet.
    (_P.VACANT, _K.OFFER): (_P.VACANT, (_E.SEND_ABORT,)),
    (_P.VACANT, _K.COMMIT): (_P.VACANT, (_E.SEND_ABORT,)),
    (_P.VACANT, _K.STRAGGLER): (_P.VACANT, (_E.SEND_ADOPTED, _E.KEEP)),  # refused by `step` if nobody follows us
    #
    (_P.ARMED, _K.OFFER): (_P.ARMED, (_E.HOLD, _E.SEND_HELD)),
    (_P.ARMED, _K.COMMIT): (_P.OWNER, (_E.SEND_STARTED, _E.START)),
    (_P.ARMED, _K.SOURCE_DEAD): (_P.OWNER, (_E.START,)),
    (_P.ARMED, _K.ADOPT): (_P.OWNER, (_E.START,)),
    (_P.ARMED, _K.ABORT): (_P.VACANT, (_E.DROP,)),
    (_P.ARMED, _K.DEADLINE): (_P.VACANT, (_E.SEND_ABORT, _E.DROP)),
    (_P.ARMED, _K.RECEIVE): (_P.ARMED, (_E.SEND_ABORT, _E.DROP)),
    (_P.ARMED, _K.STRAGGLER): (_P.ARMED, (_E.SEND_ADOPTED, _E.KEEP)),
    #
    (_P.OWNER, _K.ADOPT): (_P.OWNER, (_E.START,)),
    (_P.OWNER, _K.HAND_OVER): (_P.OFFERING, (_E.QUIESCE,)),
    (_P.OWNER, _K.STRAGGLER): (_P.OWNER, (_E.SEND_ADOPTED, _E.TAKE)),
    #
    (_P.OFFERING, _K.ABORT): (_P.OWNER, (_E.RESUME,)),
    (_P.OFFERING, _K.PEER_GONE): (_P.OWNER, (_E.RESUME,)),
    (_P.OFFERING, _K.TARGET_DEAD): (_P.OWNER, (_E.RESUME,)),
    (_P.OFFERING, _K.DEADLINE): (_P.OWNER, (_E.SEND_ABORT, _E.RESUME)),
    (_P.OFFERING, _K.DAEMON_GONE): (_P.OWNER, (_E.SEND_ABORT, _E.RESUME)),
    (_P.OFFERING, _K.STRAGGLER): (_P.OFFERING, (_E.SEND_ADOPTED, _E.KEEP)),
    #
    (_P.COMMITTED, _K.STARTED): (_P.VACANT, (_E.CLOSE_COPIES,)),
    (_P.COMMITTED, _K.ABORT): (_P.OWNER, (_E.RESUME,)),
    (_P.COMMITTED, _K.TARGET_DEAD): (_P.OWNER, (_E.RESUME,)),
    (_P.COMMITTED, _K.STRAGGLER): (_P.COMMITTED, (_E.SEND_ADOPTED, _E.KEEP)),
}


def step(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """The next state, and what to do, in order. An event that is illegal here or of another epoch changes nothing."""
    if event.kind in OPENING:
        if event.epoch <= state.epoch:
            return state, ()
    elif event.kind not in FREE and event.epoch != state.epoch:
        return state, ()
    if state.phase is Phase.OFFERING and event.kind in (Kind.HELD, Kind.SEALED):
        return _count(state, event)
    row = TABLE.get((state.phase, event.kind))
    if row is None:
        return state, ()
    phase, effects = row
    if event.kind is Kind.STRAGGLER:
        if state.phase is Phase.VACANT and not state.gave:
            return state, (Effect.SEND_REFUSED,)
        return state, effects
    return _enter(state, event, phase), effects


def _count(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """Commit once every batch has been sent and acknowledged."""
    sealed = event.kind is Kind.SEALED
    state = replace(state, offered=event.count) if sealed else replace(state, held=state.held + 1)
    if state.offered is None or state.held < state.offered:
        return state, ()
    return replace(state, phase=Phase.COMMITTED), (Effect.SEND_COMMIT,)


def _enter(state: State, event: Event, phase: Phase) -> State:
    if phase is Phase.OWNER and state.phase in (Phase.OFFERING, Phase.COMMITTED):
        # Back to where it was; the epoch stays, so that the next attempt must be newer.
        return replace(state, phase=phase, offered=None, held=0)
    if phase is Phase.OWNER:
        return State(phase, event.epoch, owned=event.epoch)
    gave = state.gave or state.phase is Phase.COMMITTED
    return State(phase, event.epoch, owned=state.owned, gave=gave)
