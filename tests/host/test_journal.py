"""The journal: what was written is there after a crash, and a file that cannot be used is explained."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from swapd.core.errors import SwapdError
from swapd.core.model import Revision, Service
from swapd.host import journal as journal_module
from swapd.host.journal import SCHEMA_VERSION, Journal
from swapd.wire import saved


def record(number, service="chat", phase="Succeeded", finished_at=2.0):
    return {
        "id": number,
        "service": service,
        "from": {"revision": number, "model": "a"},
        "to": {"revision": number + 1, "model": "b"},
        "phase": phase,
        "actor": "ana",
        "created_at": 1.0,
        "finished_at": finished_at,
        "cut_requests": 0,
    }


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "s" / "journal.db")
    yield journal
    journal.close()


def test_swaps_are_newest_first_and_by_service(journal):
    for number in range(1, 6):
        journal.save_swap(record(number, "chat" if number % 2 else "embed"))
    assert [r["id"] for r in journal.swaps(None, 3)] == [5, 4, 3]
    assert [r["id"] for r in journal.swaps("embed", 10)] == [4, 2]
    assert journal.swap(3) == record(3)
    assert journal.swap(9) is None
    assert journal.last_swap_id() == 5


def test_an_unfinished_swap_is_found_again(journal):
    journal.save_swap(record(1))
    journal.save_swap(record(2, phase="Progressing", finished_at=None))
    assert [r["id"] for r in journal.unfinished_swaps()] == [2]


def test_the_swap_that_brought_a_revision_is_found(journal):
    for number, phase in ((1, "Succeeded"), (2, "Failed")):
        journal.save_swap(record(number, phase=phase) | {"to": {"revision": 7, "model": "b"}})
    found = journal.last_swap_to("chat", 7, ("Soaking", "Succeeded"))
    assert found is not None
    assert found["id"] == 1
    assert journal.last_swap_to("chat", 8, ("Soaking", "Succeeded")) is None
    assert journal.last_swap_to("embed", 7, ("Soaking", "Succeeded")) is None


def test_a_transaction_that_fails_writes_nothing(journal):
    def fail_half_way():
        with journal.transaction():
            journal.save_swap(record(1))
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way()
    assert journal.last_swap_id() == 0


class RefusingCommit:
    """A connection whose next COMMIT fails as on a full disk."""

    def __init__(self, db):
        self._db = db
        self.refused = False

    def __getattr__(self, name):
        return getattr(self._db, name)

    def execute(self, statement, *values):
        if statement == "COMMIT" and not self.refused:
            self.refused = True
            raise sqlite3.OperationalError("database or disk is full")
        return self._db.execute(statement, *values)


def test_after_a_commit_that_failed_the_journal_can_be_written_again(journal):
    journal._db = RefusingCommit(journal._db)
    with pytest.raises(SwapdError, match="disk is full"), journal.transaction():
        journal.save_swap(record(1))
    assert journal.last_swap_id() == 0
    with journal.transaction():
        journal.save_swap(record(2))
    assert journal.last_swap_id() == 2


def test_pruning_forgets_the_oldest_finished_swaps_and_theirs(journal):
    for number in range(1, 11):
        journal.save_swap(record(number, finished_at=None if number == 2 else 2.0))
        journal.add_transition(number, "swap.phase", {"phase": "Soaking"}, 1.0)
    journal.prune(4)
    assert [r["id"] for r in journal.swaps(None, 99)] == [10, 9, 8, 7, 2]
    assert journal.transitions(5) == []
    assert journal.transitions(9)[0]["phase"] == "Soaking"


def test_pruning_forgets_what_ended_before_a_time(journal):
    for number in range(1, 11):
        journal.save_swap(record(number, finished_at=None if number == 2 else number * 10.0))
    assert journal.prune(100, ended_before=45.0) is False
    assert [r["id"] for r in journal.swaps(None, 99)] == [10, 9, 8, 7, 6, 5, 2]
    journal.prune(3, ended_before=45.0)
    assert [r["id"] for r in journal.swaps(None, 99)] == [10, 9, 8, 2]


def test_pruning_does_a_bounded_piece_at_a_time_and_says_whether_there_is_more(journal):
    with journal.transaction():
        for number in range(1, 1001):
            journal.save_swap(record(number))
            journal.add_transition(number, "swap.phase", {}, 1.0)
            journal.intend(number, number, "chat", "chat-1", "load", {}, 1.0)
    counts = []
    while journal.prune(300, at_most=200):
        counts.append(len(journal.swaps(None, 2000)))
    assert counts == [800, 600, 400]
    for table in ("swap", "transition", "op"):
        assert journal._run(f'SELECT COUNT(*) FROM "{table}"') == [(300,)]
    assert journal.prune(300) is False


def test_a_piece_of_pruning_reads_no_more_than_it_forgets(journal):
    """However long the history is: by indexes, not by looking through it."""
    plans = []
    for number in range(1, 4):
        journal.save_swap(record(number))
    run = journal._run

    def explained(statement, values=()):
        plans.extend(row[3] for row in run(f"EXPLAIN QUERY PLAN {statement}", values))
        return run(statement, values)

    journal._run = explained
    journal.prune(1)
    scans = [plan for plan in plans if plan.startswith("SCAN") and "INDEX" not in plan]
    assert scans == ["SCAN swap"], plans  # of the oldest, up to the limit


def test_pruning_bounds_what_belongs_to_no_swap(journal, monkeypatch):
    monkeypatch.setattr(journal_module, "KEPT_ROWS", 5)
    for number in range(20):
        journal.intend(number, None, "chat", "chat-1", "load", {}, 1.0)
        journal.add_transition(None, "worker.state", {}, 1.0)
        journal.add_command("ana", "reload", {}, 1.0)
    journal.prune(4)
    for table in ("op", "transition", "command"):
        assert journal._run(f'SELECT COUNT(*) FROM "{table}"') == [(6,)]


def test_what_was_committed_survives_sigkill(tmp_path):
    path = tmp_path / "journal.db"
    script = (
        "import sys, os, signal; from pathlib import Path; from swapd.host.journal import Journal\n"
        "j = Journal(Path(sys.argv[1]))\n"
        "for n in range(50):\n"
        "    with j.transaction(): j.intend(n, None, 'chat', 'chat-1', 'load', {}, 1.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    journal = Journal(path)
    journal.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT COUNT(*) FROM op WHERE done_at IS NULL").fetchone() == (50,)
    db.close()
    assert journal.boot == 2


def test_a_damaged_file_is_explained(tmp_path):
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is not a database, and it is long enough to be looked at" * 100)
    journal = Journal(path)
    with pytest.raises(SwapdError) as caught:
        journal.rows("service")
    assert caught.value.code == "JOURNAL_FAILED"
    assert str(path) in caught.value.message
    path.rename(tmp_path / "damaged")
    assert journal.reopen() is None
    assert journal.rows("service") == {}
    journal.close()


SCHEMA_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE service (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE swap (
    id INTEGER PRIMARY KEY, service TEXT NOT NULL, phase TEXT NOT NULL, source INTEGER, target INTEGER,
    from_model TEXT, to_model TEXT NOT NULL, actor TEXT NOT NULL,
    created_at REAL NOT NULL, finished_at REAL, body TEXT NOT NULL);
CREATE TABLE op (
    id INTEGER PRIMARY KEY, boot INTEGER NOT NULL, op INTEGER NOT NULL, swap INTEGER, service TEXT NOT NULL,
    worker TEXT NOT NULL, kind TEXT NOT NULL, args TEXT NOT NULL,
    intent_at REAL NOT NULL, done_at REAL, result TEXT);
PRAGMA user_version = 1;
"""


