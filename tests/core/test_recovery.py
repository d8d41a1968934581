"""What a daemon that starts makes of what the last one has left, case by case: each operation that was in flight, its
end seen on the host or not, its worker alive or not. `test_simulation` has everything else that may come together."""

from dataclasses import replace

import pytest
from support.rollout_host import GIB, Host

from swapd.core import errors, events
from swapd.core.delivery import Delivery, Split, Stage, StageKind
from swapd.core.errors import Problem
from swapd.core.events import Kept, Observed, Recovered
from swapd.core.model import Kind, Op, OpKind, Revision, Strategy
from swapd.core.recovery import MAX_RECOVERIES
from swapd.core.report import Health, health
from swapd.core.states import Phase, WorkerState


class Left(Host):
    """A host whose daemon ends, and is followed by another."""

    def begins(self, kind, worker=None):
        """Whether such an operation is in flight."""
        found = [run.op for run in self.pending.values() if run.op.kind is kind and worker in (None, run.op.worker)]
        return found[-1] if found else None

    def until(self, kind):
        for _ in range(80):
            if (op := self.begins(kind)) is not None:
                return op
            self.measure() if self.measures else self.finish(next(iter(self.pending)))
        raise AssertionError(f"no {kind}")

    def sees(self, worker, **what):
        """What `hello` tells, by default as the journal has it. SERVING is told by who owns, as a worker does."""
        owner = self.owner.get(worker.service) == worker.id
        state = worker.state
        if state is WorkerState.SERVING and not owner and worker.kind is Kind.DIRECT:
            state = WorkerState.LOADED
        told = {"state": state, "owner": owner, "points_to": worker.points_to, "hooks": worker.hooks}
        told["split"] = worker.split
        return Observed(worker.id, service=worker.service, kind=worker.kind, **(told | what))

    def dies(self, *, crashed=True, **seen):
        """The daemon ends, and another observes. `seen`: what it sees of a worker that is otherwise than the journal
        says, None for one that is gone."""
        self.pending, self.measures, self.wake = {}, [], {}
        self.begun.clear()
        changed = {name.replace("_", "-"): what for name, what in seen.items()}
        there = [w for w in self.state.workers if w.id in self.processes or changed.get(w.id)]
        observed = [self.sees(w, **(changed.get(w.id) or {})) for w in there if changed.get(w.id, {}) is not None]
        kept = tuple(Kept(s.name, s.settings, s.config_model) for s in self.state.services)
        self.send(Recovered(self.now, kept, (), tuple(observed), crashed))


def serving(total=24, hooks=(), kinds=None, **settings):
    host = Left(total=total * GIB, hooks=frozenset(hooks), kinds=kinds or {})
    host.add("chat", "a", **settings)
    host.settle(until_idle=False)
    return host


def chat(host):
    return host.state.service("chat")


def steps(host, name):
    swap = chat(host).swap or host.finished[-1]
    return [s.status for s in swap.steps if s.name == name]


def key(worker_id):
    return worker_id.replace("-", "_")


DUAL = {"total": 36}
IN_PLACE = {"total": 14, "hooks": ("stage", "park", "wake")}


def in_flight(kind, **settings):
    """A swap to another model, with this operation in flight."""
    host = serving(**settings)
    host.swap("chat", "b")
    return host, host.until(kind)


# --- the end is seen: it has come about, whoever heard of it -------------------------------------------------------

SEEN = [
    (OpKind.SPAWN, DUAL, {"state": WorkerState.SPAWNED}),
    (OpKind.STAGE, IN_PLACE, {"state": WorkerState.STAGED}),
    (OpKind.LOAD, DUAL, {"state": WorkerState.LOADED}),
    (OpKind.PARK, IN_PLACE, {"state": WorkerState.PARKED}),
]


