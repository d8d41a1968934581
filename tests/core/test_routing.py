"""Gate services: who answers the clients, on the simulated host."""

from dataclasses import replace

import pytest
from support.rollout_host import GIB, Host

from swapd.core import errors, events
from swapd.core.contract import Interface
from swapd.core.errors import Problem
from swapd.core.model import DeviceKind, Health, Kind, OpKind
from swapd.core.placement import Placement
from swapd.core.report import health, service_record, swap_record
from swapd.core.rollout import plan
from swapd.core.states import Phase, WorkerState


def serving(total=64, gated=True, kinds=None, hooks=(), **settings):
    host = Host(total=total * GIB, kinds=kinds or {}, hooks=frozenset(hooks))
    host.add("chat", "a", gated=gated, **settings)
    host.settle(until_idle=False)
    host.begun.clear()
    return host


def chat(host):
    return host.state.service("chat")


def owner(host):
    return host.state.worker(chat(host).owner)


def server(host):
    return host.state.server_of("chat")


def transfers(host):
    """What was done to clients since, in order."""
    wanted = (OpKind.ADOPT, OpKind.HAND_OVER, OpKind.POINT)
    return [(op.kind, op.worker, op.target) for op in host.begun if op.kind in wanted]


def pending(host, kind):
    return [i for i, run in host.pending.items() if run.op.kind is kind]


def finish_until(host, kind):
    """Carry out operations until one of this kind is pending."""
    for _ in range(60):
        if pending(host, kind):
            return pending(host, kind)[0]
        host.finish(next(iter(host.pending)))
    raise AssertionError(f"no {kind}")


def record(host):
    return service_record(host.state, chat(host), listen=(), config_model="a", stats=None)


def test_a_first_start_holds_the_clients_in_the_gate_that_then_points_to_the_model():
    host = Host()
    host.add("chat", "a", gated=True)
    finish_until(host, OpKind.ADOPT)
    host.settle(until_idle=False)
    assert (owner(host).kind, owner(host).points_to) == (Kind.GATE, server(host).id)
    assert [kind for kind, _, _ in transfers(host)] == [OpKind.ADOPT, OpKind.POINT]
    assert health(host.state, chat(host)) is Health.HEALTHY
    assert (record(host)["front"], record(host)["holding"], record(host)["revision"]) == ("gate", False, 1)


def test_a_swap_in_a_gate_service_is_one_table():
    host = serving()
    gate, old = owner(host).id, server(host).id
    host.swap("chat", "b")
    host.settle(until_idle=False)
    assert transfers(host) == [(OpKind.POINT, gate, server(host).id)]
    assert (server(host).revision, chat(host).swap.phase) == (2, Phase.SOAKING)
    assert host.state.worker(old).state is WorkerState.QUIESCED, "resident, with what it has in flight"
    assert swap_record(chat(host).swap)["outage_ms"] == 0.0
    assert "switch" in [s.name for s in chat(host).swap.steps]
    host.send(events.ReturnRequested(host.now, "chat", "ana", only_soaking=True))
    host.finish(pending(host, OpKind.POINT)[0])
    assert server(host).id == old


def test_in_place_the_gate_points_to_nobody_until_the_new_model_has_proved_itself():
    host = serving(total=24)
    gate = owner(host).id
    host.swap("chat", "big")
    load = finish_until(host, OpKind.LOAD)
    assert transfers(host) == [(OpKind.POINT, gate, None)]
    assert (record(host)["front"], record(host)["holding"]) == ("gate", True)
    assert health(host.state, chat(host)) is Health.DEGRADED
    host.now += 3.0
    host.finish(load)
    host.settle(until_idle=False)
    assert swap_record(chat(host).swap)["outage_ms"] == 3000.0
    assert swap_record(chat(host).swap)["cutover_ms"] == 0.0
    names = [s.name for s in chat(host).swap.steps]
    assert (
        names.index("hold") < names.index("drain") < names.index("stop") < names.index("load") < names.index("switch")
    )


