"""What the load saw: one record a request, and what can be told from them.

Duty: keep, store and load records compactly (a run of a million requests is 22 MB), percentiles, and the check
that a cutover was monotonic. It knows no sockets. Times are seconds of CLOCK_MONOTONIC, which all processes of a
host share, so that the records of several loads and the commands given to swapd can be laid side by side.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Outcomes of a request. Everything but OK is a request that its client lost. Append only: they are stored.
OUTCOMES = (
    "ok",
    "refused",  # connect() was refused
    "reset",  # ECONNRESET or EPIPE
    "unanswered",  # the connection was closed before the first byte of an answer
    "truncated",  # ... and in the middle of one
    "timed_out",  # no complete answer within the client's patience
    "bad_status",  # complete, but not 200
    "wrong_body",  # complete, but not what that revision answers to that request
    "no_revision",  # complete, but without x-swapd-revision
    "malformed",  # not HTTP/1.1
    "client_fault",  # the client's own host failed it (out of ports or descriptors): the run is void
)
OK = 0
CODE = {name: code for code, name in enumerate(OUTCOMES)}


@dataclass(slots=True)
class Records:
    """Parallel arrays, one entry a request, in the order of their ends."""

    groups: list[str] = field(default_factory=list)
    start: array[float] = field(default_factory=lambda: array("d"))  # intended start for paced and open loops
    end: array[float] = field(default_factory=lambda: array("d"))
    revision: array[int] = field(default_factory=lambda: array("I"))  # 0: none
    group: array[int] = field(default_factory=lambda: array("B"))
    outcome: array[int] = field(default_factory=lambda: array("B"))

    def __len__(self) -> int:
        return len(self.start)

    def add(self, start: float, end: float, revision: int, group: int, outcome: int) -> None:
        self.start.append(start)
        self.end.append(end)
        self.revision.append(revision)
        self.group.append(group)
        self.outcome.append(outcome)

    def store(self, path: Path) -> None:
        head = json.dumps({"groups": self.groups, "count": len(self)}).encode()
        with path.open("wb") as file:
            file.write(len(head).to_bytes(4, "little") + head)
            for column in self._columns():
                column.tofile(file)

    @classmethod
    def load(cls, path: Path) -> Records:
        records = cls()
        with path.open("rb") as file:
            head = json.loads(file.read(int.from_bytes(file.read(4), "little")))
            records.groups = head["groups"]
            for column in records._columns():
                column.fromfile(file, head["count"])
        return records

    def _columns(self) -> tuple[array[Any], ...]:
        return (self.start, self.end, self.revision, self.group, self.outcome)

    def join(self, other: Records) -> None:
        """Adds another load's records; its groups are appended."""
        shift = len(self.groups)
        self.groups = self.groups + other.groups
        self.start.extend(other.start)
        self.end.extend(other.end)
        self.revision.extend(other.revision)
        self.group.extend(array("B", (code + shift for code in other.group)))
        self.outcome.extend(other.outcome)

    def errors(self) -> dict[str, int]:
        """How many requests ended in each way other than `ok`; every kind is named, also those with none."""
        codes = self.outcome.tobytes()
        return {name: codes.count(bytes([code])) for name, code in CODE.items() if code != OK}

    def latencies(
        self, groups: Iterable[str] | None = None, windows: Sequence[tuple[float, float]] | None = None
    ) -> list[float]:
        """Seconds of each answered request that *began* within one of the windows, sorted."""
        wanted = None if groups is None else {i for i, name in enumerate(self.groups) if name in set(groups)}
        spans = None if windows is None else _merged(windows)
        out: list[float] = []
        rows = zip(self.start, self.end, self.group, self.outcome, strict=True)
        for start, end, group, outcome in rows:
            if outcome != OK or (wanted is not None and group not in wanted):
                continue
            if spans is not None and not _within(spans, start):
                continue
            out.append(end - start)
        out.sort()
        return out


def _merged(windows: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    out: list[tuple[float, float]] = []
    for begin, end in sorted(windows):
        if out and begin <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((begin, end))
    return out


def _within(spans: list[tuple[float, float]], at: float) -> bool:
    low, high = 0, len(spans)
    while low < high:
        middle = (low + high) // 2
        if spans[middle][1] < at:
            low = middle + 1
        else:
            high = middle
    return low < len(spans) and spans[low][0] <= at


def outside(windows: Sequence[tuple[float, float]], begin: float, end: float) -> list[tuple[float, float]]:
    """The parts of begin..end that lie in none of the windows."""
    out, at = [], begin
    for a, b in _merged(windows):
        if a > at:
            out.append((at, min(a, end)))
        at = max(at, b)
        if at >= end:
            break
    if at < end:
        out.append((at, end))
    return [(a, b) for a, b in out if b > a]


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank, of an already sorted sequence; NaN of nothing."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


@dataclass(frozen=True, slots=True)
class Switch:
    """One commanded change of what serves: from the moment the command was sent."""

    commanded_at: float
    old: int
    new: int


@dataclass(frozen=True, slots=True)
class Cutover:
    """What the clients saw of one switch."""

    switch: Switch
    first_new_at: float | None  # when the first complete answer of the new revision had come; None: never
    last_old_start: float | None  # when the last request that the old one answered had begun
    late: int  # requests begun after first_new_at, and answered by the old one all the same

    @property
    def seen(self) -> bool:
        return self.first_new_at is not None


def check_cutovers(records: Records, switches: Sequence[Switch]) -> list[Cutover]:
    """Looks at each switch for requests begun after the new revision's first answer that the old one answered.

    A revision may serve again later (a rollback), so each switch is looked at until the next command. A request
    that was still open at the next command may rightly be answered by what that command brings back; it is not
    counted, unless the next command brings something else. Nor is the answer to a request that was begun before the
    former switch, and is answered only now, the first of what this command brings back.
    """
    order = sorted(range(len(records)), key=records.end.__getitem__)
    ends = [records.end[i] for i in order]
    out = []
    for n, switch in enumerate(switches):
        until = switches[n + 1].commanded_at if n + 1 < len(switches) else math.inf
        back = n + 1 < len(switches) and switches[n + 1].new == switch.old
        former = next((c.first_new_at for c in out[-1:] if c.first_new_at is not None), -math.inf)
        first: float | None = None
        last_old: float | None = None
        late = 0
        for at in range(_lower(ends, switch.commanded_at), len(order)):
            i = order[at]
            end, start = records.end[i], records.start[i]
            if end >= until and (back or start >= until):
                if back or end > until + 60:
                    break
                continue
            revision = records.revision[i]
            if revision == switch.new and first is None and former < start < until:
                first = end
            elif revision == switch.old:
                if last_old is None or start > last_old:
                    last_old = start
                if first is not None and start > first:
                    late += 1
        out.append(Cutover(switch, first, last_old, late))
    return out


def _lower(ordered: Sequence[float], value: float) -> int:
    low, high = 0, len(ordered)
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low