@pytest.mark.parametrize(("kind", "settings", "told"), SEEN, ids=lambda value: getattr(value, "value", ""))
def test_a_step_whose_end_is_seen_is_done_and_not_taken_again(kind, settings, told):
    host, op = in_flight(kind, **settings)
    host.dies(**{key(op.worker): told})
    assert host.begins(kind, op.worker) is None
    assert steps(host, op.step) == ["done"]
    assert chat(host).swap.phase in (Phase.PREPARING, Phase.PROGRESSING)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (OpKind.STAGE, IN_PLACE),
        (OpKind.CONFIRM, DUAL),
        (OpKind.WARM, DUAL),
        (OpKind.VERIFY, DUAL),
        (OpKind.DRAIN, IN_PLACE),
        (OpKind.PARK, IN_PLACE),
    ],
    ids=lambda value: getattr(value, "value", ""),
)
def test_a_step_whose_end_is_not_seen_is_begun_again(kind, settings):
    host, op = in_flight(kind, **settings)
    host.dies()
    assert host.begins(kind, op.worker).id != op.id
    assert steps(host, op.step) == ["canceled", "running"]


@pytest.mark.parametrize("kind", [OpKind.SPAWN, OpKind.CONFIRM, OpKind.LOAD, OpKind.WARM, OpKind.VERIFY])
def test_a_candidate_that_died_meanwhile_fails_its_swap_unless_it_had_not_begun(kind):
    host, op = in_flight(kind, **DUAL)
    stable = chat(host).owner
    host.dies(**{key(op.worker): None})
    if kind is OpKind.SPAWN:
        assert host.begins(OpKind.SPAWN, op.worker), "it may never have been started: so it is now"
    else:
        assert host.state.worker(op.worker) is None
        assert host.finished[-1].phase is Phase.FAILED
        assert op.worker not in {r.worker_id for r in host.state.reservations}
    assert chat(host).owner == stable
    host.settle(until_idle=False)
    assert health(host.state, chat(host)) is Health.HEALTHY


def test_a_server_that_is_loaded_is_not_taken_for_ready():
    host, op = in_flight(OpKind.LOAD, total=36, kinds={"b": Kind.ENGINE})
    host.dies(**{key(op.worker): {"state": WorkerState.LOADED}})
    assert host.begins(OpKind.LOAD, op.worker), "the executor waits for its ready path"


def test_a_parked_model_that_was_being_woken_is_awake():
    host = serving(**IN_PLACE)
    host.swap("chat", "b")
    host.settle(until_idle=False)
    host.send(events.ReturnRequested(host.now, "chat", "t"))
    wake = host.until(OpKind.WAKE)
    host.dies(**{key(wake.worker): {"state": WorkerState.LOADED}})
    assert host.begins(OpKind.WAKE) is None
    host.settle(until_idle=False)
    assert host.answering("chat") == wake.worker


# --- transfers: who owns, and where gates point, is what is seen -----------------------------------------------------


def test_a_hand_over_that_has_come_about_is_the_switch_whoever_heard_of_it():
    host, op = in_flight(OpKind.HAND_OVER, **DUAL)
    host.start_target(op.id)
    gave, took = {"state": WorkerState.QUIESCED, "quiesced_at": 5.0}, {"started_at": 5.002}
    host.dies(**{key(op.worker): gave, key(op.target): took})
    assert chat(host).owner == op.target
    assert chat(host).swap.phase is Phase.SOAKING
    assert chat(host).swap.cutover_ms == 2.0


def test_a_hand_over_that_was_taken_back_is_begun_again_with_a_newer_epoch():
    host, op = in_flight(OpKind.HAND_OVER, **DUAL)
    host.dies(**{key(op.worker): {"epoch": op.epoch}})
    assert chat(host).owner == op.worker
    assert host.begins(OpKind.HAND_OVER, op.worker).epoch > op.epoch


def test_a_hand_over_whose_target_does_not_decide_is_no_more_trusted_and_the_source_waits_for_its_death():
    host, op = in_flight(OpKind.HAND_OVER, **DUAL)
    del host.owner["chat"]
    host.dies(**{key(op.worker): {"state": WorkerState.HANDING_OVER}})
    assert host.begins(OpKind.STOP, op.target)
    assert host.begins(OpKind.TARGET_DEAD) is None, "it may yet read"
    host.exit(op.target)
    assert host.begins(OpKind.TARGET_DEAD, op.worker)


def test_a_source_that_waits_for_a_dead_target_is_told_so():
    host, op = in_flight(OpKind.HAND_OVER, **DUAL)
    del host.owner["chat"]
    host.processes.pop(op.target)
    host.dies(**{key(op.worker): {"state": WorkerState.HANDING_OVER}})
    assert host.begins(OpKind.TARGET_DEAD, op.worker).epoch == op.epoch


