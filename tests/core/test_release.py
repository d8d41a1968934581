"""What did not come back after a worker has gone or parked, by two readings."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from swapd.core.errors import MEMORY_NOT_RELEASED, Problem
from swapd.core.model import DeviceKind, DeviceReading
from swapd.core.release import not_back, not_released

GIB = 1 << 30
TOTAL = 24 * GIB


def reading(free, used=(), foreign=(), name="gpu0"):
    return DeviceReading(name, DeviceKind.NVML, 0, TOTAL, free, tuple(used), tuple(foreign))


BEFORE = reading(4 * GIB, [("a-1", 20 * GIB)])


def test_all_came_back():
    assert not_back({"a-1": BEFORE}, reading(TOTAL)) is None


def test_where_it_cannot_be_told_who_holds_what_nothing_is_said():
    """Everybody else would look as if they had let go, and that had not come back either."""
    before = reading(1 * GIB, [("a-1", 3 * GIB), ("c-3", 20 * GIB)])
    now = replace(reading(4 * GIB, [("a-1", None), ("c-3", None)]), holders_known=False)
    assert not_back({"a-1": before}, now) is None


def test_a_holder_that_was_gone_already_is_not_waited_for():
    assert not_back({}, reading(4 * GIB)) is None


def test_what_a_forked_child_keeps_is_told_with_its_name():
    lost = not_back({"a-1": BEFORE}, reading(18 * GIB, foreign=[(77, 6 * GIB, "/usr/bin/python3"), (8, None, "Xorg")]))
    assert lost.bytes == 6 * GIB
    assert lost.text == (
        "6.0 GiB of what a-1 held has not come back: held by python3 (pid 77) 6.0 GiB and Xorg (pid 8)"
    )
    assert lost.details["holders"][0] == {"pid": 77, "bytes": 6 * GIB, "name": "/usr/bin/python3"}


def test_who_was_there_before_and_has_not_grown_holds_none_of_it():
    before = reading(2 * GIB, [("a-1", 20 * GIB)], [(8, 2 * GIB, "Xorg")])
    lost = not_back({"a-1": before}, reading(18 * GIB, foreign=[(8, 2 * GIB, "Xorg")]))
    assert lost.holders == ()
    assert "nobody who can be named" in lost.text


def test_what_it_keeps_while_parked_is_not_missed_nor_what_other_workers_took_meanwhile():
    before = reading(4 * GIB, [("a-1", 18 * GIB), ("c-3", 2 * GIB)])
    now = reading(19 * GIB, [("a-1", 2 * GIB), ("c-3", 3 * GIB)])
    assert not_back({"a-1": before}, now) is None


def test_what_is_not_known_is_not_missed():
    assert not_back({"a-1": reading(4 * GIB, [("a-1", None)])}, reading(4 * GIB)) is None
    assert not_back({"a-1": reading(None, [("a-1", GIB)])}, reading(4 * GIB)) is None
    assert not_back({"a-1": BEFORE}, reading(None)) is None
    assert not_back({"a-1": BEFORE}, reading(4 * GIB, name="gpu1")) is None


@given(st.integers(0, TOTAL))
def test_never_more_is_missed_than_was_held_and_a_fall_of_what_is_free_is_no_return(free):
    """ollama subtracted unsigned: what somebody else took meanwhile passed for memory that came back."""
    lost = not_back({"a-1": BEFORE}, reading(free))
    missing = 0 if lost is None else lost.bytes
    assert TOTAL - free - missing < 128 << 20


def test_a_load_that_is_not_begun_tells_who_is_in_its_way():
    problem = Problem(MEMORY_NOT_RELEASED, "4.0 GiB available on gpu0.", {"device": "gpu0"})
    now = reading(18 * GIB, foreign=[(77, 6 * GIB, "python3")])
    told = not_released(problem, not_back({"a-1": BEFORE}, now), now)
    assert told.message.startswith("4.0 GiB available on gpu0. 6.0 GiB of what a-1 held has not come back: held by")
    assert (told.details["not_back_bytes"], told.details["device"]) == (6 * GIB, "gpu0")
    told = not_released(problem, None, now)
    assert told.message == "4.0 GiB available on gpu0. Outside swapd it is used by python3 (pid 77) 6.0 GiB."
    assert not_released(problem, None, reading(0)) is problem
