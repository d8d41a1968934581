"""Which strategy, on which device, and why: dual, in-place, or a refusal that says what would change it.

Pure and total: the same request always gives the same answer, and every request gets one. It knows readings and
reservations, never how they were obtained; it does not act, and an in-place plan is a forecast that
`ledger.room_for` must confirm by measurement before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from swapd.core.errors import DEVICE_UNKNOWN, NO_WAY_BACK, OUTAGE_TOO_LONG, VRAM_INSUFFICIENT, Problem
from swapd.core.ledger import (
    after_release,
    available_bytes,
    loads_of_unknown_size,
    on_device,
    outstanding_bytes,
    room_for,
)
from swapd.core.model import DeviceKind, DeviceReading, Footprint, FootprintSource, Reservation, Strategy
from swapd.core.outage import ExpectedTimes, outage_words
from swapd.core.reasons import both, held_bytes, holders, what_makes_room
from swapd.core.sizes import human_bytes, human_seconds

__all__ = [
    "Alternative",
    "Placement",
    "PlacementRequest",
    "Strategy",
    "available_bytes",
    "outstanding_bytes",
    "place",
    "room_for",
]

# What a parked worker keeps on a GPU where nobody has measured it: context, graphs and allocator of a sleeping
# vLLM hold 1-2 GiB, and llm-d's recipe says "plan on 2".
PARKED_GPU_RESIDUE_BYTES: Final = 2 << 30


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    service: str
    model: str  # the candidate's
    footprint: Footprint
    readings: tuple[DeviceReading, ...]  # of the devices that the service may use, in the config's order
    reservations: tuple[Reservation, ...]  # all of them, of every service
    incumbents: tuple[str, ...] = ()  # workers that serve now; an in-place swap parks or stops them first
    retiring: tuple[str, ...] = ()  # workers stopped first in any case: a soak's previous revision, or one of no use
    soaking: tuple[str, ...] = ()  # those of them that a soak keeps
    wish: Strategy = Strategy.AUTO
    max_outage_s: float | None = None  # 0: never in-place; None: no bound
    outage_must_be_known: bool = False  # the bound was asked for, so an outage that is not known cannot be within it
    way_back: bool = True  # the old model can be loaded again: its files are those that it was loaded from
    expected: ExpectedTimes = field(default_factory=ExpectedTimes)
    can_park: bool = False
    parked_residue_bytes: int | None = None  # what an incumbent keeps on the device while parked, where measured
    model_of: tuple[tuple[str, str], ...] = ()  # worker id -> model, for the reasons

    def name(self, worker_id: str) -> str:
        model = self.model_behind(worker_id)
        return f"{model} ({worker_id})" if model != worker_id else worker_id

    def model_behind(self, worker_id: str) -> str:
        return dict(self.model_of).get(worker_id, worker_id)


@dataclass(frozen=True, slots=True)
class Alternative:
    strategy: Strategy
    possible: bool
    why: str


@dataclass(frozen=True, slots=True)
class Placement:
    strategy: Strategy
    device: str
    why: str
    alternatives: tuple[Alternative, ...]
    would_change: tuple[str, ...]  # what would make a strategy possible that is not
    expected_outage_s: float | None  # None: the model has never been loaded here
    need_bytes: int | None
    need_source: FootprintSource
    stops: tuple[str, ...] = ()  # workers whose memory the plan counts on: gone before the load
    parks: tuple[str, ...] = ()  # and those that only park for it
    is_return: bool = False  # to a revision that a soak keeps: nothing new is placed


@dataclass(frozen=True, slots=True)
class _Option:
    """One strategy on one device, judged."""

    strategy: Strategy
    device: str
    why: str
    available_bytes: int | None
    refusal: str | None = None  # an error code; None: possible
    would_change: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    parks: tuple[str, ...] = ()

    @property
    def possible(self) -> bool:
        return self.refusal is None

    @property
    def alternative(self) -> Alternative:
        return Alternative(self.strategy, self.possible, self.why)


def place(request: PlacementRequest) -> Placement | Problem:
    """Decide. A `Problem` carries VRAM_INSUFFICIENT, DEVICE_UNKNOWN or OUTAGE_TOO_LONG."""
    if not request.readings:
        text = f"No device to put {request.model} on: allow one with `devices` of [services.{request.service}]."
        return Problem(DEVICE_UNKNOWN, text, {"need_bytes": request.footprint.need_bytes, "devices": []})
    if not request.incumbents:
        start = _best(request, [_beside(request, r, Strategy.START) for r in request.readings])
        return _answer(request, [start])
    dual = _best(request, [_beside(request, r, Strategy.DUAL) for r in request.readings])
    in_place = _in_place(request)
    # By value: the configuration has an enum of its own for wishes.
    if request.wish is Strategy.DUAL:
        return _answer(request, [dual], others=[in_place])
    if request.wish is Strategy.IN_PLACE:
        return _answer(request, [in_place], others=[dual])
    return _answer(request, [dual, in_place])


def _answer(
    request: PlacementRequest, wanted: Sequence[_Option], others: Sequence[_Option] = ()
) -> Placement | Problem:
    """The first wanted option that is possible, or the refusal of all of them."""
    considered = [*wanted, *others]
    chosen = next((o for o in wanted if o.possible), None)
    # With a dual swap in hand nobody needs to know how an in-place one would become possible.
    lacking = [] if chosen and chosen.strategy is Strategy.DUAL else [o for o in considered if not o.possible]
    would_change = _unique(change for o in lacking for change in o.would_change)
    if chosen is None:
        return _refuse(request, wanted, others, would_change)
    outage_s = 0.0 if chosen.strategy is Strategy.DUAL else request.expected.outage_s
    passed_over = [o.why for o in wanted[: wanted.index(chosen)]]
    return Placement(
        strategy=chosen.strategy,
        device=chosen.device,
        why="; ".join([*passed_over, chosen.why]),
        alternatives=tuple(o.alternative for o in considered if o is not chosen),
        would_change=would_change,
        expected_outage_s=outage_s,
        need_bytes=request.footprint.need_bytes,
        need_source=request.footprint.source,
        stops=_unique((*_here(request, request.retiring), *chosen.stops)),
        parks=chosen.parks,
    )


def _refuse(
    request: PlacementRequest,
    wanted: Sequence[_Option],
    others: Sequence[_Option],
    would_change: tuple[str, ...],
) -> Problem:
    """The code of the nearest miss: memory would do but not the time, else memory, else nothing can be read."""
    codes = [o.refusal for o in wanted]
    code = next((c for c in (NO_WAY_BACK, OUTAGE_TOO_LONG, VRAM_INSUFFICIENT) if c in codes), DEVICE_UNKNOWN)
    text = "; ".join(o.why for o in wanted)
    instead = [o for o in others if o.possible]
    hints = [f"--strategy {o.strategy.value} is possible" for o in instead] + list(would_change)
    details: dict[str, Any] = {
        "service": request.service,
        "model": request.model,
        "need_bytes": request.footprint.need_bytes,
        "need_source": request.footprint.source.value,
        "devices": [
            {
                "name": r.name,
                "total_bytes": r.total_bytes,
                "free_bytes": r.free_bytes,
                "available_bytes": available_bytes(r, request.reservations),
            }
            for r in request.readings
        ],
        "alternatives": [
            {"strategy": o.strategy.value, "possible": o.possible, "why": o.why} for o in (*wanted, *others)
        ],
        "would_change": list(would_change),
    }
    if code == OUTAGE_TOO_LONG:
        details |= {"expected_outage_s": request.expected.outage_s, "max_outage_s": request.max_outage_s}
    return Problem(code, f"{text}. What would change it: {', or '.join(hints)}." if hints else f"{text}.", details)


# --- judging one strategy on one device --------------------------------------------------------------------


def _beside(request: PlacementRequest, now: DeviceReading, strategy: Strategy) -> _Option:
    """Load while everything else on the device stays, but for what a swap stops in any case."""
    reading, reservations = after_release(now, request.reservations, dict.fromkeys(request.retiring, 0))
    option = _fit(request, reading, reservations, strategy)
    retired = [r.worker_id for r in on_device(now, request.reservations) if r.worker_id in request.retiring]
    if retired and option.possible:
        first = both(
            f"the soak of {request.name(w)} is ended"
            if w in request.soaking
            else f"{request.name(w)}, which takes no clients, is stopped"
            for w in retired
        )
        return replace(option, why=f"{option.why}, once {first}")
    return option


def _in_place(request: PlacementRequest) -> _Option:
    """Let the incumbents go first; parked if that is enough, as rollback is then a wake and not a start."""
    own = [
        r
        for r in request.readings
        if any(i.worker_id in request.incumbents for i in on_device(r, request.reservations))
    ]
    names = both(request.name(w) for w in request.incumbents)
    if not own:
        homes = sorted({r.device for r in request.reservations if r.worker_id in request.incumbents})
        allowed = ", ".join(r.name for r in request.readings)
        why = f"in-place impossible: {names} holds nothing on {allowed}" + (
            f" but on {', '.join(homes)}" if homes else ""
        )
        return _Option(Strategy.IN_PLACE, request.readings[0].name, why, None, VRAM_INSUFFICIENT)
    return _with_way_back(request, _with_outage(request, _best(request, [_instead(request, r) for r in own])))


def _instead(request: PlacementRequest, now: DeviceReading) -> _Option:
    """On the incumbents' device, as it is forecast to be without them."""
    here = [r for r in on_device(now, request.reservations) if r.worker_id in request.incumbents]
    ids = tuple(r.worker_id for r in here)
    retired = dict.fromkeys(request.retiring, 0)
    residues = {r.worker_id: residue for r in here if (residue := _residue_bytes(request, now, r)) is not None}
    # A candidate of unknown size needs the device to itself, so there parking is no help.
    if request.can_park and len(residues) == len(here) and request.footprint.need_bytes is not None:
        option = _fit(request, *after_release(now, request.reservations, {**retired, **residues}), Strategy.IN_PLACE)
        if option.possible:
            how = f"by parking {both(map(request.name, ids))}{_frees(now, here, residues)}"
            return replace(option, why=f"{option.why}, {how}", parks=ids)
    stopped = dict.fromkeys(ids, 0)
    option = _fit(request, *after_release(now, request.reservations, {**retired, **stopped}), Strategy.IN_PLACE)
    if not option.possible:
        return option
    how = f"by stopping {both(map(request.name, ids))}{_frees(now, here, stopped)}"
    return replace(option, why=f"{option.why}, {how}", stops=ids)