def test_a_model_without_a_front_gets_a_gate_that_points_to_it_before_it_is_given_the_clients():
    host = serving(gated=False, kinds={"b": Kind.ENGINE})
    old = owner(host).id
    host.swap("chat", "b")
    host.settle(until_idle=False)
    gate = owner(host).id
    assert transfers(host) == [(OpKind.POINT, gate, server(host).id), (OpKind.HAND_OVER, old, gate)]
    assert server(host).kind is Kind.ENGINE


def test_a_swap_to_a_model_with_a_front_takes_a_direct_service_out_of_its_gate():
    host = serving(gated=False, kinds={"a": Kind.ENGINE}, drain_timeout_s=60.0, soak_s=600.0)
    gate = owner(host).id
    host.swap("chat", "b")
    finish_until(host, OpKind.HAND_OVER)
    host.settle(until_idle=False)
    assert (OpKind.HAND_OVER, gate, owner(host).id) in transfers(host)
    assert owner(host).kind is Kind.DIRECT
    drains = [op for op in host.begun if op.kind is OpKind.DRAIN and op.worker == gate]
    assert drains[0].deadline_s == 600.0, "what it relays may take as long as beside a soak"
    assert host.state.worker(gate) is None


def test_front_changed_by_a_reload_moves_the_clients_and_leaves_the_model_alone():
    host = serving(gated=False)
    model = owner(host).id
    host.reload("chat", gated=True)
    host.settle(until_idle=False)
    gate = owner(host).id
    assert transfers(host) == [(OpKind.POINT, gate, model), (OpKind.HAND_OVER, model, gate)]
    assert server(host).id == model
    host.begun.clear()
    host.reload("chat", gated=False)
    host.settle(until_idle=False)
    assert transfers(host) == [(OpKind.HAND_OVER, gate, model)]
    assert [w.id for w in host.state.workers] == [model]


def test_a_gate_of_other_settings_gives_its_clients_to_a_new_one_that_points_where_it_did():
    host = serving()
    gate, model = owner(host).id, server(host).id
    host.reload("chat", gate="other settings")
    host.settle(until_idle=False)
    new = owner(host).id
    assert transfers(host) == [(OpKind.POINT, new, model), (OpKind.HAND_OVER, gate, new)]
    assert {w.id for w in host.state.workers} == {new, model}
    kinds = [op.kind for op in host.begun if op.worker == gate]
    assert kinds == [OpKind.HAND_OVER, OpKind.DRAIN, OpKind.STOP]


def test_a_model_that_dies_behind_its_gate_is_waited_for():
    host = serving()
    gate = owner(host).id
    host.exit(server(host).id)
    assert pending(host, OpKind.POINT), "at once: the gate would go on trying"
    host.settle(until_idle=False)
    assert transfers(host) == [(OpKind.POINT, gate, None), (OpKind.POINT, gate, server(host).id)]


def test_a_candidate_that_dies_in_the_soak_is_left_by_one_table():
    host = serving()
    gate, old = owner(host).id, server(host).id
    host.swap("chat", "b")
    host.settle(until_idle=False)
    host.begun.clear()
    host.exit(server(host).id)
    host.settle(until_idle=False)
    assert transfers(host) == [(OpKind.POINT, gate, old)]
    assert host.finished[-1].phase is Phase.FAILED


def test_a_gate_that_dies_is_replaced_by_one_that_points_to_the_same_model():
    host = serving()
    model = server(host).id
    host.exit(owner(host).id)
    host.settle(until_idle=False)
    new = owner(host).id
    assert transfers(host) == [(OpKind.POINT, new, model), (OpKind.ADOPT, new, None)]
    assert server(host).id == model


def test_a_gate_that_cannot_be_pointed_is_of_no_use_and_fails_the_swap():
    """Nobody knows which table it goes by, so it is ended before another gets the clients."""
    host = serving()
    gate, model = owner(host).id, server(host).id
    host.swap("chat", "b")
    host.fail(finish_until(host, OpKind.POINT))
    assert host.state.worker(gate).state is WorkerState.STOPPING
    assert not [t for t in transfers(host) if t[1] != gate]
    host.settle()
    assert (server(host).id, host.finished[-1].phase) == (model, Phase.FAILED)


