"""A swap whose candidate proves itself in stages: who answers meanwhile, what follows a verdict, what operators may."""

from dataclasses import replace

import pytest
from support.rollout_host import GIB, Host

from swapd.core import errors, events
from swapd.core.controls import possible
from swapd.core.delivery import Delivery, Ends, Finding, Split, Stage, StageKind, Then
from swapd.core.errors import Problem
from swapd.core.evidence import Outcome
from swapd.core.model import Kind, OpKind, Strategy
from swapd.core.rules import parse_rule
from swapd.core.states import Phase, WorkerState
from swapd.core.strategies import BASELINE

RULES = (parse_rule("error_rate < 1%"),)
SHADOW = Stage(StageKind.SHADOW, 20, 60, 300)
SLICE = Stage(StageKind.CANARY, 5, 60, 300)
HALF = Stage(StageKind.CANARY, 50, 60, 300)
GUARDED = Delivery("guarded", (SHADOW, SLICE, HALF), rules=RULES)


def swapping(delivery=GUARDED, kinds=None, **settings):
    """A swap whose candidate is ready, and whose first stage has begun."""
    host = Host(total=24 * GIB, kinds=kinds or {})
    host.add("chat", "a", **settings)
    host.settle(until_idle=False)
    reply = ask(host, "b", delivery)
    assert not isinstance(reply, Problem), reply
    host.settle(until_idle=False)
    return host


def ask(host, model, delivery, wish=Strategy.DUAL):
    request = host.swap_request("chat", model)
    fields = {name: getattr(request, name) for name in request.__dataclass_fields__}
    return host.send(events.SwapRequested(**{**fields, "strategy": wish, "delivery": delivery}))


def swap(host):
    return host.state.service("chat").swap


def gate(host):
    owner = host.state.worker(host.state.service("chat").owner)
    assert owner.kind is Kind.GATE
    return owner


def judge(host, verdict, text="as measured"):
    now = swap(host)
    stage = None if now.phase is Phase.SOAKING else now.stage
    host.send(events.Judged(host.now, "chat", now.id, stage, Finding(verdict, text, host.now)))
    host.settle(until_idle=False)


def steps(host):
    return [(s.name, s.status) for s in swap(host).steps if "%" in s.name]


def worker_of(host, revision):
    return next(w for w in host.state.workers if w.revision == revision)


def test_a_direct_service_goes_through_a_gate_and_out_again():
    host = swapping(soak_s=100)
    assert gate(host).points_to == worker_of(host, 1).id
    assert gate(host).split == Split(worker_of(host, 2).id, shadow=True)
    for _ in range(3):
        host.pass_time(61)
        judge(host, Outcome.PASS)
    assert swap(host).phase is Phase.SOAKING
    assert (gate(host).points_to, gate(host).split) == (worker_of(host, 2).id, None)
    host.settle()
    assert swap(host) is None
    assert [w.revision for w in host.state.workers] == [2], "neither gate nor old model is left"
    assert host.state.service("chat").owner == worker_of(host, 2).id


def test_nobody_is_asked_who_has_not_answered_its_probes():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    ask(host, "b", GUARDED)
    while not [run for run in host.pending.values() if run.op.kind is OpKind.VERIFY]:
        host.finish(next(iter(host.pending)))
    verify = next(i for i, run in host.pending.items() if run.op.kind is OpKind.VERIFY)
    for op_id in [i for i in host.pending if i != verify]:
        host.finish(op_id)
    assert all(run.op.split is None for run in host.pending.values())
    host.finish(verify)
    assert [run.op.split for run in host.pending.values()] == [Split(worker_of(host, 2).id, shadow=True)]


def test_stages_follow_each_other_each_with_its_share_and_its_verdict():
    host = swapping()
    seen = []
    for _ in range(3):
        seen.append(gate(host).split.percent)
        host.pass_time(61)
        judge(host, Outcome.PASS, f"good at {seen[-1]}")
    assert seen == [0, 5, 50]
    names = ["shadow 20%", "canary 5%", "canary 50%"]
    assert steps(host) == [(name, "done") for name in names]
    assert [s.detail for s in swap(host).steps if "%" in s.name] == ["good at 0.0", "good at 5", "good at 50"]


