"""What `core.rollout` decides, case by case, on the simulated host."""

from dataclasses import replace

import pytest
from support.rollout_host import GIB, Host

from swapd.core import errors, events
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.events import Measured, WakeAt
from swapd.core.model import DeviceKind, Health, Kind, OpKind, State, Strategy
from swapd.core.report import device_record, health, rollback_kind, service_record, swap_record
from swapd.core.rollout import plan, step
from swapd.core.states import SWAP_TABLE, TERMINAL, Phase, WorkerState


def serving(total=24, hooks=(), **settings):
    host = Host(total=total * GIB, hooks=frozenset(hooks))
    host.add("chat", "a", **settings)
    host.settle(until_idle=False)
    return host


def chat(host):
    return host.state.service("chat")


def kinds(host):
    return [run.op.kind for run in host.pending.values()]


def finish_until(host, kind):
    """Carry out operations until one of this kind is pending."""
    for _ in range(60):
        found = [i for i, run in host.pending.items() if run.op.kind is kind]
        if found:
            return found[0]
        host.finish(next(iter(host.pending)))
    raise AssertionError(f"no {kind}")


def test_a_first_start_holds_the_clients_until_the_model_has_proved_itself():
    host = Host()
    host.add("chat", "a")
    owners = []
    while host.pending or host.measures:
        if host.measures:
            host.measure()
        else:
            host.finish(next(iter(host.pending)))
        owner = host.state.worker(chat(host).owner)
        owners.append(None if owner is None else owner.kind)
    assert Kind.GATE in owners
    assert owners[-1] is Kind.DIRECT
    assert [w.kind for w in host.state.workers] == [Kind.DIRECT], "the gate is stopped once nobody is held"


def test_in_a_dual_swap_the_stable_worker_owns_the_clients_until_the_candidate_is_verified():
    host = serving()
    stable = chat(host).owner
    host.swap("chat", "b")
    switch = finish_until(host, OpKind.HAND_OVER)
    assert chat(host).owner == stable
    candidate = host.state.worker(host.pending[switch].op.target)
    assert candidate.verified
    host.finish(switch)
    assert chat(host).owner == candidate.id
    assert host.state.worker(stable).state is WorkerState.QUIESCED, "resident, for the way back"


@pytest.mark.parametrize(
    "kind", [OpKind.SPAWN, OpKind.CONFIRM, OpKind.LOAD, OpKind.WARM, OpKind.VERIFY, OpKind.HAND_OVER]
)
def test_a_candidate_that_fails_at_any_step_of_a_dual_swap_never_touches_the_stable_one(kind):
    host = serving()
    stable = chat(host).owner
    host.swap("chat", "b")
    host.fail(finish_until(host, kind))
    host.settle(until_idle=False)
    assert chat(host).owner == stable
    assert host.finished[-1].phase is Phase.FAILED
    assert host.finished[-1].steps[-1].status == "failed"
    assert [w.id for w in host.state.workers] == [stable]


@pytest.mark.parametrize("kind", [OpKind.CONFIRM, OpKind.LOAD, OpKind.WARM, OpKind.VERIFY])
def test_a_candidate_that_fails_in_place_brings_the_old_revision_back(kind):
    host = serving()
    host.swap("chat", "big")
    finish_until(host, OpKind.STOP)  # of the old worker: from here on it is gone
    host.fail(finish_until(host, kind))
    host.settle(until_idle=False)
    owner = host.state.worker(chat(host).owner)
    assert (owner.revision, host.finished[-1].phase) == (1, Phase.FAILED)
    assert "stop" in [s.name for s in host.finished[-1].steps]
    assert [w.id for w in host.state.workers] == [owner.id]


def test_in_place_nothing_is_loaded_before_the_old_workers_process_tree_is_gone():
    host = serving()
    host.swap("chat", "big")
    stop = finish_until(host, OpKind.STOP)
    assert OpKind.LOAD not in kinds(host)
    assert OpKind.CONFIRM not in kinds(host)
    host.finish(stop)
    assert OpKind.CONFIRM in kinds(host)