@pytest.mark.parametrize("outlives", [False, True])
def test_nobody_else_is_told_to_adopt_while_a_gate_that_may_do_so_yet_is_being_killed(outlives):
    """It did not answer, and its loop may come to the order before the kill comes to it."""
    host = Host()
    host.add("chat", "a", gated=True)
    late = finish_until(host, OpKind.ADOPT)
    gate = host.pending[late].op.worker
    host.fail(late, errors.TIMEOUT)
    kill = pending(host, OpKind.STOP)[0]
    host.pass_time(1.0)
    host.finish(next(i for i in pending(host, OpKind.SPAWN) if "gate" in host.pending[i].op.worker))
    assert not pending(host, OpKind.ADOPT)
    if outlives:  # nothing of it runs any more, whatever the kernel keeps
        host.send(events.OpFailed(host.now, kill, Problem(errors.TIMEOUT, "it does not end")))
    else:
        host.finish(kill)
    [adopt] = pending(host, OpKind.ADOPT)
    assert host.pending[adopt].op.worker != gate


def test_a_candidate_is_not_ended_while_a_gate_that_points_to_it_is_being_given_the_clients():
    host = serving(gated=False, kinds={"b": Kind.ENGINE})
    old = owner(host).id
    host.swap("chat", "b")
    switch = finish_until(host, OpKind.HAND_OVER)
    host.send(events.ReturnRequested(host.now, "chat", "ana"))
    assert not pending(host, OpKind.STOP)
    host.finish(switch)
    host.settle(until_idle=False)
    assert owner(host).id == old


def test_a_candidate_that_is_just_being_given_the_listeners_is_not_ended_before_it_has_them():
    host = Host()
    host.add("chat", "a")
    host.swap("chat", "b")
    adopting = finish_until(host, OpKind.VERIFY)
    host.exit(owner(host).id)
    host.finish(adopting)
    adopt = pending(host, OpKind.ADOPT)[0]
    candidate = host.pending[adopt].op.worker
    assert "gate" not in candidate
    host.send(events.ReturnRequested(host.now, "chat", "ana"))
    assert not [op for op in host.begun if op.kind is OpKind.STOP and op.worker == candidate]
    host.finish(adopt)
    assert owner(host).id == candidate, "until its clients are held"
    host.settle(until_idle=False)
    assert candidate not in {w.id for w in host.state.workers}


def test_a_model_is_not_ended_before_every_gate_that_still_relays_points_elsewhere():
    host = serving(soak_s=600.0)
    gate, old = owner(host).id, server(host).id
    host.reload("chat", gate="other settings")
    drain = finish_until(host, OpKind.DRAIN)
    assert host.pending[drain].op.worker == gate
    host.pending.pop(drain)  # it relays a long stream
    host.swap("chat", "b")
    finish_until(host, OpKind.POINT)
    host.settle(until_idle=False)
    assert (OpKind.POINT, gate, server(host).id) in transfers(host)
    assert host.state.worker(old).state is WorkerState.QUIESCED


@pytest.mark.parametrize(("kind", "at_once"), [(DeviceKind.NVML, 1), (DeviceKind.HOST, 2)])
def test_on_a_gpu_one_model_is_loaded_at_a_time(kind, at_once):
    host = Host(total=64 * GIB, kind=kind)
    for name in ("chat", "embed"):
        host.add(name, "a")
        host.measure()
    while others := [i for i, r in host.pending.items() if r.op.kind is not OpKind.LOAD]:
        host.finish(others[0])
    assert len(pending(host, OpKind.LOAD)) == at_once
    host.settle(until_idle=False)
    assert all(health(host.state, s) is Health.HEALTHY for s in host.state.services)


