"""What a verdict is made of: the windows of a stage, what the shadow has seen, and what each rule says to it.

Duty: to bring what the gate's `stats` tell into one shape, whoever answered: clients' requests or copies of them.
May not know: any rule (`rule_tests`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from swapd.core.window import Histogram, Slice, Window, merged

MIN_REQUESTS: Final = 50  # fewer tell nothing of latencies, however far they are apart


class Outcome(Enum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Shadow:
    """What came of the requests that were copied to the candidate."""

    compared: int = 0
    agreed: int = 0
    failed: int = 0  # the candidate gave no answer, or 5xx
    # The same requests, asked of the stable twice; None where that is not done, and any difference is a fault.
    noise_compared: int | None = 0
    noise_agreed: int = 0
    latency: Histogram = field(default_factory=Histogram)
    first_byte: Histogram = field(default_factory=Histogram)
    noise_latency: Histogram = field(default_factory=Histogram)  # of the stable, asked twice by the same process

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shadow:
        """As a gate's `stats` have it. Raises ValueError where it is none."""
        noise = value.get("noise")
        asked_twice = noise if isinstance(noise, Mapping) else {}
        return cls(
            compared=_count(value.get("compared", 0)),
            agreed=_count(value.get("agreed", 0)),
            failed=_count(value.get("failed", 0)),
            noise_compared=None if noise is None else _count(asked_twice.get("compared", 0)),
            noise_agreed=_count(asked_twice.get("agreed", 0)),
            latency=Histogram.from_json(value.get("latency", {})),
            first_byte=Histogram.from_json(value.get("first_byte", {})),
            noise_latency=Histogram.from_json(asked_twice.get("latency", {})),
        )


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything of one stage so far. `last_look`: its deadline is over, and there will be no more."""

    candidate: Window
    stable: Window
    elapsed_s: float  # since the windows began
    shadow: Shadow | None = None
    before: Window | None = None  # the stable's, before the candidate took part
    values: Mapping[str, float | None] = field(default_factory=dict)  # of queries, by `Rule.text`
    last_look: bool = False
    min_requests: int = MIN_REQUESTS


@dataclass(frozen=True, slots=True)
class Sides:
    """Who is compared with whom."""

    candidate: Window
    reference: Window
    reference_name: str
    copies: bool  # the candidate was asked copies only


def sides(evidence: Evidence) -> Sides:
    """Clients' requests count where the candidate gets any; else copies do. A stable that has too few now (it has been
    replaced) is taken as it was before."""
    reference, name = evidence.stable, "the stable"
    before = evidence.before
    if reference.requests < evidence.min_requests and before is not None and before.requests > reference.requests:
        reference, name = before, "the stable before"
    shadow = evidence.shadow
    if shadow is None or evidence.candidate.requests:
        return Sides(evidence.candidate, reference, name, copies=False)
    copies = Window()
    copies.slices = [Slice(shadow.compared + shadow.failed, shadow.failed, shadow.latency)]
    copies.first_byte = shadow.first_byte
    # Times are compared with what the same process took to ask the stable again, not with the gate's of the clients'
    # requests: of two processes one may wait longer for a processor.
    again = Window()
    again.slices = [Slice(reference.requests, reference.failed, shadow.noise_latency)]
    return Sides(copies, again, name, copies=True)


def tails(ours: Sequence[Slice], theirs: Sequence[Slice], share: float) -> tuple[Sequence[Slice], Sequence[Slice]]:
    """The latest slices of both, at least such a share of each one's requests, and of the same time as far as slices
    can tell: what slows a device down for some seconds must not be in the one and out of the other. Requests are
    divided between the two in the same way as long as a window lasts, so that equal shares are of equal times."""
    mine, others = _ends(ours, share), _ends(theirs, share)
    if not mine or not others:
        return ours, theirs
    pairs = [(one, other) for one in mine for other in others]
    (_, first), (_, second) = min(pairs, key=lambda pair: (abs(pair[0][0] - pair[1][0]), pair[0][0] + pair[1][0]))
    return ours[first:], theirs[second:]


def _ends(slices: Sequence[Slice], share: float) -> list[tuple[float, int]]:
    """(share of the requests, where they start) of each end of at least such a share and at most twice of it; of the
    shortest one that there is, where none is so short."""
    found: list[tuple[float, int]] = []
    total, seen = sum(part.requests for part in slices), 0
    for start in range(len(slices) - 1, -1, -1):
        seen += slices[start].requests
        if total and seen >= share * total and (not found or seen <= 2 * share * total):
            found.append((seen / total, start))
    return found


def in_order(slices: Sequence[Slice], parts: int) -> list[Histogram]:
    """The latencies in so many parts of about as many requests, in order of time. Empty where there are too few."""
    total, seen = sum(part.requests for part in slices), 0
    groups: list[list[Histogram]] = [[] for _ in range(parts)]
    for part in slices:
        groups[seen * parts // total if total else 0].append(part.latency)
        seen += part.requests
    return [merged(group) for group in groups] if all(groups) else []


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """What one rule says. `outcome` is None where it has nothing to judge in this stage; `seen` and `needed` are
    requests (or answers compared), the latter at least."""

    rule: str
    outcome: Outcome | None
    text: str
    seen: int = 0
    needed: int = 0
    figures: Mapping[str, float | int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "rule": self.rule,
            "outcome": self.outcome.value if self.outcome else None,
            "text": self.text,
            "seen": self.seen,
            "needed": self.needed,
            "figures": dict(self.figures),
        }


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"a shadow's counts are numbers from 0, not {value!r:.20}")
    return value