def test_a_journal_of_the_version_before_is_taken_over(tmp_path):
    """Schema 1 kept of a service what had to serve."""
    path = tmp_path / "journal.db"
    stable = {"number": 4, "model": "b", "settings_digest": "s", "fingerprint": "f"}
    body = {"config_model": "a", "epoch": 7, "stable": stable, "previous": None, "last_revision": 5}
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA_1)
        db.execute("CREATE TABLE footprint (model TEXT, settings TEXT, device_kind TEXT, body TEXT, at REAL)")
        db.execute("INSERT INTO service VALUES ('chat', ?)", (json.dumps(body),))
        db.execute("INSERT INTO meta VALUES ('next_boot', '9')")
    db.close()
    journal = Journal(path)
    service = saved.load(Service, journal.rows("service")["chat"])
    assert service.revision(4) == Revision(4, "chat", "b", "s", "f")
    assert (service.stable, service.previous, service.last_revision, service.epoch) == (4, 0, 5, 7)
    assert (journal.rows("worker"), journal.boot) == ({}, 9)
    journal.close()


def test_a_newer_schema_is_refused_with_what_to_do(tmp_path):
    path = tmp_path / "journal.db"
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    db.close()
    with pytest.raises(SwapdError, match="newer swapd"):
        Journal(path)


