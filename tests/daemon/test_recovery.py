"""The daemon dies, and another finds what it has left. What dies in the middle of a change is in tests/crash."""

import json
import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
from support.daemon_host import Crowd, Daemon, model, server, until

A, B = model("a"), model("b")
KINDS = {"direct": (model, ""), "gate": (model, 'front = "gate"'), "server": (server, "")}


def again(daemon):
    daemon.stop(signal.SIGKILL)
    daemon.start(healthy=False)


def pids(daemon):
    """Of those that serve: what held the clients at first may be on its way out."""
    return {w["id"]: w["pid"] for w in daemon.call("workers") if w["state"] == "serving"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_daemons_workers_serve_on_and_are_taken_over(kind):
    make, service = KINDS[kind]
    with Daemon([make("a"), make("b")], service=service) as daemon:
        before = pids(daemon)
        with Crowd(daemon.port) as crowd:
            daemon.stop(signal.SIGKILL)
            crowd.more(20)
            daemon.start()
            assert pids(daemon) == before
            assert daemon.service()["problem"] is None
            crowd.mark()
            assert daemon.swap("b")["phase"] == "Soaking"
            crowd.more(20)
        crowd.check()
        assert daemon.model() == "b"


def reached(daemon, step):
    def arrived():
        records = daemon.call("history")
        return any(s["name"] == step for s in records[0]["steps"]) if records else False

    until(arrived, what=f"step {step}")


def test_a_worker_that_died_meanwhile_is_started_again():
    with Daemon([A]) as daemon:
        pid = next(w["pid"] for w in daemon.call("workers") if w["model"] == "a")
        daemon.stop(signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)
        daemon.start()
        assert daemon.model() == "a"
        assert pid not in pids(daemon).values()


def test_a_lost_journal_costs_no_request_and_no_worker():
    with Daemon([A, B]) as daemon:
        daemon.swap("b")
        before = pids(daemon)
        with Crowd(daemon.port) as crowd:
            daemon.stop(signal.SIGKILL)
            for path in (daemon.dir / "s").glob("journal.db*"):
                path.unlink()
            daemon.start()
            crowd.more(20)
            assert daemon.service()["model"] == "b"
            server = next(w for w in daemon.call("workers") if w["model"] == "b")
            assert before[server["id"]] == server["pid"]
            crowd.mark()
            daemon.swap("a")
            crowd.more(20)
        crowd.check()
        assert daemon.get()[1] > 2, "no number of a revision is given twice"


def test_a_successor_in_the_same_process_takes_over():
    with Daemon([A, B]) as daemon, Crowd(daemon.port) as crowd:
        before, pid = pids(daemon), daemon.process.pid
        daemon.process.send_signal(signal.SIGUSR2)
        until(lambda: daemon.output.read_text().count("daemon.ready") == 2, what="the successor")
        assert daemon.process.pid == pid
        assert pids(daemon) == before
        assert daemon.swap("b")["phase"] == "Soaking"
        crowd.more(20)
        crowd.__exit__()
        crowd.check()


def test_a_successor_that_could_not_start_is_not_made_way_for():
    with Daemon([A]) as daemon:
        daemon.config.write_text(daemon.config.read_text() + "\n[nonsense]\n")
        daemon.process.send_signal(signal.SIGUSR2)
        until(lambda: "daemon.stays" in daemon.output.read_text(), what="its refusal")
        assert daemon.model() == "a"
        assert daemon.service()["health"] == "Healthy"


@pytest.mark.parametrize("number", ["SIGUSR2", "SIGHUP"])
def test_a_signal_that_comes_while_a_successor_starts_does_not_end_it(number):
    with Daemon([A]) as daemon:
        daemon.process.send_signal(signal.SIGUSR2)
        until(lambda: "daemon.left" in daemon.output.read_text(), what="its leaving")

        def ready():
            assert daemon.process.poll() is None
            daemon.process.send_signal(signal.Signals[number])
            return daemon.output.read_text().count("daemon.ready") > 1

        until(ready, what="the successor")
        until(lambda: daemon.model() == "a")
        assert daemon.process.poll() is None


def test_a_stop_is_not_forgotten_where_a_successor_is_being_made_way_for():
    with Daemon([A]) as daemon:
        asking = threading.Thread(target=daemon.get, args=("/sleep?s=3",))
        asking.start()
        until(lambda: daemon.call("workers")[0]["in_flight"], what="the request in flight")
        daemon.process.send_signal(signal.SIGUSR2)  # it asks first whether a successor could start
        daemon.stop()
        asking.join()
        assert daemon.process.returncode == 0
        assert not list((daemon.dir / "r/w").glob("*.json"))


@pytest.mark.parametrize("seen", ["daemon.left", "hosting.processes"])
def test_a_stop_that_comes_during_a_start_ends_the_workers_as_well(seen):
    with Daemon([A]) as daemon:
        if seen == "daemon.left":
            daemon.process.send_signal(signal.SIGUSR2)
        else:
            daemon.stop(signal.SIGKILL)
            with daemon.output.open("ab") as output:
                daemon.process = subprocess.Popen(daemon.argv, stdout=output, stderr=output)
        before = 0 if seen == "daemon.left" else 1
        until(lambda: daemon.output.read_text().count(seen) > before, what=seen)
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(30) == 0
        assert not list((daemon.dir / "r/w").glob("*.json"))


def test_history_tells_what_was_interrupted():
    with Daemon([A, model("b", LOAD_S="1")]) as daemon:
        record = daemon.call("swap", service="chat", to="b")
        reached(daemon, "load")
        again(daemon)
        ended = daemon.wait(record["id"])
        loads = [s for s in ended["steps"] if s["name"] == "load"]
        assert [s["status"] for s in loads] == ["canceled", "done"], json.dumps(ended["steps"], indent=1)
        assert loads[0]["detail"] == "the daemon ended"


def test_a_stop_is_not_forgotten_over_a_successor_that_is_being_prepared():
    def rehearses():
        return any("--check-config" in child.cmdline() for child in psutil.Process(daemon.process.pid).children())

    with Daemon([A]) as daemon, ThreadPoolExecutor() as threads:
        answer = threads.submit(daemon.get, "/sleep?s=3")
        until(lambda: daemon.call("workers")[0]["in_flight"], what="the request in flight")
        daemon.process.send_signal(signal.SIGUSR2)
        until(rehearses, what="the rehearsal of a successor")
        daemon.process.send_signal(signal.SIGTERM)
        assert answer.result()[0] == 200
        assert daemon.process.wait(20) == 0
        assert daemon.output.read_text().count("daemon.ready") == 1, "the daemon that was told to stop lives on"


def test_a_daemon_that_a_watchdog_ends_says_where_it_was():
    with Daemon([A]) as daemon:
        daemon.stop(signal.SIGABRT)
        told = daemon.output.read_text()
        assert "Fatal Python error: Aborted" in told
        assert "daemon/main.py" in told, told[-2000:]
        daemon.start()