def test_a_shutdown_drains_the_gate_while_its_model_lives_and_ends_it_last():
    host = serving()
    gate, model = owner(host).id, server(host).id
    host.send(events.ShutdownRequested(host.now))
    assert [(op.kind, op.worker, op.force) for op in host.begun] == [(OpKind.DRAIN, gate, True)]
    host.settle(until_idle=False)
    ends = [(op.kind, op.worker) for op in host.begun]
    assert ends == [(OpKind.DRAIN, gate), (OpKind.DRAIN, model), (OpKind.STOP, model), (OpKind.STOP, gate)]
    assert host.exited


def test_a_swap_to_what_a_gate_points_to_is_refused_as_served_already():
    host = serving()
    assert host.swap("chat", "a").code == "ALREADY_SERVING"


def request(host, names=(), stable_names=(), **more):
    known = {"offers": Interface(names=names), "incumbent": Interface(names=stable_names)}
    return replace(host.swap_request("chat", "b"), **known, **more)


@pytest.mark.parametrize(
    ("stable_names", "names", "lost"),
    [
        ((), ("llama-3.3",), None),
        (("chat",), ("chat", "llama-3.3"), None),
        (("chat", "llama-3.1"), ("chat", "llama-3.3"), ["llama-3.1"]),
        (("chat",), (), ["chat"]),
    ],
)
def test_a_swap_by_which_clients_would_lose_a_name_is_refused_unless_it_is_allowed(stable_names, names, lost):
    host = serving()
    refusal = plan(host.state, request(host, names, stable_names))
    if lost is None:
        assert isinstance(refusal, Placement)
        return
    assert (refusal.code, refusal.details["lost"]) == ("MODEL_NAME_MISMATCH", lost)
    assert repr(lost[0]) in refusal.message
    assert "--allow-name-mismatch" in refusal.message
    assert isinstance(plan(host.state, request(host, names, stable_names, allow_name_mismatch=True)), Placement)


V7, V8 = Interface(versions=(("features", "v7"),)), Interface(versions=(("features", "v8"),))


def test_a_swap_that_breaks_what_both_models_declare_is_refused_unless_it_is_allowed_and_then_says_so():
    host = serving()
    asked = replace(host.swap_request("chat", "b"), offers=V8, incumbent=V7)
    refusal = host.send(asked)
    assert refusal.code == "CONTRACT_BROKEN"
    (text,) = refusal.details["differences"]
    assert "features of 'v8'" in text
    assert text in refusal.message
    assert host.state.service("chat").swap is None
    record = swap_record(host.send(replace(asked, allow_breaking=True)))
    assert (record["allow_breaking"], record["differences"]) == (True, [text])


def test_all_that_is_allowed_allows_a_lost_name_too_but_not_the_other_way_round():
    host = serving()
    offers, incumbent = replace(V8, names=("chat",)), replace(V7, names=("chat", "llama"))
    asked = replace(host.swap_request("chat", "b"), offers=offers, incumbent=incumbent)
    refusal = plan(host.state, replace(asked, allow_name_mismatch=True))
    assert (refusal.code, len(refusal.details["differences"])) == ("CONTRACT_BROKEN", 1)
    assert len(plan(host.state, asked).details["differences"]) == 2
    assert isinstance(plan(host.state, replace(asked, allow_breaking=True)), Placement)


def test_going_back_is_not_refused_for_what_came_later():
    host = serving()
    asked = replace(host.swap_request("chat", "b"), offers=V8, incumbent=V7, goes_back=True)
    record = swap_record(host.send(asked))
    assert (record["allow_breaking"], record["differences"]) == (False, [])


def test_a_return_within_the_soak_is_not_refused_for_its_names():
    host = serving()
    host.swap("chat", "b")
    host.settle(until_idle=False)
    known = {"offers": Interface(names=("llama-3.1",)), "incumbent": Interface(names=("llama-3.3",))}
    back = replace(host.swap_request("chat", "a"), **known)
    assert plan(host.state, back).is_return
