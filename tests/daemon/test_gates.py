"""Gate services: servers that know nothing of swapd, swapped behind a gate, under clients that count every loss."""

import http.client
import os
import signal

import pytest
from support.daemon_host import Crowd, Daemon, Refused, model, server, until

ABRUPT = 'stop_signal = "SIGKILL"'  # they finish nothing by themselves: what is in flight is swapd's affair
A = server("a", extra=ABRUPT)
B = server("b", extra=ABRUPT)
BIG = server("big", memory="960MiB", extra=ABRUPT)
OWN = model("own")  # with a front of its own


@pytest.fixture
def daemon():
    with Daemon([A, B, BIG, OWN]) as daemon:
        yield daemon


def workers(daemon, role=None):
    return [w for w in daemon.call("workers") if role in (None, w["role"])]


def pid(daemon, role):
    [worker] = workers(daemon, role)
    return worker["pid"]


def server_pid(daemon, role="stable"):
    """Of the server itself, which the worker's runner has started."""
    runner = pid(daemon, role)
    with open(f"/proc/{runner}/task/{runner}/children") as file:
        return int(file.read().split()[0])


def test_a_dual_swap_of_unmodified_servers_loses_no_request_and_is_monotonic(daemon):
    with Crowd(daemon.port) as crowd:
        record = daemon.swap("b")
        crowd.more()
        crowd.mark()
        back = daemon.call("rollback", service="chat")
        daemon.wait(back["id"], ("Canceled",))
        crowd.more()
    crowd.check()
    assert (record["strategy"], record["phase"]) == ("dual", "Soaking")
    assert [s["name"] for s in record["steps"]] == ["spawn", "confirm", "load", "warm", "verify", "switch", "soak"]
    assert record["cutover_ms"] is not None
    assert {m for *_, m in crowd.answers} == {"a", "b"}
    status = daemon.service()
    assert (status["front"], status["holding"], status["health"]) == ("gate", False, "Healthy")


def test_an_in_place_swap_holds_the_clients_in_the_gate(daemon):
    with Crowd(daemon.port) as crowd:
        record = daemon.swap("big")
        crowd.more()
    crowd.check()
    assert record["strategy"] == "in-place"
    assert record["outage_ms"] > record["cutover_ms"]
    assert record["cut_requests"] == record["refused_requests"] == 0
    names = [s["name"] for s in record["steps"]]
    assert names == ["spawn", "hold", "drain", "stop", "confirm", "load", "warm", "verify", "switch", "soak"]


def test_many_swaps_to_and_fro_lose_nothing(daemon):
    with Crowd(daemon.port, keep_alive=8, reconnecting=3) as crowd:
        for number in range(4):
            crowd.mark()
            daemon.swap("b" if number % 2 == 0 else "a", strategy="in-place" if number % 3 == 2 else "dual")
            crowd.more(30)
    crowd.check()


def test_the_front_moves_into_a_gate_and_out_of_it_with_the_kind_of_model(daemon):
    with Crowd(daemon.port) as crowd:
        assert daemon.swap("own")["phase"] == "Soaking"
        crowd.more()
        until(lambda: daemon.service()["front"] == "direct", what="a direct front")
        crowd.mark()
        assert daemon.swap("b")["phase"] == "Soaking"
        crowd.more()
        assert daemon.service()["front"] == "gate"
    crowd.check()
    assert {m for *_, m in crowd.answers} == {"a", "own", "b"}


def test_a_direct_service_goes_into_its_gate_and_out_under_load_when_the_configuration_says_so():
    models = [model("a"), model("b")]
    with Daemon(models) as daemon, Crowd(daemon.port) as crowd:
        before = pid(daemon, "stable")
        daemon.write(models, service='front = "gate"')
        daemon.call("reload")
        until(lambda: daemon.service()["front"] == "gate" and not daemon.service()["holding"], what="the gate")
        crowd.more(300)
        record = daemon.swap("b")
        crowd.more()
        assert record["phase"] == "Soaking"
        daemon.write(models)
        daemon.call("reload")
        until(lambda: daemon.service()["front"] == "direct", what="a direct front")
        crowd.more(300)
        assert before != pid(daemon, "stable")
    crowd.check()


