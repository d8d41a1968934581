"""`swapd-cli --offline`: what is known while the daemon hangs, and after it was killed."""

import json
import os
import signal
import subprocess
import sys

import pytest
from support.daemon_host import Daemon, model, server, until
from support.leftovers import end_workers


@pytest.fixture
def daemon():
    with Daemon([model("a"), model("b"), server("c")]) as daemon:
        until(lambda: len(daemon.call("workers")) == 1, what="the end of the gate that held until a served")
        yield daemon
        end_workers(daemon)


def cli(daemon, *arguments, **environment):
    command = [sys.executable, "-m", "swapd.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env={**os.environ, **environment})


def offline(daemon, *arguments):
    """As JSON."""
    result = cli(daemon, "--offline", "--json", "--config", str(daemon.config), *arguments)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def kill(daemon):
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()


def same(offline, online):
    """Where both know it, the two say the same."""
    known = {key: value for key, value in offline.items() if value is not None and key in online}
    left_out = ("health", "uptime_s", "requests", "problem", "config", "connections")
    return {k: v for k, v in known.items() if k not in left_out} == {k: online[k] for k in known if k not in left_out}


def test_the_records_are_those_of_the_daemon(daemon):
    daemon.swap("b", reason="new weights")
    [service] = offline(daemon, "status", "chat")["services"]
    assert same(service, daemon.service()), (service, daemon.service())
    assert service["health"] == "Serving"
    assert offline(daemon, "history") == daemon.call("history")
    assert offline(daemon, "show", "1") == daemon.call("show", id=1)
    workers = daemon.call("workers")
    for one, other in zip(offline(daemon, "workers"), workers, strict=True):
        assert same(one, other), (one, other)
    assert offline(daemon, "logs", "chat", "-n", "2")["lines"] == daemon.call("logs", target="chat", lines=2)["lines"]


@pytest.mark.parametrize("to", ["b", "c"], ids=["direct", "behind a gate"])
def test_a_killed_daemon_leaves_everything_to_be_read(daemon, to):
    daemon.swap(to)
    kill(daemon)
    status = offline(daemon, "status")
    assert (status["daemon"]["running"], status["daemon"]["pid"]) == (False, None)
    [service] = status["services"]
    assert (service["health"], service["model"], service["swap"]["phase"]) == ("Serving", to, "Soaking")
    assert daemon.model() == to
    shown = cli(daemon, "--offline", "status", SWAPD_CONFIG=str(daemon.config)).stdout
    assert shown.startswith("swapd is not running; by its journal and its workers, ")
    assert "chat: swap 1 was left Soaking" in shown
    assert offline(daemon, "show", "1")["transitions"]


def test_a_daemon_that_hangs_is_told_and_not_waited_for(daemon):
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: offline(daemon, "status")["daemon"]["stopped"], what="the stop")
        status = offline(daemon, "status")
        assert status["daemon"]["pid"] == daemon.process.pid
        assert status["services"][0]["health"] == "Serving"
        assert offline(daemon, "history") == []
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert daemon.service()["health"] == "Healthy", "its own channels to the workers were not disturbed"


def test_a_worker_that_hangs_or_is_dead_is_told_as_such(daemon):
    [worker] = daemon.call("workers")
    kill(daemon)
    os.kill(worker["pid"], signal.SIGSTOP)
    [service] = offline(daemon, "status")["services"]
    assert service["health"] == "Unknown"
    assert f"{worker['id']} (pid {worker['pid']})" in service["problem"]["message"]
    assert offline(daemon, "workers")[0]["state"] == "no answer"
    os.kill(worker["pid"], signal.SIGKILL)
    until(lambda: offline(daemon, "status")["services"][0]["health"] == "Down", what="its end")
    assert offline(daemon, "workers")[0]["state"] == "gone"


def test_a_broken_configuration_and_a_damaged_journal_hide_nothing_else(daemon):
    kill(daemon)
    daemon.config.write_text(daemon.config.read_text() + '\nsoak = "soon"\n')
    for name in ("journal.db", "journal.db-wal"):
        (daemon.dir / "s" / name).write_bytes(b"no journal any more" * 1000)
    status = offline(daemon, "status")
    assert "services.chat.soak" in status["daemon"]["config_problems"][0]
    assert "cannot be read" in status["daemon"]["journal"]
    assert status["services"][0]["health"] == "Serving"
    refused = cli(daemon, "--offline", "history", "--config", str(daemon.config))
    assert (refused.returncode, "JOURNAL_FAILED" in refused.stderr) == (4, True)


def test_the_refusals_say_what_to_do(daemon, tmp_path):
    kill(daemon)
    unreachable = cli(daemon, "status", "--connect", f"ipc://{daemon.dir}/r/control.sock")
    assert unreachable.returncode == 3
    assert "swapd-cli --offline status" in unreachable.stderr
    assert "--offline" not in cli(daemon, "plan", "chat", "--to", "b", "--connect", f"ipc://{tmp_path}/c").stderr
    assert cli(daemon, "--offline", "swap", "chat", "--to", "b").returncode == 2
    nothing = cli(daemon, "--offline", "status", "--config", str(tmp_path / "none.toml"))
    assert (nothing.returncode, "does not exist" in nothing.stderr) == (4, True)
    unknown = cli(daemon, "--offline", "status", "chatt", "--config", str(daemon.config))
    assert "There is no service 'chatt'; there are: chat." in unknown.stderr
