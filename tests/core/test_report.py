"""What the records say of a swap, on the simulated host."""

import pytest
from support.rollout_host import GIB, Host

from swapd.core.model import OpKind, Strategy
from swapd.core.report import rollback_kind, swap_record
from swapd.core.states import Phase


def serving(total=24, hooks=()):
    host = Host(total=total * GIB, hooks=frozenset(hooks))
    host.add("chat", "a")
    host.settle(until_idle=False)
    return host


def chat(host):
    return host.state.service("chat")


def swapped(model, hooks=()):
    host = serving(hooks=hooks)
    host.swap("chat", model)
    host.settle(until_idle=False)
    assert chat(host).swap.phase is Phase.SOAKING
    return host


def fail_next(host, kind):
    """Carry out operations until one of this kind is pending, and let that fail."""
    while True:
        found = [i for i, run in host.pending.items() if run.op.kind is kind]
        if found:
            host.fail(found[0])
            return
        host.finish(next(iter(host.pending)))


@pytest.mark.parametrize(
    ("model", "hooks", "kept", "rollback"),
    [
        ("b", (), "resident", "instant"),
        ("big", (), "stopped", "cold"),
        ("big", ("park", "wake"), "parked", "parked"),
    ],
)
def test_what_a_soak_keeps_is_told(model, hooks, kept, rollback):
    host = swapped(model, hooks)
    assert swap_record(chat(host).swap)["kept"] == kept
    assert rollback_kind(host.state, chat(host)) == rollback


def test_a_kept_worker_that_dies_is_not_said_to_be_resident():
    host = swapped("b")
    host.exit(next(w.id for w in host.state.workers if w.revision == 1))
    assert chat(host).swap.phase is Phase.SOAKING
    assert swap_record(chat(host).swap)["kept"] == "stopped"
    assert rollback_kind(host.state, chat(host)) == "cold"


def test_the_step_that_ended_a_swap_is_told_and_not_what_failed_on_the_way_back():
    host = serving()
    host.swap("chat", "big")
    fail_next(host, OpKind.VERIFY)
    fail_next(host, OpKind.LOAD)  # of the old model
    host.settle(until_idle=False)
    record = swap_record(host.finished[-1])
    failed = [s["name"] for s in record["steps"] if s["status"] == "failed"]
    assert failed == ["verify", "restore: load"]
    assert record["error"]["step"] == "verify"


def test_a_park_that_failed_did_not_end_the_swap():
    host = serving(hooks=("park", "wake"))
    host.swap("chat", "big")
    fail_next(host, OpKind.PARK)
    fail_next(host, OpKind.LOAD)
    host.settle(until_idle=False)
    assert swap_record(host.finished[-1])["error"]["step"] == "load"


def test_a_worker_that_dies_in_the_soak_has_failed_in_it():
    host = swapped("b")
    host.exit(chat(host).owner)
    host.settle(until_idle=False)
    record = swap_record(host.finished[-1])
    assert record["phase"] == "Failed"
    assert record["error"]["step"] == "soak"


def test_a_swap_of_what_does_not_serve_is_a_start():
    host = Host()
    host.add("chat", "a")
    host.measure()
    host.swap("chat", "b")
    record = swap_record(chat(host).swap)
    assert (record["strategy"], record["from"]) == (Strategy.START.value, None)
