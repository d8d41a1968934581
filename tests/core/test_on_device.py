"""A model that runs on the processor although a GPU was meant for it."""

from dataclasses import replace

import pytest

from swapd.core.errors import NOT_ON_DEVICE
from swapd.core.model import DeviceKind, DeviceReading
from swapd.core.on_device import expected_of_declared, not_on_device

GIB = 1 << 30
MIB = 1 << 20


def reading(used, *, free=20 * GIB, names_all=False, name="gpu0", kind=DeviceKind.NVML):
    return DeviceReading(name, kind, 0, 24 * GIB, free, (("b-2", used),), names_all=names_all)


def judged(*readings, should=10 * GIB, before=20 * GIB):
    return not_on_device(readings, "b-2", should, {r.name: before for r in readings})


def test_a_context_alone_is_told_from_a_model():
    problem = judged(reading(500 * MIB))
    assert problem.code == NOT_ON_DEVICE
    assert "b-2 holds 500 MiB of gpu0, and its model should hold about 10.0 GiB" in problem.message


@pytest.mark.parametrize("used", [10 * GIB, 30 * GIB, 2.5 * GIB, 2 * GIB])
def test_a_model_that_is_there_also_quantised_is_let_be(used):
    assert judged(reading(int(used))) is None


def test_one_that_is_not_among_those_who_are_named_is_judged_by_what_is_free_as_well():
    assert judged(reading(None, names_all=True)).details["used_bytes"] == 0
    assert judged(reading(None, names_all=True, free=10 * GIB)) is None, "somebody took it, and who else could it be"


@pytest.mark.parametrize(
    "unknown",
    [
        reading(None),
        replace(reading(None, names_all=True), free_bytes=None),
        reading(0, kind=DeviceKind.HOST),
    ],
)
def test_what_is_not_known_is_not_judged(unknown):
    assert judged(unknown) is None


def test_without_a_figure_to_compare_with_nothing_is_judged():
    assert judged(reading(0), should=None) is None
    assert judged(reading(0), should=100 * MIB) is None, "too small to tell it from a context"
    assert not_on_device([reading(None, names_all=True)], "b-2", 10 * GIB, {}) is None


def test_of_several_gpus_all_count_together():
    two = reading(6 * GIB), reading(0, name="gpu1")
    assert judged(*two, should=12 * GIB) is None
    assert judged(reading(0), reading(100 * MIB, name="gpu1"), should=12 * GIB) is not None


def test_a_model_may_begin_with_a_small_part_of_what_it_declares():
    declared = expected_of_declared(20 * GIB)
    assert judged(reading(3 * GIB), should=declared) is None
    assert judged(reading(100 * MIB), should=declared) is not None
    assert expected_of_declared(512 * MIB) == 512 * MIB
