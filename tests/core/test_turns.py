"""One load or release at a time on a device, across services, from what is let go to what is warm."""

from __future__ import annotations

import pytest
from support.rollout_host import GIB, Host

from swapd.core import errors, events
from swapd.core.errors import Problem
from swapd.core.model import RESTORE, DeviceKind, OpKind
from swapd.core.states import Phase, WorkerState


def two(embed="b", total=26, kind=DeviceKind.NVML, **settings):
    """Of which chat's `big` fits in place only."""
    host = Host(total=total * GIB, kind=kind, needs={"a": 10 * GIB, "b": 2 * GIB, "c": 2 * GIB, "big": 20 * GIB})
    host.add("chat", "a", **settings)
    host.add("embed", embed)
    host.settle(until_idle=False)
    return host


def until(host, service, kind, but=()):
    """Carry out operations, those of `but` left alone, until the service has one of this kind."""
    for _ in range(80):
        found = [i for i, run in host.pending.items() if (run.op.service, run.op.kind) == (service, kind)]
        if found:
            return found[0]
        host.finish(next(i for i in host.pending if i not in but))
    raise AssertionError(f"no {kind} of {service}: {host.pending}")


def go_on(host, *but):
    """Carry out whatever there is, but for these."""
    while ops := [i for i in host.pending if i not in but]:
        host.finish(ops[0])


def begun(host, service):
    return [run.op.kind for run in host.pending.values() if run.op.service == service]


def steps(host, service):
    return [(s.name, s.status) for s in host.state.service(service).swap.steps]


@pytest.mark.parametrize("while_it", [OpKind.CONFIRM, OpKind.LOAD, OpKind.WARM])
def test_a_second_load_waits_until_the_first_is_warm_and_says_so(while_it):
    host = two()
    host.swap("chat", "b")
    first = until(host, "chat", while_it)
    host.swap("embed", "c")
    go_on(host, first)
    assert not begun(host, "embed")
    assert steps(host, "embed")[-1] == ("wait", "running")
    detail = host.state.service("embed").swap.steps[-1].detail
    assert detail == "for chat-5: a device has one load or release at a time"
    go_on(host)
    done = {s.name: s for s in host.state.service("embed").swap.steps}
    assert (done["wait"].status, done["wait"].detail) == ("done", detail)
    assert host.state.service("embed").swap.phase is Phase.SOAKING


def test_between_two_operations_of_a_load_nobody_else_begins():
    """Services are gone through in order: one that comes first must not take the turn of one in the middle of it."""
    host = two()
    host.swap("embed", "c")
    load = until(host, "embed", OpKind.LOAD)
    host.swap("chat", "b")
    go_on(host, load)
    host.finish(load)
    assert begun(host, "embed") == [OpKind.WARM]
    assert not begun(host, "chat")


def test_what_a_soak_has_kept_is_stopped_when_nobody_loads():
    host = two(soak_s=10.0)
    host.swap("chat", "b")
    go_on(host)
    host.swap("embed", "c")
    load = until(host, "embed", OpKind.LOAD)
    host.pass_time(11.0)
    go_on(host, load)
    assert host.state.service("chat").swap is None, "its soak is over"
    assert not begun(host, "chat"), "and who loads now is not disturbed by what is given back"
    go_on(host)
    assert [w.revision for w in host.state.workers_of("chat")] == [2]


def test_a_candidate_has_patience_with_what_its_own_service_could_not_stop_yet():
    host = two()
    host.swap("chat", "b")
    go_on(host)
    host.swap("embed", "c")
    load = until(host, "embed", OpKind.LOAD)
    host.swap("chat", "c")  # which ends the soak
    go_on(host, load)
    assert not begun(host, "chat"), "both wait for their turn"
    confirm = until(host, "chat", OpKind.CONFIRM)
    assert sorted(begun(host, "chat")) == [OpKind.CONFIRM, OpKind.STOP]
    assert host.pending[confirm].op.deadline_s > 0


def test_a_swap_in_place_does_not_hold_its_clients_while_another_loads():
    host = two()
    host.swap("embed", "c")
    load = until(host, "embed", OpKind.LOAD)
    host.swap("chat", "big")
    go_on(host, load)
    chat = host.state.service("chat")
    assert (chat.swap.strategy.value, chat.swap.phase) == ("in-place", Phase.PREPARING)
    assert host.state.server_of("chat").revision == 1, "its clients are served meanwhile"
    assert steps(host, "chat")[-1] == ("wait", "running")
    go_on(host)
    assert host.state.service("chat").swap.phase is Phase.SOAKING


@pytest.mark.parametrize("while_it", [OpKind.HAND_OVER, OpKind.DRAIN, OpKind.STOP, OpKind.CONFIRM, OpKind.LOAD])
def test_from_hold_to_warm_nobody_else_loads(while_it):
    host = two()
    host.swap("chat", "big")
    op = until(host, "chat", while_it)
    host.swap("embed", "c")
    go_on(host, op)
    assert begun(host, "embed") in ([], [OpKind.DRAIN])
    candidate = next(w for w in host.state.workers_of("embed") if w.revision == 2)
    assert candidate.state is WorkerState.SPAWNED
    assert not candidate.confirmed
    go_on(host)
    assert host.state.service("chat").swap.phase is Phase.SOAKING


