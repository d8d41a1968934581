"""`core.rollout` against a host that fails at any step, in any order: the promises hold all the way."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rollout_host import Host

from swapd.core import events
from swapd.core.crash_loop import crash_loops
from swapd.core.errors import Problem
from swapd.core.model import Kind, OpKind

WORLD = ["fail", "crash", "time", "measure", "start", "settle"]
ACTIONS = ["finish"] * 12 + WORLD + ["swap", "cancel", "rollback", "restart", "flip", "renew", "come or go", "hang"]
MODELS = ["a", "b", "big"]


def act(host: Host, data: st.DataObject) -> None:
    match data.draw(st.sampled_from(ACTIONS)):
        case "finish" if host.pending:
            host.finish(data.draw(st.sampled_from(sorted(host.pending))))
        case "fail" if host.pending:
            host.fail(data.draw(st.sampled_from(sorted(host.pending))))
        case "settle":  # nothing else happens for a while
            host.settle(until_idle=False)
        case "start":
            for op_id, run in host.pending.items():
                if run.op.kind is OpKind.HAND_OVER and run.op.target in host.processes:
                    host.start_target(op_id)
        case "crash" if host.processes:
            host.exit(data.draw(st.sampled_from(sorted(host.processes))))
        case "hang" if host.processes:
            host.hang(data.draw(st.sampled_from(sorted(host.processes))))
        case "swap":
            host.swap(data.draw(st.sampled_from(["chat", "embed"])), data.draw(st.sampled_from(MODELS)))
        case "restart":
            model = host.state.service("chat").config_model
            host.swap("chat", model, again=True)
        case "cancel":
            host.send(events.ReturnRequested(host.now, "chat", "t"))
        case "rollback":
            host.send(events.ReturnRequested(host.now, "chat", "t", only_soaking=True))
        case "flip":  # a reload that changes `front`
            known = host.state.service(data.draw(st.sampled_from(["chat", "embed"])))
            if known is not None:
                host.reload(known.name, gated=not known.settings.gated)
        case "come or go":  # a reload that removes a service, or adds one
            if host.state.service("embed") is not None:
                host.remove("embed")
            else:
                host.add("embed", "b", gated=data.draw(st.booleans()))
        case "renew":  # a reload that changes what a gate is made of
            host.reload("chat", gate=data.draw(st.sampled_from(["", "x"])))
        case "time":
            host.pass_time(data.draw(st.sampled_from([0.1, 1.0, 40.0, 700.0])))
        case "measure" if host.measures:
            host.measure()
        case _:
            pass


def begin(data: st.DataObject, **values: object) -> Host:
    """Two services, each behind a gate or not, of models with and without a front of their own."""
    host = Host(**values)
    host.kinds = {model: data.draw(st.sampled_from([Kind.DIRECT, Kind.ENGINE])) for model in MODELS}
    host.add("chat", "a", gated=data.draw(st.booleans()), crash_loop_failures=data.draw(st.integers(1, 3)))
    host.add("embed", "b", gated=data.draw(st.booleans()))
    return host


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), total=st.sampled_from([24, 36, 64]), hooks=st.sampled_from([(), ("park", "wake"), ("stage",)]))
def test_whatever_fails_in_whatever_order_somebody_proved_serves_in_the_end(data, total, hooks):
    host = begin(data, total=total << 30, hooks=frozenset(hooks))
    for _ in range(data.draw(st.integers(5, 80))):
        act(host, data)
    host.settle()
    assert not any(service.leaving for service in host.state.services)
    for service in host.state.services:
        owner, server = host.state.worker(service.owner), host.state.server_of(service.name)
        story = "\n".join(host.log[-40:])
        assert service.swap is None, f"{service.name}: {service.swap}"
        assert owner is not None, f"{service.name} has no owner\n{story}"
        assert host.owner[service.name] == owner.id
        assert host.turns_away(service.name) is crash_loops(service)
        if service.problem is None:
            assert server is not None, f"nobody serves {service.name}\n{story}"
            assert server.revision == service.stable
            assert host.answering(service.name) == server.id
            assert (owner.kind is Kind.GATE) is service.gated(server.kind)
            assert owner.kind is not Kind.GATE or owner.made_of == service.settings.gate
        others = [w for w in host.state.workers_of(service.name) if w not in (owner, server)]
        assert not others or service.problem is not None, f"left over: {others}"
    held = {r.worker_id for r in host.state.reservations}
    assert held <= {w.id for w in host.state.workers}, f"reserved for nobody: {held}"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_shutdown_at_any_moment_ends_every_worker(data):
    host = begin(data)
    for _ in range(data.draw(st.integers(0, 40))):
        act(host, data)
    host.send(events.ShutdownRequested(host.now))
    refused = host.swap("chat", "b")
    assert isinstance(refused, Problem)
    assert refused.code == "SHUTTING_DOWN"
    host.settle(until_idle=False)
    assert host.exited
    assert not host.processes
