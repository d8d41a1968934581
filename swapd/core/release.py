"""What did not come back of a device's memory after its holder had gone or parked, and who holds it now.

Pure: it compares a reading from before with one from after; both are of the moment they say, never remembered figures.
A holder that was gone already is in neither, and nothing is expected of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from swapd.core.errors import Problem
from swapd.core.ledger import measured_use
from swapd.core.model import DeviceReading, DeviceState
from swapd.core.reasons import UNACCOUNTED_WORTH_TELLING_BYTES
from swapd.core.sizes import human_bytes

MOST_NAMED: Final = 3

_Foreign = tuple[int, int | None, str]


@dataclass(frozen=True, slots=True)
class NotBack:
    bytes: int
    workers: tuple[str, ...]  # whose it was
    holders: tuple[_Foreign, ...]  # who has taken more since, or was not there: the largest first

    @property
    def text(self) -> str:
        held = named(self.holders) or "nobody who can be named (a driver may still be giving it back)"
        return f"{human_bytes(self.bytes)} of what {' and '.join(self.workers)} held has not come back: held by {held}"

    @property
    def details(self) -> Mapping[str, Any]:
        holders = [{"pid": pid, "bytes": size, "name": name} for pid, size, name in self.holders]
        return {"not_back_bytes": self.bytes, "holders": holders}


def not_back(befores: Mapping[str, DeviceReading], now: DeviceReading) -> NotBack | None:
    """`befores`: of each worker that has let go, its device as it was last seen while it had not. None: all came back,
    or it cannot be told."""
    known = {w: r for w, r in befores.items() if r.name == now.name and r.free_bytes is not None}
    if not known or now.free_bytes is None or now.state is DeviceState.UNMEASURED or not now.holders_known:
        return None  # without holders, what others have taken or given back meanwhile would count as this
    before = next(iter(known.values()))
    expected_bytes, whose = 0, []
    for worker in known:
        held, keeps = measured_use(before, worker), measured_use(now, worker)
        if held is None:
            return None
        if held > (keeps or 0):
            expected_bytes += held - (keeps or 0)
            whose.append(worker)
    assert before.free_bytes is not None
    ours_bytes = sum((used or 0) - (measured_use(before, w) or 0) for w, used in now.used_by if w not in known)
    missing_bytes = expected_bytes - (now.free_bytes - before.free_bytes) - ours_bytes
    if not whose or missing_bytes < UNACCOUNTED_WORTH_TELLING_BYTES:
        return None
    return NotBack(missing_bytes, tuple(whose), _grown(before, now))


def _grown(before: DeviceReading, now: DeviceReading) -> tuple[_Foreign, ...]:
    had = {pid: size or 0 for pid, size, _ in before.foreign}
    grown = [f for f in now.foreign if f[0] not in had or (f[1] or 0) > had[f[0]]]
    return tuple(sorted(grown, key=lambda f: -(f[1] or 0)))[:MOST_NAMED]


def named(foreign: Sequence[_Foreign]) -> str:
    """`python (pid 77) 5.9 GiB and Xorg (pid 8)`"""
    sizes = ("" if size is None else f" {human_bytes(size)}" for _, size, _ in foreign)
    names = (f"{name.rpartition('/')[2] or 'a process'} (pid {pid})" for pid, _, name in foreign)
    return " and ".join(f"{name}{size}" for name, size in zip(names, sizes, strict=True))


def not_released(problem: Problem, lost: NotBack | None, now: DeviceReading) -> Problem:
    """Why a load was not begun, with who is in its way: what did not come back, else who else is on the device."""
    if lost is not None:
        text = f"{problem.message} {lost.text[0].upper()}{lost.text[1:]}."
        return replace(problem, message=text, details={**problem.details, **lost.details})
    others = tuple(sorted(now.foreign, key=lambda f: -(f[1] or 0)))[:MOST_NAMED]
    if not others:
        return problem
    return replace(problem, message=f"{problem.message} Outside swapd it is used by {named(others)}.")
