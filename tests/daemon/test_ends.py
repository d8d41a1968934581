"""How a worker ends, and what is told of it: in the time that it was given, and by its real cause."""

import os
import signal
import threading

import pytest
from support.daemon_host import Daemon, model, until

A, B = model("a"), model("b")
SHORT = 'drain_timeout = "1s"\nsoak = "1s"'


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def ask_in_vain(daemon, path):
    with pytest.raises((OSError, EOFError)):
        daemon.get(path)


def warnings(daemon, event):
    return [line for line in daemon.output.read_text().splitlines() if f" W swapd.loop: {event} " in line]


@pytest.mark.parametrize("how", ["hangs in its shutdown", "blocks its loop"])
def test_a_worker_that_does_not_stop_in_time_is_killed_and_the_stop_is_done(how):
    hanging = model("a", FAIL="shutdown") if how == "hangs in its shutdown" else A
    with Daemon([hanging, B], service=SHORT, daemon='stop_timeout = "1s"') as daemon:
        pid = daemon.get()[2]["pid"]
        asking = threading.Thread(target=ask_in_vain, args=(daemon, "/block?s=60"))
        if how == "blocks its loop":
            asking.start()
            until(lambda: daemon.call("workers")[0]["in_flight"], what="the request in flight")
        record = daemon.swap("b", strategy="in-place")
        assert record["phase"] == "Soaking", record
        assert [s["status"] for s in record["steps"] if s["name"] == "stop"] == ["done"]
        assert daemon.model() == "b"
        assert is_gone(pid)
        if how == "blocks its loop":
            asking.join(10)
        output = daemon.output.read_text()
        assert "executor.bug" not in output
        assert "worker.stop_timeout worker=chat-" in output


def test_a_worker_that_somebody_kills_is_not_told_as_killed_by_swapd_nor_as_out_of_memory():
    slow = model("a", LOAD_S="1")  # so that its service has a problem for a while
    with Daemon([slow]) as daemon:
        for _ in range(3):
            os.kill(daemon.get()[2]["pid"], signal.SIGKILL)
            problem = until(lambda: daemon.service()["problem"], what="the problem")
            assert problem["code"] == "WORKER_EXITED", problem
            assert "killed by SIGKILL" in problem["message"]
            assert "sent by swapd" not in problem["message"]
            daemon.wait_healthy()
        told = warnings(daemon, "worker.ended")
        assert len(told) == 3, told
        assert all(' service=chat code=WORKER_EXITED message="chat-' in line for line in told)
        assert not warnings(daemon, "service.problem"), "one line for one cause"


def test_the_log_says_why_a_service_does_not_come_up():
    daemon = Daemon([model("a", FAIL="load")])
    try:
        daemon.start(healthy=False)
        until(lambda: daemon.service()["failures"] > 1, what="a second attempt")
        told = warnings(daemon, "service.problem")
        assert len(told) == 1, told
        assert " service=chat code=LOAD_FAILED " in told[0]
        assert "the weights are of another model" in told[0]
        assert not warnings(daemon, "worker.ended"), "swapd stopped it itself"
    finally:
        daemon.__exit__()