def test_a_target_whose_source_died_meanwhile_takes_what_it_holds():
    host, op = in_flight(OpKind.HAND_OVER, **DUAL)
    host.processes.pop(op.worker)
    del host.owner["chat"]
    host.dies(**{key(op.target): {"state": WorkerState.LOADED}})
    assert host.begins(OpKind.SOURCE_DEAD, op.target).epoch == op.epoch


def test_an_order_to_adopt_that_is_not_seen_may_come_to_pass_yet_so_a_newer_one_to_the_same_front_ends_it():
    host = Left()
    host.add("chat", "a")
    adopt = host.until(OpKind.ADOPT)
    host.dies()
    again = host.begins(OpKind.ADOPT)
    assert again.worker == adopt.worker
    assert again.epoch > adopt.epoch


def test_an_order_to_adopt_that_is_seen_is_done():
    host = Left()
    host.add("chat", "a")
    adopt = host.until(OpKind.ADOPT)
    host.owner["chat"] = adopt.worker
    host.dies(**{key(adopt.worker): {"epoch": adopt.epoch, "owner": True}})
    assert chat(host).owner == adopt.worker
    assert host.begins(OpKind.ADOPT) is None


def test_a_table_that_is_not_seen_may_come_yet_so_a_newer_one_ends_it():
    """A gate whose loop is blocked takes its time: a swap that was canceled meanwhile would have its clients sent to a
    worker that is gone."""
    host, op = in_flight(OpKind.POINT, total=36, gated=True)
    host.send(events.ReturnRequested(host.now, "chat", "t"))
    host.dies()
    again = host.begins(OpKind.POINT, op.worker)
    assert (again.target, again.epoch > op.epoch) == (op.target, True)
    host.settle(until_idle=False)
    assert host.answering("chat") == host.state.server_of("chat").id
    assert host.finished[-1].phase is Phase.CANCELED


def test_a_table_that_is_seen_is_the_switch():
    host, op = in_flight(OpKind.POINT, total=36, gated=True)
    host.processes[op.worker].table = op.target
    told = {"table_epoch": op.epoch, "points_to": op.target, "pointed_at": 7.0}
    host.dies(**{key(op.worker): told})
    assert host.begins(OpKind.POINT) is None
    assert host.state.server_of("chat").id == op.target
    assert chat(host).swap.phase is Phase.SOAKING


def test_a_table_that_came_late_and_nobody_heard_of_is_the_switch_whichever_daemon_sent_it():
    host, first = in_flight(OpKind.POINT, total=36, gated=True)
    host.dies()
    host.processes[first.worker].table = first.target
    host.dies(**{key(first.worker): {"table_epoch": first.epoch, "points_to": first.target}})
    assert host.begins(OpKind.POINT).target == first.target, "the second daemon's may come yet"
    host.settle(until_idle=False)
    assert chat(host).swap.phase is Phase.SOAKING
    assert steps(host, "switch") == ["canceled", "canceled", "done"]


def test_the_owner_is_who_says_so_not_whom_the_journal_names():
    host = serving(total=36)
    host.swap("chat", "b")
    host.settle(until_idle=False)
    host.send(events.ReturnRequested(host.now, "chat", "t"))
    source = host.state.worker(host.until(OpKind.HAND_OVER).target)
    host.owner["chat"] = source.id
    host.state = replace(host.state, workers=tuple(replace(w, op=None) for w in host.state.workers))
    host.dies(**{key(source.id): {"owner": True, "epoch": 9}})
    assert chat(host).owner == source.id
    assert chat(host).epoch >= 9


@pytest.mark.parametrize("kind", [OpKind.SOURCE_DEAD, OpKind.TARGET_DEAD])
@pytest.mark.parametrize("seen", [True, False])
def test_the_word_that_the_other_party_is_dead_is_said_again_until_its_end_is_seen(kind, seen):
    host, op = in_flight(OpKind.HAND_OVER, **DUAL)
    host.exit(op.worker if kind is OpKind.SOURCE_DEAD else op.target)
    host.owner.pop("chat", None)
    word = host.begins(kind)
    if seen:
        host.owner["chat"] = word.worker
    host.dies(**{key(word.worker): {"state": WorkerState.LOADED if not seen else WorkerState.SERVING, "owner": seen}})
    assert (host.begins(kind, word.worker) is None) is seen
    if seen:
        assert chat(host).owner == word.worker


