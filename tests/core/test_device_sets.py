"""Models that span several devices: which ones are taken, what is promised on each, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swapd.core.draft import Draft
from swapd.core.errors import MEMORY_NOT_RELEASED, VRAM_INSUFFICIENT, Problem
from swapd.core.fitting import PlacementRequest
from swapd.core.footprint import Learned, WeightsSummary, estimate
from swapd.core.ledger import available_bytes, most_used, room_for
from swapd.core.model import (
    DeviceKind,
    DeviceReading,
    Footprint,
    FootprintSource,
    Kind,
    Reservation,
    Slot,
    State,
    Strategy,
    Worker,
)
from swapd.core.outage import ExpectedTimes
from swapd.core.placement import Placement, place
from swapd.core.states import WorkerState
from swapd.wire import saved

GIB = 1 << 30


def gpu(number, free=24, total=24, uuid=None, **more):
    uuid = uuid or f"GPU-{number}"
    return DeviceReading(f"gpu{number}", DeviceKind.NVML, GIB // 2, total * GIB, free * GIB, uuid=uuid, **more)


def request(*readings, need=10, gpus=2, **more):
    footprint = Footprint(need * GIB if need else None, FootprintSource.DECLARED if need else FootprintSource.UNKNOWN)
    expected = ExpectedTimes(drain_s=1.0, release_s=0.5, load_s=8.0, warm_s=0.5)
    values = {"reservations": (), "expected": expected, **more}
    return PlacementRequest("chat", "b", footprint, readings, gpus=gpus, **values)


def placed(*args, **more) -> Placement:
    answer = place(request(*args, **more))
    assert isinstance(answer, Placement), answer
    return answer


def refused(*args, **more) -> Problem:
    answer = place(request(*args, **more))
    assert isinstance(answer, Problem), answer
    assert answer.code == VRAM_INSUFFICIENT
    return answer


def incumbent(*devices, size=10):
    return Reservation("chat-3", "chat", devices[0], size * GIB, True, devices[1:])


def test_the_devices_with_most_room_are_taken_and_told_in_the_configurations_order():
    answer = placed(gpu(0, free=12), gpu(1, free=11), gpu(2, free=20))
    assert answer.devices == ("gpu0", "gpu2")
    assert answer.why == (
        "start on gpu0 and gpu2: b needs 10.0 GiB on each (declared), at least 11.5 GiB available on each"
        " after 512 MiB headroom"
    )


def test_devices_of_one_size_are_preferred_but_not_required():
    assert placed(gpu(0, 80, 80), gpu(1), gpu(2, 23)).devices == ("gpu1", "gpu2")
    assert placed(gpu(0, 80, 80), gpu(1), gpu(2, free=3)).devices == ("gpu0", "gpu1")


def test_one_device_with_room_is_too_few():
    answer = refused(gpu(0), gpu(1, free=4), gpu(2, free=8))
    assert "start impossible: b spans 2 GPUs, and only gpu0 has room; gpu2: " in answer.message
    assert "b needs 10.0 GiB on each (declared), 7.5 GiB available" in answer.message
    assert "gpu1: " not in answer.message, "the nearest miss is told"
    assert "free 2.5 GiB on gpu2" in answer.message


def test_slices_and_the_hosts_memory_cannot_be_one_of_several():
    part = gpu(1, uuid="MIG-1")
    host = DeviceReading("ram", DeviceKind.HOST, 0, 64 * GIB, 64 * GIB)
    answer = refused(gpu(0), part, host)
    assert "b spans 2 GPUs, and only gpu0 can be one of several" in answer.message
    assert "allow more whole GPUs with `devices` of [services.chat]" in answer.message
    assert "none of its devices can be one of several" in refused(part, host).message


def test_what_is_promised_is_promised_on_each_device():
    held = Reservation("chat-3", "chat", "gpu0", 10 * GIB, False, ("gpu1",))
    for reading in (gpu(0), gpu(1)):
        assert available_bytes(reading, (held,)) == 13.5 * GIB
    assert available_bytes(gpu(2), (held,)) == 23.5 * GIB
    full = gpu(1, free=6)
    assert room_for(gpu(0), (held,), "chat-3") is None
    problem = room_for(full, (held,), "chat-3")
    assert problem is not None
    assert problem.code == MEMORY_NOT_RELEASED


def test_in_place_where_the_incumbent_spans_the_same_devices():
    readings = [gpu(n, free=14, used_by=(("chat-3", 10 * GIB),)) for n in range(2)]
    more = {"reservations": (incumbent("gpu0", "gpu1"),), "incumbents": ("chat-3",), "model_of": (("chat-3", "a"),)}
    assert placed(*readings, **more).strategy is Strategy.DUAL
    answer = placed(*readings, need=20, **more)
    assert (answer.strategy, answer.devices, answer.stops) == (Strategy.IN_PLACE, ("gpu0", "gpu1"), ("chat-3",))
    assert "dual impossible: b spans 2 GPUs, and not one has room" in answer.why
    assert "in-place on gpu0 and gpu1: b needs 20.0 GiB on each" in answer.why
    assert "by stopping a (chat-3) (frees 10.0 GiB)" in answer.why
    parks = placed(*readings, need=18, can_park=True, **more)
    assert (parks.parks, parks.stops) == (("chat-3",), ())
    assert not placed(*readings, need=22, can_park=True, **more).parks, "2 GiB are kept on each while parked"


def test_in_place_takes_others_beside_the_incumbents_own():
    readings = [gpu(0, free=14, used_by=(("chat-3", 10 * GIB),)), gpu(1, free=3), gpu(2)]
    more = {"reservations": (incumbent("gpu0"),), "incumbents": ("chat-3",)}
    answer = placed(*readings, need=20, **more)
    assert (answer.strategy, answer.devices, answer.stops) == (Strategy.IN_PLACE, ("gpu0", "gpu2"), ("chat-3",))
    assert "spans 2 GPUs" in refused(*readings[:2], need=20, **more).message


def test_a_model_for_one_device_goes_where_one_that_spans_two_lets_go():
    readings = [gpu(n, free=4, used_by=(("chat-3", 20 * GIB),)) for n in range(2)]
    answer = placed(*readings, need=20, gpus=1, reservations=(incumbent("gpu0", "gpu1"),), incumbents=("chat-3",))
    assert (answer.strategy, answer.devices) == (Strategy.IN_PLACE, ("gpu0",))


def test_an_unknown_need_takes_devices_of_which_each_is_its_own():
    assert placed(gpu(0), gpu(1), need=None).devices == ("gpu0", "gpu1")
    held = Reservation("x-1", "x", "gpu1", GIB, True)
    assert "must have the device to itself" in refused(gpu(0), gpu(1), need=None, reservations=(held,)).message


def test_the_most_that_is_held_on_one_of_its_devices_counts():
    readings = [gpu(0, used_by=(("w", 3),)), gpu(1, used_by=(("w", 5),))]
    assert most_used(readings, "w") == 5
    assert most_used([*readings, gpu(2)], "w") is None, "unknown on one: unknown"
    assert most_used([], "w") is None


def test_an_estimate_is_of_the_part_on_one_device():
    weights = WeightsSummary(40 * GIB, 4)
    alone, shared = (estimate(weights, None, None, DeviceKind.NVML, cache_bytes=4 * GIB, gpus=n) for n in (1, 4))
    assert alone.need_bytes == 48 * GIB + GIB // 2
    assert shared.need_bytes == 12 * GIB + GIB // 2, "the overhead comes on each"
    assert "among 4 GPUs" in shared.detail
    assert estimate(weights, 20 * GIB, None, DeviceKind.NVML, gpus=4).need_bytes == 20 * GIB
    assert estimate(weights, None, Learned(20 * GIB), DeviceKind.NVML, gpus=4).need_bytes == 21 * GIB


@pytest.mark.parametrize(
    ("left", "taken", "kept"),
    [
        (("gpu0",), ("gpu0",), [("gpu0", 4)]),
        (("gpu0", "gpu1"), ("gpu0", "gpu1"), [("gpu0", 4), ("gpu1", 4)]),
        (("gpu0", "gpu1"), ("gpu0",), [("gpu0", 4), ("gpu1", 10)]),
        (("gpu0",), ("gpu0", "gpu1"), [("gpu0", 4)]),
        (("gpu0", "gpu1"), ("gpu2",), [("gpu0", 10), ("gpu1", 10)]),
    ],
)
def test_what_the_way_back_needs_beyond_the_successor_is_kept_on_every_device(left, taken, kept):
    draft = Draft(State(), 0.0)
    worker = Worker("chat-4", "chat", Kind.DIRECT, 2, WorkerState.SPAWNED)
    was, is_now = (Slot(d[0], size * GIB, others=d[1:]) for d, size in ((left, 10), (taken, 6)))
    draft.keep_for_return(worker, is_now, was)
    found = [(name, (r.bytes or 0) // GIB) for r in draft.reservations.values() for name in r.devices]
    assert sorted(found) == kept
    assert all(r.for_return and r.settled for r in draft.reservations.values())
    draft.keep_nothing_for_return("other")
    assert draft.reservations
    draft.keep_nothing_for_return("chat")
    assert not draft.reservations


def test_a_journal_of_before_knows_one_device():
    assert saved.load(Slot, '{"device": "gpu0", "need_bytes": 5}').devices == ("gpu0",)
    held = saved.load(Reservation, '{"worker_id": "w", "service": "s", "device": "gpu0", "bytes": 5}')
    assert held.devices == ("gpu0",)
    slot = Slot("gpu0", 5, others=("gpu1",))
    assert saved.load(Slot, saved.dump(slot)) == slot
    assert slot.promise("w", "s") == replace(held, others=("gpu1",))