def test_an_old_worker_that_dies_while_it_drains_has_made_room():
    host = serving()
    host.swap("chat", "big")
    drain = finish_until(host, OpKind.DRAIN)
    host.exit(host.pending[drain].op.worker)
    assert kinds(host), "the swap waits for something that cannot happen"
    host.settle(until_idle=False)
    assert chat(host).swap.phase is Phase.SOAKING


def test_a_worker_that_can_park_is_parked_and_woken():
    host = serving(hooks=("park", "wake"))
    host.swap("chat", "big")
    host.settle(until_idle=False)
    assert rollback_kind(host.state, chat(host)) == "parked"
    host.send(events.ReturnRequested(host.now, "chat", "ana", only_soaking=True))
    host.settle(until_idle=False)
    steps = [s.name for s in host.finished[-1].steps]
    assert "restore: wake" in steps
    assert "restore: load" not in steps
    assert host.state.worker(chat(host).owner).revision == 1


def test_on_a_host_device_a_worker_that_can_park_is_stopped_all_the_same():
    """Its parked bytes would stay on the very device."""
    host = Host(hooks=frozenset(("park", "wake")), kind=DeviceKind.HOST)
    host.add("chat", "a")
    host.settle(until_idle=False)
    host.swap("chat", "big")
    host.settle(until_idle=False)
    steps = [s.name for s in chat(host).swap.steps]
    assert "stop" in steps
    assert "park" not in steps


def test_only_an_engine_that_declares_it_is_staged_while_the_old_model_serves():
    host = serving(hooks=("stage",))
    host.swap("chat", "big")
    host.settle(until_idle=False)
    names = [s.name for s in chat(host).swap.steps]
    assert names.index("stage") < names.index("hold")


@pytest.mark.parametrize(("model", "staged"), [("big", 1), ("b", 0)])
def test_files_are_read_ahead_where_clients_would_wait_for_them_and_only_there(model, staged):
    """In place, before the hold; not beside the old model, and not on the way back."""
    host = serving()
    host.reads = True
    host.swap("chat", model)
    host.fail(finish_until(host, OpKind.LOAD))
    host.settle(until_idle=False)
    names = [s.name for s in host.finished[-1].steps]
    assert names.count("stage") == staged
    assert [op.kind for op in host.begun].count(OpKind.STAGE) == staged
    if staged:
        assert names.index("stage") < names.index("hold")


def test_the_soak_ends_by_itself_and_the_kept_revision_is_drained_and_stopped():
    host = serving(soak_s=600.0)
    host.swap("chat", "b")
    host.settle(until_idle=False)
    assert rollback_kind(host.state, chat(host)) == "instant"
    assert len(host.state.workers) == 2
    host.pass_time(601)
    drains = [run.op for run in host.pending.values() if run.op.kind is OpKind.DRAIN]
    assert len(drains) == 1
    host.settle(until_idle=False)
    assert host.finished[-1].phase is Phase.SUCCEEDED
    assert len(host.state.workers) == 1
    assert rollback_kind(host.state, chat(host)) == "cold"


def test_the_serving_revision_is_remembered_however_many_candidates_fail():
    host = serving()
    for _ in range(40):
        host.swap("chat", "b")
        host.fail(finish_until(host, OpKind.VERIFY))
        host.settle(until_idle=False)
    assert chat(host).revision(chat(host).stable).model == "a"
    assert len(chat(host).revisions) <= 33
    host.swap("chat", "b")
    host.settle(until_idle=False)
    assert rollback_kind(host.state, chat(host)) == "instant"


