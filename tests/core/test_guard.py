"""When a worker that loads beside others is killed: by one reading."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from swapd.core.errors import GUARD_KILLED
from swapd.core.guard import breach, floor_of, is_beside_others
from swapd.core.model import RETURN, DeviceKind, DeviceReading, Reservation

MIB = 1 << 20
GIB = 1 << 30
FLOOR = 256 * MIB


def reading(free=4 * GIB, used=(("a-1", 10 * GIB), ("b-2", 8 * GIB)), total=24 * GIB):
    return DeviceReading("gpu0", DeviceKind.NVML, 512 * MIB, total, free, tuple(used))


def reserved(worker, size, *, settled=False, device="gpu0"):
    return Reservation(worker, worker[0], device, size, settled)


STABLE = reserved("a-1", 10 * GIB, settled=True)
HERE = (STABLE, reserved("b-2", 8 * GIB))


def test_the_floor_is_half_of_the_headroom_unless_it_is_said():
    assert floor_of(512 * MIB, None) == 256 * MIB
    assert floor_of(512 * MIB, 0) == 0


def test_one_that_leaves_enough_is_let_be():
    assert breach(reading(free=FLOOR), HERE, "b-2", FLOOR) is None


def test_one_that_leaves_too_little_is_killed_with_the_figures_and_a_cure():
    now = reading(free=FLOOR - 1, used=[("a-1", 10 * GIB), ("b-2", 13 * GIB)])
    problem = breach(now, HERE, "b-2", FLOOR)
    assert problem.code == GUARD_KILLED
    assert "b-2 had taken 13.0 GiB and was promised 8.0 GiB" in problem.message
    assert "255 MiB of gpu0 was free, below its floor of 256 MiB" in problem.message
    assert 'device_memory = "13312MiB" or more' in problem.message
    assert (problem.details["used_bytes"], problem.details["floor_bytes"]) == (13 * GIB, FLOOR)


def test_one_that_keeps_to_its_promise_goes_as_well_when_others_took_the_memory():
    problem = breach(reading(free=0), HERE, "b-2", FLOOR)
    assert "Somebody else has taken the memory" in problem.message


def test_of_two_that_load_the_one_that_takes_too_much_goes():
    both = (*HERE, reserved("c-3", 2 * GIB))
    now = reading(free=0, used=[("a-1", 10 * GIB), ("b-2", 7 * GIB), ("c-3", 7 * GIB)])
    assert breach(now, both, "b-2", FLOOR) is None
    assert breach(now, both, "c-3", FLOOR) is not None


def test_one_that_stages_is_let_take_its_context_and_no_more():
    for took, goes in ((500 * MIB, False), (None, False), (513 * MIB, True)):
        now = reading(free=0, used=[("a-1", 10 * GIB), ("b-2", took)])
        assert breach(now, (STABLE,), "b-2", FLOOR) is None, "it has ended meanwhile"
        problem = breach(now, (STABLE,), "b-2", FLOOR, stages=True)
        assert (problem is not None) == goes
    assert problem.details["reserved_bytes"] is None
    assert "staged while others served" in problem.message


def test_nobody_is_killed_where_nobody_else_could_lose():
    alone = (reserved("b-2", 8 * GIB), reserved("a-1", GIB, device="gpu1"), reserved(f"{RETURN}b", GIB, settled=True))
    assert not is_beside_others("gpu0", alone, "b-2")
    assert breach(reading(free=0), alone, "b-2", FLOOR) is None


@pytest.mark.parametrize("unknown", ["free", "total"])
def test_nobody_is_killed_for_a_figure_that_is_not_known(unknown):
    assert breach(reading(**{unknown: None}), HERE, "b-2", FLOOR) is None


def test_a_budget_without_headroom_is_guarded_too():
    now = reading(free=0, used=[("a-1", 10 * GIB), ("b-2", 14 * GIB)])
    assert breach(now, HERE, "b-2", 0) is None, "all of it is taken, and no more"
    now = reading(free=0, used=[("a-1", 10 * GIB), ("b-2", 14 * GIB + 1)])
    message = breach(now, HERE, "b-2", 0).message
    assert "0 B of gpu0 was free, and its workers held more than its budget" in message
    assert "floor" not in message, "there is none"


@given(st.integers(0, 24 * GIB), st.integers(0, 24 * GIB), st.integers(0, GIB))
def test_more_free_memory_never_kills(free, more, floor):
    def killed(left):
        return breach(reading(free=left, used=[("a-1", None), ("b-2", None)]), HERE, "b-2", floor) is not None

    assert killed(min(free, more)) >= killed(max(free, more))
