"""Which strategy, on which device, and why: dual, in-place, or a refusal that says what would change it.

Pure and total: the same request always gives the same answer, and every request gets one. It knows readings and
reservations, never how they were obtained; it does not act, and an in-place plan is a forecast that
`ledger.room_for` must confirm by measurement before anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from swapd.core.errors import DEVICE_UNKNOWN, NO_WAY_BACK, OUTAGE_TOO_LONG, VRAM_INSUFFICIENT, Problem
from swapd.core.fitting import Option, PlacementRequest, Spot, beside, if_parked, if_stopped
from swapd.core.ledger import available_bytes, outstanding_bytes, room_for
from swapd.core.model import DeviceKind, DeviceReading, FootprintSource, Strategy
from swapd.core.outage import outage_words
from swapd.core.reasons import both
from swapd.core.sizes import human_seconds

T = TypeVar("T")

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


@dataclass(frozen=True, slots=True)
class Alternative:
    strategy: Strategy
    possible: bool
    why: str
    devices: tuple[str, ...] = ()
    available_bytes: int | None = None  # there, to the candidate, on each; None: not known
    parks: bool = False  # in-place: parking is enough


@dataclass(frozen=True, slots=True)
class Placement:
    strategy: Strategy
    devices: tuple[str, ...]  # as many as the model spans, in the config's order
    why: str
    alternatives: tuple[Alternative, ...]
    would_change: tuple[str, ...]  # what would make a strategy possible that is not
    expected_outage_s: float | None  # None: the model has never been loaded here
    need_bytes: int | None
    need_source: FootprintSource
    stops: tuple[str, ...] = ()  # workers whose memory the plan counts on: gone before the load
    parks: tuple[str, ...] = ()  # and those that only park for it
    is_return: bool = False  # to a revision that a soak keeps: nothing new is placed
    room_bytes: int | None = None  # what is available for the load, by forecast

    @property
    def device(self) -> str:
        """The first of them; "": of a return to what stands nowhere."""
        return self.devices[0] if self.devices else ""


def place(request: PlacementRequest) -> Placement | Problem:
    """Decide. A `Problem` carries VRAM_INSUFFICIENT, DEVICE_UNKNOWN or OUTAGE_TOO_LONG."""
    if not request.readings:
        text = f"No device to put {request.model} on: allow one with `devices` of [services.{request.service}]."
        return Problem(DEVICE_UNKNOWN, text, {"need_bytes": request.footprint.need_bytes, "devices": []})
    spots = request.spots()
    if not request.incumbents:
        return _answer(request, [_together(request, [beside(request, spot, Strategy.START) for spot in spots])])
    dual = _together(request, [beside(request, spot, Strategy.DUAL) for spot in spots])
    in_place = _in_place(request, spots)
    # By value: the configuration has an enum of its own for wishes.
    if request.wish is Strategy.DUAL:
        return _answer(request, [dual], others=[in_place])
    if request.wish is Strategy.IN_PLACE:
        return _answer(request, [in_place], others=[dual])
    return _answer(request, [dual, in_place])


def _answer(request: PlacementRequest, wanted: Sequence[Option], others: Sequence[Option] = ()) -> Placement | Problem:
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
        devices=chosen.devices,
        why="; ".join([*passed_over, chosen.why]),
        alternatives=tuple(_alternative(o) for o in considered if o is not chosen),
        would_change=would_change,
        expected_outage_s=outage_s,
        need_bytes=request.footprint.need_bytes,
        need_source=request.footprint.source,
        stops=_unique((*_here(request, request.retiring), *chosen.stops)),
        parks=chosen.parks,
        room_bytes=chosen.available_bytes,
    )


def _refuse(
    request: PlacementRequest,
    wanted: Sequence[Option],
    others: Sequence[Option],
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
                "name": spot.reading.name,
                "state": spot.reading.state.value,
                "total_bytes": spot.reading.total_bytes,
                "free_bytes": spot.reading.free_bytes,
                "available_bytes": available_bytes(spot.reading, spot.reservations),
            }
            for spot in request.spots()
        ],
        "alternatives": [
            {"strategy": o.strategy.value, "possible": o.possible, "why": o.why} for o in (*wanted, *others)
        ],
        "would_change": list(would_change),
    }
    if code == OUTAGE_TOO_LONG:
        details |= {"expected_outage_s": request.expected.outage_s, "max_outage_s": request.max_outage_s}
    return Problem(code, f"{text}. What would change it: {', or '.join(hints)}." if hints else f"{text}.", details)


# --- in place --------------------------------------------------------------------------------------------------------


def _in_place(request: PlacementRequest, spots: Sequence[Spot]) -> Option:
    """Let the incumbents go first; parked if that is enough, as rollback is then a wake and not a start."""
    own = [spot for spot in spots if spot.workers(request.incumbents)]
    names = both(request.name(w) for w in request.incumbents)
    if not own:
        homes = sorted({name for r in request.reservations if r.worker_id in request.incumbents for name in r.devices})
        allowed = ", ".join(r.name for r in request.readings)
        why = f"in-place impossible: {names} holds nothing on {allowed}" + (
            f" but on {', '.join(homes)}" if homes else ""
        )
        return Option(Strategy.IN_PLACE, (request.readings[0].name,), "", None, VRAM_INSUFFICIENT, told=why)
    parked = [option for spot in own if (option := if_parked(request, spot)) is not None]
    option = _around(request, parked, spots) if parked else None
    if option is None or not option.possible:
        option = _around(request, [if_stopped(request, spot) for spot in own], spots)
    return _with_way_back(request, _with_outage(request, option))


def _around(request: PlacementRequest, own: Sequence[Option], spots: Sequence[Spot]) -> Option:
    """On the incumbents' devices and, where the model spans more than these, on others beside them."""
    if request.gpus <= len(own) or not any(option.possible for option in own):
        return _together(request, own)
    known = {device for option in own for device in option.devices}
    others = [beside(request, spot, Strategy.IN_PLACE) for spot in spots if spot.reading.name not in known]
    return _together(request, [*own, *others])