def test_a_source_that_still_offers_has_not_resumed_and_is_told_again_that_its_target_is_dead():
    host, op = in_flight(OpKind.HAND_OVER, **DUAL)
    host.exit(op.target)
    host.dies(**{key(op.worker): {"state": WorkerState.HANDING_OVER, "owner": True}})
    assert host.begins(OpKind.TARGET_DEAD, op.worker).epoch == op.epoch


# --- ends ------------------------------------------------------------------------------------------------------------


def test_a_worker_that_was_to_stop_is_told_again_or_is_gone():
    for lives in (True, False):
        host, op = in_flight(OpKind.STOP, total=14)
        host.dies(**{key(op.worker): {"state": WorkerState.QUIESCED} if lives else None})
        assert (host.begins(OpKind.STOP, op.worker) is not None) is lives
        assert (host.state.worker(op.worker) is not None) is lives


def test_a_worker_that_is_told_to_end_finishes_what_is_in_flight_before_it_is_stopped():
    """The last daemon was stopping, or the service was being removed, and it died in the middle of the drain."""
    host = serving()
    stable = chat(host).owner
    host.dies(**{key(stable): {"state": WorkerState.STOPPING}})
    drain = host.begins(OpKind.DRAIN, stable)
    assert drain is not None
    assert host.begins(OpKind.STOP) is None
    host.finish(drain.id)
    assert host.begins(OpKind.STOP, stable)
    host.settle()
    assert host.answering("chat") not in (None, stable)


def test_a_soak_ends_when_its_time_is_over_also_under_another_daemon():
    host = serving(total=36, soak_s=600.0)
    host.swap("chat", "b")
    host.settle(until_idle=False)
    host.dies()
    assert host.wake == {"chat": pytest.approx(chat(host).swap.soak_until)}
    host.pass_time(601)
    host.settle()
    assert host.finished[-1].phase is Phase.SUCCEEDED


def test_where_nothing_lives_the_stable_revision_is_started_afresh_and_the_swap_has_ended():
    host, _ = in_flight(OpKind.LOAD, **DUAL)
    host.processes.clear()
    host.owner.clear()
    host.dies()
    assert host.finished[-1].phase is Phase.CANCELED
    assert not host.state.reservations
    host.settle(until_idle=False)
    assert host.state.server_of("chat").revision == 1


def test_where_all_died_in_the_soak_the_new_revision_is_started():
    host = serving(total=36)
    host.swap("chat", "b")
    host.settle(until_idle=False)
    host.processes.clear()
    host.owner.clear()
    host.dies()
    assert host.finished[-1].phase is Phase.SUCCEEDED
    host.settle(until_idle=False)
    assert host.state.server_of("chat").revision == 2


def test_a_swap_in_place_goes_on_where_the_old_model_has_stopped():
    host, op = in_flight(OpKind.LOAD, total=14)
    host.dies()
    host.settle(until_idle=False)
    assert chat(host).swap.strategy is Strategy.IN_PLACE
    assert host.answering("chat") == op.worker


# --- a journal that could not be written for a while is older than the host ----------------------------------------


def found(host, worker_id, **what):
    """A worker that the journal may not know, as it says itself what it is."""
    worker, service = host.state.worker(worker_id), chat(host)
    about = {"revision": service.revision(worker.revision), "slot": service.slot(worker.revision)}
    return host.sees(worker, **(about | what))


def recovers(host, *observed, journal=None):
    """`journal`: the state as last written, where that was a while ago."""
    host.pending, host.measures, host.wake = {}, [], {}
    if journal is not None:
        host.state = journal
        host.reached.clear()
    kept = tuple(Kept(s.name, s.settings, s.config_model) for s in host.state.services)
    host.send(Recovered(host.now, kept, (), observed))