def test_the_file_is_the_daemons_alone(journal):
    assert os.stat(journal.path).st_mode & 0o077 == 0


def test_learned_figures_come_back(journal):
    journal.save_footprint("f", "d", "host", '{"peak_bytes":5}', 1.0)
    journal.save_timing("a", "d", "load", 1.5, 1.0)
    journal.save_timing("a", "d", "load", 2.5, 2.0)
    assert journal.footprint("f", "d", "host") == '{"peak_bytes":5}'
    assert journal.footprint("f", "d", "nvml") is None
    assert journal.footprint("g", "d", "host") is None
    assert journal.timing("a", "d") == {"load": 2.5}


def test_the_footprints_that_were_seen_last_are_kept(journal, monkeypatch):
    monkeypatch.setattr(journal_module, "KEPT_FOOTPRINTS", 2)
    for at, content in enumerate(("f", "g", "f", "h")):
        journal.save_footprint(content, "d", "host", str(at), at)
    assert [journal.footprint(content, "d", "host") for content in "fgh"] == ["2", None, "3"]


def test_footprints_that_were_learned_by_name_are_learned_anew(tmp_path):
    """Schema 2 had them by the model's name."""
    path = tmp_path / "journal.db"
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.executescript("""
            DROP TABLE footprint;
            CREATE TABLE footprint (
                model TEXT NOT NULL, settings TEXT NOT NULL, device_kind TEXT NOT NULL, body TEXT NOT NULL, at REAL,
                PRIMARY KEY (model, settings, device_kind));
            INSERT INTO footprint VALUES ('a', 'd', 'host', '{"peak_bytes": 5, "runs": 1}', 1.0);
            PRAGMA user_version = 2;
            """)
    db.close()
    journal = Journal(path)
    assert journal.footprint("a", "d", "host") is None
    journal.save_footprint("f", "d", "host", "{}", 1.0)
    assert journal.footprint("f", "d", "host") == "{}"
    journal.close()


def write_nothing(journal):
    with journal.transaction():
        pass


def write_footprint(journal):
    journal.save_footprint("f", "d", "host", "{}", 1.0)


@pytest.mark.parametrize("write", [write_nothing, write_footprint])
def test_only_the_first_of_many_writes_waits_for_somebody_elses_lock(journal, monkeypatch, write):
    monkeypatch.setattr(journal_module, "BUSY_TIMEOUT_MS", 400)
    with journal.transaction():
        pass  # from here on with that patience
    other = sqlite3.connect(journal.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waited = []
    for _ in range(3):
        begun = time.monotonic()
        with pytest.raises(SwapdError, match="locked"):
            write(journal)
        waited.append(time.monotonic() - begun)
    other.close()
    assert waited[0] >= 0.4 > max(waited[1:])
    with journal.transaction():
        journal.save_number("next_worker", 5)
    assert journal.number("next_worker") == 5
