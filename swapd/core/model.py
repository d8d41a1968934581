"""The nouns shared by every decision: devices, footprints, reservations, revisions.

Frozen values. Sizes are in bytes, times in seconds; `None` means *unknown* and is never treated as zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from swapd.core.delivery import Delivery, Finding, Pause, Split
from swapd.core.errors import Problem
from swapd.core.states import Phase, WorkerState


class DeviceKind(str, Enum):
    NVML = "nvml"  # an NVIDIA GPU or MIG slice
    HOST = "host"  # the host's own memory, or a budget within it


class DeviceState(str, Enum):
    """How a device is, by a code that stays. In all but the first four its memory is unknown."""

    OK = "ok"
    XID = "xid"  # the GPU has reported an error of its own
    MEMORY_ERRORS = "memory-errors"  # uncorrectable ones (ECC)
    UNMEASURED = "unmeasured"  # gone by what the configuration says: its memory cannot be measured
    NO_DRIVER = "no-driver"
    DRIVER_MISMATCH = "driver-mismatch"
    LOST = "lost"
    RESET_REQUIRED = "reset-required"
    NOT_PERMITTED = "not-permitted"
    NOT_FOUND = "not-found"
    DIVIDED = "divided"  # by MIG: its slices are the devices
    UNSUPPORTED = "unsupported"  # NVML does not tell its memory
    NO_ANSWER = "no-answer"  # NVML, or the kernel, hangs
    FAILED = "failed"  # anything else


@dataclass(frozen=True, slots=True)
class DeviceReading:
    """One measurement of one device.

    `used_by` maps our workers' ids to the device memory that their process trees hold (None: not known for that
    worker). `foreign` lists processes on the device that are not ours: (pid, bytes or None, name).
    """

    name: str
    kind: DeviceKind
    headroom_bytes: int
    total_bytes: int | None
    free_bytes: int | None
    used_by: tuple[tuple[str, int | None], ...] = ()
    foreign: tuple[tuple[int, int | None, str], ...] = ()
    uuid: str = ""
    detail: str = ""  # e.g. "NVIDIA H200, driver 575.57" or why the memory is unknown
    index: int | None = None  # of a whole GPU, in the order of the PCI bus: as NVML counts
    state: DeviceState = DeviceState.OK
    trouble: str = ""  # what is the matter, and what to do about it; "": nothing
    holders_known: bool = True  # whether it can be told who holds its memory: not inside some containers
    product: str = ""  # of a GPU: NVIDIA H200
    names_all: bool = False  # a process of ours that is not among the known ones holds nothing here

    @property
    def known(self) -> bool:
        return self.total_bytes is not None and self.free_bytes is not None

    @property
    def type(self) -> str:
        """What devices have in common on which a model takes the same: `nvml NVIDIA H200`, `host`."""
        return f"{self.kind.value} {self.product}".rstrip()

    @property
    def gpu_bytes(self) -> int | None:
        """All its memory; None: not known, or it is no GPU."""
        return self.total_bytes if self.kind is DeviceKind.NVML else None


class FootprintSource(str, Enum):
    DECLARED = "declared"  # device_memory in the config
    LEARNED = "learned"  # the peak of an earlier run of the same model and settings
    ESTIMATED = "estimated"  # weights' headers plus overhead
    UNKNOWN = "unknown"  # nothing to go by: admitted only where it may have the device to itself


@dataclass(frozen=True, slots=True)
class Forecast:
    """What was planned for a worker before it was loaded, and the most that it was seen to take since."""

    planned_bytes: int
    source: FootprintSource
    seen_bytes: int


@dataclass(frozen=True, slots=True)
class Footprint:
    """What one worker of a model needs on its device, and how that is known."""

    need_bytes: int | None
    source: FootprintSource
    detail: str = ""  # e.g. "weights 14.96 GiB + overhead 0.50 GiB"
    last: Forecast | None = None  # how right the last one was
    beyond_declared: bool = False  # it was declared, and seen to take more than that


RETURN: Final = "return of "  # the name of a reservation that no worker holds: `Draft.keep_for_return`
TO_COME: Final = "load of "  # and of one that is not among the others: `core.to_come`


@dataclass(frozen=True, slots=True)
class Reservation:
    """Device memory promised to a worker from before its spawn until its process tree is gone.

    `settled` is set once the worker has proved itself: what it has not taken by then it is not about to take. A worker
    that stands on several devices is promised as much on each.
    """

    worker_id: str
    service: str
    device: str
    bytes: int | None  # on each of its devices
    settled: bool = False
    others: tuple[str, ...] = ()  # of a worker that spans several devices, those beside the first
    exclusive: bool = False  # as `Slot.exclusive`

    @property
    def devices(self) -> tuple[str, ...]:
        return (self.device, *self.others)

    @property
    def for_return(self) -> bool:
        """No worker holds it: it is kept for its service's swap, mostly for the way back."""
        return self.worker_id.startswith((RETURN, TO_COME))