def test_a_candidate_that_dies_in_the_soak_gives_the_clients_back_at_once():
    host = serving()
    stable = chat(host).owner
    host.swap("chat", "b")
    host.settle(until_idle=False)
    host.exit(chat(host).owner)
    assert kinds(host) == [OpKind.ADOPT], "no gate in between: the resident worker takes the listeners"
    host.settle(until_idle=False)
    assert chat(host).owner == stable
    assert host.finished[-1].phase is Phase.FAILED
    assert "during the soak" in host.finished[-1].reason


def test_a_stable_worker_that_dies_is_restarted_at_once_and_then_with_growing_pauses():
    host = serving(backoff_max_s=4.0)
    pauses = []
    for _ in range(6):
        before = host.now
        host.exit(chat(host).owner)
        spawn = None
        while spawn is None:
            spawn = next(
                (r for r in host.pending.values() if r.op.kind is OpKind.SPAWN and "gate" not in r.op.worker), None
            )
            if spawn is None and host.wake:
                host.pass_time(max(0.0, min(host.wake.values()) - host.now))
        pauses.append(round(host.now - before, 3))
        host.settle(until_idle=False)
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 4.0]


def crash(host, times):
    """Let the serving worker end so many times, each time as soon as it serves."""
    for _ in range(times):
        host.exit(host.state.server_of("chat").id)
        host.settle()


def next_try(host):
    while not [run for run in host.pending.values() if run.op.kind is OpKind.SPAWN and "gate" not in run.op.worker]:
        host.pass_time(0.1)


@pytest.mark.parametrize("gated", [False, True])
def test_a_model_that_crashes_again_and_again_keeps_nobody_waiting_until_it_has_proved_itself(gated):
    host = serving(gated=gated, crash_loop_failures=3)
    crash(host, 2)
    assert health(host.state, chat(host)) is Health.HEALTHY
    host.exit(host.state.server_of("chat").id)
    host.settle(until_idle=False)
    assert (chat(host).problem.code, chat(host).problem.details["failures"]) == (errors.CRASH_LOOP, 3)
    assert chat(host).problem.details["last"]["code"] == errors.WORKER_EXITED
    assert health(host.state, chat(host)) is Health.DEGRADED
    assert host.turns_away("chat")
    next_try(host)
    host.fail(finish_until(host, OpKind.VERIFY))
    host.settle(until_idle=False)
    assert host.turns_away("chat")
    next_try(host)
    finish_until(host, OpKind.VERIFY)
    assert host.turns_away("chat"), "until it has proved itself"
    host.settle()
    assert not host.turns_away("chat")
    assert host.answering("chat")
    assert health(host.state, chat(host)) is Health.HEALTHY
    told = [(body["health"], body["code"]) for event, body in host.told if event == "service.health"]
    assert told[-2:] == [("Degraded", "CRASH_LOOP"), ("Healthy", None)]
    crash(host, 1)
    assert [body for event, body in host.told if event == "service.health"][-2]["code"] == errors.CRASH_LOOP


def test_failures_with_calm_between_them_are_no_crash_loop():
    host = serving(crash_loop_failures=2)
    for _ in range(4):
        crash(host, 1)
        host.pass_time(61)
    assert not [body for event, body in host.told if body.get("code") == errors.CRASH_LOOP]


def test_a_model_that_never_starts_is_a_crash_loop_too_and_a_swap_to_another_ends_it():
    host = Host()
    host.add("chat", "a", crash_loop_failures=2)
    host.measure()
    host.fail(finish_until(host, OpKind.LOAD))
    host.settle(until_idle=False)
    assert health(host.state, chat(host)) is Health.UNAVAILABLE
    assert not host.turns_away("chat")
    next_try(host)
    host.fail(finish_until(host, OpKind.LOAD))
    host.settle(until_idle=False)
    assert host.turns_away("chat")
    host.swap("chat", "b")
    host.settle(until_idle=False)
    assert host.answering("chat")
    assert chat(host).failures == 0


def test_an_in_place_swap_holds_its_clients_although_the_model_was_restarted_often():
    host = serving(crash_loop_failures=1)
    crash(host, 1)
    host.swap("chat", "big")
    finish_until(host, OpKind.LOAD)
    assert host.answering("chat") is None
    assert not host.turns_away("chat")


