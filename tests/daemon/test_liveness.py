"""A worker that lives and does nothing is replaced; one that is busy, however much, is left alone."""

import asyncio
import contextlib
import http.client
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest
from support.daemon_host import Crowd, Daemon, model, server, until

from swapd.core.states import WorkerState
from swapd.daemon import liveness
from swapd.daemon.liveness import Liveness

QUICK = '[models.{}.liveness]\nperiod = "100ms"\ntimeout = "300ms"\nfailures = {}\n'
READY = '[models.{}.ready]\npath = "/ready"\n'
MAKE = {"direct": model, "gate": server}


def watched(make, name="a", failures=3, ready=True, **env):
    """A model that is found to hang within about a second."""
    extra = READY.format(name) if ready and make is model else ""  # a server has it in any case
    block = make(name, probes=False, extra=extra, **env)
    return block + QUICK.format(name, failures)


def pid_of(daemon, role="stable"):
    return next(w["pid"] for w in daemon.call("workers") if w["role"] == role)


def wait_for_its_end(daemon, pid):
    until(lambda: pid not in [w["pid"] for w in daemon.call("workers")], what="the hung worker's end")


def ask(daemon, path, **params):
    """A client that may get any answer, or none."""
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
        daemon.get(path, **params)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_model_that_hangs_on_everything_is_replaced_and_those_who_wait_meanwhile_are_answered(make):
    with Daemon([watched(make)]) as daemon:
        pid = pid_of(daemon)
        thread = threading.Thread(target=ask, args=(daemon, "/hang?what=all"), daemon=True)
        thread.start()
        known = until(lambda: (s := daemon.service())["failures"] and s, what="the hung worker noticed")
        wait_for_its_end(daemon, pid)
        assert daemon.get("/")[0] == 200, "held, not refused"
        assert known["problem"] is None or known["problem"]["code"] == "WORKER_HUNG"
        assert "worker.hung worker=chat-" in daemon.output.read_text()
        assert "models.NAME.liveness" in daemon.output.read_text()
        thread.join(10)


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_dead_ready_path_is_enough_where_no_client_is_answered(make):
    with Daemon([watched(make)]) as daemon:
        pid = pid_of(daemon)
        assert daemon.get("/hang?what=ready")[0] == 200
        wait_for_its_end(daemon, pid)
        assert daemon.get("/")[0] == 200
        assert daemon.service()["failures"] == 1


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_model_that_answers_its_clients_is_alive_whatever_its_ready_path_says(make):
    with Daemon([watched(make)]) as daemon:
        pid = pid_of(daemon)
        daemon.get("/hang?what=ready")
        ends = time.monotonic() + 3
        with Crowd(daemon.port, streaming=0) as crowd:
            until(lambda: time.monotonic() > ends, what="the time of three replacements")
            crowd.check()
        assert pid_of(daemon) == pid


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_saturated_model_that_streams_is_alive_until_it_stops(make):
    with Daemon([watched(make)]) as daemon:
        pid = pid_of(daemon)
        daemon.get("/hang?what=ready")
        status, _, events, _ = daemon.get("/stream?n=30&s=0.1")
        assert (status, events.endswith(b"data: [DONE]\n\n")) == (200, True)
        assert daemon.service()["failures"] == 0
        assert pid_of(daemon) == pid
        until(lambda: daemon.service()["failures"] == 1, what="now nothing comes any more")


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_model_that_answers_nothing_but_errors_is_not_taken_for_alive(make):
    with Daemon([watched(make, FAIL="probe")]) as daemon:
        daemon.get("/hang?what=ready")

        def noticed():
            ask(daemon, "/probe", method="POST", body=b"{}")
            return daemon.service()["failures"]

        until(noticed, what="the failing model noticed")


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_a_model_that_blocks_for_five_seconds_is_left_alone(make):
    with Daemon([watched(make, failures=25)]) as daemon:
        pid = pid_of(daemon)
        assert daemon.get("/block?s=5")[0] == 200
        assert daemon.service()["failures"] == 0
        assert pid_of(daemon) == pid