def _fit(
    request: PlacementRequest, reading: DeviceReading, reservations: Sequence[Reservation], strategy: Strategy
) -> _Option:
    """Does the candidate fit on this device as it is, or is forecast to be?"""
    available = available_bytes(reading, reservations)
    need = request.footprint.need_bytes

    def no(why: str, change: tuple[str, ...], code: str = VRAM_INSUFFICIENT) -> _Option:
        return _Option(strategy, reading.name, _impossible(strategy, reading.name, why), available, code, change)

    if not reading.known:
        why = f"its memory is unknown ({reading.detail or 'no reading'})"
        return no(why, (f"make the memory of {reading.name} readable",), DEVICE_UNKNOWN)
    if available is None:
        loading = loads_of_unknown_size(reading, reservations)[0].worker_id
        why = f"{request.name(loading)} is loading there; its size is unknown, so nothing is admitted beside it"
        declare = f"declare device_memory for {request.model_behind(loading)}"
        return no(why, (f"wait until {request.name(loading)} is ready", declare))
    if need is None:
        return _fit_unknown(request, reading, reservations, strategy, available)
    what = f"{request.model} needs {human_bytes(need, up=True)} ({request.footprint.source.value})"
    room = f"{human_bytes(max(0, available), down=True)} available"
    room += f" after {human_bytes(reading.headroom_bytes)} headroom"
    if available >= need:
        return _Option(strategy, reading.name, f"{strategy.value} on {reading.name}: {what}, {room}", available)
    change = what_makes_room(reading, reservations, need, request.name, request.model_behind, request.incumbents)
    if request.footprint.source is FootprintSource.ESTIMATED and available > 0:
        most = human_bytes(available, down=True)
        change = (*change, f"declare device_memory for {request.model} if it needs no more than {most}")
    return no(f"{holders(reading, reservations, request.name)}; {what}, {room}", change)


