"""Whether a candidate fits on one device: beside what is there, or once the incumbents have parked or ended.

Pure and total, and one device at a time: which of them is taken, or which several, is `placement`'s to decide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from swapd.core.device_states import MAY_GO_BY_WHAT_IS_SAID
from swapd.core.errors import DEVICE_UNKNOWN, VRAM_INSUFFICIENT
from swapd.core.ledger import after_release, available_bytes, loads_of_unknown_size, on_device
from swapd.core.model import DeviceKind, DeviceReading, Footprint, FootprintSource, Reservation, Strategy
from swapd.core.outage import ExpectedTimes
from swapd.core.reasons import both, held_bytes, holders, what_makes_room
from swapd.core.sizes import human_bytes

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
    gpus: int = 1  # devices that one worker of the candidate spans, with as much needed on each
    can_park: bool = False
    parked_residue_bytes: int | None = None  # what an incumbent keeps on the device while parked, where measured
    model_of: tuple[tuple[str, str], ...] = ()  # worker id -> model, for the reasons

    def name(self, worker_id: str) -> str:
        model = self.model_behind(worker_id)
        return f"{model} ({worker_id})" if model != worker_id else worker_id

    def model_behind(self, worker_id: str) -> str:
        return next((model for worker, model in self.model_of if worker == worker_id), worker_id)

    def spots(self) -> list[Spot]:
        """Its devices, in the config's order. Hosts with many of both have them sorted once."""
        there: dict[str, list[Reservation]] = {reading.name: [] for reading in self.readings}
        for reservation in self.reservations:
            for name in reservation.devices:
                if name in there:
                    there[name].append(reservation)
        return [Spot(reading, tuple(there[reading.name])) for reading in self.readings]


@dataclass(frozen=True, slots=True)
class Spot:
    """One device, and what is reserved there."""

    reading: DeviceReading
    reservations: tuple[Reservation, ...]

    def workers(self, ids: Sequence[str]) -> list[Reservation]:
        return [r for r in self.reservations if r.worker_id in ids]


@dataclass(frozen=True, slots=True)
class Option:
    """One strategy on one device, or on as many as the model spans, judged."""

    strategy: Strategy
    devices: tuple[str, ...]
    reason: str
    available_bytes: int | None  # of several devices: on the one that has least
    refusal: str | None = None  # an error code; None: possible
    would_change: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    parks: tuple[str, ...] = ()
    how: str = ""  # what is done beforehand
    told: str = ""  # the whole sentence, where it is not the usual one

    @property
    def possible(self) -> bool:
        return self.refusal is None

    @property
    def why(self) -> str:
        where = both(self.devices)
        if self.possible:
            return self.told or f"{self.strategy.value} on {where}: {self.reason}{self.how}"
        return self.told or f"{self.strategy.value} impossible on {where}: {self.reason}"


def beside(request: PlacementRequest, spot: Spot, strategy: Strategy) -> Option:
    """Load while everything else on the device stays, but for what a swap stops in any case."""
    option = _fit(
        request, *after_release(spot.reading, spot.reservations, dict.fromkeys(request.retiring, 0)), strategy
    )
    first = _retired_words(request, spot)
    if first and not option.possible and option.available_bytes is not None:
        return replace(option, reason=f"{option.reason}, even once {first}")
    return replace(option, how=f", once {first}") if first else option


def _retired_words(request: PlacementRequest, spot: Spot) -> str:
    """What a swap stops on the device in any case, so that its memory counts as free."""
    return both(
        f"the soak of {request.name(w)} is ended"
        if w in request.soaking
        else f"{request.name(w)}, which takes no clients, is stopped"
        for w in (r.worker_id for r in spot.workers(request.retiring))
    )


