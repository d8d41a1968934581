"""A gate as the daemon starts it, pointed over its channel, before real workers."""

import json
import os
import signal
import sys

import psutil
import pytest
from support.front_process import Client as HttpClient
from support.front_process import tcp_listener
from support.worker_client import Refused, spawner, wait_until


@pytest.fixture
def gate():
    """(a gate that shadows, its channel, a client of it)"""
    with spawner() as spawn, tcp_listener() as listener:
        stable, candidate = spawn(revision=1), spawn(revision=2, env={"ECHO_WEIGHTS": "w2"})
        for each in (stable, candidate):
            each.loaded()
        gate = spawn(kind="gate", worker_id="chat-gate-1")
        channel = gate.greeted()
        routes = [{"worker": "w-1", "revision": 1, "address": f"unix:{stable.http}", "uid": os.geteuid()}]
        shadow = {"worker": "w-2", "revision": 2, "address": f"unix:{candidate.http}", "uid": os.geteuid()}
        shadow |= {"share": 1.0, "noise": 1.0, "compare": {"how": "json", "ignore": ["/pid"]}}
        channel.request("point", epoch=1, routes=routes, shadow=shadow)
        channel.request("adopt", (listener.fileno(),), epoch=1, listeners=["main"])
        wait_until(lambda: channel.request("stats", windows=True)["shadow"]["running"], "a process of the shadow's")
        client = HttpClient(listener.getsockname())
        yield gate, channel, client
        client.close()


def children(gate):
    return psutil.Process(gate.process.pid).children()


def test_figures_of_real_servers_are_told_with_the_gates(gate):
    worker, channel, client = gate
    for number in range(5):
        assert json.loads(client.get("/x", "POST", body=b"hello")[2])["weights"] == "w1"
        wait_until(
            lambda n=number: channel.request("stats", windows=True)["shadow"]["noise"]["compared"] == n + 1, "compared"
        )
    figures = channel.request("stats", windows=True)["shadow"]
    assert (figures["compared"], figures["agreed"], figures["noise"]["agreed"]) == (5, 0, 5)
    assert figures["paths"] == [{"path": "/weights", "differs": 5, "noise": 0}]
    assert figures["samples"][0]["differences"] == [{"path": "/weights", "stable": "w1", "candidate": "w2"}]
    with pytest.raises(Refused, match="share"):
        channel.request(
            "point", epoch=2, routes=[], shadow={"worker": "w", "revision": 1, "address": "unix:/x", "share": 9}
        )
    channel.request("point", epoch=2, routes=[])
    assert channel.request("stats", windows=True)["shadow"] is None
    wait_until(lambda: not children(worker), "its end")


def test_it_ends_with_a_gate_that_is_told_to_stop(gate):
    worker, channel, _ = gate
    [process] = children(worker)
    channel.request("stop")
    assert worker.wait() == 0
    wait_until(lambda: not process.is_running(), "its end")
    assert "Traceback" not in worker.log


def test_it_ends_with_a_gate_that_is_killed(gate):
    worker, _, _ = gate
    [process] = children(worker)
    assert process.nice() == min(19, psutil.Process(worker.process.pid).nice() + 10)
    os.kill(worker.process.pid, signal.SIGKILL)
    worker.wait()
    wait_until(lambda: not process.is_running(), "its end")


def test_its_interpreter_is_the_gates(gate):
    worker, _, _ = gate
    [process] = children(worker)
    assert os.path.samefile(process.exe(), sys.executable)
    assert process.environ().get("PATH") == os.environ["PATH"]