def test_a_candidate_that_failed_is_ended_at_once():
    host = two()
    host.swap("embed", "c")
    confirm = until(host, "embed", OpKind.CONFIRM)
    host.swap("chat", "b")
    go_on(host, confirm)
    host.send(events.ReturnRequested(host.now, "chat", "t"))
    assert OpKind.STOP in begun(host, "chat")


def test_two_that_lost_their_models_in_the_middle_do_not_wait_for_each_other():
    host = two(embed="a", total=54)
    host.needs["big"] = 35 * GIB
    host.swap("chat", "big")
    hold = until(host, "chat", OpKind.HAND_OVER)
    host.swap("embed", "big")
    go_on(host, hold)
    host.exit(host.state.server_of("embed").id)  # held now as well, though it had to wait
    go_on(host, hold)
    host.settle()
    for name in ("chat", "embed"):
        assert host.state.service(name).swap is None
    assert host.state.server_of("chat") is not None


def test_the_way_back_waits_before_it_holds_the_clients():
    host = two()
    host.swap("chat", "big")
    go_on(host)
    host.swap("embed", "c")
    load = until(host, "embed", OpKind.CONFIRM)
    host.send(events.ReturnRequested(host.now, "chat", "t", only_soaking=True))
    go_on(host, load)
    assert host.state.server_of("chat").revision == 2
    assert steps(host, "chat")[-1] == (f"{RESTORE}wait", "running")
    go_on(host)
    assert host.state.server_of("chat").revision == 1


def test_on_the_hosts_memory_nobody_waits():
    host = two(kind=DeviceKind.HOST)
    host.swap("chat", "b")
    load = until(host, "chat", OpKind.LOAD)
    host.swap("embed", "c")
    go_on(host, load)
    assert host.state.service("embed").swap.phase is Phase.SOAKING


@pytest.mark.parametrize("on_its_way", [OpKind.CONFIRM, OpKind.LOAD])
def test_an_old_model_that_was_on_its_way_back_holds_nobody_up_while_its_successor_soaks(on_its_way):
    host = two(total=60)
    host.swap("chat", "b")
    verify = until(host, "chat", OpKind.VERIFY)
    host.exit(host.state.server_of("chat").id)
    its = until(host, "chat", on_its_way, but=(verify,))
    go_on(host, its)
    go_on(host)
    swap = host.state.service("chat").swap
    old = next(w for w in host.state.workers_of("chat") if w.revision == swap.source.number)
    assert (swap.phase, old.confirmed, old.warmed, old.op) == (Phase.SOAKING, True, False, None)
    host.swap("embed", "c")
    go_on(host)
    assert host.state.service("embed").swap.phase is Phase.SOAKING


def test_nobody_waits_for_what_has_outlived_a_kill():
    """A process that hangs in the driver; its memory stays promised, and there is room beside it."""
    host = two(total=60)
    host.swap("chat", "b")
    load = until(host, "chat", OpKind.LOAD)
    host.fail(load)
    stop = until(host, "chat", OpKind.STOP)
    worker = host.pending.pop(stop).op.worker
    host.send(events.OpFailed(host.now, stop, Problem(errors.TIMEOUT, "still alive, state D")))
    again = until(host, "chat", OpKind.STOP)
    host.swap("embed", "c")
    go_on(host, again)
    assert host.state.service("embed").swap.phase is Phase.SOAKING
    assert worker in {r.worker_id for r in host.state.reservations}
    go_on(host)
    assert host.state.worker(worker) is None


def test_what_a_candidate_waits_for_does_not_wait_for_whom_that_holds_up():
    """A way back waits for the candidate's confirmation, and that for its own service's old model to be gone: had this
    waited for its turn, after the way back, clients would have been held until the confirmation gave up."""
    host = two()
    host.needs["d"] = 3 * GIB
    host.swap("embed", "c")
    go_on(host)
    host.swap("chat", "big")
    verify = until(host, "chat", OpKind.VERIFY)
    host.swap("embed", "d")  # which ends the soak
    drain = until(host, "embed", OpKind.DRAIN, but=(verify,))  # a long answer
    confirm = until(host, "embed", OpKind.CONFIRM, but=(drain, verify))
    host.fail(verify)
    go_on(host, drain, confirm)
    assert not begun(host, "chat"), "its old model waits for its turn"
    host.finish(drain)
    assert sorted(begun(host, "embed")) == [OpKind.CONFIRM, OpKind.STOP]
    go_on(host)
    assert host.state.server_of("chat").revision == 1
    assert host.state.service("embed").swap.phase is Phase.SOAKING