def test_a_loaded_worker_that_the_journal_has_not_heard_of_has_proved_nothing():
    host = serving(total=36)
    stable, journal = chat(host).owner, host.state
    host.swap("chat", "b")
    candidate = host.until(OpKind.VERIFY).worker
    recovers(host, found(host, stable), found(host, candidate, state=WorkerState.LOADED), journal=journal)
    assert not host.state.worker(candidate).verified
    assert chat(host).owner == stable
    assert host.begins(OpKind.DRAIN, candidate), "nobody wants it: what may be in flight there ends first"


def test_what_answers_the_clients_is_stable_though_the_journal_has_not_heard_of_its_swap():
    host = serving(total=36)
    journal = host.state
    host.swap("chat", "b")
    host.settle(until_idle=False)
    owner = chat(host).owner
    recovers(host, *(found(host, w.id) for w in host.state.workers), journal=journal)
    assert (chat(host).stable, chat(host).last_revision) == (2, 2)
    host.settle(until_idle=False)
    assert host.answering("chat") == owner


@pytest.mark.parametrize("took", [True, False])
def test_a_hand_over_that_the_journal_has_not_heard_of_ends_by_what_its_target_says(took):
    host = serving(total=36)
    journal = host.state
    host.swap("chat", "b")
    op = host.until(OpKind.HAND_OVER)
    source = found(host, op.worker, state=WorkerState.HANDING_OVER, owner=False, epoch=op.epoch)
    target = found(host, op.target, owner=took, epoch=op.epoch)
    if took:
        host.start_target(op.id)
    else:
        host.owner.clear()
    recovers(host, source, target, journal=journal)
    if took:
        assert chat(host).owner == op.target
    else:
        assert host.begins(OpKind.STOP, op.target), "it does not decide, and is no more trusted"


def test_a_transfer_to_a_worker_that_the_journal_does_not_know_has_an_epoch_of_other_count():
    """Without the journal a daemon had begun to count anew."""
    host = serving(total=36)
    host.swap("chat", "b")
    op = host.until(OpKind.HAND_OVER)
    holds = found(host, op.target, epoch=op.epoch)
    host.exit(op.worker)
    host.swap("chat", "a")
    journal = replace(host.state, workers=tuple(w for w in host.state.workers if w.id != op.target))
    service = replace(chat(host), epoch=op.epoch + 50)
    recovers(host, holds, Observed(op.worker), journal=replace(journal, services=(service,)))
    assert host.begins(OpKind.SOURCE_DEAD, op.target).epoch == op.epoch


def test_a_source_that_was_seen_before_its_target_had_started_owns_no_more():
    host = serving(total=36)
    journal = host.state
    host.swap("chat", "b")
    op = host.until(OpKind.HAND_OVER)
    host.start_target(op.id)
    source = found(host, op.worker, state=WorkerState.HANDING_OVER, owner=True, epoch=op.epoch)
    recovers(host, source, found(host, op.target, owner=True, epoch=op.epoch), journal=journal)
    assert chat(host).owner == op.target


def test_what_a_living_worker_says_of_its_number_counts():
    """Clients read it in its answers: the journal has given it another one, or the number to other files."""
    host = serving()
    stable, known = chat(host).owner, chat(host).revision(1)
    recovers(host, found(host, stable, revision=replace(known, number=2, fingerprint="changed")))
    assert (host.state.worker(stable).revision, chat(host).stable, chat(host).last_revision) == (2, 2, 2)
    host.dies(crashed=False)
    recovers(host, found(host, stable, revision=replace(known, number=2, fingerprint="again")))
    assert (host.state.worker(stable).revision, chat(host).revision(2).fingerprint) == (2, "again")
    host.settle()
    assert host.answering("chat") == stable, "it serves on"


@pytest.mark.parametrize("told", [{"kind": Kind.ENGINE}, {"revision": Revision(3, "chat", "b", "s", "b")}])
def test_what_the_journal_knows_of_a_namesake_is_not_true_of_the_living(told):
    """Without the journal a daemon has given the name once more."""
    host = serving()
    name = chat(host).owner
    host.owner.clear()
    living = replace(found(host, name, state=WorkerState.LOADED, owner=False), **told)
    recovers(host, living)
    worker = host.state.worker(name)
    assert (worker.kind, worker.revision, worker.verified) == (living.kind, living.revision.number, False)


