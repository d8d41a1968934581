"""Disagreements as an operator may read them: short, redacted, and not many. Pure.

Bodies are clients' data. What a sample shows of them goes through `Redaction`: values at paths that the operator has
named, and values whose names say that they are secrets, are masked. A body that is no JSON cannot be masked by path: it
is shown only where no path is to be masked.
"""

from __future__ import annotations

import json
import math
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from swapd.core.agreement import Answer, Outcome
from swapd.core.json_values import MISSING, Path, Pointers, read_json, read_pointer, write_pointer

MASK: Final = "***"
CUT: Final = "…"
MAX_TEXT: Final = 160  # characters of one text
MAX_EXCERPT: Final = 480  # bytes of a body's excerpt, as JSON
MAX_SAMPLE: Final = 2048  # bytes of a sample, as JSON
MAX_SAMPLES: Final = 20 * 1024  # bytes of all: they are told with a gate's figures, in a message of at most 128 KiB
SHOWN_DIFFERENCES: Final = 6
_DEEP: Final = 6
_WIDE: Final = 16
_SECRET: Final = re.compile(
    r"secret|passw|credential|authorization|cookie|api[-_]?key|access[-_]?key|private[-_]?key|(^|[-_])token$|Token$",
    re.IGNORECASE,
)


class Redaction:
    def __init__(self, pointers: Sequence[Path] = ()) -> None:
        self._pointers = Pointers(pointers)

    @property
    def by_path(self) -> bool:
        return bool(self._pointers)

    def hides(self, path: Path) -> bool:
        return self._pointers.cover(path) or any(map(_SECRET.search, path))

    def place(self, path: Path) -> Path:
        """Where it is, no more precise than may be told: the names below a hidden place may be data too."""
        lengths = range(len(path) + 1)
        return path[: next((length for length in lengths if self.hides(path[:length])), len(path))]

    def shown(self, value: Any, path: Path, deep: int = 0) -> Any:
        """A short copy that json.dumps takes. `path`: where it is in its body. It goes no deeper than a few levels."""
        if value is MISSING:
            return None
        if self.hides(path):
            return MASK
        if isinstance(value, dict | list) and deep >= _DEEP:
            return CUT
        if isinstance(value, dict):
            names = list(value)[:_WIDE]
            short = {_cut(name): self.shown(value[name], (*path, name), deep + 1) for name in names}
            return short | ({CUT: CUT} if len(value) > _WIDE else {})
        if isinstance(value, list):
            items = [self.shown(item, (*path, str(at)), deep + 1) for at, item in enumerate(value[:_WIDE])]
            return items + ([CUT] if len(value) > _WIDE else [])
        if isinstance(value, str):
            return _cut(value)
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)  # as a number it would be no JSON
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            return "a number beyond 64 bits"
        return value

    def differing(self, value: Any, path: Path) -> Any:
        """A text that is the whole body may be anything, also JSON that was compared as text."""
        return MASK if self.by_path and not path and isinstance(value, str) else self.shown(value, path)

    def excerpt(self, body: bytes) -> Any:
        """Of a whole body. A text where it is too long to be shown as JSON, or is none."""
        try:
            short = self.shown(read_json(body), ())
        except ValueError:
            return "not JSON: not shown, because paths are to be redacted" if self.by_path else _cut(_text(body))
        written = json.dumps(short)
        return short if len(written) <= MAX_EXCERPT else written[:MAX_EXCERPT] + CUT


def read_redaction(paths: object) -> Redaction:
    """Raises ValueError."""
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("redact must be a list of JSON pointers")
    return Redaction(tuple(map(read_pointer, paths)))


def _text(body: bytes) -> str:
    return body[: 4 * MAX_TEXT].decode(errors="replace")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + CUT


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom a sample is of."""

    at: float  # wall clock, seconds since 1970
    request_id: str
    method: str
    path: str  # without the query, where keys are often found
    body: bytes


def sample(
    redaction: Redaction, asked: Asked, stable: Answer, candidate: Answer | None, outcome: Outcome
) -> dict[str, Any]:
    """`candidate`: None where there was no whole answer; `outcome.why` says why."""
    shown = [
        {
            "path": _cut(write_pointer(redaction.place(each.path))),
            "stable": redaction.differing(each.stable, each.path),
            "candidate": redaction.differing(each.candidate, each.path),
        }
        for each in outcome.differences[:SHOWN_DIFFERENCES]
    ]
    told: dict[str, Any] = {
        "at": round(asked.at, 3),
        "request_id": _cut(asked.request_id),
        "method": asked.method,
        "path": _cut(asked.path),
        "status": [stable.status, candidate.status if candidate is not None else None],
        "why": _cut(outcome.why),
        "score": round(outcome.score, 4),
        "differences": shown,
        "request": redaction.excerpt(asked.body) if asked.body else None,
        "stable": redaction.excerpt(stable.body),
        "candidate": redaction.excerpt(candidate.body) if candidate is not None else None,
    }
    for part in ("request", "stable", "candidate"):
        if len(json.dumps(told)) <= MAX_SAMPLE:
            return told
        told[part] = CUT
    while len(json.dumps(told)) > MAX_SAMPLE and shown:
        shown.pop()
    return told


class Samples:
    """The newest, as many as `keep` and MAX_SAMPLES allow. Each has a number `n`, so that a reader knows which are
    new."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._kept: deque[tuple[int, dict[str, Any]]] = deque()
        self._bytes = 0
        self._count = 0

    def add(self, told: dict[str, Any]) -> None:
        if not self._keep:
            return
        self._count += 1
        told = {"n": self._count, **told}
        size = len(json.dumps(told))
        self._kept.append((size, told))
        self._bytes += size
        while len(self._kept) > self._keep or self._bytes > MAX_SAMPLES:
            self._bytes -= self._kept.popleft()[0]

    def to_json(self) -> list[dict[str, Any]]:
        return [told for _, told in self._kept]

    def restore(self, kept: Sequence[dict[str, Any]]) -> None:
        """What a process that has ended had kept."""
        for told in kept:
            self.add({name: value for name, value in told.items() if name != "n"})
        self._count = max([self._count, *(told["n"] for told in kept)])
