"""What can happen (events), and what is to be done about it (effects).

Every event carries `at`, the wall time in seconds at which the loop took it: core has no clock of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from swapd.core.caps import cap_of
from swapd.core.contract import UNKNOWN, Interface
from swapd.core.delivery import Delivery, Finding, Split
from swapd.core.errors import Problem
from swapd.core.model import (
    DeviceKind,
    DeviceReading,
    Footprint,
    Kind,
    Op,
    Revision,
    ServiceSettings,
    Slot,
    State,
    Strategy,
    Swap,
)
from swapd.core.outage import ExpectedTimes
from swapd.core.states import WorkerState


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured for a decision, just before it."""

    footprint: Footprint
    readings: tuple[DeviceReading, ...]  # of the devices that the service may use
    expected: ExpectedTimes
    can_stage: bool = False
    parked_residue_bytes: int | None = None  # what the model that serves kept when it was last parked
    kind: Kind = Kind.DIRECT  # what a worker of the model is
    gpus: int = 1  # devices that one worker spans
    reads: bool = False  # weight files, at its load
    may_park: bool = True  # the old model, where it can: the host's memory has room for what it keeps
    host_note: str = ""  # what is not staged or parked for want of the host's memory

    def slot(self, devices: tuple[str, ...], need_bytes: int | None) -> Slot:
        """Where its worker stands, once that is decided."""
        stands_on = [r for r in self.readings if r.name in devices]
        return Slot(
            devices[0],
            need_bytes,
            self.can_stage,
            self.kind,
            any(r.kind is DeviceKind.NVML for r in stands_on),
            devices[1:],
            self.reads,
            self.footprint.source,
            cap_of(self.footprint, stands_on),
        )


# --- commands ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServiceAdded:
    """A service of the configuration, at launch: `revision` is what shall serve."""

    at: float
    name: str
    settings: ServiceSettings
    config_model: str
    revision: Revision
    previous: Revision | None = None
    last_revision: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class SettingsChanged:
    at: float
    service: str
    settings: ServiceSettings
    config_model: str


@dataclass(frozen=True, slots=True)
class ServiceRemoved:
    """The configuration has no such service any more: it is drained and stopped, then dropped from the state."""

    at: float
    service: str


@dataclass(frozen=True, slots=True)
class SwapRequested:
    """`candidate.number` is 0: the step gives it its number. `again` allows a swap to equal content."""

    at: float
    service: str
    candidate: Revision
    measurement: Measurement
    strategy: Strategy | None
    max_outage_s: float | None
    actor: str
    reason: str = ""
    again: bool = False
    way_back: bool = True  # the stable revision's files are still those that it was loaded from
    offers: Interface = UNKNOWN  # what is declared of the candidate
    incumbent: Interface = UNKNOWN  # and of what serves
    allow_name_mismatch: bool = False
    delivery: Delivery | None = None
    allow_breaking: bool = False
    goes_back: bool = False  # to what has served before: it is not judged by what came after it


@dataclass(frozen=True, slots=True)
class ReturnRequested:
    """Roll back a swap that is still soaking, or cancel one that is under way."""

    at: float
    service: str
    actor: str
    reason: str = ""
    only_soaking: bool = False


@dataclass(frozen=True, slots=True)
class ShutdownRequested:
    at: float


@dataclass(frozen=True, slots=True)
class Resumed:
    """An operator has a paused swap, or a paused service, go on."""

    at: float
    service: str
    actor: str


@dataclass(frozen=True, slots=True)
class PauseRequested:
    """The swap shall go no further by itself."""

    at: float
    service: str
    actor: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class PromoteRequested:
    """On to the next stage at once, whatever was measured; `full`: to all clients, and to the end of a soak."""

    at: float
    service: str
    actor: str
    full: bool = False
    reason: str = ""


