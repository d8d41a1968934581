"""A candidate that fails anywhere leaves the old model serving, and the record says where and why."""

import http.client
import os
import signal
import time

import pytest
from support.daemon_host import Crowd, Daemon, Refused, free_port, model, server, until

A = model("a")
READY = '[models.{0}.ready]\npath = "/ready"\ntimeout = "2s"\n'

BAD = {
    "import": ("load", "IMPORT_FAILED", "a_module_that_is_not_there"),
    "exit": ("load", "WORKER_EXITED", "exit code 3"),
    "load": ("load", "LOAD_FAILED", "the weights are of another model"),
    "oom": ("load", "OUT_OF_MEMORY", "out of memory"),
    "never_ready": ("warm", "NOT_READY", "/ready"),
    "probe": ("verify", "PROBE_FAILED", "500"),
    "slow_probe": ("verify", "PROBE_TOO_SLOW", "1 s"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_candidate_that_fails_is_named_and_the_old_model_serves_on(fault):
    step, code, text = BAD[fault]
    with Daemon([A, model("bad", FAIL=fault, extra=READY.format("bad"))]) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("bad")
        assert record["phase"] == "Failed"
        assert record["error"]["code"] == code, record["error"]
        assert text in record["error"]["message"]
        assert record["error"]["step"] == step
        if fault == "exit":
            assert any("I cannot find my weights" in line for line in record["error"]["log_tail"])
        crowd.more(30)
        crowd.check()
        assert {m for *_, m in crowd.answers} == {"a"}
        until(lambda: [w["model"] for w in daemon.call("workers")] == ["a"], what="the candidate gone")


@pytest.mark.parametrize("fault", ["load", "probe", "exit"])
def test_a_candidate_that_fails_in_place_brings_the_old_model_back_and_those_who_waited_are_served(fault):
    bad = model("bad", memory="960MiB", FAIL=fault)
    with Daemon([A, bad]) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("bad")
        assert record["strategy"] == "in-place"
        assert record["phase"] == "Failed"
        crowd.more(30)
        crowd.check()
        assert {m for *_, m in crowd.answers} == {"a"}
        assert daemon.service()["health"] == "Healthy"


def test_a_model_that_needs_more_than_the_device_has_is_refused(tmp_path):
    with Daemon([A, model("huge", memory="9GiB")]) as daemon:
        with pytest.raises(Refused) as caught:
            daemon.swap("huge")
        assert caught.value.code == "VRAM_INSUFFICIENT"
        assert "9.0 GiB" in caught.value.message


def test_a_worker_that_dies_after_the_cutover_returns_the_service_to_the_old_revision():
    with Daemon([A, model("bad", FAIL="after_cutover")]) as daemon:
        record = daemon.swap("bad")
        assert record["phase"] == "Soaking"
        with pytest.raises(OSError, match=r"."):
            daemon.get("/")
        record = daemon.wait(record["id"], ("Failed",))
        assert "during the soak" in record["reason"]
        assert daemon.model() == "a"


def test_a_command_that_is_not_there_is_named():
    bad = model("bad", extra='python = "/nowhere/python"')
    with Daemon([A, bad]) as daemon:
        record = daemon.swap("bad")
        assert (record["phase"], record["error"]["code"]) == ("Failed", "COMMAND_NOT_FOUND")
        assert "/nowhere/python" in record["error"]["message"]
        assert daemon.model() == "a"


def test_a_crash_during_warm_up_is_told_from_a_wrong_answer(tmp_path):
    warm = tmp_path / "warm.jsonl"
    warm.write_text('{"path": "/warm"}\n' * 3)
    bad = model("bad", FAIL="warmup", extra=f'[models.bad.warmup]\nfile = "{warm}"\n')
    with Daemon([A, bad]) as daemon:
        record = daemon.swap("bad")
        assert record["phase"] == "Failed"
        assert record["error"]["step"] == "warm"
        assert record["error"]["code"] in ("WORKER_EXITED", "WARMUP_FAILED")
        assert daemon.model() == "a"


def test_a_stable_worker_that_dies_is_restarted_while_its_clients_wait():
    with Daemon([A]) as daemon:
        pid = daemon.get()[2]["pid"]
        os.kill(pid, signal.SIGKILL)
        status, _, document, _ = daemon.get()  # waits: nobody is refused
        assert status == 200
        assert document["pid"] != pid


@pytest.mark.parametrize("make", [model, server])
def test_a_model_that_ends_again_and_again_keeps_nobody_waiting_until_it_serves(tmp_path, make):
    broken = tmp_path / "broken"
    sections = 'crash_loop_failures = 3\nrestart_backoff_max = "1s"'
    with Daemon([make("a", EXIT_WHILE=f"at:{broken}")], daemon=sections) as daemon:
        broken.touch()
        with pytest.raises((OSError, AssertionError)):
            assert daemon.get("/crash", timeout=2)[0] == 200
        known = until(lambda: (s := daemon.service())["health"] == "Degraded" and s["problem"] and s, what="the end")
        assert known["health"] == "Degraded"
        assert known["failures"] >= 3
        assert known["problem"]["code"] == "CRASH_LOOP"
        assert known["problem"]["details"]["last"]["code"] in ("WORKER_EXITED", "LOAD_FAILED")
        _, _, document, headers = until(lambda: (seen := daemon.get("/"))[0] == 503 and seen, what="a 503")
        assert document["error"]["code"] == "crash_loop"
        assert 1 <= int(headers["retry-after"]) <= 60
        assert daemon.get("/-/swapd/health")[0] == 503
        broken.unlink()
        daemon.wait_healthy()
        assert daemon.service()["problem"] is None
        assert daemon.get("/")[0] == 200
        told = [e for e in daemon.call("events_since", epoch=0, seq=0)["events"] if e["event"] == "service.health"]
        assert [e["code"] for e in told if e["health"] == "Degraded" and e["code"]] == ["CRASH_LOOP"]
        assert told[-1]["health"] == "Healthy"


def blocked_s(daemon):
    """For how long the serving worker has not answered: its private socket is served by the blocked loop."""
    begun = time.monotonic()
    try:
        daemon.get("/-/swapd/health", timeout=0.25)
    except TimeoutError:
        return time.monotonic() - begun
    return 0.0


def test_a_worker_that_blocks_its_event_loop_is_swapped_away_from():
    with Daemon([A, model("b")]) as daemon:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        connection.request("GET", "/block?s=4")
        until(lambda: blocked_s(daemon) > 0.2, what="the event loop blocked")
        record = daemon.swap("b")
        assert record["phase"] == "Soaking", record
        assert daemon.model() == "b", "served by the new one while the old one is still blocked"
        assert connection.getresponse().status == 200, "and the old one's request is answered when it comes back"
        connection.close()


def test_an_old_worker_that_blocks_its_event_loop_is_not_killed_when_it_gets_the_clients_back():
    with Daemon([A, model("b")]) as daemon:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
        connection.request("GET", "/block?s=5")
        until(lambda: blocked_s(daemon) > 0.2, what="the event loop blocked")
        record = daemon.swap("b")
        pids = {w["model"]: w["pid"] for w in daemon.call("workers")}
        os.kill(pids["b"], signal.SIGKILL)
        assert daemon.get()[2]["pid"] == pids["a"], "the clients wait for the worker that is there, not for a fresh one"
        assert connection.getresponse().status == 200, "and what it was doing is answered"
        connection.close()
        assert daemon.wait(record["id"], ("Failed",))


def test_a_service_whose_model_does_not_start_is_unavailable_and_retried_and_others_serve():
    daemon = Daemon([])
    port, other = daemon.port, free_port()
    daemon.write(
        [model("bad", FAIL="load"), A],
        services=f'[services.chat]\nlisten = "127.0.0.1:{port}"\nmodel = "bad"\nhold_timeout = "1s"\n'
        f'[services.embed]\nlisten = "127.0.0.1:{other}"\nmodel = "a"\n',
    )
    try:
        daemon.start(healthy=False)
        daemon.wait_healthy("embed")
        until(lambda: daemon.service("chat")["failures"] >= 2, what="a second attempt")
        chat = daemon.service("chat")
        assert chat["health"] == "Unavailable"
        assert chat["problem"]["code"] == "LOAD_FAILED"
        status, _, document, headers = daemon.get("/")
        assert status == 503
        assert int(headers["retry-after"]) <= 60
        assert document["error"]["message"]
        assert daemon.get("/", port=other)[0] == 200
        record = daemon.swap("a", service="chat")
        assert record["phase"] == "Soaking"
        assert daemon.model() == "a"
    finally:
        daemon.__exit__()


def test_two_services_never_count_the_same_free_bytes():
    daemon = Daemon([])
    other = free_port()
    daemon.write(
        [A, model("fat", memory="500MiB", LOAD_S="1"), model("fat2", memory="500MiB", LOAD_S="1")],
        services=f'[services.chat]\nlisten = "127.0.0.1:{daemon.port}"\nmodel = "a"\n'
        f'[services.embed]\nlisten = "127.0.0.1:{other}"\nmodel = "a"\n',
    )
    try:
        daemon.start()
        daemon.wait_healthy("embed")
        daemon.call("swap", service="chat", to="fat", strategy="dual")
        with pytest.raises(Refused) as caught:
            daemon.call("swap", service="embed", to="fat2", strategy="dual")
        assert caught.value.code == "VRAM_INSUFFICIENT"
    finally:
        daemon.__exit__()


def test_a_model_whose_weights_are_gone_keeps_neither_the_daemon_nor_the_others_down(tmp_path):
    weights = tmp_path / "weights.bin"
    broken = model("broken", extra=f'weights = ["{weights}"]')
    port = free_port()
    block = '[services.{}]\nlisten = "127.0.0.1:{}"\nmodel = "{}"\n'
    services = block.format("chat", port, "a") + block.format("other", free_port(), "broken")
    with Daemon([A, broken], services=services, port=port) as daemon:
        assert daemon.model() == "a"
        assert daemon.call("status")["services"][1]["config_model"] == "broken"