@dataclass(frozen=True, slots=True)
class Revision:
    """One immutable way to serve: which model, with which settings, over which content."""

    number: int  # counts up per service, from 1
    service: str
    model: str
    settings_digest: str  # sha256 hex of the model's settings, 16 digits
    fingerprint: str  # sha256 hex over weights and code, 16 digits

    def same_content(self, other: Revision) -> bool:
        return (self.model, self.settings_digest, self.fingerprint) == (
            other.model,
            other.settings_digest,
            other.fingerprint,
        )


class Strategy(str, Enum):
    AUTO = "auto"  # a wish only: dual where memory allows, else in-place
    DUAL = "dual"  # the new model loads beside the old one
    IN_PLACE = "in-place"  # the old one makes room first
    START = "start"  # there is no old one: a first start, or a restart after a crash


class Health(str, Enum):
    HEALTHY = "Healthy"  # the wanted revision serves
    DEGRADED = "Degraded"  # clients wait, or another revision than the wanted one serves, or none does for long
    UNAVAILABLE = "Unavailable"  # nothing serves, and the last attempt to start failed


class Kind(str, Enum):
    """What stands behind a worker id: a model with a front in it, a model alone, or a front alone."""

    DIRECT = "asgi"
    ENGINE = "engine"  # a server that swapd has not written, and its runner: a gate stands before it
    GATE = "gate"


class OpKind(str, Enum):
    """Something the executor does on the host for a worker. Each is idempotent by observation."""

    SPAWN = "spawn"
    STAGE = "stage"
    CONFIRM = "confirm"  # wait until the device's memory is measured to be free
    LOAD = "load"
    WARM = "warm"  # ready path, then the warm-up requests
    VERIFY = "verify"  # probes
    WAKE = "wake"
    ADOPT = "adopt"  # listeners given by the daemon: no live front holds them
    HAND_OVER = "hand over"
    POINT = "point"  # a gate's table is replaced: it relays to the target; None: it holds, or turns away
    SOURCE_DEAD = "source dead"
    TARGET_DEAD = "target dead"
    SUCCESSOR = "successor"
    DRAIN = "drain"
    PARK = "park"
    STOP = "stop"  # ask, then end the whole process tree