def test_a_gate_is_replaced_by_a_hand_over_when_its_settings_change(daemon):
    with Crowd(daemon.port) as crowd:
        engine, gate = pid(daemon, "stable"), pid(daemon, "gate")
        daemon.write([A, B, BIG, OWN], service='hold_timeout = "77s"')
        daemon.call("reload")
        until(lambda: [w["pid"] for w in workers(daemon, "gate")] not in ([gate], []), what="another gate")
        until(lambda: len(workers(daemon, "gate")) == 1, what="the old gate's end")
        assert pid(daemon, "gate") != gate
        crowd.more(200)
        assert pid(daemon, "stable") == engine
    crowd.check()


def test_a_server_that_dies_is_restarted_while_its_clients_wait(daemon):
    with Crowd(daemon.port, streaming=0) as crowd:
        os.kill(server_pid(daemon), signal.SIGKILL)
        crowd.more(300)
        os.kill(server_pid(daemon), signal.SIGKILL)
        crowd.more(300)
    crowd.check()


def test_what_a_dead_server_had_begun_gets_a_502_that_says_so(daemon):
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request("POST", "/sleep?s=60", body=b"x")
    until(lambda: daemon.service()["in_flight"] == 1, what="the request in flight")
    assert daemon.get("/")[0] == 200, "who came later has been read, so the first has been as well"
    os.kill(server_pid(daemon), signal.SIGKILL)
    response = connection.getresponse()
    assert response.status == 502
    assert b"upstream_died" in response.read()
    assert response.getheader("retry-after")
    connection.close()
    assert daemon.get("/")[0] == 200, "and then all is well again"


def test_a_stream_that_a_dead_server_had_begun_ends_with_an_event_that_says_so(daemon):
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request("POST", "/stream?n=1&s=60", body=b"x")
    response = connection.getresponse()
    assert response.status == 200
    os.kill(server_pid(daemon), signal.SIGKILL)
    assert b"upstream_died" in response.read()
    connection.close()


def test_a_gate_that_dies_is_replaced(daemon):
    engine = pid(daemon, "stable")
    os.kill(pid(daemon, "gate"), signal.SIGKILL)
    until(lambda: daemon.service()["front"] == "gate" and daemon.service()["health"] == "Healthy", what="a new gate")
    assert daemon.get("/")[0] == 200
    assert pid(daemon, "stable") == engine


def test_gate_and_server_go_on_without_the_daemon_until_the_next_one(daemon):
    gate, engine = pid(daemon, "gate"), server_pid(daemon)
    daemon.stop(signal.SIGKILL)
    with Crowd(daemon.port) as crowd:
        crowd.more()
    crowd.check()
    daemon.start()
    assert daemon.get("/")[0] == 200
    assert gate == pid(daemon, "gate")
    assert engine == server_pid(daemon)


def test_a_candidate_that_fails_its_probe_never_gets_a_client(daemon):
    daemon.write([A, server("bad", FAIL="probe")])
    daemon.call("reload")
    with Crowd(daemon.port) as crowd:
        record = daemon.swap("bad")
        crowd.more()
    crowd.check()
    assert (record["phase"], record["error"]["code"]) == ("Failed", "PROBE_FAILED")
    assert {m for *_, m in crowd.answers} == {"a"}


def test_a_server_that_does_not_start_is_told_with_its_words(daemon):
    daemon.write([A, server("gone").replace("-m", "-nosuch", 1)])
    daemon.call("reload")
    record = daemon.swap("gone")
    assert (record["phase"], record["error"]["code"]) == ("Failed", "LOAD_FAILED")
    assert any("nosuch" in line or "Unknown option" in line for line in record["error"]["log_tail"])
    assert daemon.get("/")[0] == 200


def test_names_that_clients_would_lose_are_refused_unless_allowed():
    models = [server("a", extra='served_names = ["chat", "llama"]'), server("b", extra='served_names = ["chat"]')]
    with Daemon(models) as daemon:
        with pytest.raises(Refused) as refused:
            daemon.call("plan", service="chat", to="b")
        assert refused.value.code == "MODEL_NAME_MISMATCH"
        assert "llama" in refused.value.message
        assert daemon.swap("b", allow_name_mismatch=True)["phase"] == "Soaking"


def test_stopping_swapd_finishes_what_is_in_flight_and_leaves_nothing(daemon):
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    connection.request("GET", "/stream?n=50&s=0.02")
    response = connection.getresponse()
    daemon.stop()
    assert response.read().endswith(b"data: [DONE]\n\n")
    connection.close()
    leftovers = [p for p in os.listdir("/proc") if p.isdigit() and str(daemon.dir) in _command(p)]
    assert leftovers == []


def _command(process):
    try:
        with open(f"/proc/{process}/cmdline", "rb") as file:
            return file.read().decode(errors="replace")
    except OSError:
        return ""