# --- what a daemon finds at its start -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Observed:
    """What is seen of one worker that an earlier daemon has started. `state` None: its process tree is gone.

    Times are CLOCK_MONOTONIC's, in seconds. `service` to `slot` are what it was started as, for a journal that does not
    know it.
    """

    worker: str
    state: WorkerState | None = None
    owner: bool = False  # it has the service's listeners, and reads its clients
    epoch: int = 0  # of the last transfer that its front took part in
    table_epoch: int = 0  # a gate's
    points_to: str | None = None  # a gate's
    split: Split | None = None  # a gate's
    listeners: tuple[str, ...] | None = None  # by their addresses; None: it does not say
    hooks: frozenset[str] = frozenset()
    quiesced_at: float | None = None  # when it last let go of the clients
    started_at: float | None = None  # when it last became the owner
    pointed_at: float | None = None  # when its table began
    problem: Problem | None = None  # how it ended
    log_tail: tuple[str, ...] = ()
    service: str = ""
    kind: Kind = Kind.DIRECT
    revision: Revision | None = None
    slot: Slot | None = None
    made_of: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A service of the configuration that the journal knows. `fresh` is what its stable revision would be
    now, where none of its models is up; None: one is."""

    name: str
    settings: ServiceSettings
    config_model: str
    fresh: Revision | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """The first event of a daemon: the state is the journal's, and this is what the host looks like."""

    at: float
    kept: tuple[Kept, ...]
    added: tuple[ServiceAdded, ...]
    observed: tuple[Observed, ...]
    crashed: bool = True  # the last daemon has not ended as it was meant to


@dataclass(frozen=True, slots=True)
class JournalFound:
    """A journal that could not be read at the start: the numbers that it knows to have been given."""

    at: float
    next_worker: int
    next_swap: int
    last_revisions: tuple[tuple[str, int], ...]  # of each service


# --- what came of effects, and what happened by itself -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    at: float
    service: str
    revision: int
    result: Measurement | Problem


@dataclass(frozen=True, slots=True)
class OpDone:
    at: float
    op: int
    result: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OpFailed:
    at: float
    op: int
    problem: Problem
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerExited:
    """The whole process tree of a worker is gone."""

    at: float
    worker: str
    problem: Problem
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WorkerHung:
    """A worker that answers clients lives, and has given no sign of it for as long as its model may."""

    at: float
    worker: str
    problem: Problem
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContentChanged:
    """Right before a worker is started: its model's files are no longer those of its revision."""

    at: float
    worker: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class SuccessorNeeded:
    at: float
    worker: str


@dataclass(frozen=True, slots=True)
class PeakSeen:
    at: float
    service: str
    device: str
    used_bytes: int


@dataclass(frozen=True, slots=True)
class Judged:
    """What has been measured of a swap's candidate was judged. `stage` None: in its soak."""

    at: float
    service: str
    swap: int
    stage: int | None
    finding: Finding


@dataclass(frozen=True, slots=True)
class TimerFired:
    at: float
    service: str


Event = (
    ServiceAdded
    | SettingsChanged
    | ServiceRemoved
    | SwapRequested
    | ReturnRequested
    | ShutdownRequested
    | Resumed
    | PauseRequested
    | PromoteRequested
    | Recovered
    | JournalFound
    | Measured
    | OpDone
    | OpFailed
    | WorkerExited
    | WorkerHung
    | ContentChanged
    | SuccessorNeeded
    | PeakSeen
    | Judged
    | TimerFired
)


# --- effects -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Run:
    """Carry out an operation; answer with OpDone or OpFailed. `slot` says where (SPAWN, CONFIRM)."""

    op: Op
    slot: Slot | None = None


@dataclass(frozen=True, slots=True)
class Measure:
    """Measure what a first start of this revision needs; answer with Measured."""

    service: str
    revision: int


@dataclass(frozen=True, slots=True)
class WakeAt:
    """Send TimerFired for this service at this wall time (replaces an earlier one)."""

    service: str
    at: float


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell subscribers. Published after the journal has it."""

    event: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Amend:
    """Requests were cut after the swap that left this revision had ended: add them to its record."""

    service: str
    revision: int
    cut_requests: int


@dataclass(frozen=True, slots=True)
class Exit:
    """Everything is down: the daemon may end."""


Effect = Run | Measure | WakeAt | Publish | Amend | Exit


@dataclass(frozen=True, slots=True)
class Outcome:
    """The new state, what to do, and the answer to a command."""

    state: State
    effects: tuple[Effect, ...] = ()
    finished: tuple[Swap, ...] = ()  # swaps that ended in this step, for the history
    reply: Swap | Problem | None = None