# --- as many devices as the model spans ----------------------------------------------------------------------------


def _together(request: PlacementRequest, options: Sequence[Option]) -> Option:
    """The best device for it, or the best of as many as it spans: what each was found to be taken together."""
    ranked = _ranked(request, options)
    if request.gpus <= 1:
        return ranked[0]
    readings = {r.name: r for r in request.readings}
    usable = [option for option in ranked if _may_be_one_of_several(readings[option.devices[0]])]
    possible = [option for option in usable if option.possible]
    if len(possible) < request.gpus:
        return _too_few(request, ranked[0].strategy, usable, possible)
    chosen = _alike(request, possible, readings) or possible[: request.gpus]
    fullest = min(chosen, key=lambda option: option.available_bytes or 0)
    names = {option.devices[0] for option in chosen}
    return replace(
        fullest,
        devices=tuple(name for name in readings if name in names),
        how=next((option.how for option in chosen if option.how), ""),
        stops=_unique(worker for option in chosen for worker in option.stops),
        parks=_unique(worker for option in chosen for worker in option.parks),
    )


def _ranked(request: PlacementRequest, options: Sequence[Option]) -> list[Option]:
    """Of those possible: the incumbents' own device (its caches are warm, and the others stay free for others),
    else the one with the most available, else the first named. Of those that fail: the one that lacks least."""
    own = {name for r in request.reservations if r.worker_id in request.incumbents for name in r.devices}

    def rank(option: Option) -> tuple[bool, bool, int]:
        lacks = option.available_bytes is None
        return (
            not option.possible,
            option.devices[0] not in own if option.possible else lacks,
            -(option.available_bytes or 0),
        )

    return sorted(options, key=rank)


def _may_be_one_of_several(reading: DeviceReading) -> bool:
    """CUDA gives a process one MIG slice at most, and the host's memory is one however it is budgeted."""
    return reading.kind is DeviceKind.NVML and not reading.uuid.startswith("MIG-")


def _alike(
    request: PlacementRequest, possible: Sequence[Option], readings: Mapping[str, DeviceReading]
) -> Sequence[Option] | None:
    """So many of one size, as the smallest decides for all of them; None: there are not as many. In place it is the
    incumbents' devices that count."""
    if possible[0].strategy is Strategy.IN_PLACE:
        return None
    sizes = [readings[option.devices[0]].total_bytes for option in possible]
    size = next((s for s in sizes if sizes.count(s) >= request.gpus), None)
    same = [option for option, its in zip(possible, sizes, strict=True) if its == size]
    return same[: request.gpus] if size is not None else None