def test_a_stage_lasts_its_time_whatever_the_verdict_and_no_longer_than_its_deadline():
    host = swapping(Delivery("canary", (SLICE,), rules=RULES))
    judge(host, Outcome.PASS)
    assert swap(host).stage == 0
    host.pass_time(61)
    host.settle(until_idle=False)
    assert swap(host).phase is Phase.SOAKING
    host = swapping(Delivery("canary", (SLICE,), rules=RULES))
    judge(host, Outcome.INCONCLUSIVE, "12 of 50 requests")
    host.pass_time(299)
    assert swap(host).phase is Phase.PROGRESSING
    host.pass_time(5)
    assert (swap(host).phase, swap(host).reason) == (Phase.PAUSED, "12 of 50 requests")


@pytest.mark.parametrize(
    ("then", "phase"), [(Then.ABORT, None), (Then.PAUSE, Phase.PAUSED), (Then.PROMOTE, Phase.SOAKING)]
)
def test_what_follows_a_failed_stage_is_a_setting_and_follows_at_once(then, phase):
    host = swapping(Delivery("canary", (SLICE,), rules=RULES, on_fail=then))
    candidate = worker_of(host, 2).id
    judge(host, Outcome.FAIL, "4 of 31 failed")
    host.settle(until_idle=False)
    assert (swap(host).phase if swap(host) else None) is phase
    if then is Then.ABORT:
        ended = host.finished[-1]
        assert (ended.phase, ended.error.code) == (Phase.FAILED, errors.ANALYSIS_FAILED)
        assert "4 of 31 failed" in ended.reason
        assert [(s.status, s.detail) for s in ended.steps if "%" in s.name] == [("failed", "4 of 31 failed")]
        assert candidate not in host.processes
        assert host.answering("chat") == worker_of(host, 1).id


def test_a_candidate_that_clients_reach_is_drained_before_it_is_ended():
    host = swapping(Delivery("canary", (SLICE,), rules=RULES))
    candidate = worker_of(host, 2).id
    assert host.state.worker(candidate).state is WorkerState.SERVING
    begun = len(host.begun)
    judge(host, Outcome.FAIL)
    host.settle(until_idle=False)
    kinds = [op.kind for op in host.begun[begun:] if candidate in (op.worker, op.target) or op.kind is OpKind.POINT]
    assert kinds == [OpKind.POINT, OpKind.DRAIN, OpKind.STOP]


def test_a_swap_ends_as_rolled_back_only_when_no_table_names_the_candidate():
    host = swapping(Delivery("canary", (SLICE,), rules=RULES))
    now = swap(host)
    host.send(events.Judged(host.now, "chat", now.id, 0, Finding(Outcome.FAIL, "bad", host.now)))
    assert swap(host).phase is Phase.ROLLING_BACK
    host.settle(until_idle=False)
    assert swap(host) is None


@pytest.mark.parametrize("ends", [Ends.TIME, Ends.MANUAL])
def test_a_stage_may_end_by_time_or_wait_for_somebody(ends):
    stage = Stage(StageKind.CANARY, 5, 60, 300, ends)
    host = swapping(Delivery("canary", (stage,)))
    host.pass_time(61)
    host.settle(until_idle=False)
    if ends is Ends.TIME:
        assert swap(host).phase is Phase.SOAKING
        return
    assert (swap(host).phase, swap(host).reason) == (Phase.PAUSED, "canary 5% waits for a `promote`")
    host.send(events.PromoteRequested(host.now, "chat", "ana"))
    host.settle(until_idle=False)
    assert swap(host).phase is Phase.SOAKING
    assert [s.detail for s in swap(host).steps if "%" in s.name] == ["promoted by ana"]


def test_a_pause_keeps_the_stage_as_it_is_and_its_time_does_not_count():
    host = swapping()
    host.pass_time(50)
    host.send(events.PauseRequested(host.now, "chat", "ana", "lunch"))
    assert (swap(host).phase, swap(host).reason) == (Phase.PAUSED, "paused by ana: lunch")
    split = gate(host).split
    host.pass_time(3600)
    judge(host, Outcome.PASS)
    assert (swap(host).stage, gate(host).split) == (0, split)
    host.send(events.Resumed(host.now, "chat", "ana"))
    judge(host, Outcome.PASS)
    assert (swap(host).phase, swap(host).stage) == (Phase.PROGRESSING, 0)
    host.pass_time(11)
    host.settle(until_idle=False)
    assert swap(host).stage == 1


