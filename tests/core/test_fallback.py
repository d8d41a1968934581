"""A candidate that does not find the memory beside the old model is tried once in its place, where that is allowed."""

import pytest
from support.rollout_host import GIB, Host

from swapd.core import errors
from swapd.core.errors import Problem
from swapd.core.events import OpFailed, WorkerExited
from swapd.core.model import Kind, OpKind, Strategy
from swapd.core.report import swap_record
from swapd.core.states import Phase, WorkerState


def serving(**settings):
    host = Host(total=24 * GIB)
    host.add("chat", "a", **settings)
    host.settle(until_idle=False)
    return host


def chat(host):
    return host.state.service("chat")


def finish_until(host, kind, skip=()):
    for _ in range(60):
        found = [i for i, run in host.pending.items() if run.op.kind is kind and run.op.worker not in skip]
        if found:
            return found[0]
        host.finish(next(iter(host.pending)))
    raise AssertionError(f"no {kind}")


def fail(host, op_id, code=errors.OUT_OF_MEMORY, used=None):
    op = host.pending.pop(op_id).op
    host.failed.add(op.worker)
    details = {} if used is None else {"used_bytes": used}
    host.send(OpFailed(host.now, op_id, Problem(code, "no memory for it.", details), ("the last line",)))
    return op.worker


@pytest.mark.parametrize("used", ["much", 5e300, [1], True])
def test_what_a_models_own_code_says_that_it_took_may_be_anything(used):
    """Its error comes with details of its choice, and the daemon's loop goes on."""
    host = serving()
    host.swap("chat", "b")
    fail(host, finish_until(host, OpKind.LOAD), used=used)
    assert chat(host).swap.strategy is Strategy.IN_PLACE
    assert chat(host).slot(2).need_bytes == 10 * GIB


@pytest.mark.parametrize("code", [errors.OUT_OF_MEMORY, errors.GUARD_KILLED, errors.VRAM_INSUFFICIENT])
@pytest.mark.parametrize("kind", [OpKind.LOAD, OpKind.WARM, OpKind.VERIFY])
def test_memory_that_runs_out_beside_the_old_model_is_tried_once_in_its_place(code, kind):
    host = serving()
    stable = chat(host).owner
    assert host.swap("chat", "b").strategy is Strategy.DUAL
    first = fail(host, finish_until(host, kind), code)
    swap = chat(host).swap
    assert (swap.strategy, swap.phase, swap.fell_back.code) == (Strategy.IN_PLACE, Phase.PREPARING, code)
    assert "did not find the memory beside what serves:" in swap.why
    assert ("swap.strategy", "in-place") in [(name, body.get("strategy")) for name, body in host.told]
    host.settle(until_idle=False)
    swap = chat(host).swap
    assert swap.phase is Phase.SOAKING
    assert swap_record(swap)["fell_back"]["code"] == code
    assert {stable, first}.isdisjoint(w.id for w in host.state.workers if not w.ending)
    assert [s.name for s in swap.steps if s.status == "failed"] == [kind.value]


def test_clients_are_not_held_before_the_first_try_is_gone():
    host = serving()
    stable = chat(host).owner
    host.swap("chat", "b")
    first = fail(host, finish_until(host, OpKind.LOAD))
    stop = next(i for i, run in host.pending.items() if run.op.worker == first)
    finish_others(host, stop)
    assert host.state.server_of("chat").id == stable, "it is still being ended, and its memory is not there"
    assert not any(w.kind is Kind.GATE for w in host.state.workers)
    host.finish(stop)
    finish_until(host, OpKind.DRAIN)
    assert host.state.worker(stable).state is WorkerState.QUIESCED


def finish_others(host, kept):
    while others := [i for i in host.pending if i != kept]:
        host.finish(others[0])


def test_a_second_failure_for_memory_brings_the_old_model_back():
    host = serving()
    host.swap("chat", "b")
    first = fail(host, finish_until(host, OpKind.LOAD))
    fail(host, finish_until(host, OpKind.LOAD, skip=(first,)))
    host.settle(until_idle=False)
    [swap] = host.finished
    assert (swap.phase, swap.error.code) == (Phase.FAILED, errors.OUT_OF_MEMORY)
    assert host.state.server_of("chat").revision == 1


@pytest.mark.parametrize("why", ["other failures", "dual was asked for", "no outage is allowed", "it would not fit"])
def test_it_is_not_tried_in_place(why):
    host = serving(**{"max_outage_s": 0.0} if why == "no outage is allowed" else {})
    stable = chat(host).owner
    request = host.swap_request("chat", "b")
    if why == "dual was asked for":
        host.reload("chat", strategy=Strategy.DUAL)
    before = len(host.begun)
    assert host.send(request).strategy is Strategy.DUAL
    code = errors.LOAD_FAILED if why == "other failures" else errors.OUT_OF_MEMORY
    fail(host, finish_until(host, OpKind.LOAD), code, used=30 * GIB if why == "it would not fit" else None)
    host.settle(until_idle=False)
    [swap] = host.finished
    assert (swap.phase, swap.strategy, swap.fell_back, swap.error.code) == (Phase.FAILED, Strategy.DUAL, None, code)
    assert chat(host).owner == stable
    assert ("In place it is not tried" in swap.error.message) == (why == "it would not fit")
    assert OpKind.DRAIN not in {op.kind for op in host.begun[before:]}, "clients were never held"


def test_what_was_seen_of_the_first_try_is_what_the_second_is_promised():
    host = serving()
    host.swap("chat", "b")
    first = fail(host, finish_until(host, OpKind.LOAD), errors.GUARD_KILLED, used=13 * GIB)
    assert "beside what serves, and is planned with 13.0 GiB now:" in chat(host).swap.why
    confirm = finish_until(host, OpKind.CONFIRM, skip=(first,))
    assert host.pending[confirm].slot.need_bytes == 13 * GIB
    assert [r.bytes for r in host.state.reservations] == [13 * GIB]


def test_a_candidate_whose_end_is_told_first_is_tried_in_place_as_well():
    host = serving()
    host.swap("chat", "b")
    load = finish_until(host, OpKind.LOAD)
    worker = host.pending.pop(load).op.worker
    del host.processes[worker]
    problem = Problem(errors.OUT_OF_MEMORY, "killed by the kernel's OOM killer.")
    host.send(WorkerExited(host.now, worker, problem))
    assert chat(host).swap.strategy is Strategy.IN_PLACE
    host.settle(until_idle=False)
    assert chat(host).swap.phase is Phase.SOAKING