def _too_few(
    request: PlacementRequest, strategy: Strategy, usable: Sequence[Option], possible: Sequence[Option]
) -> Option:
    spans = f"{strategy.value} impossible: {request.model} spans {request.gpus} GPUs"
    if len(usable) < request.gpus:
        names = tuple(option.devices[0] for option in usable) or (request.readings[0].name,)
        told = f"{spans}, and {f'only {both(names)}' if usable else 'none of its devices'} can be one of several"
        change = f"allow more whole GPUs with `devices` of [services.{request.service}]"
        return Option(strategy, names, "", None, VRAM_INSUFFICIENT, (change,), told=told)
    nearest = [option for option in usable if not option.possible][: request.gpus - len(possible)]
    has_room = both(option.devices[0] for option in possible)
    room = f"only {has_room} {'has' if len(possible) == 1 else 'have'} room" if possible else "not one has room"
    told = "; ".join([f"{spans}, and {room}", *(f"{option.devices[0]}: {option.reason}" for option in nearest)])
    changes = _unique(change for option in nearest for change in option.would_change)
    return replace(nearest[0], devices=tuple(o.devices[0] for o in nearest), told=told, would_change=changes)


# --- what else must be so in place -----------------------------------------------------------------------------------


def _with_outage(request: PlacementRequest, option: Option) -> Option:
    """In-place where memory allows it is still refused when clients would wait too long."""
    if not option.possible:
        return option
    limit_s, expected = request.max_outage_s, request.expected
    if limit_s is not None and limit_s <= 0:
        why = "in-place not allowed: max_outage is 0"
        return replace(
            option, told=why, refusal=OUTAGE_TOO_LONG, would_change=(f"raise max_outage of {request.service}",)
        )
    if limit_s is not None and expected.at_least_s > limit_s:
        outage = human_seconds(expected.at_least_s)
        why = f"in-place would take {outage_words(expected)}, max_outage is {human_seconds(limit_s)}"
        change = [f"raise max_outage of {request.service} to {outage}"]
        if expected.drain_s and expected.at_least_s - expected.drain_s <= limit_s:
            change.append("wait until fewer requests are open, or lower drain_timeout")
        return replace(option, told=why, refusal=OUTAGE_TOO_LONG, would_change=tuple(change))
    if expected.outage_s is None and limit_s is not None and request.outage_must_be_known:
        why = f"in-place may take longer than {human_seconds(limit_s)}: {request.model} was never loaded here"
        change = ["leave the limit away for the first time"]
        return replace(option, told=why, refusal=OUTAGE_TOO_LONG, would_change=tuple(change))
    if expected.outage_s is None:
        return replace(option, told=f"{option.why}; outage unknown, as {request.model} has not been loaded here before")
    return replace(option, told=f"{option.why}; expected outage {outage_words(expected)}")


def _with_way_back(request: PlacementRequest, option: Option) -> Option:
    """In-place the old model must be loaded again if the new one fails; where it cannot, only on an explicit wish."""
    if not option.possible or request.way_back or option.parks:
        return option
    names = both(request.name(w) for w in request.incumbents)
    gone = f"the files of {names} have changed since it was loaded, so it could not come back"
    if request.wish is Strategy.IN_PLACE:
        return replace(option, told=f"{option.why}; {gone}")
    change = ("put the old files back, or keep each version under a path of its own", "say --strategy in-place")
    return replace(option, told=f"in-place refused: {gone}", refusal=NO_WAY_BACK, would_change=change)


# --- small things -------------------------------------------------------------------------------------------


def _alternative(option: Option) -> Alternative:
    parks = bool(option.parks)
    return Alternative(option.strategy, option.possible, option.why, option.devices, option.available_bytes, parks)


def _here(request: PlacementRequest, workers: Sequence[str]) -> tuple[str, ...]:
    reserved = {r.worker_id for r in request.reservations}
    return tuple(w for w in workers if w in reserved)


def _unique(items: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(items))
