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
