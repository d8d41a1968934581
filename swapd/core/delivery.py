"""How a candidate proves itself on clients' requests before it answers all of them: stages, and what follows a verdict.

Frozen with the swap that goes by it. A stage begins when a gate's table says so, and what lets it end is one of three:
a verdict on what was measured, the time, or a person. What follows is then the same for all: on, a pause, or back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from swapd.core.evidence import Outcome
from swapd.core.rules import Rule

LAST_WORD_S: Final = 3.0  # for the verdict of a stage whose time is over


class StageKind(str, Enum):
    SHADOW = "shadow"  # copies of requests; clients get no answer of the candidate's
    CANARY = "canary"  # a share of the clients' requests
    BASELINE = "baseline"  # nothing yet: the stable is measured, for the soak to be compared with


class Ends(str, Enum):
    """What lets a stage end."""

    ANALYSIS = "analysis"  # a verdict
    TIME = "time"  # its time, unless a verdict says fail
    MANUAL = "manual"  # somebody's `promote`


class Then(str, Enum):
    """What follows a verdict."""

    PROMOTE = "promote"
    PAUSE = "pause"
    ABORT = "abort"


@dataclass(frozen=True, slots=True)
class Finding:
    """The newest verdict on a stage, or on the soak."""

    outcome: Outcome
    text: str  # for people, with the figures
    at: float


@dataclass(frozen=True, slots=True)
class Shadow:
    """Which requests are copied, and how the answers are compared: as [strategies.NAME.shadow] says."""

    share: float = 20.0  # percent of the requests that may be copied
    time_s: float = 120.0  # at least
    methods: tuple[str, ...] = ("GET", "HEAD", "POST")
    paths: tuple[str, ...] = ()  # they begin with one of these; empty: all
    max_body_bytes: int = 256 * 1024
    concurrency: int = 2
    noise: float = 50.0  # percent of the copies that the stable is asked again: how much it differs from itself
    keep: int = 50  # disagreements kept to be read
    redact: tuple[str, ...] = ()  # JSON pointers that are not kept
    compare: str = "json"  # exact | json | number | label | text
    ignore: tuple[str, ...] = ()  # JSON pointers that may differ
    pointer: str | None = None  # what is compared of a JSON answer; None: all of it
    rtol: float = 1e-3
    atol: float = 1e-6
    similar: float = 0.9  # text: the share of it that must be the same


@dataclass(frozen=True, slots=True)
class Stage:
    kind: StageKind
    percent: float  # of the requests: to the candidate (canary), copied to it (shadow)
    at_least_s: float
    at_most_s: float  # then what there is is judged
    ends: Ends = Ends.ANALYSIS

    @property
    def name(self) -> str:
        return self.kind.value if self.kind is StageKind.BASELINE else f"{self.kind.value} {self.percent:g}%"


@dataclass(frozen=True, slots=True)
class Delivery:
    name: str  # of the strategy, as the operator knows it
    stages: tuple[Stage, ...] = ()
    rules: tuple[Rule, ...] = ()
    min_requests: int = 50
    on_pass: Then = Then.PROMOTE
    on_fail: Then = Then.ABORT
    on_inconclusive: Then = Then.PAUSE
    match: tuple[str, str, str] | None = None  # kind (header, cookie), name, value: whoever has it gets the candidate
    session_key: str | None = None  # header:NAME, cookie:NAME or json:/pointer
    shadow: Shadow | None = None
    rehearsal: bool = False  # it ends before the cutover, and no client gets an answer of the candidate's

    @property
    def shares(self) -> bool:
        """It needs the old model and the candidate side by side."""
        return any(stage.kind is not StageKind.BASELINE for stage in self.stages)

    def in_place(self) -> Delivery:
        """What is left of it where the old model makes room: its rules."""
        return replace(self, stages=())

    def stage(self, index: int) -> Stage | None:
        """None: all are over."""
        return self.stages[index] if index < len(self.stages) else None

    def then(self, outcome: Outcome) -> Then:
        return {
            Outcome.PASS: self.on_pass,
            Outcome.FAIL: self.on_fail,
            Outcome.INCONCLUSIVE: self.on_inconclusive,
        }[outcome]


@dataclass(frozen=True, slots=True)
class Split:
    """The second worker of a gate's table. The first gets what this one does not."""

    worker: str
    percent: float = 0.0  # of the requests
    shadow: bool = False  # it gets copies
    sessions: bool = False  # sessions that it has begun stay with it
    round: int = 0  # what was measured in one is not taken into the next

    @property
    def label(self) -> str:
        """As the gate keeps it, and tells a daemon that has just begun."""
        return f"{self.worker} {self.percent:g} {self.shadow:d} {self.sessions:d} {self.round}"

    @staticmethod
    def parse(label: str) -> Split | None:
        """None: it is none."""
        words = label.split(" ")
        try:
            return Split(words[0], float(words[1]), words[2] == "1", words[3] == "1", int(words[4]))
        except (IndexError, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class Pause:
    """Why a swap does not go on by itself."""

    at: float
    why: str
    actor: str = ""  # who asked for it; empty: the swap's own settings


@dataclass(frozen=True, slots=True)
class Turn:
    """What a stage does now: nothing yet (look again at `look_at`), or one of three, and why."""

    then: Then | None = None
    why: str = ""
    look_at: float | None = None


def turn(delivery: Delivery, stage: Stage, since: float, at: float, finding: Finding | None) -> Turn:
    """`since`: when the stage's table began, later by the time that it was paused."""
    outcome = finding.outcome if finding is not None else None
    told = finding.text if finding is not None else ""
    if outcome is Outcome.FAIL:
        return Turn(delivery.then(Outcome.FAIL), told)
    if at < since + stage.at_least_s:
        return Turn(look_at=since + stage.at_least_s)
    if stage.ends is Ends.MANUAL:
        return Turn(Then.PAUSE, f"{stage.name} waits for a `promote`" + (f"; {told}" if told else ""))
    if stage.ends is Ends.TIME or not delivery.rules:
        return Turn(Then.PROMOTE, told or f"its time is over: {stage.at_least_s:g} s")
    if outcome is Outcome.PASS:
        return Turn(delivery.then(Outcome.PASS), told)
    last_s = since + stage.at_most_s + LAST_WORD_S
    if at < last_s:
        return Turn(look_at=last_s)
    return Turn(delivery.then(Outcome.INCONCLUSIVE), told or "nothing was measured")
