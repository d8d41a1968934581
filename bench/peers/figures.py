"""What the clients saw of the changes from one model to the other. Pure: records in, figures out.

An *outage* is the longest time without a good answer to anybody, around one change; streams do not count for it, since
the end of a long answer that began before says nothing of those who ask now.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.records import OK, Records, outside
from bench.swaps import milliseconds

BEFORE_S, AFTER_S = 0.5, 1.0  # of a change, as far as it is looked at


@dataclass(frozen=True, slots=True)
class Change:
    """One change of the model: when it was asked for, and when its tool was done and the new model seen to answer."""

    to: str
    commanded_at: float
    done_at: float
    load_s: float | None = None  # how long the new model says that its own load took
    steps_s: Mapping[str, float] = field(default_factory=dict)  # as the tool itself tells them

    @property
    def window(self) -> tuple[float, float]:
        return self.commanded_at - BEFORE_S, self.done_at + AFTER_S


@dataclass(frozen=True, slots=True)
class Seen:
    """What one change was to the clients."""

    outage_s: float
    first_new_s: float | None  # from the command to the first answer of the new model; None: never
    errors: int  # of requests that ended in its window
    late: int  # began after the new model's first answer, and were answered by the old one all the same


def look(records: Records, labels: Mapping[int, str], change: Change, streams: Sequence[str] = ()) -> Seen:
    """`labels`: which model a revision is; `streams`: the groups whose answers are long ones."""
    low, high = change.window
    long = {code for code, name in enumerate(records.groups) if name in streams}
    rows = sorted(
        (end, start, labels.get(revision), outcome, group)
        for end, start, revision, outcome, group in zip(
            records.end, records.start, records.revision, records.outcome, records.group, strict=True
        )
        if low <= end <= high
    )
    good = [(end, start, label) for end, start, label, outcome, group in rows if outcome == OK and group not in long]
    ends = [low, *(end for end, _, _ in good), high]
    first = next((end for end, _, label in good if label == change.to and end >= change.commanded_at), None)
    late = sum(first is not None and start > first and label != change.to for _, start, label in good)
    return Seen(
        max(after - before for before, after in itertools.pairwise(ends)),
        None if first is None else first - change.commanded_at,
        sum(outcome != OK for _, _, _, outcome, _ in rows),
        late,
    )


def until_good(records: Records, groups: Sequence[str], windows: Sequence[tuple[float, float]]) -> list[float]:
    """Like Records.latencies, but a lost request counts until the next good answer to anybody of these groups: as long
    as a client waits that tries again until it gets one. Else the losses of an outage would make it look short.
    """
    wanted = {code for code, name in enumerate(records.groups) if name in groups}
    rows = zip(records.start, records.end, records.outcome, records.group, strict=True)
    mine = sorted((end, start, outcome == OK) for start, end, outcome, group in rows if group in wanted)
    out, next_good = [], math.inf
    for end, start, good in reversed(mine):
        next_good = end if good else next_good
        if any(low <= start <= high for low, high in windows) and next_good < math.inf:
            out.append(next_good - start)
    return sorted(out)


def summary(
    records: Records,
    labels: Mapping[int, str],
    changes: Sequence[Change],
    span: tuple[float, float],
    streams: Sequence[str],
) -> dict[str, Any]:
    """The figures of one contender; `span`: from when to when it was looked at."""
    seen = [look(records, labels, change, streams) for change in changes]
    around = [change.window for change in changes]
    loads = [change.load_s for change in changes if change.load_s is not None]
    waits = [each.first_new_s for each in seen if each.first_new_s is not None]
    return {
        "requests": len(records),
        "errors": {kind: count for kind, count in records.errors().items() if count},
        "errors_total": sum(records.errors().values()),
        "errors_around_changes": sum(each.errors for each in seen),
        "late_old_answers": sum(each.late for each in seen),
        "outage_median_s": round(statistics.median(each.outage_s for each in seen), 4),
        "outage_max_s": round(max(each.outage_s for each in seen), 4),
        "new_serves_after_median_s": round(statistics.median(waits), 4) if waits else None,
        "engine_load_median_s": round(statistics.median(loads), 4) if loads else None,
        "calm_ms": milliseconds(records.latencies(["open loop"], outside(around, *span))),
        "around_changes_ms": milliseconds(records.latencies(["open loop"], around)),
        "around_changes_until_good_ms": milliseconds(until_good(records, ["open loop"], around)),
        "changes": [
            {
                "to": change.to,
                "outage_s": round(one.outage_s, 4),
                "new_serves_after_s": None if one.first_new_s is None else round(one.first_new_s, 4),
                "errors": one.errors,
                "engine_load_s": None if change.load_s is None else round(change.load_s, 4),
                "steps_s": {name: round(value, 3) for name, value in change.steps_s.items()},
            }
            for change, one in zip(changes, seen, strict=True)
        ],
    }