@dataclass(frozen=True, slots=True)
class Op:
    """One operation in flight. Its result comes back as an event with the same `id`; a late one is void."""

    id: int
    kind: OpKind
    service: str
    worker: str
    target: str | None = None  # HAND_OVER, SUCCESSOR: who receives. POINT: who answers
    epoch: int = 0
    deadline_s: float = 0.0  # DRAIN: how long requests in flight may still take
    force: bool = False  # STOP: without asking. DRAIN: stop accepting first (the front is an owner)
    step: str | None = None  # the step of the service's swap that this belongs to
    turn_away: bool = False  # POINT to nobody: clients get 503 at once instead of waiting
    split: Split | None = None  # POINT: who answers beside the target


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a revision stands and what it needs there. A journal of before knows one device only."""

    device: str
    need_bytes: int | None  # on each of its devices
    can_stage: bool = False  # declared: import and `stage` hook need no device memory
    kind: Kind = Kind.DIRECT  # what its worker is
    exclusive: bool = False  # on this device one load or release at a time: their measurements would mix
    others: tuple[str, ...] = ()  # of a model that spans several devices (`gpus`), those beside the first
    reads: bool = False  # its load reads weight files: they are brought into the page cache before clients wait for it
    source: FootprintSource = FootprintSource.UNKNOWN  # of `need_bytes`
    cap_bytes: int | None = None  # what it may take of each at the most, where that can be enforced; None: no limit

    @property
    def devices(self) -> tuple[str, ...]:
        """In the order in which its worker sees them."""
        return (self.device, *self.others)

    def promise(self, worker_id: str, service: str) -> Reservation:
        """What a worker that shall stand here is promised."""
        return Reservation(
            worker_id, service, self.device, self.need_bytes, others=self.others, exclusive=self.exclusive
        )


@dataclass(frozen=True, slots=True)
class Fallback:
    """The in-place swap that a dual one may still become: judged, with its outage, when the swap was decided."""

    slot: Slot
    available_bytes: int  # to the candidate, by the forecast: the old model has let go
    parks: bool
    why: str


@dataclass(frozen=True, slots=True)
class Worker:
    id: str
    service: str
    kind: Kind
    revision: int  # 0 for a gate
    state: WorkerState
    op: Op | None = None
    connected: bool = False  # its process answers on its control channel
    not_before: float = 0.0  # wall time; a restart waits here with backoff
    confirmed: bool = False  # its memory was measured to be free
    warmed: bool = False
    verified: bool = False  # every probe passed: clients may reach it
    drained: bool = False
    hooks: frozenset[str] = frozenset()
    ready_at: float | None = None
    points_to: str | None = None  # a gate's: the worker that its table names; None: it holds
    made_of: str = ""  # a gate's: `ServiceSettings.gate` when it was started
    turns_away: bool = False  # a gate's, where it points to nobody: clients are not held
    split: Split | None = None  # a gate's: who its table names beside the one that it points to
    outlived_kill: bool = False  # the kernel keeps something of it, nobody knows for how long

    @property
    def ending(self) -> bool:
        return self.state in (WorkerState.STOPPING, WorkerState.GONE)

    @property
    def can_park(self) -> bool:
        """One that could not be woken would be parked for nothing."""
        return {"park", "wake"} <= self.hooks

    @property
    def can_serve(self) -> bool:
        """It may own the service's listeners: a gate that is up, or a model that has proved itself."""
        if self.state not in (WorkerState.LOADED, WorkerState.SERVING, WorkerState.QUIESCED):
            return False
        return self.kind is Kind.GATE or self.verified


RESTORE: Final = "restore: "  # before the names of the steps back to the old revision


@dataclass(frozen=True, slots=True)
class StepRecord:
    name: str
    status: str  # running | done | failed | canceled
    started_at: float
    finished_at: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Golden:
    """How a candidate has answered the service's golden requests; how long those took that it answered rightly."""

    requests: int  # that were to be asked
    right: int = 0
    wrong: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    slowest_ms: float | None = None
    differences: tuple[str, ...] = ()  # the first