@pytest.mark.parametrize("gated", [False, True])
def test_a_worker_that_hangs_is_ended_and_begun_again_in_the_memory_that_it_had(gated):
    host = serving(total=12, gated=gated)  # there is no room for a second one
    old = host.state.server_of("chat").id
    host.hang(old)
    assert [(run.op.worker, run.op.force) for run in host.pending.values() if run.op.kind is OpKind.STOP] == [
        (old, True)
    ]
    assert chat(host).problem.code == errors.WORKER_HUNG
    if gated:
        assert OpKind.POINT in kinds(host), "its clients are held before it is gone"
    host.settle()
    assert host.state.server_of("chat").id != old
    assert chat(host).failures == 1
    assert chat(host).problem is None


def test_a_worker_that_hangs_again_and_again_is_a_crash_loop():
    host = serving(crash_loop_failures=2)
    for _ in range(2):
        host.hang(host.state.server_of("chat").id)
        host.settle(until_idle=False)
    assert chat(host).problem.code == errors.CRASH_LOOP
    assert chat(host).problem.details["last"]["code"] == errors.WORKER_HUNG


def test_a_worker_that_hangs_in_the_soak_gives_the_clients_back_at_once():
    host = serving(gated=True)
    stable = host.state.server_of("chat").id
    host.swap("chat", "b")
    host.settle(until_idle=False)
    hung = host.state.server_of("chat").id
    host.hang(hung)
    host.finish(finish_until(host, OpKind.POINT))
    assert host.answering("chat") == stable
    host.settle()
    assert host.finished[-1].phase is Phase.FAILED
    assert host.finished[-1].error.code == errors.WORKER_HUNG


def test_only_a_worker_that_answers_clients_and_has_nothing_else_to_do_can_hang():
    host = serving()
    host.swap("chat", "b")
    host.settle(until_idle=False)
    kept = next(w.id for w in host.state.workers if w.id != chat(host).owner)
    state = host.state
    for worker in (kept, "nobody-1"):
        assert step(state, events.WorkerHung(host.now, worker, Problem("X", "it hangs"))).state == state
    host.send(events.ReturnRequested(host.now, "chat", "ana", only_soaking=True))
    assert kinds(host) == [OpKind.HAND_OVER]
    state = host.state
    assert step(state, events.WorkerHung(host.now, chat(host).owner, Problem("X", "it hangs"))).state == state


@pytest.mark.parametrize("gated", [False, True])
def test_a_removed_service_is_drained_and_stopped_and_leaves_the_others_alone(gated):
    host = serving(gated=gated)
    host.add("embed", "b")
    host.settle(until_idle=False)
    others = host.state.workers_of("embed")
    host.remove("chat")
    assert host.swap("chat", "b").code == errors.SHUTTING_DOWN
    refused = host.send(events.ServiceAdded(host.now, "chat", chat(host).settings, "a", chat(host).revision(1)))
    assert refused.code == errors.SHUTTING_DOWN, "it is added anew only once it is gone"
    first = host.pending[finish_until(host, OpKind.DRAIN)].op
    assert first.worker == chat(host).owner
    assert first.force, "its front accepts nobody after the drain"
    host.settle()
    assert chat(host) is None
    assert host.state.workers == others
    assert {r.service for r in host.state.reservations} == {"embed"}
    assert [body for event, body in host.told if event == "service.removed"] == [{"service": "chat"}]
    assert not host.exited


def test_a_service_that_is_removed_in_the_middle_of_a_swap_ends_it():
    host = serving()
    host.swap("chat", "b")
    finish_until(host, OpKind.LOAD)
    host.remove("chat")
    host.settle()
    assert [(s.phase, s.reason) for s in host.finished] == [(Phase.CANCELED, "the service was removed")]
    assert not host.state.workers
    assert not host.processes


