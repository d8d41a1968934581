"""How many copies a stable bears that shares its device with the candidate: the share of requests that is copied.

A stable's latency while copies are worked on is compared with that while none is, by medians. Where copies make it
slower by more than a quarter the share is halved; where not it grows again by a tenth of what was set (AIMD: TCP's way,
RFC 5681, of finding what is free without knowing how much there is). Requests without copies are needed for that: where
copies leave none, no copy begins for a while (`quiet`). Pure: time is an argument.
"""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import Final

SLOWER: Final = 1.25  # times: more than that is the copies' fault
ENOUGH: Final = 16  # requests of each kind for a decision
KEPT: Final = 64
KNOWN_FOR_S: Final = 60.0  # then the load may be another
GROWTH: Final = 0.1  # of the share that was set
LEAST: Final = 1 / 64  # of the share that was set: with none at all it would never be known that there is room again


class Throttle:
    __slots__ = ("_alone", "_disturbed", "_fresh", "set_share", "share")

    def __init__(self, set_share: float) -> None:
        self.set_share = set_share
        self.share = set_share  # of all requests
        self._alone: deque[tuple[float, float]] = deque(maxlen=KEPT)  # (when, latency)
        self._disturbed: deque[tuple[float, float]] = deque(maxlen=KEPT)
        self._fresh = 0  # disturbed ones since the last decision

    def observe(self, now: float, latency_s: float, *, disturbed: bool) -> None:
        """One request of the stable's. `disturbed`: a copy was being worked on when it began (not: at any time of its
        own, for which long ones are the likelier)."""
        (self._disturbed if disturbed else self._alone).append((now, latency_s))
        self._fresh += disturbed
        self._forget(now)
        if self._fresh >= ENOUGH and len(self._alone) >= ENOUGH:
            self._decide()

    @property
    def quiet(self) -> bool:
        """No copy should begin: there is nothing yet to compare with."""
        return self._fresh >= ENOUGH and len(self._alone) < ENOUGH

    def _decide(self) -> None:
        slower = median(s for _, s in self._disturbed) > SLOWER * median(s for _, s in self._alone)
        wanted = self.share / 2 if slower else self.share + GROWTH * self.set_share
        self.share = min(self.set_share, max(LEAST * self.set_share, wanted))
        self._disturbed.clear()
        self._fresh = 0

    def _forget(self, now: float) -> None:
        for kind in (self._alone, self._disturbed):
            while kind and kind[0][0] < now - KNOWN_FOR_S:
                kind.popleft()
        self._fresh = min(self._fresh, len(self._disturbed))
