"""A journal that cannot be used: serving goes on, new swaps are refused, the cause is shown, and it ends by itself."""

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import time

import pytest
from support.daemon_host import Crowd, Daemon, Refused, model, until

A, B = model("a"), model("b")
MEND_S = 6.0  # longer than the pause between two attempts


def journal(daemon):
    return daemon.dir / "s/journal.db"


def refuses(daemon, cause):
    """It says why, in the status and to whoever wants a swap or the history."""
    assert cause in daemon.call("status")["daemon"]["journal"]
    for method, params in (("swap", {"service": "chat", "to": "b"}), ("history", {})):
        with pytest.raises(Refused) as caught:
            daemon.call(method, **params)
        assert caught.value.code == "JOURNAL_FAILED"
        assert cause in caught.value.message
    return True


def works_again(daemon):
    until(lambda: daemon.call("status")["daemon"]["journal"] is None, what="the journal")
    assert daemon.swap("b")["phase"] == "Soaking"


def damage(daemon):
    journal(daemon).write_bytes(b"not a database at all, however long one looks at it" * 1000)
    for name in ("journal.db-wal", "journal.db-shm"):
        journal(daemon).with_name(name).unlink(missing_ok=True)


def test_a_damaged_journal_costs_no_client_anything():
    with Daemon([A, B]) as daemon, Crowd(daemon.port) as crowd:
        daemon.swap("b")
        crowd.mark()
        daemon.swap("a")
        crowd.mark()
        serving = daemon.service()["workers"]
        daemon.stop(signal.SIGKILL)
        damage(daemon)
        daemon.start()
        assert refuses(daemon, "file is not a database")
        assert set(daemon.service()["workers"]) <= set(serving)
        crowd.more()
        journal(daemon).rename(daemon.dir / "s/damaged.db")
        works_again(daemon)
        crowd.more()
        crowd.__exit__()
        crowd.check_monotonic()
        assert not crowd.errors


def test_a_damaged_journal_does_not_keep_a_service_from_its_first_start():
    with Daemon([A, B]) as daemon:
        daemon.stop()
        damage(daemon)
        daemon.start()
        assert daemon.model() == "a"
        assert refuses(daemon, "file is not a database")


def test_a_damage_that_few_statements_meet_is_not_forgotten_by_the_next_that_does_not():
    with Daemon([A, B]) as daemon:
        daemon.swap("b")
        daemon.stop(signal.SIGKILL)
        with contextlib.closing(sqlite3.connect(journal(daemon))) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'transition'").fetchone()
            (size,) = db.execute("PRAGMA page_size").fetchone()
        with journal(daemon).open("r+b") as file:
            file.seek((page - 1) * size)
            file.write(os.urandom(size))
        daemon.start()
        until(lambda: daemon.call("status")["daemon"]["journal"], what="its being told")
        assert refuses(daemon, "malformed")
        time.sleep(MEND_S)  # what is tried again must not make it look well
        assert refuses(daemon, "malformed")
        assert daemon.model() == "b"


def test_a_journal_that_is_moved_away_while_swapd_runs_is_begun_anew():
    with Daemon([A, B]) as daemon:
        daemon.swap("b")
        for path in list((daemon.dir / "s").glob("journal.db*")):
            path.rename(path.with_name(f"old-{path.name}"))
        until(journal(daemon).exists, what="a new one")
        until(lambda: daemon.call("status")["daemon"]["journal"] is None, what="its use")
        assert daemon.wait(daemon.call("restart", service="chat")["id"])["id"] == 2, "no number is given twice"
        daemon.stop(signal.SIGKILL)
        daemon.start()
        assert daemon.model() == "b"
        assert [r["id"] for r in daemon.call("history")][:1] == [2]


def test_a_locked_journal_is_waited_for():
    with Daemon([A, B]) as daemon:
        daemon.swap("b")
        daemon.swap("a")
        daemon.stop(signal.SIGKILL)
        with contextlib.closing(sqlite3.connect(journal(daemon), isolation_level=None)) as other:
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            daemon.start()
            assert daemon.model() == "a"
            assert refuses(daemon, "database is locked")
        works_again(daemon)
        assert [r["id"] for r in daemon.call("history")] == [2, 1], "no number of a swap is given twice"


def test_what_a_journal_says_of_before_gives_way_to_what_is():
    with Daemon([A, B]) as daemon:
        daemon.swap("b")
        daemon.stop(signal.SIGKILL)
        with contextlib.closing(sqlite3.connect(journal(daemon), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            daemon.start()
        until(lambda: daemon.call("status")["daemon"]["journal"] is None, what="the journal")
        (record,) = daemon.call("history")
        assert (record["phase"], record["reason"]) == ("Succeeded", "the daemon ended during the soak")
        until(lambda: len(daemon.call("workers")) == 1, what="the end of the old model")

        def rows():
            with contextlib.closing(sqlite3.connect(journal(daemon))) as db:
                return [
                    {name for (name,) in db.execute(f"SELECT name FROM {each}")} for each in ("worker", "reservation")
                ]

        until(lambda: rows() == [{w["id"] for w in daemon.call("workers")}] * 2, what="the rows of what is there alone")


def test_no_way_is_made_for_a_successor_that_would_not_know_the_journal():
    with Daemon([A]) as daemon:
        with contextlib.closing(sqlite3.connect(journal(daemon), timeout=10)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            db.execute("PRAGMA user_version = 99")
        daemon.process.send_signal(signal.SIGUSR2)
        until(lambda: "daemon.stays" in daemon.output.read_text(), what="its refusal")
        assert "was written by a newer swapd (schema 99" in daemon.output.read_text()
        assert daemon.model() == "a"
        with contextlib.closing(sqlite3.connect(journal(daemon), timeout=10)) as db:
            db.execute(f"PRAGMA user_version = {version}")


def test_a_journal_of_a_newer_version_is_left_alone():
    with Daemon([A]) as daemon:
        daemon.stop()
        with contextlib.closing(sqlite3.connect(journal(daemon))) as db:
            db.execute("PRAGMA user_version = 99")
        with daemon.output.open("ab") as output:
            done = subprocess.run(daemon.argv, stdout=output, stderr=output, timeout=30, check=False)
        assert done.returncode == 2, "so that systemd does not start it again and again"
        assert "was written by a newer swapd (schema 99" in daemon.output.read_text()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small disk needs root, and mount")
def test_a_full_disk_costs_no_client_anything():
    with Daemon([A, B]) as daemon:
        daemon.stop()
        state = daemon.dir / "s"
        shutil.rmtree(state)
        state.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", state], check=False)
        if mounted.returncode != 0:
            pytest.skip("mounting is forbidden here")
        try:
            daemon.start()
            with Crowd(daemon.port) as crowd:
                with (state / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
                    while True:
                        ballast.write(b"x" * 4096)
                until(lambda: refused_for_want_of_room(daemon), what="the refusal")
                daemon.stop(signal.SIGKILL)
                daemon.start()
                crowd.more()
                (state / "ballast").unlink()
                until(lambda: not refused_for_want_of_room(daemon), what="the journal")
                crowd.more()
            crowd.check()
        finally:
            daemon.stop()
            subprocess.run(["umount", "-l", state], check=True)


def refused_for_want_of_room(daemon):
    try:
        daemon.call("swap", service="chat", to="b")
    except Refused as error:
        return error.code == "JOURNAL_FAILED"
    return False