def test_a_worker_of_a_removed_service_that_dies_is_not_begun_again():
    host = serving()
    host.remove("chat")
    host.exit(chat(host).owner)
    assert chat(host) is None
    host.settle()
    assert not host.processes


def test_a_second_swap_is_refused_and_changes_nothing():
    host = serving()
    host.swap("chat", "b")
    before = host.state
    refused = host.swap("chat", "b")
    assert isinstance(refused, Problem)
    assert refused.code == errors.SWAP_IN_PROGRESS
    assert host.state is before


def test_equal_content_is_refused_unless_it_is_asked_for_again():
    host = serving()
    assert host.swap("chat", "a").code == errors.ALREADY_SERVING
    assert host.swap("chat", "a", again=True).target.number == 2


def test_a_late_result_of_a_worker_that_is_gone_is_void():
    host = serving()
    host.swap("chat", "b")
    load = finish_until(host, OpKind.LOAD)
    host.exit(host.pending[load].op.worker)
    state = host.state
    assert step(state, events.OpDone(host.now, load)).state == state
    assert step(state, events.OpFailed(host.now, load, Problem("X", "late"))).state == state
    assert step(state, events.WorkerExited(host.now, "nobody-1", Problem("X", "late"))).state == state
    assert step(state, Measured(host.now, "chat", 1, Problem("X", "late"))).state == state


def test_a_target_that_dies_within_the_hand_over_leaves_the_clients_with_the_source():
    host = serving()
    stable = chat(host).owner
    host.swap("chat", "b")
    switch = finish_until(host, OpKind.HAND_OVER)
    host.exit(host.pending[switch].op.target)
    assert OpKind.TARGET_DEAD in kinds(host)
    host.settle(until_idle=False)
    assert chat(host).owner == stable


def test_a_source_that_dies_within_the_hand_over_leaves_them_with_the_target():
    host = serving()
    host.swap("chat", "b")
    switch = finish_until(host, OpKind.HAND_OVER)
    target = host.pending[switch].op.target
    host.exit(host.pending[switch].op.worker)
    assert OpKind.SOURCE_DEAD in kinds(host)
    host.settle(until_idle=False)
    assert chat(host).owner == target


def test_a_target_that_hangs_is_killed_before_the_source_may_read_again():
    host = serving()
    stable = chat(host).owner
    host.swap("chat", "b")
    switch = finish_until(host, OpKind.HAND_OVER)
    host.pending.pop(switch)
    host.send(events.OpFailed(host.now, switch, Problem(errors.TIMEOUT, "no answer")))
    assert kinds(host) == [OpKind.STOP]
    host.settle(until_idle=False)
    assert chat(host).owner == stable


def test_a_parked_model_that_finds_its_memory_taken_is_kept_and_tried_again():
    """By somebody else's process. It may be the only copy of what it serves, and its wake takes no more for that."""
    host = serving(hooks={"park", "wake"})
    stable = chat(host).owner
    host.swap("chat", "big")
    host.settle(until_idle=False)
    host.send(events.ReturnRequested(host.now, "chat", "t", only_soaking=True))
    for _ in range(2):
        confirm = finish_until(host, OpKind.CONFIRM)
        assert host.pending.pop(confirm).op.worker == stable
        host.send(events.OpFailed(host.now, confirm, Problem(errors.MEMORY_NOT_RELEASED, "3 GiB are held outside")))
        assert host.state.worker(stable).state is WorkerState.PARKED
        assert OpKind.CONFIRM not in kinds(host), "not at once: others may be waiting for their turn"
        assert chat(host).problem.code == errors.MEMORY_NOT_RELEASED
        host.pass_time(2.0)
    host.settle(until_idle=False)
    assert (chat(host).owner, chat(host).problem) == (stable, None)


