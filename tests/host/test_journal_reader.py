"""The journal read without its daemon: beside one that writes, after a crash, without leave to write, damaged."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from host.test_journal import record

from swapd.core.errors import SwapdError
from swapd.host.journal import Journal
from swapd.host.journal_reader import JournalReader

NOBODY = 65534
WRITE_AND_DIE = (
    "import sys, os, signal; from pathlib import Path; from swapd.host.journal import Journal\n"
    "sys.path.insert(0, sys.argv[2]); from host.test_journal import record\n"
    "j = Journal(Path(sys.argv[1]))\n"
    "for n in range(1, 51): j.save_swap(record(n))\n"
    "os.kill(os.getpid(), signal.SIGKILL)\n"
)


@pytest.fixture
def path():
    """Of a journal, in a directory that others may look into."""
    directory = Path(tempfile.mkdtemp(prefix="sw", dir="/tmp"))
    directory.chmod(0o755)
    yield directory / "journal.db"
    directory.chmod(0o755)
    shutil.rmtree(directory)


@contextlib.contextmanager
def without_leave_to_write(path):
    """As a user who may read the files and write none of them, nor make others beside them."""
    for file in path.parent.iterdir():
        file.chmod(0o444)
    path.parent.chmod(0o555)
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def killed_daemons(path):
    ended = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(path), str(Path(__file__).parents[1])])
    assert ended.returncode == -signal.SIGKILL


def ids(path):
    with JournalReader(path) as reader:
        return [swap["id"] for swap in reader.swaps(None, 100)]


def test_it_reads_what_is_committed_while_the_daemon_writes(path):
    journal = Journal(path)
    journal.save_swap(record(1))
    journal.add_transition(1, "swap.phase", {"phase": "Soaking"}, 5.0)
    journal.save_row("service", "chat", '{"config_model":"a"}')
    with journal.transaction():
        journal.save_swap(record(2))
        with JournalReader(path) as reader:
            assert [swap["id"] for swap in reader.swaps("chat", 10)] == [1]
            assert reader.swap(1) == record(1)
            assert reader.swap(2) is None
            assert reader.transitions(1) == [{"at": 5.0, "event": "swap.phase", "phase": "Soaking"}]
            assert reader.services() == {"chat": {"config_model": "a"}}
    assert ids(path) == [2, 1]
    journal.save_swap(record(3))  # a reader has left nothing behind that would hinder
    journal.close()
    assert ids(path) == [3, 2, 1]


def test_after_sigkill_all_that_was_committed_is_read_and_nothing_is_written(path):
    killed_daemons(path)
    before = {file.name: file.stat().st_size for file in path.parent.iterdir()}
    assert before["journal.db-wal"], "the swaps are in the write-ahead log only"
    assert ids(path) == list(range(50, 0, -1))
    assert before.items() <= {file.name: file.stat().st_size for file in path.parent.iterdir()}.items()


@pytest.mark.parametrize("has_shm", [True, False])
def test_without_leave_to_write_it_reads_the_same(path, has_shm):
    killed_daemons(path)
    if not has_shm:
        path.with_name("journal.db-shm").unlink()
    with without_leave_to_write(path):
        assert ids(path) == list(range(50, 0, -1))


def test_without_leave_to_write_a_journal_closed_well_is_read_too(path):
    Journal(path).close()
    with without_leave_to_write(path):
        assert ids(path) == []


def test_rows_are_given_as_they_are(path):
    journal = Journal(path)
    for number in range(3):
        journal.add_command("ana", "swap", {"n": number}, 1.0)
    with JournalReader(path) as reader:
        assert [row["params"] for row in reader.newest("command", 2)] == ['{"n":1}', '{"n":2}']
    journal.close()


def test_rows_that_it_does_not_understand_are_left_out(path):
    Journal(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
        db.execute("INSERT INTO service VALUES ('chat', 'of another version'), ('embed', '{\"stable\": 7}')")
    db.close()
    with JournalReader(path) as reader:
        assert reader.services() == {"embed": {"stable": 7}}
        assert reader.schema == 99


def test_what_cannot_be_read_is_explained(path):
    with pytest.raises(SwapdError, match=r"There is no journal .*journal\.db"):
        JournalReader(path)
    path.write_bytes(b"this is not a database, and it is long enough to be looked at" * 100)
    with pytest.raises(SwapdError, match="not a database") as caught:
        JournalReader(path)
    assert caught.value.code == "JOURNAL_FAILED"
    path.chmod(0o000)
    if os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(SwapdError, match="use sudo"):
            JournalReader(path)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