def test_an_adoption_that_the_host_has_left_behind_is_not_made_again():
    host = serving()
    gate = replace(host.state.worker(chat(host).owner), id="chat-gate-9", kind=Kind.GATE, revision=0)
    gate = replace(gate, state=WorkerState.LOADED, op=Op(99, OpKind.ADOPT, "chat", gate.id, epoch=1))
    owner = found(host, chat(host).owner, epoch=2)
    journal = replace(host.state, workers=(*host.state.workers, gate))
    recovers(host, owner, host.sees(gate, state=WorkerState.QUIESCED, epoch=2), journal=journal)
    assert host.begins(OpKind.ADOPT) is None, "two would accept the clients"
    assert chat(host).owner == owner.worker


def test_a_table_that_the_gate_has_left_behind_is_not_what_it_goes_by():
    host, op = in_flight(OpKind.POINT, total=36, gated=True)
    stable = host.state.server_of("chat").id
    host.dies(**{key(op.worker): {"table_epoch": op.epoch + 1, "points_to": stable}})
    assert host.state.server_of("chat").id == stable
    host.settle(until_idle=False)
    assert host.answering("chat") == host.state.server_of("chat").id == op.target


def test_a_hand_over_that_its_target_has_left_behind_is_not_ended_again():
    """Its target gives the clients to another by now, which dies as the first source did."""
    host = serving(total=36)
    host.swap("chat", "b")
    op = host.until(OpKind.HAND_OVER)
    gives = found(host, op.target, state=WorkerState.HANDING_OVER, owner=False, epoch=op.epoch + 1)
    host.owner.clear()
    recovers(host, Observed(op.worker), gives)
    assert host.begins(OpKind.SOURCE_DEAD) is None
    assert host.begins(OpKind.TARGET_DEAD, op.target).epoch == op.epoch + 1


def test_a_source_that_has_not_heard_the_end_of_its_hand_over_is_not_asked_to_take_the_clients_back():
    host = serving(total=36)
    source = chat(host).owner
    host.swap("chat", "b")
    op = host.until(OpKind.HAND_OVER)
    host.finish(op.id)
    hangs = found(host, source, state=WorkerState.HANDING_OVER, epoch=op.epoch)
    recovers(host, hangs, found(host, op.target, epoch=op.epoch + 1))
    assert host.begins(OpKind.TARGET_DEAD) is None
    assert chat(host).owner == op.target


def test_a_server_that_is_up_already_is_not_staged():
    host, _ = in_flight(OpKind.STAGE, kinds={"a": Kind.ENGINE, "b": Kind.ENGINE}, **IN_PLACE)
    candidate = chat(host).swap.target.number
    worker = next(w for w in host.state.workers if w.revision == candidate)
    gone = [Observed(w.id) for w in host.state.workers if w.kind is not Kind.GATE and w != worker]
    there = [found(host, w.id) for w in host.state.workers if w.kind is Kind.GATE]
    host.processes = {name: process for name, process in host.processes.items() if name not in {o.worker for o in gone}}
    recovers(host, found(host, worker.id, state=WorkerState.LOADED), *there, *gone)
    assert host.begins(OpKind.STAGE) is None
    assert host.state.worker(worker.id).state is WorkerState.STAGED, (
        "and is loaded again, which waits until it is ready"
    )


def test_what_may_have_been_parked_and_woken_since_proves_itself_again():
    host, drain = in_flight(OpKind.DRAIN, **IN_PLACE)
    leaving = drain.worker
    assert host.state.worker(leaving).verified
    host.dies(**{key(leaving): {"state": WorkerState.LOADED}})
    assert not host.state.worker(leaving).verified


def test_what_is_parking_is_waited_for_though_the_journal_has_not_heard_of_it():
    host, drain = in_flight(OpKind.DRAIN, **IN_PLACE)
    leaving = drain.worker
    host.drain(drain)
    host.dies(**{key(leaving): {"state": WorkerState.PARKING}})
    assert [op.kind for op in host.begun if op.worker == leaving] == [OpKind.PARK]
    host.settle(until_idle=False)
    assert (chat(host).swap.phase, host.state.worker(leaving).state) == (Phase.SOAKING, WorkerState.PARKED)


