"""Servers with bad habits, swapped under clients that count every loss. tests/real has the real ones."""

import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from support.daemon_host import Crowd, Daemon, free_port, server, until

STAND_IN = Path(__file__).parents[1] / "support/servers/stand_in.py"
LOG_BYTES = 100 << 20


def bad(name, *habits, extra=""):
    command = json.dumps([sys.executable, str(STAND_IN), "--uds", "{socket}", *habits])
    return f"""
[models.{name}]
engine = "command"
command = {command}
directory = "/"
device_memory = "100MiB"
env = {{ NAME = "{name}" }}
{extra}
[models.{name}.ready]
path = "/health"
"""


@pytest.fixture
def daemon():
    models = [
        server("good"),
        bad("loading", "loading"),
        bad("deaf", "deaf", extra='stop_timeout = "500ms"'),
        bad("parent", "forks", "strays"),
        bad("mother", "forks"),
        bad("talker", "logs"),
    ]
    services = '[services.chat]\nlisten = "127.0.0.1:{}"\nmodel = "good"\nsoak = "0s"\n'
    port = free_port()
    with Daemon(models, services=services.format(port), port=port) as daemon:
        yield daemon


def family(daemon):
    """All processes of the model that serves."""
    [worker] = [w for w in daemon.call("workers") if w["role"] == "stable"]
    return psutil.Process(worker["pid"]).children(recursive=True)


def gone(processes):
    until(lambda: not any(alive(process) for process in processes), what="the end of all its processes")


def alive(process):
    """A zombie is not; nobody has asked for its exit status yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def swap(daemon, to, strategy):
    record = daemon.swap(to, strategy=strategy)
    assert record["phase"] in ("Soaking", "Succeeded"), record
    return record


@pytest.mark.parametrize("strategy", ["dual", "in-place"])
def test_clients_never_see_the_503_of_a_server_that_still_loads(daemon, strategy):
    with Crowd(daemon.port, streaming=0) as crowd:
        swap(daemon, "loading", strategy)
        crowd.more()
    crowd.check()
    assert {model for *_, model in crowd.answers} == {"good", "loading"}


def test_a_server_that_ignores_sigterm_is_killed_in_time_and_its_successor_serves(daemon):
    swap(daemon, "deaf", "dual")
    processes = family(daemon)
    with Crowd(daemon.port, streaming=0) as crowd:
        swap(daemon, "good", "in-place")
        crowd.more()
    crowd.check()
    gone(processes)


def test_what_a_server_has_forked_goes_with_it(daemon):
    swap(daemon, "parent", "dual")
    processes = family(daemon)
    assert len(processes) == 3, processes
    with Crowd(daemon.port, streaming=0) as crowd:
        swap(daemon, "good", "in-place")
        crowd.more()
    crowd.check()
    gone(processes)


def test_a_server_that_is_killed_takes_its_children_along_and_is_started_again(daemon):
    swap(daemon, "mother", "dual")
    first, *children = family(daemon)
    os.kill(first.pid, signal.SIGKILL)
    gone([first, *children])
    assert daemon.get("/")[2]["model"] == "mother", "it was started again"


def test_a_server_that_writes_100_mb_of_logs_serves_and_its_log_stays_bounded(daemon):
    with Crowd(daemon.port, streaming=0) as crowd:
        swap(daemon, "talker", "dual")
        crowd.more()
    crowd.check()
    until(lambda: list(daemon.dir.glob("s/logs/chat-*.log.1")), what="a log that was cut")
    logs = daemon.dir / "s/logs"
    until(lambda: max(each.stat().st_size for each in logs.glob("chat-*.log")) < LOG_BYTES / 2, what="its small rest")