def test_after_a_verdict_paused_it_a_resume_looks_anew():
    host = swapping(Delivery("canary", (SLICE,), rules=RULES, on_fail=Then.PAUSE))
    judge(host, Outcome.FAIL)
    host.pass_time(100)
    host.send(events.Resumed(host.now, "chat", "ana"))
    host.settle(until_idle=False)
    assert (swap(host).phase, swap(host).finding, swap(host).stage_at) == (Phase.PROGRESSING, None, host.now)
    assert gate(host).split.round == 1, "what has failed is not measured on with what made it fail"
    assert steps(host) == [("canary 5%", "failed"), ("canary 5%", "running")]


def test_a_plain_swap_that_is_paused_gets_ready_and_switches_nobody():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    host.swap("chat", "b")
    host.send(events.PauseRequested(host.now, "chat", "ana"))
    host.settle()
    assert worker_of(host, 2).verified
    assert host.answering("chat") == worker_of(host, 1).id
    host.send(events.Resumed(host.now, "chat", "ana"))
    host.settle(until_idle=False)
    assert host.answering("chat") == worker_of(host, 2).id


def test_in_place_a_pause_holds_nobody():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    assert host.swap("chat", "big").strategy is Strategy.IN_PLACE
    host.send(events.PauseRequested(host.now, "chat", "ana"))
    host.settle()
    assert host.answering("chat") == worker_of(host, 1).id
    host.send(events.Resumed(host.now, "chat", "ana"))
    host.settle(until_idle=False)
    assert swap(host).phase is Phase.SOAKING


def test_promote_full_goes_to_all_clients_past_every_stage():
    host = swapping()
    host.send(events.PromoteRequested(host.now, "chat", "ana", full=True))
    host.settle(until_idle=False)
    assert swap(host).phase is Phase.SOAKING
    host.send(events.PromoteRequested(host.now, "chat", "ana", full=True))
    assert (swap(host), host.finished[-1].phase) == (None, Phase.SUCCEEDED)


@pytest.mark.parametrize(
    ("delivery", "phase", "controls"),
    [
        (GUARDED, Phase.PROGRESSING, ("pause", "promote", "promote --full", "cancel")),
        (Delivery("canary", ()), Phase.SOAKING, ("promote --full", "cancel", "rollback")),
    ],
)
def test_controls_that_make_no_sense_are_refused_and_the_legal_ones_named(delivery, phase, controls):
    host = swapping(delivery)
    assert swap(host).phase is phase
    assert possible(swap(host)) == controls
    refused = host.send(events.Resumed(host.now, "chat", "ana"))
    assert refused.code == errors.NOT_POSSIBLE_NOW
    assert refused.details["possible"] == list(controls)
    assert all(control in refused.message for control in controls)


def test_without_a_swap_there_is_nothing_to_pause():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    for event in (events.PauseRequested(1.0, "chat", "ana"), events.PromoteRequested(1.0, "chat", "ana")):
        assert host.send(event).code == errors.NOT_POSSIBLE_NOW
    assert host.send(events.PauseRequested(1.0, "caht", "ana")).code == errors.UNKNOWN_SERVICE


def test_a_rehearsal_ends_before_the_cutover_and_leaves_nothing():
    host = swapping(Delivery("rehearsal", (SHADOW,), rules=RULES, rehearsal=True))
    host.pass_time(61)
    judge(host, Outcome.PASS, "all agreed")
    host.settle()
    ended = host.finished[-1]
    assert (ended.phase, ended.reason) == (Phase.SUCCEEDED, "rehearsed, and nothing was changed: all agreed")
    assert [w.revision for w in host.state.workers] == [1]
    assert host.state.service("chat").stable == 1
    assert host.state.service("chat").owner == worker_of(host, 1).id


def test_in_the_soak_a_failed_rule_returns_to_the_old_revision():
    host = swapping(Delivery("canary", (), rules=RULES))
    judge(host, Outcome.INCONCLUSIVE)
    assert swap(host).phase is Phase.SOAKING
    judge(host, Outcome.FAIL, "40 of 900 failed")
    host.settle(until_idle=False)
    ended = host.finished[-1]
    assert (ended.phase, ended.error.code) == (Phase.FAILED, errors.ANALYSIS_FAILED)
    assert "40 of 900 failed" in ended.reason
    assert host.answering("chat") == worker_of(host, 1).id


