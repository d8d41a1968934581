"""What a model says of its secrets reaches neither the journal nor anybody who asks; its own log is its own."""

import json
import signal

import pytest
from support.daemon_host import Daemon, model

SECRET = "sk-live-0123456789"


@pytest.mark.parametrize("where", ["load", "probe"])
def test_a_value_of_the_env_file_is_told_nowhere(where, tmp_path):
    env_file = tmp_path / "bad.env"
    env_file.write_text(f"LEAK={SECRET}\n")
    env_file.chmod(0o600)
    bad = model("bad", extra=f'env_file = "{env_file}"', FAIL=where)
    with Daemon([model("a"), bad]) as daemon:
        record = daemon.swap("bad")
        error = record["error"]
        assert "another model ***" in error["message"] or "with ***" in error["message"], error
        assert "***" in "".join(error["log_tail"])
        worker = newest_log(daemon).stem
        answers = {
            "show": daemon.call("show", id=record["id"]),
            "history": daemon.call("history"),
            "events": daemon.call("events_since", epoch="?", seq=0),
            "logs": daemon.call("logs", target=worker),
            "logs from 0": daemon.call("logs", target=worker, offset=0),
            "status": daemon.call("status"),
        }
        assert [name for name, answer in answers.items() if SECRET in json.dumps(answer)] == []
        assert "the token is ***" in answers["logs"]["lines"]
        assert "the token is ***" in answers["logs from 0"]["lines"]
        assert SECRET not in daemon.output.read_text()
        assert not [
            path.name for path in (daemon.dir / "s").glob("journal.db*") if SECRET.encode() in path.read_bytes()
        ]
        assert SECRET in newest_log(daemon).read_text(), "the model's own log is not touched"


def test_a_secret_of_before_a_reload_stays_masked():
    old, new = "old-token-1", "new-token-2"
    with Daemon([model("a", API_TOKEN=old, LEAK=old)]) as daemon:
        first = newest_log(daemon).stem
        daemon.write([model("a", API_TOKEN=new, LEAK=new)])
        daemon.call("reload")
        daemon.swap("a")
        second = newest_log(daemon).stem
        assert first != second
        for worker in (first, second):
            lines = daemon.call("logs", target=worker)["lines"]
            assert "the token is ***" in lines
            assert "token-" not in "".join(lines)


def test_a_secret_of_a_worker_that_was_taken_over_stays_masked():
    old = "old-token-1"
    with Daemon([model("a", API_TOKEN=old, LEAK=old)]) as daemon:
        worker = newest_log(daemon).stem
        daemon.stop(signal.SIGKILL)
        daemon.write([model("a", API_TOKEN="new-token-2")])
        daemon.start()
        lines = daemon.call("logs", target=worker)["lines"]
        assert "the token is ***" in lines
        assert old not in "".join(lines)
        kept = list((daemon.dir / "r/revisions").iterdir())
        assert [oct(path.stat().st_mode & 0o777) for path in kept] == ["0o600"] * len(kept)
        assert not [p.name for p in (daemon.dir / "s").glob("journal.db*") if old.encode() in p.read_bytes()]


def newest_log(daemon):
    return max((daemon.dir / "s/logs").glob("chat-[0-9]*.log"), key=lambda path: int(path.stem.rpartition("-")[2]))
