"""How long clients wait in place: what is expected, from earlier runs and what is open, and what it came to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swapd.core.model import Swap
from swapd.core.sizes import human_seconds


@dataclass(frozen=True, slots=True)
class ExpectedTimes:
    """The parts of an in-place outage, in seconds; None: not known."""

    drain_s: float | None = None  # at most: until what is in flight in the old worker is finished, or cut
    release_s: float | None = None  # the old worker's parking, or end
    load_s: float | None = None
    warm_s: float | None = None  # ready path, warm-up and probes

    @property
    def at_least_s(self) -> float:
        return sum(part for part in (self.drain_s, self.release_s, self.load_s, self.warm_s) if part is not None)

    @property
    def outage_s(self) -> float | None:
        """None while the load time is unknown: it is the part that no other stands in for."""
        return None if self.load_s is None else self.at_least_s


def longest_drain_s(stats: Mapping[str, Any], drain_timeout_s: float) -> float | None:
    """How long the worker's open requests may still take, from its front's figures. Nobody knows of a stream when it
    will end, so until it is cut; of another, that it has had its time again. None: the figures are not known."""
    if stats.get("in_flight") is None:
        return None
    if stats.get("streams") or stats.get("upgraded"):
        return drain_timeout_s
    return min(drain_timeout_s, float(stats.get("oldest_in_flight_s") or 0.0))


def outage_words(expected: ExpectedTimes) -> str:
    """4.1 s / at most 64 s, 60 s of it for open requests / at least 12 s / 8 s, not counting the release (not known)"""
    total = human_seconds(expected.at_least_s)
    if expected.outage_s is None:
        return f"at least {total}"
    words = f"at most {total}, {human_seconds(expected.drain_s)} of it for open requests" if expected.drain_s else total
    return words + not_counted(expected.release_s)


def not_counted(release_s: float | None) -> str:
    """Of an old worker that was never parked or stopped yet, nobody knows how long that takes."""
    return ", not counting the release (not known yet)" if release_s is None else ""


def waits_ms(swap: Swap, result: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """How long the switch itself took, and how long clients waited in all, in milliseconds; None: not known."""
    started_at, quiesced_at = result.get("started_at"), result.get("quiesced_at")
    held_at = swap.held_at_mono_s if swap.held_at_mono_s is not None else quiesced_at
    cutover, outage = (None if s is None or started_at is None else started_at - s for s in (quiesced_at, held_at))
    return _ms(cutover), _ms(outage)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