def test_sessions_of_the_old_revision_stay_with_it_until_the_soak_ends():
    host = swapping(Delivery("canary", (), session_key="header:x-user"), soak_s=100)
    old = worker_of(host, 1).id
    assert gate(host).split == Split(old, sessions=True)
    assert host.state.worker(old).state is WorkerState.SERVING
    host.settle()
    assert old not in host.processes


def test_a_candidate_that_dies_in_a_stage_costs_the_clients_nothing_more():
    host = swapping(Delivery("canary", (SLICE,), rules=RULES))
    host.exit(worker_of(host, 2).id)
    host.settle(until_idle=False)
    assert host.finished[-1].phase is Phase.FAILED
    assert host.answering("chat") == worker_of(host, 1).id


def test_where_the_old_model_dies_in_a_stage_the_candidate_that_is_ready_answers():
    host = swapping()
    host.exit(worker_of(host, 1).id)
    host.settle(until_idle=False)
    assert swap(host).phase is Phase.SOAKING
    assert host.answering("chat") == worker_of(host, 2).id


def test_a_late_verdict_on_another_stage_or_swap_changes_nothing():
    host = swapping()
    now = swap(host)
    for stage, number in ((1, now.id), (None, now.id), (0, now.id + 1)):
        host.send(events.Judged(host.now, "chat", number, stage, Finding(Outcome.FAIL, "bad", host.now)))
    assert swap(host) == now


def test_a_split_survives_as_its_label():
    for split in (Split("chat-7", 5.5), Split("chat-7", shadow=True), Split("chat-8", sessions=True)):
        assert Split.parse(split.label) == split
    for label in ("", "chat-7", "chat-7 x 0 0 0", "chat-7 5 0 0"):
        assert Split.parse(label) is None


def test_in_place_the_rules_are_left_and_no_stage():
    """Two cannot answer side by side where one makes room for the other: also where that is found out later."""
    rules = Delivery("auto", (BASELINE,), rules=RULES)
    host = Host(total=24 * GIB)
    host.add("chat", "a", soak_s=100)
    host.settle(until_idle=False)
    assert ask(host, "big", rules, wish=None).strategy is Strategy.IN_PLACE
    assert (swap(host).delivery.stages, swap(host).delivery.rules) == ((), RULES)
    host.settle(until_idle=False)
    assert swap(host).phase is Phase.SOAKING
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    assert ask(host, "b", rules, wish=None).strategy is Strategy.DUAL
    load = next(i for i in iter(lambda: _finish_to(host, OpKind.LOAD), None) if i)
    host.pending.pop(load)
    host.send(events.OpFailed(host.now, load, Problem(errors.OUT_OF_MEMORY, "no memory for it")))
    assert (swap(host).strategy, swap(host).delivery.stages) == (Strategy.IN_PLACE, ())
    host.settle(until_idle=False)
    assert swap(host).phase is Phase.SOAKING


def _finish_to(host, kind):
    """The operation of this kind, once it is pending; else another one is carried out."""
    for op_id, run in host.pending.items():
        if run.op.kind is kind:
            return op_id
    host.finish(next(iter(host.pending)))
    return 0


def test_a_baseline_gives_the_candidate_nothing():
    host = swapping(Delivery("auto", (BASELINE,), rules=RULES))
    assert gate(host).split == Split(worker_of(host, 2).id)
    host.pass_time(11)
    host.settle(until_idle=False)
    assert swap(host).phase is Phase.SOAKING


@pytest.mark.parametrize("kind", [Kind.DIRECT, Kind.ENGINE])
def test_a_gate_that_dies_in_a_stage_sends_nobody_to_the_candidate_and_the_stage_begins_again(kind):
    host = swapping(Delivery("canary", (SLICE,), rules=RULES), kinds={"a": kind, "b": kind})
    judge(host, Outcome.PASS)
    host.pass_time(30)
    host.exit(gate(host).id)
    host.settle(until_idle=False)
    assert host.answering("chat") == worker_of(host, 1).id
    assert gate(host).split == Split(worker_of(host, 2).id, 5)
    assert (swap(host).phase, swap(host).stage_at, swap(host).finding) == (Phase.PROGRESSING, host.now, None)
    assert steps(host) == [("canary 5%", "canceled"), ("canary 5%", "running")]


