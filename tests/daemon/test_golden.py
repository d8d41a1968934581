"""A service's golden requests: every answer of a candidate is judged, and no client is touched by a bad one."""

import signal

import pytest
from support.daemon_host import Crowd, Daemon, model, server, until

DUAL, IN_PLACE = "100MiB", "960MiB"
GOLDEN = """
golden_rate = {rate}
golden_repeat = {repeat}
[[services.chat.golden]]
request = {{ method = "POST", path = "/score", json = {{ text = "a small tiger" }} }}
expect = {{ status = 200, json = "/pid", label = "/label", is = "cat", close = {{ "/score" = 0.9001 }}, rtol = 1e-3 }}
"""


def golden(*, rate=50, repeat=20):
    return GOLDEN.format(rate=rate, repeat=repeat)


@pytest.mark.parametrize("make", [model, server])
def test_a_candidate_that_answers_rightly_is_promoted_and_its_record_has_the_figures(make):
    with Daemon([make("a"), make("b")], service=golden()) as daemon, Crowd(daemon.port) as crowd:
        assert daemon.call("plan", service="chat", to="b")["golden"] == 20
        record = daemon.swap("b")
        crowd.more()
        crowd.check()
        assert record["phase"] == "Soaking"
        found = record["golden"]
        assert (found["requests"], found["right"], found["wrong"], found["differences"]) == (20, 20, 0, [])
        assert 0 < found["p50_ms"] <= found["p95_ms"] <= found["slowest_ms"]
        assert "20 golden requests" in next(s["detail"] for s in record["steps"] if s["name"] == "verify")


@pytest.mark.parametrize(("strategy", "memory"), [("dual", DUAL), ("in-place", IN_PLACE)])
def test_a_candidate_that_is_wrong_now_and_then_touches_nobody(strategy, memory):
    models = [model("a"), model("b", memory=memory, WRONG="7")]
    with Daemon(models, service=golden()) as daemon, Crowd(daemon.port) as crowd:
        record = daemon.swap("b")
        daemon.wait_healthy()
        crowd.more()
        crowd.check()
        assert {m for *_, m in crowd.answers} == {"a"}
        assert (record["phase"], record["strategy"]) == ("Failed", strategy)
        assert (record["error"]["code"], record["error"]["step"]) == ("GOLDEN_FAILED", "verify")
        found, wrong = record["golden"], 'expected "cat" at \'/label\' of the answer, got "dog"'
        assert wrong in record["error"]["message"]
        assert wrong in found["differences"][0]
        if strategy == "dual":  # all are asked, and counted
            assert (found["right"], found["wrong"]) == (18, 2)
        else:  # clients wait
            assert found["wrong"] == 1
            assert found["right"] < 18


def test_a_start_and_a_way_back_are_not_kept_up_by_them():
    with Daemon([model("a", WRONG="1"), model("b")], service='soak = "0s"\n' + golden()) as daemon:
        assert daemon.model() == "a"
        assert daemon.wait(daemon.swap("b")["id"], ["Succeeded"])["golden"]["right"] == 20
        until(lambda: daemon.service()["swap"] is None, what="the end of the swap")
        back = daemon.wait(daemon.call("rollback", service="chat")["id"], ["Succeeded", "Failed"])
        assert (back["phase"], back["to"]["model"], back["golden"]) == ("Succeeded", "a", None)


def test_a_daemon_that_is_killed_among_them_asks_them_again():
    with Daemon([model("a"), model("b")], service=golden(rate=10, repeat=30)) as daemon, Crowd(daemon.port) as crowd:
        swap = daemon.call("swap", service="chat", to="b")
        verifying = lambda: any(s["name"] == "verify" for s in daemon.call("show", id=swap["id"])["steps"])  # noqa: E731
        until(verifying, what="verify")
        daemon.stop(signal.SIGKILL)
        daemon.write([model("a"), model("b")], service=golden(rate=100, repeat=30))
        daemon.start(healthy=False)
        record = daemon.wait(swap["id"])
        assert (record["phase"], record["golden"]["right"]) == ("Soaking", 30)
        crowd.more()
        crowd.check()


def test_one_who_cancels_does_not_wait_for_them():
    with Daemon([model("a"), model("b")], service=golden(rate=0.1, repeat=100)) as daemon:
        swap = daemon.call("swap", service="chat", to="b")
        verifying = lambda: any(s["name"] == "verify" for s in daemon.call("show", id=swap["id"])["steps"])  # noqa: E731
        until(verifying, what="verify")
        daemon.call("cancel", service="chat")
        assert daemon.wait(swap["id"])["phase"] == "Canceled"