def _fit_unknown(
    request: PlacementRequest,
    reading: DeviceReading,
    reservations: Sequence[Reservation],
    strategy: Strategy,
    available: int,
) -> _Option:
    """A model of unknown need may take anything: it is admitted only where no other worker could lose by it."""
    what = f"what {request.model} needs is unknown"
    others = on_device(reading, reservations)
    if available > 0 and not others:
        why = f"{strategy.value} on {reading.name}: {what}, and nothing else is reserved there"
        return _Option(strategy, reading.name, why, available)
    if others:
        names = both(request.name(r.worker_id) for r in others)
        why = f"{what}, so it must have the device to itself, and {names} {'is' if len(others) == 1 else 'are'} there"
    else:
        why = f"{what}, and nothing is available after {human_bytes(reading.headroom_bytes)} headroom"
    change = (f"declare device_memory for {request.model}",)
    why = _impossible(strategy, reading.name, why)
    return _Option(strategy, reading.name, why, available, VRAM_INSUFFICIENT, change)


def _with_outage(request: PlacementRequest, option: _Option) -> _Option:
    """In-place where memory allows it is still refused when clients would wait too long."""
    if not option.possible:
        return option
    limit_s, expected = request.max_outage_s, request.expected
    if limit_s is not None and limit_s <= 0:
        why = "in-place not allowed: max_outage is 0"
        return replace(
            option, why=why, refusal=OUTAGE_TOO_LONG, would_change=(f"raise max_outage of {request.service}",)
        )
    if limit_s is not None and expected.at_least_s > limit_s:
        outage = human_seconds(expected.at_least_s)
        why = f"in-place would take {outage_words(expected)}, max_outage is {human_seconds(limit_s)}"
        change = [f"raise max_outage of {request.service} to {outage}"]
        if expected.drain_s and expected.at_least_s - expected.drain_s <= limit_s:
            change.append("wait until fewer requests are open, or lower drain_timeout")
        return replace(option, why=why, refusal=OUTAGE_TOO_LONG, would_change=tuple(change))
    if expected.outage_s is None and limit_s is not None and request.outage_must_be_known:
        why = f"in-place may take longer than {human_seconds(limit_s)}: {request.model} was never loaded here"
        change = ["leave the limit away for the first time"]
        return replace(option, why=why, refusal=OUTAGE_TOO_LONG, would_change=tuple(change))
    if expected.outage_s is None:
        return replace(option, why=f"{option.why}; outage unknown, as {request.model} has not been loaded here before")
    return replace(option, why=f"{option.why}; expected outage {outage_words(expected)}")


