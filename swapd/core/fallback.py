"""The second try of a dual swap whose candidate did not find the memory beside the old model: in its place, once.

That memory ran out is no fault of the model's, so it is told from every other failure. The in-place try is the one that
was judged possible, and its outage allowed, when the swap was decided; what has been seen of the candidate since then
counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from swapd.core import errors
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.events import Measurement
from swapd.core.model import Fallback, Service, Strategy, Worker
from swapd.core.placement import Placement
from swapd.core.sizes import human_bytes
from swapd.core.states import Phase

MEMORY_RAN_OUT: Final = frozenset({errors.OUT_OF_MEMORY, errors.GUARD_KILLED, errors.VRAM_INSUFFICIENT})


def fallback_of(placed: Placement, wish: Strategy, measurement: Measurement) -> Fallback | None:
    """What a dual swap may fall back to; None: only dual was asked for, or in place was not possible."""
    if placed.strategy is not Strategy.DUAL or wish.value != Strategy.AUTO.value:
        return None
    for other in placed.alternatives:
        if other.strategy is Strategy.IN_PLACE and other.possible and other.available_bytes is not None:
            slot = measurement.slot(other.devices, placed.need_bytes)
            if slot.cap_bytes is not None:  # what it really needs is not known by then, but that it is more
                slot = replace(slot, cap_bytes=max(slot.cap_bytes, other.available_bytes))
            return Fallback(slot, other.available_bytes, other.parks, other.why)
    return None


def try_in_place(d: Draft, service: Service, worker: Worker, problem: Problem) -> Problem | None:
    """A candidate has failed, and is being ended. None: its swap goes on in place; else what it fails with."""
    swap = service.swap
    assert swap is not None
    if problem.code not in MEMORY_RAN_OUT or worker.revision != swap.target.number:
        return problem
    fallback = swap.fallback
    if fallback is None or swap.phase not in (Phase.PREPARING, Phase.PAUSED):  # later it has answered clients, perhaps
        return problem
    used = problem.details.get("used_bytes")  # a model's own code may have written it: anything
    needs = [n for n in (fallback.slot.need_bytes, used) if type(n) is int]
    need_bytes = max(needs) if needs else None
    if need_bytes is not None and need_bytes > fallback.available_bytes:
        there = f"{human_bytes(fallback.available_bytes, down=True)} would be available"
        text = (
            f"{problem.message} In place it is not tried: {there}, and it has taken {human_bytes(need_bytes, up=True)}."
        )
        return replace(problem, message=text)
    slot = replace(fallback.slot, need_bytes=need_bytes)
    number = swap.target.number
    d.set_service(service.name, slots=tuple((n, slot if n == number else s) for n, s in service.slots))
    d.set_swap(
        service.name,
        strategy=Strategy.IN_PLACE,
        why=f"{fallback.why}; {swap.target.model} did not find the memory beside what serves"
        f"{_now(need_bytes, fallback)}: {problem.message}",
        parks=fallback.parks,
        fallback=None,
        delivery=swap.delivery.in_place() if swap.delivery is not None else None,
        fell_back=problem,
        reason=f"{swap.target.model} is tried in place: beside what serves, memory ran out",
    )
    return None


def _now(need_bytes: int | None, fallback: Fallback) -> str:
    """`fallback.why` was said before it was seen to take more."""
    if need_bytes is None or need_bytes == fallback.slot.need_bytes:
        return ""
    return f", and is planned with {human_bytes(need_bytes, up=True)} now"