@pytest.mark.parametrize("starts", [False, True])
def test_nobody_is_promised_what_an_in_place_swap_has_counted_on(starts):
    """Its clients would be held, and the old model stopped, for a load that finds no room."""
    host = Host(total=26 * GIB, needs={"a": 10 * GIB, "big": 20 * GIB, "b": 2 * GIB, "c": 5 * GIB})
    host.add("chat", "a")
    if not starts:
        host.add("embed", "b")
    host.settle(until_idle=False)
    assert host.swap("chat", "big").strategy is Strategy.IN_PLACE
    told = device_record(host.reading(), host.state)
    assert ("load of chat on gpu0", 10 * GIB) in [(w["id"], w["reserved_bytes"]) for w in told["workers"]]
    if starts:
        host.needs["c"] = 7 * GIB
        host.add("embed", "c")
        host.measure()
        problem = host.state.service("embed").problem
        assert problem.code == errors.VRAM_INSUFFICIENT
        assert "wait for the end of chat's swap" in problem.message
    else:
        assert host.swap("embed", "c").strategy is Strategy.IN_PLACE
    host.settle(until_idle=False)
    assert chat(host).swap.phase is Phase.SOAKING


@pytest.mark.parametrize(
    ("way_back", "wish", "then"),
    [(True, None, OpKind.CONFIRM), (False, None, OpKind.WAKE), (False, Strategy.IN_PLACE, OpKind.CONFIRM)],
)
def test_what_parking_freed_too_little_of_is_stopped_if_it_can_come_back_or_that_is_not_asked_for(way_back, wish, then):
    host = serving(hooks={"park", "wake"})
    stable = chat(host).owner
    asked = replace(host.swap_request("chat", "big"), way_back=way_back, strategy=wish)
    assert host.send(asked).parks
    confirm = finish_until(host, OpKind.CONFIRM)
    host.pending.pop(confirm)
    host.send(events.OpFailed(host.now, confirm, Problem(errors.MEMORY_NOT_RELEASED, "3 GiB are kept")))
    finish_until(host, then)
    assert (host.state.worker(stable) is None) == (then is OpKind.CONFIRM)
    host.settle(until_idle=False)
    assert (chat(host).owner == stable) == (then is OpKind.WAKE)
    assert chat(host).swap is None or chat(host).swap.phase is Phase.SOAKING


def test_the_way_back_keeps_its_memory_promised_after_an_in_place_swap_to_a_smaller_model():
    host = Host(total=24 * GIB)
    host.add("chat", "big")
    host.settle(until_idle=False)
    host.needs["b"] = 10 * GIB
    candidate = host.swap("chat", "b")
    host.settle(until_idle=False)
    assert candidate.strategy.value == "in-place"
    assert sum(r.bytes for r in host.state.reservations) == 20 * GIB
    host.add("embed", "a")
    host.measure()
    assert host.state.service("embed").problem.code == errors.VRAM_INSUFFICIENT
    host.pass_time(601)
    host.settle()
    assert host.state.service("embed").problem is None, "once the soak is over the rest is free"


def test_subscribers_hear_of_the_step_that_failed_and_of_every_phase():
    host = serving()
    host.swap("chat", "b")
    host.fail(finish_until(host, OpKind.LOAD))
    host.settle(until_idle=False)
    phases = [body["phase"] for event, body in host.told if event == "swap.phase"]
    assert phases == ["Preparing", "Failed"]
    failed = [body["step"] for event, body in host.told if event == "swap.step" and body["status"] == "failed"]
    assert failed == ["load"]
    assert [event for event, _ in host.told if event.startswith("swap.")][-1] == "swap.finished"


def test_a_target_that_had_started_before_it_died_leaves_the_listeners_to_be_given_again():
    host = serving()
    stable = chat(host).owner
    host.swap("chat", "b")
    switch = finish_until(host, OpKind.HAND_OVER)
    host.exit(host.pending[switch].op.target)
    told = next(i for i, run in host.pending.items() if run.op.kind is OpKind.TARGET_DEAD)
    host.pending = {}
    host.send(events.OpDone(host.now, told, {"resumed": False}))
    assert OpKind.ADOPT in kinds(host)
    host.settle(until_idle=False)
    assert chat(host).owner == stable