def _with_way_back(request: PlacementRequest, option: _Option) -> _Option:
    """In-place the old model must be loaded again if the new one fails; where it cannot, only on an explicit wish."""
    if not option.possible or request.way_back or option.parks:
        return option
    names = both(request.name(w) for w in request.incumbents)
    gone = f"the files of {names} have changed since it was loaded, so it could not come back"
    if request.wish is Strategy.IN_PLACE:
        return replace(option, why=f"{option.why}; {gone}")
    change = ("put the old files back, or keep each version under a path of its own", "say --strategy in-place")
    return replace(option, why=f"in-place refused: {gone}", refusal=NO_WAY_BACK, would_change=change)


def _best(request: PlacementRequest, options: Sequence[_Option]) -> _Option:
    """Of those possible: the incumbents' own device (its caches are warm, and the others stay free for others),
    else the one with the most available, else the first named. Of those that fail: the one that lacks least."""
    own = {r.device for r in request.reservations if r.worker_id in request.incumbents}

    def rank(numbered: tuple[int, _Option]) -> tuple[bool, bool, int, int]:
        position, option = numbered
        lacks = option.available_bytes is None
        return (
            not option.possible,
            option.device not in own if option.possible else lacks,
            -(option.available_bytes or 0),
            position,
        )

    return min(enumerate(options), key=rank)[1]


# --- small things -------------------------------------------------------------------------------------------


def _residue_bytes(request: PlacementRequest, reading: DeviceReading, reservation: Reservation) -> int | None:
    """What this worker would keep on the device while parked; None: not known, so parking cannot be planned."""
    if request.parked_residue_bytes is not None:
        return request.parked_residue_bytes
    if reading.kind is DeviceKind.HOST:
        # Parking moves weights to the host's memory, which on a host device is the device itself.
        return None
    return PARKED_GPU_RESIDUE_BYTES


def _frees(reading: DeviceReading, here: Sequence[Reservation], residues: dict[str, int]) -> str:
    freed = sum(max(0, held_bytes(reading, r) - residues.get(r.worker_id, 0)) for r in here)
    return f" (frees {human_bytes(freed)})" if freed else ""


def _impossible(strategy: Strategy, device: str, why: str) -> str:
    return f"{strategy.value} impossible on {device}: {why}"


def _here(request: PlacementRequest, workers: Sequence[str]) -> tuple[str, ...]:
    reserved = {r.worker_id for r in request.reservations}
    return tuple(w for w in workers if w in reserved)


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
