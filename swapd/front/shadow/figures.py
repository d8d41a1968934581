"""What has come of the copies: counts, latencies, and where answers differ."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from swapd.core.agreement import Outcome, above_noise
from swapd.core.json_values import write_pointer
from swapd.core.shadow_samples import Redaction, Samples
from swapd.core.window import Histogram
from swapd.front.shadow.frames import FULL_REPORT

_COUNTS: Final = ("copied", "compared", "agreed", "failed", "incomparable", "consecutive_failed")
_NOISE_COUNTS: Final = ("compared", "agreed", "failed")
_HISTOGRAMS: Final = ("latency", "first_byte", "stable_latency", "stable_first_byte")
MAX_PATHS: Final = 64
SHOWN_PATHS: Final = 16
MAX_PATH: Final = 160  # characters


class Figures:
    """Of one shadow, from its beginning; they go on in another process when one has ended (`restore`). `replays`:
    whether the stable is asked again at all."""

    def __init__(self, keep: int, redaction: Redaction, *, replays: bool = True) -> None:
        self.samples = Samples(keep)
        self._redaction = redaction
        self._counts: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {name: Counter() for name in ("failed", "incomparable", "dropped")}
        self._statuses: Counter[str] = Counter()
        self._score = 0.0  # the sum of all that were compared
        self._histograms = {name: Histogram() for name in _HISTOGRAMS}
        self._replays = replays
        self._noise: Counter[str] = Counter()
        self._noise_latency = Histogram()
        self._paths: dict[str, list[int]] = {}  # [between the two, between the stable's own]

    # --- what happens ------------------------------------------------------------------------------------------

    def copied(self) -> None:
        self._counts["copied"] += 1

    def dropped(self, why: str) -> None:
        self._reasons["dropped"][why] += 1

    def failed(self, kind: str) -> None:
        """The candidate gave no answer, or a 5xx."""
        self._counts["failed"] += 1
        self._counts["consecutive_failed"] += 1
        self._reasons["failed"][kind] += 1

    def answered(self, status: int, took_s: float, first_byte_s: float, stable_s: float, stable_first_s: float) -> None:
        self._statuses[str(status // 100)] += 1
        if status >= 500:
            return
        self._counts["consecutive_failed"] = 0
        for name, seconds in zip(_HISTOGRAMS, (took_s, first_byte_s, stable_s, stable_first_s), strict=True):
            self._histograms[name].add(seconds)

    def judged(self, outcome: Outcome, kind: str = "") -> None:
        """`kind` of what cannot be compared."""
        if outcome.agreed is None:
            self._counts["incomparable"] += 1
            self._reasons["incomparable"][kind] += 1
            return
        self._counts["compared"] += 1
        self._counts["agreed"] += outcome.agreed
        self._score += outcome.score
        self._differ(outcome, 0)

    def replayed(self, outcome: Outcome | None, took_s: float = 0.0) -> None:
        """On the stable once more. None: it gave no answer."""
        if outcome is None:
            self._noise["failed"] += 1
            return
        self._noise_latency.add(took_s)
        if outcome.agreed is not None:
            self._noise["compared"] += 1
            self._noise["agreed"] += outcome.agreed
            self._differ(outcome, 1)

    def _differ(self, outcome: Outcome, column: int) -> None:
        places = {self._redaction.place(each.path) for each in outcome.differences}
        for place in {write_pointer(["*" if part.isdecimal() else part for part in place]) for place in places}:
            if len(place) <= MAX_PATH and (place in self._paths or len(self._paths) < MAX_PATHS):
                self._paths.setdefault(place, [0, 0])[column] += 1

    # --- told --------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        compared, noise = self._counts["compared"], self._noise
        most = sorted(self._paths.items(), key=lambda item: -sum(item[1]))[:SHOWN_PATHS]
        return {
            **{name: self._counts[name] for name in _COUNTS},
            **{f"{name}_for": dict(reasons) for name, reasons in self._reasons.items()},
            "statuses": dict(self._statuses),
            "score": round(self._score / compared, 6) if compared else None,
            "agreement": above_noise(compared, self._counts["agreed"], noise["compared"], noise["agreed"]),
            "noise": self._noise_told() if self._replays else None,
            **{name: histogram.to_json() for name, histogram in self._histograms.items()},
            "paths": [{"path": path, "differs": both[0], "noise": both[1]} for path, both in most],
            "samples": self.samples.to_json(),
        }

    def _noise_told(self) -> dict[str, Any]:
        return {**{name: self._noise[name] for name in _NOISE_COUNTS}, "latency": self._noise_latency.to_json()}

    def report(self) -> bytes:
        """As JSON, with as many samples as there is room for, and without the least histograms where latencies are all
        over the place."""
        told = self.to_json()
        while len(written := json.dumps(told).encode()) > FULL_REPORT and told["samples"]:
            del told["samples"][: (len(told["samples"]) + 1) // 2]
        if len(written) > FULL_REPORT:
            told |= {"first_byte": {}, "stable_first_byte": {}}
            if self._replays:
                told["noise"]["latency"] = {}
            written = json.dumps(told).encode()
        return written

    def restore(self, told: Mapping[str, Any]) -> None:
        """Go on from what a process before this one had told."""
        self._counts.update({name: told[name] for name in _COUNTS})
        for name, reasons in self._reasons.items():
            reasons.update(told[f"{name}_for"])
        self._statuses.update(told["statuses"])
        self._score = (told["score"] or 0.0) * told["compared"]
        if self._replays:
            self._noise.update({name: told["noise"][name] for name in _NOISE_COUNTS})
            self._noise_latency = Histogram.from_json(told["noise"]["latency"])
        self._histograms = {name: Histogram.from_json(told[name]) for name in _HISTOGRAMS}
        self._paths = {each["path"]: [each["differs"], each["noise"]] for each in told["paths"]}
        self.samples.restore(told["samples"])