def test_a_swap_to_what_the_soak_keeps_is_a_return_also_where_a_new_copy_would_not_fit():
    host = Host(total=24 * GIB)
    host.needs = {"a": 12 * GIB, "b": 12 * GIB}
    host.add("chat", "a")
    host.settle(until_idle=False)
    first = host.swap("chat", "b")
    host.settle(until_idle=False)
    kept = host.state.worker(chat(host).owner)
    placed = plan(host.state, host.swap_request("chat", "a"))
    assert (placed.strategy, placed.is_return, placed.expected_outage_s) == (Strategy.DUAL, True, 0.0)
    assert host.swap("chat", "a").id == first.id
    host.settle()
    assert chat(host).owner != kept.id
    assert chat(host).revision(chat(host).stable).number == 1


def test_what_a_soak_keeps_for_its_return_does_not_stand_in_the_way_of_the_swap_that_ends_it():
    host = Host(total=24 * GIB)
    host.needs = {"a": 20 * GIB, "b": 8 * GIB, "c": 10 * GIB}
    host.add("chat", "a")
    host.settle(until_idle=False)
    host.swap("chat", "b")
    host.settle(until_idle=False)
    assert chat(host).swap.phase is Phase.SOAKING
    assert host.swap("chat", "c").strategy is Strategy.DUAL


def test_a_restarted_worker_whose_files_have_changed_gets_a_number_of_its_own():
    host = serving()
    host.exit(chat(host).owner)
    worker = next(w for w in host.state.workers if w.kind is Kind.DIRECT)
    host.send(events.ContentChanged(host.now, worker.id, "changed"))
    host.settle(until_idle=False)
    stable = chat(host).revision(chat(host).stable)
    assert (stable.number, stable.model, stable.fingerprint) == (2, "a", "changed")
    assert host.state.worker(chat(host).owner).revision == 2
    assert host.swap("chat", "b").target.number == 3


def test_a_candidate_whose_files_change_before_it_starts_keeps_its_number():
    host = serving()
    host.swap("chat", "b")
    worker = next(w for w in host.state.workers if w.revision == 2)
    host.send(events.ContentChanged(host.now, worker.id, "changed"))
    assert chat(host).swap.target.fingerprint == chat(host).revision(2).fingerprint == "changed"
    host.settle(until_idle=False)
    assert chat(host).stable == 2


def test_a_way_back_to_changed_files_is_told_by_its_number():
    host = serving()
    host.swap("chat", "big")
    host.fail(finish_until(host, OpKind.VERIFY))
    worker = next(w for w in host.state.workers if w.revision == 1 and not w.ending)
    host.send(events.ContentChanged(host.now, worker.id, "changed"))
    host.settle()
    assert chat(host).stable == 3
    assert host.state.worker(chat(host).owner).revision == 3
    assert host.finished[-1].source.number == 3


def test_what_soaks_with_nothing_to_go_back_to_and_starts_again_from_changed_files_soaks_no_more():
    """Its old number was wanted, and never came: workers were begun and ended in a tight loop."""
    host = Host()
    host.add("chat", "big")
    host.measure()
    host.fail(finish_until(host, OpKind.LOAD))
    swap = host.swap("chat", "a")
    host.settle(until_idle=False)
    assert swap.source is None
    assert chat(host).swap.phase is Phase.SOAKING
    host.exit(chat(host).owner)
    worker = next(w for w in host.state.workers if w.revision == 2)
    host.send(events.ContentChanged(host.now, worker.id, "changed"))
    assert host.finished[-1].phase is Phase.SUCCEEDED
    host.settle(until_idle=False)
    assert host.state.server_of("chat").revision == chat(host).stable == 3