def if_parked(request: PlacementRequest, spot: Spot) -> Option | None:
    """On the incumbents' device, as it is forecast to be once they are parked; None: that would not do."""
    here = spot.workers(request.incumbents)
    residues = {r.worker_id: kept for r in here if (kept := _residue_bytes(request, spot.reading, r)) is not None}
    # A candidate of unknown size needs the device to itself, so there parking is no help.
    if not request.can_park or len(residues) < len(here) or request.footprint.need_bytes is None:
        return None
    option = _without(request, spot, residues)
    return replace(option, how=f", by parking {_whom(request, spot, residues)}", parks=tuple(residues))


def if_stopped(request: PlacementRequest, spot: Spot) -> Option:
    """The same, once they have ended."""
    stopped = {r.worker_id: 0 for r in spot.workers(request.incumbents)}
    option = _without(request, spot, stopped)
    return replace(option, how=f", by stopping {_whom(request, spot, stopped)}", stops=tuple(stopped))


def _without(request: PlacementRequest, spot: Spot, residues: dict[str, int]) -> Option:
    retired = dict.fromkeys(request.retiring, 0)
    forecast = after_release(spot.reading, spot.reservations, {**retired, **residues})
    return _fit(request, *forecast, Strategy.IN_PLACE)


def _whom(request: PlacementRequest, spot: Spot, residues: dict[str, int]) -> str:
    first = _retired_words(request, spot)
    freed = _frees(spot.reading, spot.workers(request.incumbents), residues)
    return both(map(request.name, residues)) + freed + (f", once {first}" if first else "")


def _fit(
    request: PlacementRequest, reading: DeviceReading, reservations: Sequence[Reservation], strategy: Strategy
) -> Option:
    """Does the candidate fit on this device as it is, or is forecast to be?"""
    available = available_bytes(reading, reservations)
    need = request.footprint.need_bytes

    def no(why: str, change: tuple[str, ...], code: str = VRAM_INSUFFICIENT) -> Option:
        return Option(strategy, (reading.name,), why, available, code, change)

    if not reading.known:
        why = f"its memory is unknown ({reading.detail or 'no reading'})"
        change: tuple[str, ...] = (f"make the memory of {reading.name} readable",)
        if reading.state in MAY_GO_BY_WHAT_IS_SAID:
            change = (*change, f"say how much it has with `memory` of [devices.{reading.name}]")
        return no(why, change, DEVICE_UNKNOWN)
    if available is None:
        loading = loads_of_unknown_size(reading, reservations)[0].worker_id
        why = f"{request.name(loading)} is loading there; its size is unknown, so nothing is admitted beside it"
        declare = f"declare device_memory for {request.model_behind(loading)}"
        return no(why, (f"wait until {request.name(loading)} is ready", declare))
    if need is None:
        return _fit_unknown(request, reading, reservations, strategy, available)
    several = request.gpus > 1
    each = " on each" if several else ""
    what = f"{request.model} needs {human_bytes(need, up=True)}{each} ({request.footprint.source.value})"
    room = f"{human_bytes(max(0, available), down=True)} available"
    after = f" after {human_bytes(reading.headroom_bytes)} headroom"
    if available >= need:
        least = "at least " if several else ""
        return Option(strategy, (reading.name,), f"{what}, {least}{room}{each}{after}", available)
    room += after
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
) -> Option:
    """A model of unknown need may take anything: it is admitted only where no other worker could lose by it."""
    what = f"what {request.model} needs is unknown"
    others = on_device(reading, reservations)
    if available > 0 and not others:
        return Option(strategy, (reading.name,), f"{what}, and nothing else is reserved there", available)
    if others:
        names = both(request.name(r.worker_id) for r in others)
        why = f"{what}, so it must have the device to itself, and {names} {'is' if len(others) == 1 else 'are'} there"
    else:
        why = f"{what}, and nothing is available after {human_bytes(reading.headroom_bytes)} headroom"
    change = (f"declare device_memory for {request.model}",)
    return Option(strategy, (reading.name,), why, available, VRAM_INSUFFICIENT, change)


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
