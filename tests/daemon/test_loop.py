"""The loop: intent is in the journal before an effect begins, and a journal that fails stops nothing that serves."""

from support.rollout_host import Host

from swapd.core import events
from swapd.core.errors import JOURNAL_FAILED, SwapdError
from swapd.core.events import Run
from swapd.core.model import Revision, ServiceSettings, State
from swapd.daemon.loop import Loop
from swapd.daemon.records import Records
from swapd.host.journal import Journal


class Recorder:
    """In place of the executor: notes what the journal held when it was asked to act."""

    def __init__(self, journal):
        self.journal = journal
        self.seen = []

    def run(self, effect: Run):
        rows = self.journal._run("SELECT kind FROM op WHERE op = ?", (effect.op.id,))
        self.seen.append((effect.op.kind.value, [kind for (kind,) in rows]))

    def measure(self, effect):
        pass

    def wake_at(self, effect):
        pass

    def exit(self):
        self.seen.append("exit")


def add(loop):
    revision = Revision(1, "chat", "a", "s", "a")
    loop.take(events.ServiceAdded(1.0, "chat", ServiceSettings(), "a", revision))
    loop.take(events.Measured(1.0, "chat", 1, Host().measurement("a")))


def test_the_intent_of_every_operation_is_durable_before_it_begins(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    recorder = Recorder(journal)
    add(Loop(State(), Records(journal), recorder, lambda event, body: None))
    assert recorder.seen
    assert all(rows == [kind] for kind, rows in recorder.seen), recorder.seen
    journal.close()


def test_a_journal_that_cannot_be_written_is_told_and_serving_goes_on(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    recorder = Recorder(journal)
    loop = Loop(State(), Records(journal), recorder, lambda event, body: None)

    def full(*_, **__):
        raise SwapdError(JOURNAL_FAILED, "database or disk is full")

    journal.intend, kept = full, journal.intend
    add(loop)
    assert loop.journal_problem.code == JOURNAL_FAILED
    assert recorder.seen, "the effects are carried out all the same"
    journal.intend = kept
    loop.take(events.TimerFired(2.0, "chat"))
    assert loop.journal_problem is None, "it is told again when it works again"
    journal.close()


def test_what_a_failing_journal_missed_is_written_once_it_works_again(tmp_path):
    """The service's record is compared with what was written, not with the step before: see the restart after it."""
    journal = Journal(tmp_path / "journal.db")
    loop = Loop(State(), Records(journal), Recorder(journal), lambda event, body: None)

    def full(*_, **__):
        raise SwapdError(JOURNAL_FAILED, "database or disk is full")

    journal.add_transition, kept = full, journal.add_transition
    add(loop)
    assert journal.rows("service") == {}
    journal.add_transition = kept
    loop.take(events.TimerFired(2.0, "chat"))
    assert Records(journal).read() == loop.state
    assert journal.number("next_worker") == loop.state.next_worker
    journal.close()


def test_what_a_failing_journal_missed_is_written_also_where_nothing_happens_any_more(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    records = Records(journal)
    loop = Loop(State(), records, Recorder(journal), lambda event, body: None)

    def full(*_, **__):
        raise SwapdError(JOURNAL_FAILED, "database or disk is full")

    journal.save_row, kept = full, journal.save_row
    add(loop)
    records.catch_up(loop.state)
    assert loop.journal_problem is not None
    journal.save_row = kept
    records.catch_up(loop.state)
    assert loop.journal_problem is None
    assert Records(journal).read() == loop.state
    journal.close()


def test_the_model_of_a_reloaded_configuration_is_remembered_as_the_configurations(tmp_path):
    """A restarted daemon would take it for a change made since, and undo the swaps that came after the reload."""
    journal = Journal(tmp_path / "journal.db")
    loop = Loop(State(), Records(journal), Recorder(journal), lambda event, body: None)
    add(loop)
    loop.take(events.SettingsChanged(2.0, "chat", ServiceSettings(), "b"))
    assert Records(journal).read().service("chat").config_model == "b"
    journal.close()


def test_what_is_gone_when_the_journal_can_be_read_at_last_is_taken_out_of_it(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.db")
    add(Loop(State(), Records(journal), Recorder(journal), lambda event, body: None))
    later = Records(journal)

    def locked(*_, **__):
        raise SwapdError(JOURNAL_FAILED, "database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "rows", locked)
        loop = Loop(later.read(), later, Recorder(journal), lambda event, body: None)
    revision = Revision(1, "embed", "b", "s", "b")
    loop.take(events.ServiceAdded(2.0, "embed", ServiceSettings(), "b", revision))
    loop.take(later.find_again(3.0))
    assert Records(journal).read() == loop.state
    assert [service.name for service in loop.state.services] == ["embed"]
    journal.close()


def test_the_history_ends_what_nobody_carries_on_at_once_with_the_state_that_says_so(tmp_path, monkeypatch):
    """A daemon that died between the two would leave a swap that goes on and has ended."""
    journal = Journal(tmp_path / "journal.db")
    loop = Loop(State(), Records(journal), Recorder(journal), lambda event, body: None)
    add(loop)
    loop.take(Host().swap_request("chat", "b"))
    later = Records(journal)

    def locked(*_, **__):
        raise SwapdError(JOURNAL_FAILED, "database is locked")

    with monkeypatch.context() as patch:
        patch.setattr(journal, "rows", locked)
        loop = Loop(later.read(), later, Recorder(journal), lambda event, body: None)
    found = later.find_again(3.0)
    assert [record["id"] for record in journal.unfinished_swaps()] == [1]
    loop.take(found)
    assert not journal.unfinished_swaps()
    journal.close()