def test_what_is_waking_is_waited_for_and_not_asked_to_prove_itself_before():
    """Its parking and its waking are news to the journal."""
    host = serving(**IN_PLACE)
    woken = chat(host).owner
    host.owner.clear()
    host.dies(**{key(woken): {"state": WorkerState.WAKING, "owner": False}})
    assert host.until(OpKind.WAKE).worker == woken
    assert {op.kind for op in host.begun if op.worker == woken} == {OpKind.CONFIRM, OpKind.WAKE}


def test_what_a_gate_points_to_has_proved_itself():
    host = serving(gated=True)
    gate, served = host.state.worker(chat(host).owner), host.state.server_of("chat")
    journal = replace(host.state, workers=(gate, replace(served, state=WorkerState.SPAWNED, verified=False)))
    gives = host.sees(gate, state=WorkerState.HANDING_OVER, owner=False, epoch=5)
    recovers(host, gives, found(host, served.id), journal=journal)
    assert host.state.worker(served.id).verified
    assert host.state.worker(served.id).state is WorkerState.QUIESCED, "requests may be in flight there"


def test_what_a_spare_gate_points_to_may_have_been_parked_and_woken_since():
    host = serving(gated=True)
    gate, served = host.state.worker(chat(host).owner), host.state.server_of("chat")
    woken = replace(served, state=WorkerState.LOADED, verified=False)
    host.owner.clear()
    recovers(
        host,
        host.sees(gate, state=WorkerState.LOADED),
        found(host, served.id, state=WorkerState.LOADED),
        journal=replace(host.state, workers=(replace(gate, state=WorkerState.LOADED), woken)),
    )
    assert not host.state.worker(served.id).verified


def test_a_dual_swap_whose_candidate_the_journal_has_lost_does_not_stop_the_old_model():
    host = serving(total=36)
    stable = chat(host).owner
    host.swap("chat", "b")
    lost = next(w.id for w in host.state.workers if w.id != stable)
    journal = replace(
        host.state,
        workers=tuple(w for w in host.state.workers if w.id != lost),
        reservations=tuple(r for r in host.state.reservations if r.worker_id != lost),
    )
    recovers(host, found(host, stable), journal=journal)
    host.settle(until_idle=False)
    assert (host.finished[-1].phase, host.finished[-1].error.code) == (Phase.FAILED, errors.JOURNAL_FAILED)
    assert host.answering("chat") == stable


def test_who_has_been_drained_is_drained_again_where_clients_have_been_moved_since():
    host = serving(total=36)
    first = chat(host).owner
    host.swap("chat", "b")
    host.settle(until_idle=False)
    workers = (replace(w, drained=w.id == first) for w in host.state.workers)
    seen = [found(host, w.id, epoch=chat(host).epoch + 2) for w in host.state.workers]
    recovers(host, *seen, journal=replace(host.state, workers=tuple(workers)))
    assert not host.state.worker(first).drained


def test_a_name_that_a_gate_goes_by_is_not_given_again():
    """The journal has it that the worker was about to be started; it has been, it has served, and it has died."""
    host = serving(gated=True)
    gate, served = host.state.worker(chat(host).owner), host.state.server_of("chat")
    spawn = Op(99, OpKind.SPAWN, "chat", served.id)
    started = replace(served, state=WorkerState.SPAWNED, connected=False, op=spawn)
    journal = replace(host.state, workers=(gate, started))
    host.processes.pop(served.id)
    recovers(host, host.sees(gate), journal=journal)
    assert host.state.worker(served.id) is None
    host.settle()
    assert host.answering("chat") not in (None, served.id)


def test_there_is_one_worker_of_a_revision_where_the_journal_wants_what_another_is_already():
    host = serving(gated=True)
    gate, served = host.state.worker(chat(host).owner), host.state.server_of("chat")
    there = replace(found(host, served.id), worker="chat-9")
    wanted = replace(served, state=WorkerState.SPAWNED, connected=False)
    host.processes["chat-9"] = host.processes.pop(served.id)
    host.processes[gate.id].table = "chat-9"
    recovers(host, host.sees(gate, points_to="chat-9"), there, journal=replace(host.state, workers=(gate, wanted)))
    assert {w.id for w in host.state.workers} == {gate.id, "chat-9"}
    assert host.state.next_worker == 10


