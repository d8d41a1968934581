"""What is staged or parked in the host's memory is only put there where it has room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swapd.core.host_room import HEADROOM_BYTES, HostRoom

GIB = 1 << 30
SIZES = st.integers(0, 1 << 40)


def room(free_gib, **sizes_gib):
    return HostRoom(free_gib * GIB, **{f"{key}_bytes": size * GIB for key, size in sizes_gib.items()})


def test_both_where_there_is_room_for_both():
    assert (room(31, stage=14, park=16).stages, room(31, stage=14, park=16).parks) == (True, True)
    assert room(31, stage=14, park=16).words("b", "a") == ""


def test_staging_goes_first():
    short = room(20, stage=14, park=16)
    assert (short.stages, short.parks) == (True, False)
    told = "a is not parked, which takes 16.0 GiB: the host's memory has 20.0 GiB free, of which 1.0 GiB is headroom"
    assert short.words("b", "a") == told


def test_parking_where_there_is_no_room_to_stage():
    short = room(12, stage=14, park=8)
    assert (short.stages, short.parks) == (False, True)
    assert short.words("b", "a").startswith(
        "b is not staged, which takes 14.0 GiB: the host's memory has 12.0 GiB free"
    )


def test_unknown_memory_holds_nothing_but_what_is_there_already():
    unknown = HostRoom(None, GIB, GIB)
    assert (unknown.stages, unknown.parks) == (False, False)
    assert "b is not staged, which takes 1.0 GiB and a is not parked, which" in unknown.words("b", "a")
    assert (HostRoom(None).stages, HostRoom(None).parks, HostRoom(0).words("b", "a")) == (True, True, "")


@given(SIZES, SIZES, SIZES)
def test_what_is_done_is_never_more_than_there_is(free, stage, park):
    asked = HostRoom(free, stage, park)
    done = (stage if asked.stages else 0) + (park if asked.parks else 0)
    assert done == 0 or done <= free - HEADROOM_BYTES
    more = HostRoom(free + stage + park + HEADROOM_BYTES, stage, park)
    assert (more.stages, more.parks) == (True, True)
