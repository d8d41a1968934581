"""Placement: the ledger, the strategies, the reasons."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.errors import (
    DEVICE_UNKNOWN,
    MEMORY_NOT_RELEASED,
    OUTAGE_TOO_LONG,
    VRAM_INSUFFICIENT,
    Problem,
)
from swapd.core.ledger import after_release, overdrawn
from swapd.core.model import DeviceKind, DeviceReading, Footprint, FootprintSource, Reservation
from swapd.core.outage import ExpectedTimes, longest_drain_s
from swapd.core.placement import (
    Placement,
    PlacementRequest,
    Strategy,
    available_bytes,
    place,
    room_for,
)

MIB = 1 << 20
GIB = 1 << 30


def gpu(name="gpu0", total=24 * GIB, free=4 * GIB, used=(("chat-3", 20 * GIB),), headroom=GIB // 2, **more):
    return DeviceReading(name, more.pop("kind", DeviceKind.NVML), headroom, total, free, tuple(used), **more)


def held(worker="chat-3", size=20 * GIB, device="gpu0", settled=True, service="chat"):
    return Reservation(worker, service, device, size, settled)


def need(size, source=FootprintSource.DECLARED):
    return Footprint(size, source)


UNKNOWN_NEED = Footprint(None, FootprintSource.UNKNOWN)


def request(**changes):
    values = {
        "service": "chat",
        "model": "b",
        "footprint": need(6 * GIB),
        "readings": (gpu(),),
        "reservations": (held(),),
        "incumbents": ("chat-3",),
        "model_of": (("chat-3", "a"),),
        "expected": ExpectedTimes(drain_s=1.0, release_s=0.5, load_s=8.0, warm_s=0.5),
    }
    return PlacementRequest(**{**values, **changes})


def placed(**changes) -> Placement:
    answer = place(request(**changes))
    assert isinstance(answer, Placement), answer
    return answer


def refused(code, **changes) -> Problem:
    answer = place(request(**changes))
    assert isinstance(answer, Problem), answer
    assert answer.code == code
    return answer


# --- the ledger --------------------------------------------------------------------------------------------


def test_two_loads_in_flight_never_count_the_same_bytes():
    reading = gpu(free=24 * GIB, used=())
    first = held("x-1", 10 * GIB, settled=False)
    assert available_bytes(reading, ()) == 23.5 * GIB
    assert available_bytes(reading, (first,)) == 13.5 * GIB


def test_memory_already_taken_by_a_loading_worker_is_not_charged_twice():
    reading = gpu(free=18 * GIB, used=(("x-1", 6 * GIB),))
    assert available_bytes(reading, (held("x-1", 10 * GIB, settled=False),)) == 13.5 * GIB


def test_foreign_use_is_respected_though_nobody_reserved_it():
    assert available_bytes(gpu(free=5 * GIB, used=()), ()) == 4.5 * GIB


def test_promises_are_respected_though_the_memory_is_free_at_the_moment():
    reading = gpu(free=24 * GIB, used=(("chat-3", 0),))
    assert available_bytes(reading, (held(settled=True),)) == 3.5 * GIB


def test_a_worker_of_unknown_use_is_owed_its_reservation_until_it_is_settled():
    reading = gpu(free=14 * GIB, used=(("x-1", None),))
    assert available_bytes(reading, (held("x-1", 10 * GIB, settled=False),)) == 3.5 * GIB
    assert available_bytes(reading, (held("x-1", 10 * GIB, settled=True),)) == 13.5 * GIB


def test_nothing_is_admitted_beside_a_load_of_unknown_size():
    reading = gpu(free=20 * GIB, used=(("x-1", 4 * GIB),))
    assert available_bytes(reading, (held("x-1", None, settled=False),)) is None
    assert available_bytes(reading, (held("x-1", None, settled=True),)) == 19.5 * GIB


def test_an_unknown_reading_is_not_zero():
    assert available_bytes(gpu(total=None, free=None), ()) is None
    assert available_bytes(gpu(free=None), ()) is None


def test_reservations_on_other_devices_do_not_count():
    assert available_bytes(gpu(free=24 * GIB, used=()), (held(device="gpu1"),)) == 23.5 * GIB


def test_room_is_confirmed_only_once_it_is_measured():
    """In place: the candidate's own reservation does not stand in its way, the incumbent's memory does."""
    reservations = (held("chat-4", 6 * GIB, settled=False),)
    waiting = room_for(gpu(used=()), reservations, "chat-4")
    assert waiting is not None
    assert waiting.code == MEMORY_NOT_RELEASED
    assert "3.5 GiB available" in waiting.message
    assert room_for(gpu(free=23 * GIB, used=()), reservations, "chat-4") is None


def test_a_parked_worker_that_wakes_needs_only_what_it_has_not_kept():
    waking = held(size=23 * GIB, settled=False)
    assert room_for(gpu(free=23 * GIB, used=[("chat-3", GIB)]), (waking,), "chat-3") is None
    assert room_for(gpu(free=22 * GIB, used=[("chat-3", GIB)]), (waking,), "chat-3") is not None


def test_the_way_back_is_not_kept_from_the_worker_that_it_leads_back_from():
    kept = held("return of chat", 7 * GIB)
    parked, mine = held(size=None), held("chat-4", 16 * GIB, settled=False)
    reading = gpu(free=23 * GIB, used=[("chat-3", GIB)])
    assert room_for(reading, (parked, mine, kept), "chat-4") is None
    others = held("embed-5", 16 * GIB, settled=False, service="embed")
    assert room_for(reading, (parked, others, kept), "embed-5") is not None


def test_room_is_not_confirmed_on_a_guess():
    gone = gpu(total=None, free=None, used=(), detail="the GPU is lost")
    problem = room_for(gone, (held("chat-4", GIB, settled=False),), "chat-4")
    assert problem is not None
    assert problem.code == DEVICE_UNKNOWN
    assert "the GPU is lost" in problem.message


def test_a_candidate_of_unknown_size_waits_until_it_is_alone():
    mine = held("chat-4", None, settled=False)
    assert room_for(gpu(), (held(), mine), "chat-4") is not None
    assert room_for(gpu(free=24 * GIB, used=()), (mine,), "chat-4") is None


# --- strategies --------------------------------------------------------------------------------------------


def test_dual_where_both_fit():
    answer = placed(footprint=need(3 * GIB))
    assert (answer.strategy, answer.device, answer.expected_outage_s) == (Strategy.DUAL, "gpu0", 0.0)
    assert answer.stops == answer.parks == ()
    assert answer.would_change == ()
    assert answer.alternatives[0].strategy is Strategy.IN_PLACE
    assert answer.alternatives[0].possible


def test_in_place_where_only_one_fits_with_the_reason_in_figures():
    answer = placed()
    assert answer.strategy is Strategy.IN_PLACE
    assert answer.stops == ("chat-3",)
    assert answer.expected_outage_s == pytest.approx(10.0)
    dual = answer.alternatives[0]
    assert not dual.possible
    assert dual.why == (
        "dual impossible on gpu0: a (chat-3) holds 20.0 of 24.0 GiB; b needs 6.0 GiB (declared),"
        " 3.5 GiB available after 512 MiB headroom"
    )
    assert answer.why.startswith(dual.why)
    assert answer.would_change == ("free 2.5 GiB on gpu0",)


def test_a_need_of_one_byte_more_than_there_is_does_not_fit():
    available = available_bytes(gpu(), (held(),))
    assert placed(footprint=need(available)).strategy is Strategy.DUAL
    assert placed(footprint=need(available + 1)).strategy is Strategy.IN_PLACE


def test_the_incumbent_is_parked_where_that_is_enough():
    answer = placed(can_park=True, parked_residue_bytes=GIB)
    assert (answer.stops, answer.parks) == ((), ("chat-3",))
    answer = placed(can_park=True, parked_residue_bytes=GIB, footprint=need(23 * GIB))
    assert (answer.stops, answer.parks) == (("chat-3",), ())


def test_an_unmeasured_parked_worker_is_taken_to_keep_2_gib_on_a_gpu():
    assert placed(can_park=True, footprint=need(int(21.5 * GIB))).parks == ("chat-3",)
    assert placed(can_park=True, footprint=need(int(21.5 * GIB) + 1)).stops == ("chat-3",)


def test_a_parked_incumbent_stays_in_the_ledger():
    """It may have taken less than its residue so far, and be about to."""
    reading = gpu(free=23 * GIB, used=(("chat-3", GIB),))
    answer = placed(readings=(reading,), can_park=True, footprint=need(int(21.5 * GIB)), wish=Strategy.IN_PLACE)
    assert answer.parks == ("chat-3",)
    answer = placed(readings=(reading,), can_park=True, footprint=need(int(22.5 * GIB)), wish=Strategy.IN_PLACE)
    assert answer.stops == ("chat-3",)


def test_parking_is_not_counted_on_where_the_device_is_the_hosts_memory():
    host = gpu("ram", kind=DeviceKind.HOST)
    answer = placed(readings=(host,), reservations=(held(device="ram"),), can_park=True)
    assert answer.stops == ("chat-3",)


def test_parking_an_incumbent_of_unknown_use_counts_its_residue():
    answer = placed(readings=(gpu(used=(("chat-3", None),)),), can_park=True, footprint=need(22 * GIB))
    assert answer.stops == ("chat-3",)


def test_refused_when_not_even_an_empty_device_would_do():
    problem = refused(VRAM_INSUFFICIENT, footprint=need(30 * GIB))
    assert problem.details["would_change"] == ["a device with at least 30.5 GiB"]
    assert problem.details["need_bytes"] == 30 * GIB
    assert problem.details["devices"][0]["available_bytes"] == int(3.5 * GIB)


def test_the_incumbent_is_forecast_to_free_its_reservation_where_its_use_is_unknown():
    assert placed(readings=(gpu(used=(("chat-3", None),)),)).strategy is Strategy.IN_PLACE


def test_another_service_is_named_as_what_could_be_stopped():
    reading = gpu(free=2 * GIB, used=(("chat-3", 4 * GIB), ("other-1", 18 * GIB)))
    reservations = (held(size=4 * GIB), held("other-1", 18 * GIB, service="other"))
    problem = refused(VRAM_INSUFFICIENT, readings=(reading,), reservations=reservations)
    assert "stop other-1 of other (frees 18.0 GiB)" in problem.details["would_change"]
    assert problem.details["would_change"][-1].startswith("free ")
    assert not any("stop a" in change for change in problem.details["would_change"])


def test_foreign_use_is_named():
    problem = refused(VRAM_INSUFFICIENT, incumbents=(), reservations=(), readings=(gpu(free=4 * GIB, used=()),))
    assert "20.0 GiB is held outside swapd" in problem.message


def test_memory_that_is_free_but_promised_is_not_said_to_be_freed_but_which_setting_to_change():
    reading = gpu(free=24 * GIB, used=(("other-1", 0),))
    problem = refused(
        VRAM_INSUFFICIENT,
        incumbents=(),
        readings=(reading,),
        reservations=(held("other-1", 18 * GIB, service="other", settled=False),),
        footprint=need(10 * GIB),
        model_of=(("other-1", "c"),),
    )
    assert "is promised 18.0 of 24.0 GiB" in problem.message
    assert problem.details["would_change"] == [
        "stop c (other-1) of other (frees 18.0 GiB)",
        "declare device_memory of at most 13.5 GiB for c (18.0 GiB is promised to it, of which it holds 0 B)",
    ]


def test_promises_that_only_together_leave_room_are_named_together():
    reading = gpu(free=20 * GIB, used=(("chat-3", 2 * GIB), ("other-1", 2 * GIB)))
    reservations = (held("chat-3", 11 * GIB), held("other-1", 11 * GIB, service="other"))
    names = (("chat-3", "a"), ("other-1", "c"))
    problem = refused(
        VRAM_INSUFFICIENT,
        wish=Strategy.DUAL,
        readings=(reading,),
        reservations=reservations,
        footprint=need(19 * GIB),
        model_of=names,
    )
    assert "declare a smaller device_memory for a and c, 17.5 GiB less in all" in problem.details["would_change"]


def test_what_a_soak_keeps_for_the_way_back_is_not_taken_for_a_worker():
    kept = Reservation("return of other", "other", "gpu0", 18 * GIB, settled=True)
    reading = gpu(free=24 * GIB, used=())
    problem = refused(
        VRAM_INSUFFICIENT, incumbents=(), readings=(reading,), reservations=(kept,), footprint=need(10 * GIB)
    )
    assert problem.details["would_change"][0] == "wait for the end of other's swap (frees 18.0 GiB)"
    assert not any("return of" in change for change in problem.details["would_change"])


def test_an_estimate_may_be_overruled_by_a_declaration():
    problem = refused(VRAM_INSUFFICIENT, wish=Strategy.DUAL, footprint=need(6 * GIB, FootprintSource.ESTIMATED))
    hint = "declare device_memory for b if it needs no more than 3.5 GiB"
    assert hint in problem.details["would_change"]


# --- wishes and outages ------------------------------------------------------------------------------------


def test_a_wish_for_dual_is_refused_where_memory_does_not_allow_it():
    problem = refused(VRAM_INSUFFICIENT, wish=Strategy.DUAL)
    assert "--strategy in-place is possible" in problem.message


def test_a_wish_for_in_place_is_followed_though_dual_would_fit():
    answer = placed(wish=Strategy.IN_PLACE, footprint=need(3 * GIB))
    assert answer.strategy is Strategy.IN_PLACE
    assert answer.alternatives[0].possible


def test_max_outage_0_means_never_in_place():
    problem = refused(OUTAGE_TOO_LONG, max_outage_s=0)
    assert "max_outage is 0" in problem.message
    assert "raise max_outage of chat" in problem.details["would_change"]
    assert placed(max_outage_s=0, footprint=need(GIB)).strategy is Strategy.DUAL


def test_an_expected_outage_over_the_limit_is_refused():
    problem = refused(OUTAGE_TOO_LONG, max_outage_s=9.0)
    assert problem.details["expected_outage_s"] == pytest.approx(10.0)
    assert placed(max_outage_s=10.0).strategy is Strategy.IN_PLACE


def test_what_is_known_of_an_outage_is_enough_to_refuse_it():
    refused(OUTAGE_TOO_LONG, max_outage_s=9.0, expected=ExpectedTimes(drain_s=20.0))


def test_an_unknown_load_time_is_said_and_not_taken_for_zero():
    answer = placed(expected=ExpectedTimes(drain_s=1.0), max_outage_s=9.0)
    assert answer.expected_outage_s is None
    assert "outage unknown" in answer.why


def test_too_little_memory_outweighs_too_long_an_outage():
    refused(VRAM_INSUFFICIENT, max_outage_s=0, footprint=need(30 * GIB))


# --- first starts, soaks, unknown needs, several devices ----------------------------------------------------


def test_a_first_start_has_nothing_to_replace():
    answer = placed(incumbents=(), reservations=(), readings=(gpu(free=23 * GIB, used=()),))
    assert (answer.strategy, answer.stops, answer.alternatives) == (Strategy.START, (), ())


def test_a_new_swap_counts_on_the_end_of_the_soak():
    reading = gpu(free=4 * GIB, used=(("chat-2", 10 * GIB), ("chat-3", 10 * GIB)))
    reservations = (held("chat-2", 10 * GIB), held("chat-3", 10 * GIB))
    answer = placed(readings=(reading,), reservations=reservations, retiring=("chat-2",), soaking=("chat-2",))
    assert (answer.strategy, answer.stops) == (Strategy.DUAL, ("chat-2",))
    assert answer.why.endswith("once the soak of chat-2 is ended")
    answer = placed(readings=(reading,), reservations=reservations, retiring=("chat-2",))
    assert answer.why.endswith("once chat-2, which takes no clients, is stopped")


def test_the_end_of_the_soak_is_told_also_where_it_does_not_make_room_enough():
    reading = gpu(free=4 * GIB, used=(("chat-2", 5 * GIB), ("chat-3", 15 * GIB)))
    reservations = (held("chat-2", 5 * GIB), held("chat-3", 15 * GIB))
    soak = {"retiring": ("chat-2",), "soaking": ("chat-2",)}
    answer = placed(readings=(reading,), reservations=reservations, footprint=need(10 * GIB), **soak)
    assert answer.strategy is Strategy.IN_PLACE
    assert "8.5 GiB available after 512 MiB headroom, even once the soak of chat-2 is ended;" in answer.why
    assert "by stopping a (chat-3) (frees 15.0 GiB), once the soak of chat-2 is ended; expected outage" in answer.why


def test_a_worker_that_holds_less_than_it_was_promised_is_not_said_to_hold_all_of_it():
    answer = placed(readings=(gpu(used=(("chat-3", 19 * GIB),)),), reservations=(held(),))
    assert "a (chat-3) is promised 20.0 of 24.0 GiB" in answer.why


def test_a_need_that_is_unknown_is_admitted_only_alone():
    empty = gpu("gpu1", free=24 * GIB, used=())
    assert placed(footprint=UNKNOWN_NEED, readings=(gpu(), empty)).device == "gpu1"
    in_place = placed(footprint=UNKNOWN_NEED, can_park=True)
    assert (in_place.strategy, in_place.stops, in_place.parks) == (Strategy.IN_PLACE, ("chat-3",), ())
    neighbour = held("other-1", GIB, service="other")
    problem = refused(VRAM_INSUFFICIENT, footprint=UNKNOWN_NEED, reservations=(held(), neighbour))
    assert "declare device_memory for b" in problem.details["would_change"]


def test_nothing_is_planned_beside_a_load_of_unknown_size_and_it_is_said():
    reservations = (held(), held("other-1", None, settled=False, service="other"))
    problem = refused(VRAM_INSUFFICIENT, footprint=need(GIB), reservations=reservations)
    assert "other-1 is loading there; its size is unknown" in problem.message


def test_nothing_is_planned_where_memory_is_unknown():
    problem = refused(DEVICE_UNKNOWN, readings=(gpu(total=None, free=None, detail="the GPU is lost"),))
    assert "the GPU is lost" in problem.message
    refused(DEVICE_UNKNOWN, readings=())


def test_another_device_is_used_where_the_incumbents_cannot_be_read():
    answer = placed(readings=(gpu(total=None, free=None), gpu("gpu1", free=24 * GIB, used=())))
    assert (answer.strategy, answer.device) == (Strategy.DUAL, "gpu1")


def test_the_incumbents_device_is_preferred_for_dual_else_the_roomiest():
    others = (gpu("gpu1", free=10 * GIB, used=()), gpu("gpu2", free=20 * GIB, used=()))
    assert placed(readings=(*others, gpu()), footprint=need(GIB)).device == "gpu0"
    assert placed(readings=(*others, gpu())).device == "gpu2"


def test_an_incumbent_outside_the_allowed_devices_cannot_make_room():
    problem = refused(VRAM_INSUFFICIENT, readings=(gpu("gpu1", free=GIB, used=()),))
    assert "holds nothing on gpu1 but on gpu0" in problem.message


# --- properties --------------------------------------------------------------------------------------------

sizes = st.integers(0, 40).map(lambda quarters: quarters * GIB // 4)
maybe_sizes = st.one_of(st.none(), sizes)


@st.composite
def requests(draw):
    readings, reservations = [], []
    names = [f"gpu{index}" for index in range(draw(st.integers(1, 3)))]
    for index, name in enumerate(names):
        used = []
        for slot in range(draw(st.integers(0, 3))):
            worker = f"w{index}{slot}"
            service = draw(st.sampled_from(["chat", "other"]))
            others = tuple(n for n in names if n != name and draw(st.integers(0, 3)) == 0)
            reservations.append(Reservation(worker, service, name, draw(maybe_sizes), draw(st.booleans()), others))
            if draw(st.booleans()):
                used.append((worker, draw(maybe_sizes)))
        total, free = draw(maybe_sizes), draw(maybe_sizes)
        if total is not None and free is not None:
            free = min(free, total)
        readings.append(DeviceReading(name, DeviceKind.NVML, draw(sizes) // 8, total, free, tuple(used)))
    own = [r.worker_id for r in reservations if r.service == "chat"]
    split = draw(st.integers(0, len(own)))
    size = draw(maybe_sizes)
    return PlacementRequest(
        service="chat",
        model="b",
        footprint=Footprint(size, FootprintSource.UNKNOWN if size is None else FootprintSource.DECLARED),
        readings=tuple(readings),
        reservations=tuple(reservations),
        incumbents=tuple(own[:split]),
        retiring=tuple(own[split:]),
        wish=draw(st.sampled_from([Strategy.AUTO, Strategy.DUAL, Strategy.IN_PLACE])),
        max_outage_s=draw(st.one_of(st.none(), st.floats(0, 20))),
        expected=ExpectedTimes(load_s=draw(st.one_of(st.none(), st.floats(0, 20)))),
        gpus=draw(st.sampled_from([1, 1, 2, 3])),
        can_park=draw(st.booleans()),
        parked_residue_bytes=draw(maybe_sizes),
    )


def chosen(asked: PlacementRequest, answer: Placement):
    """The readings of the devices that the answer names: as many as were asked for."""
    found = [r for r in asked.readings if r.name in answer.devices]
    assert [r.name for r in found] == list(answer.devices), "in the configuration's order"
    assert len(found) == asked.gpus
    return found


def forecast(asked: PlacementRequest, answer: Placement):
    """Its devices, each with the reservations there, once all that the answer counts on has happened."""
    residue = 2 * GIB if asked.parked_residue_bytes is None else asked.parked_residue_bytes
    residues = {**dict.fromkeys(answer.stops, 0), **dict.fromkeys(answer.parks, residue)}
    for reading in chosen(asked, answer):
        after, kept = after_release(reading, asked.reservations, residues)
        yield after, [r for r in kept if after.name in r.devices]


@given(requests())
def test_placement_answers_every_request_the_same_way_twice(asked):
    assert place(asked) == place(asked)


@given(requests())
def test_placement_never_admits_more_than_there_is(asked):
    answer = place(asked)
    if not isinstance(answer, Placement):
        return
    for reading, kept in forecast(asked, answer):
        assert reading.known
        wanted = answer.need_bytes or 0
        promised = sum(r.bytes or 0 for r in kept)
        assert promised + wanted + reading.headroom_bytes <= reading.total_bytes
        assert wanted + reading.headroom_bytes <= reading.free_bytes
        assert answer.need_bytes is not None or not kept


@given(requests())
def test_what_beside_means_is_decided_on_what_is_free_now(asked):
    """Without anything to release, free memory as measured must suffice: no forecast takes part."""
    answer = place(replace(asked, retiring=(), wish=Strategy.DUAL))
    if isinstance(answer, Placement):
        for reading in chosen(asked, answer):
            assert (answer.need_bytes or 0) + reading.headroom_bytes <= reading.free_bytes


@given(requests(), sizes)
def test_a_second_placement_never_gets_the_first_ones_bytes(asked, second_need):
    first = place(asked)
    if not isinstance(first, Placement):
        return
    reserved = Reservation("new-1", "chat", first.device, first.need_bytes, others=first.devices[1:])
    for reading, kept in forecast(asked, first):
        second = place(
            PlacementRequest("other", "c", need(second_need), (reading,), (*kept, reserved), wish=Strategy.AUTO)
        )
        if isinstance(second, Placement):
            assert first.need_bytes is not None, "nothing is admitted beside a load of unknown size"
            both = first.need_bytes + second_need + reading.headroom_bytes
            assert both <= reading.free_bytes
            assert both + sum(r.bytes or 0 for r in kept) <= reading.total_bytes


@given(requests(), st.integers(0, 2), sizes)
def test_more_free_memory_never_turns_a_yes_into_a_no(asked, which, more):
    index = which % len(asked.readings)
    reading = asked.readings[index]
    if not reading.known:
        return
    richer = replace(reading, free_bytes=min(reading.total_bytes, reading.free_bytes + more))
    readings = tuple(richer if i == index else r for i, r in enumerate(asked.readings))
    before, after = place(asked), place(replace(asked, readings=readings))
    if isinstance(before, Placement):
        assert isinstance(after, Placement)
        assert not (before.strategy is Strategy.DUAL and after.strategy is Strategy.IN_PLACE)


@given(requests())
def test_a_refusal_says_why_and_what_was_needed(asked):
    answer = place(asked)
    if isinstance(answer, Problem):
        assert answer.code in (VRAM_INSUFFICIENT, DEVICE_UNKNOWN, OUTAGE_TOO_LONG)
        assert answer.message.endswith(".")
        assert {"need_bytes", "devices"} <= set(answer.details)


@given(requests())
def test_a_placement_explains_itself(asked):
    answer = place(asked)
    if not isinstance(answer, Placement):
        return
    assert f"{answer.strategy.value} on {' and '.join(answer.devices)}: " in answer.why
    assert "b needs" in answer.why or "what b needs is unknown" in answer.why
    for worker in (*answer.parks, *(w for w in answer.stops if w in asked.incumbents)):
        assert worker in answer.why, "who makes room is named"
    assert all(a.why for a in answer.alternatives)


# --- what an outage may cost, and the way back ---------------------------------------------------------------


FULL = {"footprint": need(20 * GIB)}


def test_an_outage_that_is_not_known_is_refused_only_where_a_limit_was_asked_for():
    unknown = {**FULL, "max_outage_s": 60.0, "expected": ExpectedTimes()}
    assert "outage unknown" in placed(**unknown).why
    problem = refused("OUTAGE_TOO_LONG", **unknown, outage_must_be_known=True)
    assert "may take longer than 60 s" in problem.message
    assert "leave the limit away" in problem.message


def test_what_open_requests_may_still_take_counts_and_is_told():
    expected = ExpectedTimes(drain_s=60.0, release_s=0.5, load_s=8.0, warm_s=0.5)
    assert "at most 69 s, 60 s of it for open requests" in placed(**FULL, expected=expected).why
    problem = refused("OUTAGE_TOO_LONG", **FULL, expected=expected, max_outage_s=30.0)
    assert "fewer requests are open" in problem.message


def test_an_outage_without_a_known_release_says_so():
    told = "expected outage 8.5 s, not counting the release (not known yet)"
    assert told in placed(**FULL, expected=ExpectedTimes(drain_s=0.0, load_s=8.0, warm_s=0.5)).why
    known = ExpectedTimes(drain_s=0.0, release_s=0.5, load_s=8.0, warm_s=0.5)
    assert placed(**FULL, expected=known).why.endswith("expected outage 9 s")


def test_in_place_without_a_way_back_takes_an_explicit_wish():
    problem = refused("NO_WAY_BACK", **FULL, way_back=False)
    assert "keep each version under a path of its own" in problem.message
    assert "could not come back" in placed(**FULL, way_back=False, wish=Strategy.IN_PLACE).why
    assert placed(way_back=False, footprint=need(GIB)).strategy is Strategy.DUAL, "beside it nothing is lost"


@pytest.mark.parametrize(
    ("stats", "seconds"),
    [
        ({}, None),
        ({"in_flight": None}, None),
        ({"in_flight": 0, "streams": 0, "oldest_in_flight_s": 0.0}, 0.0),
        ({"in_flight": 2, "streams": 0, "oldest_in_flight_s": 1.5}, 1.5),
        ({"in_flight": 2, "streams": 0, "oldest_in_flight_s": 150}, 60.0),
        ({"in_flight": 1, "streams": 1, "oldest_in_flight_s": 0.1}, 60.0),
        ({"in_flight": 0, "streams": 0, "upgraded": 1}, 60.0),
    ],
)
def test_how_long_open_requests_may_still_take(stats, seconds):
    assert longest_drain_s(stats, 60.0) == seconds


# --- after the load ------------------------------------------------------------------------------------------


def test_taking_more_than_planned_is_let_be_while_everybody_finds_their_own():
    mine, other = held("b-4", 6 * GIB, settled=False), held("chat-3", 10 * GIB)
    fits = gpu(free=6 * GIB, used=(("b-4", 8 * GIB), ("chat-3", 10 * GIB)))
    assert overdrawn(fits, (mine, other), "b-4") is None
    too_much = gpu(free=0, used=(("b-4", 15 * GIB), ("chat-3", 9 * GIB)))
    problem = overdrawn(too_much, (mine, other), "b-4")
    assert problem is not None
    assert problem.code == "VRAM_INSUFFICIENT"
    assert problem.details["lacks_bytes"] == 1 * GIB
    assert 'device_memory = "15360MiB"' in problem.message
    assert "1.0 GiB of that are promised to others" in problem.message
    assert overdrawn(gpu(used=(("b-4", None),)), (mine, other), "b-4") is None, "not known is not too much"


def test_a_model_alone_that_takes_more_than_there_is_has_not_taken_it_from_others():
    budget = gpu(total=24 * GIB, free=0, used=(("b-4", 25 * GIB),))
    problem = overdrawn(budget, (Reservation("b-4", "chat", "gpu0", 10 * GIB),), "b-4")
    assert problem is not None
    assert "others" not in problem.message
    assert "that is 1.0 GiB more than gpu0 has for it" in problem.message