# --- a daemon that dies again and again ----------------------------------------------------------------------------


def test_a_service_in_the_middle_of_which_daemons_die_is_paused_until_somebody_resumes_it():
    host, _ = in_flight(OpKind.LOAD, **DUAL)
    stable = chat(host).owner
    for _ in range(MAX_RECOVERIES):
        host.dies()
        assert chat(host).paused is None
        assert host.until(OpKind.LOAD), "once the memory is confirmed anew"
    host.dies()
    assert chat(host).paused.code == errors.SERVICE_PAUSED
    assert host.begins(OpKind.LOAD) is None, "nothing is begun"
    assert host.answering("chat") == stable, "what serves goes on"
    refused = host.swap("chat", "big")
    assert isinstance(refused, Problem)
    host.send(events.Resumed(host.now, "chat", "t"))
    host.settle(until_idle=False)
    assert chat(host).swap.phase is Phase.SOAKING


def test_daemons_that_end_as_they_are_meant_to_are_not_counted():
    host, _ = in_flight(OpKind.LOAD, **DUAL)
    for _ in range(3 * MAX_RECOVERIES):
        host.dies(crashed=False)
    assert chat(host).paused is None


def test_a_load_that_is_under_way_is_waited_for_also_where_nothing_is_begun():
    """Or another service would load beside it, and each would be taken to need what both have taken."""
    host, load = in_flight(OpKind.LOAD, **DUAL)
    for _ in range(MAX_RECOVERIES + 1):
        host.dies(**{key(load.worker): {"state": WorkerState.LOADING}})
    assert chat(host).paused is not None
    host.finish(host.begins(OpKind.LOAD, load.worker).id)
    assert not host.pending, "no warm-up"


@pytest.mark.parametrize("settings", [DUAL, IN_PLACE])
def test_memory_that_another_daemon_has_confirmed_is_measured_again_before_a_load_that_has_not_begun(settings):
    host, load = in_flight(OpKind.LOAD, **settings)
    host.dies()
    assert host.begins(OpKind.LOAD, load.worker) is None
    host.finish(host.begins(OpKind.CONFIRM, load.worker).id)
    assert host.begins(OpKind.LOAD, load.worker)
    assert steps(host, "load") == ["canceled", "running"]


def test_a_service_that_has_come_to_rest_counts_anew():
    host = serving(total=36)
    for _ in range(3):
        host.swap("chat", "b", again=True)
        for _ in range(MAX_RECOVERIES):
            host.dies()
        host.settle()
    assert chat(host).paused is None


@pytest.mark.parametrize("gated", [False, True])
def test_a_service_that_was_leaving_and_is_in_the_file_again_stays(gated):
    host = serving(gated=gated)
    host.remove("chat")
    host.until(OpKind.DRAIN)
    host.dies()
    host.settle()
    assert not chat(host).leaving
    assert host.answering("chat")


# --- stages ------------------------------------------------------------------------------------------------------


def in_a_stage():
    """A swap whose canary is in force."""
    host = serving(**DUAL)
    request = host.swap_request("chat", "b")
    stage = Stage(StageKind.CANARY, 5, 60, 300)
    host.send(replace(request, strategy=Strategy.DUAL, delivery=Delivery("canary", (stage,))))
    host.settle(until_idle=False)
    assert chat(host).swap.stage_at is not None
    return host


def test_a_stage_goes_on_with_its_table_and_so_with_what_was_measured():
    host = in_a_stage()
    before = chat(host).swap
    host.dies()
    assert host.begins(OpKind.POINT) is None, "a new table begins to measure anew"
    assert chat(host).swap == before
    host.pass_time(61)
    host.settle(until_idle=False)
    assert chat(host).swap.phase is Phase.SOAKING


def test_a_gate_that_has_another_split_than_the_stage_gets_its_table_again():
    host = in_a_stage()
    host.dies(**{key(chat(host).owner): {"split": None}})
    assert host.begins(OpKind.POINT).split == Split(chat_worker(host, 2).id, 5.0)


def chat_worker(host, revision):
    return next(w for w in host.state.workers if w.revision == revision)
