"""Hard limits, of what was declared."""

import pytest
from support.rollout_host import GIB, Host

from swapd.core import errors
from swapd.core.caps import cap_of
from swapd.core.errors import Problem
from swapd.core.events import OpDone, OpFailed
from swapd.core.footprint import Learned, WeightsSummary, estimate
from swapd.core.model import DeviceKind, DeviceReading, Footprint, FootprintSource, OpKind

MIB = 1 << 20


def cap(need, headroom=0, source=FootprintSource.DECLARED):
    reading = DeviceReading("ram", DeviceKind.HOST, headroom, 64 * GIB, 64 * GIB)
    return cap_of(Footprint(need, source), [reading])


def test_a_declared_need_is_a_limit_with_a_margin():
    assert cap(20 * GIB, 512 * MIB) == 22 * GIB, "a tenth"
    assert cap(1 * GIB, 512 * MIB) == 1 * GIB + 512 * MIB, "the headroom"
    assert cap(100 * MIB) == 164 * MIB, "something, of a budget without headroom"


@pytest.mark.parametrize("source", [FootprintSource.LEARNED, FootprintSource.ESTIMATED, FootprintSource.UNKNOWN])
def test_what_nobody_has_declared_is_not_limited(source):
    assert cap(GIB, source=source) is None
    assert cap(None) is None


def test_who_has_taken_more_than_was_declared_is_still_limited():
    """Its need is a learned one from then on, and its word was not worth much."""
    footprint = estimate(None, 1 * GIB, Learned(1 * GIB + 100 * MIB), DeviceKind.HOST)
    assert footprint.source is FootprintSource.LEARNED
    reading = DeviceReading("ram", DeviceKind.HOST, 512 * MIB, 64 * GIB, 64 * GIB)
    assert cap_of(footprint, [reading]) == 1 * GIB + 612 * MIB
    learned = estimate(WeightsSummary(GIB, 1), None, Learned(9 * GIB, runs=0), DeviceKind.HOST)
    assert cap_of(learned, [reading]) is None, "nobody has declared anything"


def test_the_limit_grows_with_what_was_seen_and_the_try_in_place_may_take_what_is_there():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    host.swap("chat", "b")
    assert host.state.service("chat").slot(2).cap_bytes == 11 * GIB
    load = next_of(host, OpKind.LOAD)
    host.failed.add(host.pending.pop(load).op.worker)
    host.send(OpFailed(host.now, load, Problem(errors.OUT_OF_MEMORY, "x.")))
    assert host.state.service("chat").slot(2).cap_bytes == 24 * GIB
    verify = next_of(host, OpKind.VERIFY)
    host.processes[host.pending.pop(verify).op.worker].verified = True
    host.send(OpDone(host.now, verify, {"used_bytes": 12 * GIB}))
    assert host.state.service("chat").slot(2).need_bytes == 12 * GIB
    assert host.state.service("chat").slot(2).cap_bytes == 26 * GIB


def next_of(host, kind):
    for _ in range(60):
        found = [i for i, run in host.pending.items() if run.op.kind is kind]
        if found:
            return found[0]
        host.finish(next(iter(host.pending)))
    raise AssertionError(f"no {kind}")