@pytest.mark.parametrize(("then", "ends"), [(Then.ABORT, True), (Then.PAUSE, False)])
def test_in_a_pause_a_candidate_that_fails_is_taken_back(then, ends):
    host = swapping(Delivery("canary", (HALF,), rules=RULES, on_fail=then))
    host.send(events.PauseRequested(host.now, "chat", "ana"))
    host.pass_time(3600)
    judge(host, Outcome.FAIL, "400 of 900 failed")
    if ends:
        assert (swap(host), host.finished[-1].error.code) == (None, errors.ANALYSIS_FAILED)
        assert host.answering("chat") == worker_of(host, 1).id
        return
    judge(host, Outcome.INCONCLUSIVE)
    host.send(events.Resumed(host.now, "chat", "ana"))
    host.settle(until_idle=False)
    assert (swap(host).round, gate(host).split.round) == (1, 1)


def test_in_a_pause_no_stage_begins():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    ask(host, "b", Delivery("canary", (SLICE,), rules=RULES))
    host.send(events.PauseRequested(host.now, "chat", "ana"))
    host.pass_time(10)
    host.settle(until_idle=False)
    assert (gate(host).split, swap(host).stage_at) == (None, None)
    host.pass_time(10)
    host.send(events.Resumed(host.now, "chat", "ana"))
    host.settle(until_idle=False)
    assert (gate(host).split, swap(host).stage_at) == (Split(worker_of(host, 2).id, 5), host.now)


def test_a_table_that_comes_into_force_in_a_pause_counts_from_its_end():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    ask(host, "b", Delivery("canary", (SLICE,), rules=RULES))
    while not any(run.op.split for run in host.pending.values()):
        host.finish(next(iter(host.pending)))
    host.send(events.PauseRequested(host.now, "chat", "ana"))
    host.pass_time(10)
    host.settle(until_idle=False)
    host.pass_time(100)
    host.send(events.Resumed(host.now, "chat", "ana"))
    assert swap(host).stage_at == host.now


REHEARSAL = Delivery("rehearsal", (SHADOW,), rules=RULES, rehearsal=True)


def test_without_anything_that_serves_there_is_no_rehearsal():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    host.exit(worker_of(host, 1).id)
    refused = ask(host, "b", REHEARSAL)
    assert refused.code == errors.NOT_POSSIBLE_NOW
    host.settle(until_idle=False)
    assert host.answering("chat") == worker_of(host, 1).id


def test_a_rehearsal_ends_no_soak():
    host = swapping(Delivery("canary", ()), soak_s=100)
    assert ask(host, "a", REHEARSAL).code == errors.SWAP_IN_PROGRESS
    assert swap(host).phase is Phase.SOAKING


def test_a_rehearsal_that_has_not_begun_does_not_end_well():
    host = Host(total=24 * GIB)
    host.add("chat", "a")
    host.settle(until_idle=False)
    ask(host, "b", REHEARSAL)
    assert possible(swap(host)) == ("pause", "cancel")
    assert host.send(events.PromoteRequested(host.now, "chat", "ana", full=True)).code == errors.NOT_POSSIBLE_NOW
    host.send(events.PauseRequested(host.now, "chat", "ana"))
    assert host.send(events.PromoteRequested(host.now, "chat", "ana")).code == errors.NOT_POSSIBLE_NOW
    host.send(events.Resumed(host.now, "chat", "ana"))
    host.settle(until_idle=False)
    assert possible(swap(host)) == ("pause", "promote", "promote --full", "cancel")


def test_daemons_that_are_killed_in_a_long_stage_do_not_end_it():
    host = swapping(Delivery("canary", (SLICE,), rules=RULES))
    service = host.state.service("chat")
    for _ in range(6):
        seen = [
            events.Observed(
                w.id, w.state, service.owner == w.id, service.epoch, service.epoch, w.points_to, w.split,
                service="chat", kind=w.kind, revision=service.revision(w.revision),
            )
            for w in host.state.workers
        ]  # fmt: skip
        host.send(events.Recovered(host.now, (), (), tuple(seen)))
        host.settle(until_idle=False)
    service = host.state.service("chat")
    assert (service.paused, service.swap.phase) == (None, Phase.PROGRESSING)
    assert gate(host).split == Split(worker_of(host, 2).id, 5)


def test_a_table_that_the_journal_has_missed_begins_its_stage():
    host = swapping(Delivery("canary", (SLICE,), rules=RULES))
    service = host.state.service("chat")
    host.state = replace(host.state, services=(replace(service, swap=replace(service.swap, stage_at=None)),))
    host.pass_time(1)
    host.send(events.TimerFired(host.now, "chat"))
    assert swap(host).stage_at == host.now