@dataclass(frozen=True, slots=True)
class Swap:
    id: int
    service: str
    source: Revision | None
    target: Revision
    strategy: Strategy
    why: str
    phase: Phase
    actor: str
    asked_reason: str
    created_at: float
    reason: str = ""  # what the phase means now, for people
    error: Problem | None = None
    log_tail: tuple[str, ...] = ()
    end_phase: Phase | None = None  # where RollingBack leads: Canceled or Failed
    parks: bool = False  # in-place: parking the old revision makes room enough, as far as is known
    may_stop: bool = True  # in-place: the old revision may be stopped for it, as it can be loaded again, or by wish
    fallback: Fallback | None = None  # dual: what is tried once if the candidate does not find the memory
    fell_back: Problem | None = None  # in-place: why it is no dual swap any more
    delivery: Delivery | None = None  # how the candidate proves itself on clients' requests; None: not
    stage: int = 0  # of its stages; past the last: clients may be switched
    stage_at: float | None = None  # since when the stage counts; None: its table is not in force yet
    round: int = 0  # how often a stage was begun anew
    finding: Finding | None = None  # the newest verdict on the stage, or on the soak
    paused: Pause | None = None
    finished_at: float | None = None
    soak_until: float | None = None
    kept: str | None = None  # what the soak has for the way back: resident, parked, or stopped (nothing)
    held_at_mono_s: float | None = None
    outage_ms: float | None = None
    cutover_ms: float | None = None
    return_outage_ms: float | None = None  # the same two of the way back to the old revision
    return_cutover_ms: float | None = None
    cut_requests: int = 0
    refused_requests: int = 0  # answered 503 while they were held: the wait was too long, or too many waited
    allow_name_mismatch: bool = False
    allow_breaking: bool = False
    goes_back: bool = False  # to what has served before: neither its contract nor golden requests stand in its way
    differences: tuple[str, ...] = ()  # by which clients may break, as far as known: allowed, or what it failed by
    golden: Golden | None = None
    steps: tuple[StepRecord, ...] = ()
    peak_memory_bytes: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """What of a service's configuration decisions need."""

    strategy: Strategy = Strategy.AUTO
    max_outage_s: float = 120.0
    drain_timeout_s: float = 60.0
    soak_s: float = 600.0
    backoff_max_s: float = 30.0
    crash_loop_failures: int = 5
    gated: bool = False  # a gate answers the clients, whatever front the model's worker has itself
    gate: str = ""  # digest of what a gate is made of: settings and version
    listen: tuple[str, ...] = ()  # the addresses that clients come to


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    settings: ServiceSettings
    config_model: str
    revisions: tuple[Revision, ...] = ()
    stable: int = 0  # the revision that clients are meant to be served by; 0: none has yet
    previous: int = 0  # what a rollback returns to
    last_revision: int = 0  # the highest number given so far: none is given twice
    owner: str | None = None  # the worker whose front holds the listeners
    bound: tuple[str, ...] = ()  # the addresses that it has been given
    epoch: int = 0  # of the last hand-over or table: one count for both
    slots: tuple[tuple[int, Slot], ...] = ()
    swap: Swap | None = None
    failures: int = 0
    problem: Problem | None = None
    measuring: bool = False
    retry_at: float | None = None
    recoveries: int = 0  # daemons in a row that began in the middle of something here, and ended in it
    paused: Problem | None = None  # nothing is begun for it until an operator says so; what serves goes on
    leaving: bool = False  # it is in the configuration no more: shut down, then forgotten

    def revision(self, number: int) -> Revision | None:
        return next((r for r in self.revisions if r.number == number), None)

    def slot(self, number: int) -> Slot | None:
        return next((slot for n, slot in self.slots if n == number), None)

    def gated(self, kind: Kind) -> bool:
        """Whether a worker of this kind answers the clients through a gate: it splits and measures, while a swap's
        candidate is to prove itself."""
        proves = self.swap is not None and self.swap.delivery is not None
        return self.settings.gated or kind is Kind.ENGINE or proves


@dataclass(frozen=True, slots=True)
class State:
    services: tuple[Service, ...] = ()
    workers: tuple[Worker, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    next_op: int = 1
    next_worker: int = 1
    next_swap: int = 1
    stopping: bool = False

    def service(self, name: str) -> Service | None:
        return next((s for s in self.services if s.name == name), None)

    def worker(self, worker_id: str | None) -> Worker | None:
        return next((w for w in self.workers if w.id == worker_id), None)

    def workers_of(self, service: str) -> tuple[Worker, ...]:
        return tuple(w for w in self.workers if w.service == service)

    def server_of(self, name: str) -> Worker | None:
        """Who answers the clients: the owner's own model, or the worker that the owner, a gate, points to."""
        service = self.service(name)
        owner = self.worker(service.owner) if service is not None else None
        return self.worker(owner.points_to) if owner is not None and owner.kind is Kind.GATE else owner