@pytest.mark.parametrize(("method", "words"), [("rollback", "rolled back by"), ("cancel", "canceled by")])
def test_why_somebody_went_back_is_recorded(method, words):
    host = serving()
    host.swap("chat", "b")
    host.settle(until_idle=False)
    host.send(events.ReturnRequested(host.now, "chat", "ana", "worse answers", only_soaking=method == "rollback"))
    host.settle()
    assert swap_record(host.finished[-1])["reason"] == f"{words} ana: worse answers"


def test_clients_whom_the_gate_turned_away_are_counted():
    host = serving()
    host.swap("chat", "big")
    finish_until(host, OpKind.LOAD)
    host.turned_away = 3
    host.settle(until_idle=False)
    assert swap_record(chat(host).swap)["refused_requests"] == 3


def test_health_tells_holding_from_failing():
    host = Host()
    host.add("chat", "a")
    assert health(host.state, chat(host)) is Health.DEGRADED
    host.measure()
    host.fail(finish_until(host, OpKind.LOAD))
    assert health(host.state, chat(host)) is Health.UNAVAILABLE
    host.settle()
    assert health(host.state, chat(host)) is Health.HEALTHY


def test_records_have_the_documented_keys():
    host = serving()
    host.swap("chat", "b")
    host.settle(until_idle=False)
    record = swap_record(chat(host).swap)
    documented = "id service from to strategy why phase reason actor outage_ms cutover_ms steps peak_memory_bytes"
    assert set(documented.split()) <= set(record)
    assert record["steps"][0].keys() >= {"name", "status", "started_at", "ms"}
    figures = {"listen": ("127.0.0.1:1",), "config_model": "a", "stats": None}
    status = service_record(host.state, chat(host), **figures)
    assert status["drift"] == "config a, running b (#2)"
    status = service_record(host.state, chat(host), **figures, brought_by="ana")
    assert status["drift"] == "config a, running b (#2, ana)"
    assert status["soak"]["previous"] == {"revision": 1, "model": "a"}


def test_every_phase_has_an_answer_and_the_ends_are_final():
    assert set(SWAP_TABLE) == set(Phase)
    assert {p for following in SWAP_TABLE.values() for p in following} <= set(Phase)
    assert {Phase.SUCCEEDED, Phase.CANCELED, Phase.FAILED} == TERMINAL
    for phase in set(Phase) - TERMINAL - {Phase.ROLLING_BACK}:
        assert Phase.ROLLING_BACK in SWAP_TABLE[phase], f"{phase} cannot be left"


def test_a_service_is_looked_at_again_at_the_earliest_time_that_anything_waits_for():
    """A soak's end must not wait for a restart's pause, nor one worker's pause for another's."""
    draft = Draft(State(), 0.0)
    for at in (5.0, 3.0, 9.0):
        draft.wake_at("chat", at)
    assert draft.outcome().effects == (WakeAt("chat", 3.0),)


def test_a_swap_that_failed_is_recorded_as_failed_although_the_daemon_is_stopped_meanwhile():
    host = serving(total=12)
    host.swap("chat", "b")
    host.fail(finish_until(host, OpKind.LOAD))
    assert chat(host).swap.phase is Phase.ROLLING_BACK
    host.send(events.ShutdownRequested(host.now))
    assert [s.phase for s in host.finished] == [Phase.FAILED]


def test_a_plan_tells_a_soak_from_a_worker_that_does_not_serve():
    host = serving()
    host.swap("chat", "b")
    host.settle(until_idle=False)
    placed = plan(host.state, host.swap_request("chat", "b", again=True))
    assert "once the soak of a (chat-2) is ended" in placed.why
    host = Host()
    host.add("chat", "a")
    host.measure()
    finish_until(host, OpKind.LOAD)
    placed = plan(host.state, host.swap_request("chat", "b"))
    assert placed.strategy is Strategy.START
    assert "which takes no clients, is stopped" in placed.why
    assert "soak" not in placed.why