def test_a_process_that_is_stopped_is_replaced_although_nothing_but_its_channel_tells():
    with Daemon([watched(model, ready=False)]) as daemon:
        pid = pid_of(daemon)
        os.kill(pid, signal.SIGSTOP)
        wait_for_its_end(daemon, pid)
        assert daemon.get("/")[2]["pid"] != pid


def test_a_gate_that_hangs_is_replaced_and_the_model_behind_it_is_not():
    with Daemon([watched(server)]) as daemon:
        pid, gate = pid_of(daemon), pid_of(daemon, "gate")
        os.kill(gate, signal.SIGSTOP)
        assert daemon.get("/")[0] == 200
        assert pid_of(daemon) == pid
        until(lambda: pid_of(daemon, "gate") != gate, what="another gate")


def test_liveness_can_be_turned_off_and_on_while_the_model_serves():
    with Daemon([watched(model, failures=0)]) as daemon:
        pid = pid_of(daemon)
        daemon.get("/hang?what=ready")
        ends = time.monotonic() + 2
        until(lambda: time.monotonic() > ends, what="the time of two replacements")
        assert daemon.service()["failures"] == 0
        daemon.write([watched(model, failures=2)])
        changes = daemon.call("reload")["changes"]
        assert [(c["key"], c["effect"]) for c in changes] == [("models.a.liveness.failures", "now")]
        wait_for_its_end(daemon, pid)
        assert daemon.get("/")[2]["pid"] != pid


def test_a_model_that_hangs_during_the_soak_gives_the_clients_back():
    with Daemon([model("a"), watched(model, "b")]) as daemon:
        pid = pid_of(daemon)
        record = daemon.swap("b")
        assert record["phase"] == "Soaking"
        daemon.get("/hang?what=ready")
        record = daemon.wait(record["id"], ("Failed",))
        assert record["error"]["code"] == "WORKER_HUNG"
        assert "during the soak" in record["reason"]
        assert daemon.get("/")[2]["pid"] == pid, "the old one was kept, and was not started anew"


@pytest.mark.parametrize("nonsense", [{"upstreams": []}, {"upstreams": {"chat-1": 3}}, {"upstreams": "x"}, {}])
def test_a_gate_whose_figures_make_no_sense_says_nothing_of_the_model_behind_it(nonsense):
    """Or the watch would end in a bug at every look, and nobody would find that the model hangs."""

    async def request(verb, deadline_s):
        return nonsense

    gate = SimpleNamespace(id="chat-gate-2", request=request)
    host = SimpleNamespace(state=SimpleNamespace(service=lambda name: SimpleNamespace(owner=gate.id)))
    watch = Liveness(host, SimpleNamespace(live={gate.id: gate}), None)
    worker = SimpleNamespace(id="chat-1", service="chat")
    for own in ({}, {"quiet_s": "long"}):
        assert asyncio.run(watch._quiet_s(worker, own, 1.0)) == float("inf")


def test_a_watch_that_has_a_bug_is_told_and_begun_again(monkeypatch, caplog):
    begun, again = [], asyncio.Event()

    async def watch(self, worker_id):
        begun.append(worker_id)
        if len(begun) == 1:
            raise RuntimeError("what nobody has thought of")
        again.set()
        await asyncio.Event().wait()

    async def look():
        serving = SimpleNamespace(id="chat-1", state=WorkerState.SERVING)
        host = SimpleNamespace(state=SimpleNamespace(workers=[serving]))
        running = asyncio.ensure_future(Liveness(host, None, None).run())
        await asyncio.wait_for(again.wait(), 5)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    monkeypatch.setattr(liveness, "LOOK_S", 0.01)
    monkeypatch.setattr(Liveness, "_watch", watch)
    asyncio.run(look())
    assert begun[:2] == ["chat-1", "chat-1"]
    assert "liveness.bug worker=chat-1" in caplog.text
