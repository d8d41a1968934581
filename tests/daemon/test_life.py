"""The daemon's own life: what it starts with, what serves after a restart, and how it stops."""

import contextlib
import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading

import pytest
from support.daemon_host import Daemon, Refused, free_port, model, until

A, B = model("a"), model("b")


def ask_in_vain(daemon, path):
    with pytest.raises((OSError, http.client.HTTPException)):
        daemon.get(path)


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "swapd.daemon.main", *map(str, arguments)], capture_output=True, text=True, timeout=30
    )


def test_what_was_swapped_to_serves_after_a_restart_and_the_drift_is_shown():
    with Daemon([A, B]) as daemon:
        actor = daemon.swap("b", actor="ana")["actor"]
        daemon.stop()
        daemon.start()
        assert daemon.model() == "b"
        assert daemon.service()["drift"] == f"config a, running b (#2, {actor})"
        assert actor.endswith(" (ana)")
        assert [r["phase"] for r in daemon.call("history")] == ["Succeeded"]


def test_no_revision_number_is_given_twice_also_after_a_restart():
    with Daemon([A, B]) as daemon:
        daemon.swap("b")
        daemon.swap("a")  # the return to revision 1; number 2 is given
        daemon.stop()
        daemon.start()
        assert daemon.get()[1] == 1
        assert daemon.swap("b")["to"]["revision"] == 3


def test_sigterm_finishes_what_is_in_flight_and_leaves_no_process():
    with Daemon([A]) as daemon:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(daemon.get("/sleep?s=3")))
        thread.start()
        until(lambda: daemon.call("workers")[0]["in_flight"], what="the request in flight")
        pid = daemon.call("workers")[0]["pid"]
        daemon.stop()
        thread.join(10)
        assert answers[0][0] == 200
        assert daemon.process.returncode == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class Knocking:
    """A client that connects, asks and is answered, again and again, until its address is closed."""

    def __init__(self, daemon, port=None):
        self.seen = []  # statuses and errors, each once in a row
        self._daemon = daemon
        self._port = port or daemon.port
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self.seen or self.seen[-1] != "ConnectionRefusedError":
            try:
                status, _, document, headers = self._daemon.get("/", timeout=10, port=self._port)
                what = status if status == 200 else (status, document["error"]["code"], headers["connection"])
                assert status == 200 or 0 < int(headers["retry-after"]) <= 60
            except Exception as error:
                what = type(error).__name__
            if self.seen[-1:] != [what]:
                self.seen.append(what)

    def end(self):
        """What it saw. A connection made in the instant between the last look into the queue and the listener's end is
        reset by the kernel, whatever one does: one such is forgiven."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        if self.seen[-2:-1] == ["ConnectionResetError"]:
            del self.seen[-2]
        return self.seen


STOPPING = (503, "shutting_down", "close")


@contextlib.contextmanager
def asking(daemon, path="/"):
    """A connection of its own, and the answer that has begun on it."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)) as connection:
        connection.request("GET", path)
        yield connection, connection.getresponse()


@pytest.mark.parametrize("by", ["SIGTERM", "stop-workers"])
def test_while_the_daemon_stops_who_comes_is_told_so_and_who_is_served_is_finished(by):
    with Daemon([A], service='drain_timeout = "20s"') as daemon:
        idle = socket.create_connection(("127.0.0.1", daemon.port), timeout=30)
        with idle, asking(daemon) as (kept, first), asking(daemon, "/stream?n=40&s=0.05") as (_, stream):
            assert first.read()
            clients = [Knocking(daemon) for _ in range(3)]
            until(lambda: all(client.seen for client in clients), what="the first answers")
            if by == "SIGTERM":
                daemon.process.send_signal(signal.SIGTERM)
            else:
                daemon.call("stop_workers", confirm=True, actor="test")
            until(lambda: all(client.seen[-1] == STOPPING for client in clients), what="everybody told")
            assert daemon.get("/-/swapd/health", timeout=5)[0] == 503
            kept.request("POST", "/", body=b"x" * 100_000)
            answer = kept.getresponse()
            assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "shutting_down")
            assert daemon.process.poll() is None, "all that while a stream was under way"
            assert stream.read().endswith(b"data: [DONE]\n\n")
            assert idle.recv(100) == b""
            for client in clients:
                assert client.end() == [200, STOPPING, "ConnectionRefusedError"]
        daemon.stop()
        assert daemon.process.returncode == 0


def test_a_connection_that_the_old_model_finishes_while_the_daemon_stops_is_told_so_as_well():
    with Daemon([A, B], service='drain_timeout = "20s"') as daemon, asking(daemon, "/stream?n=60&s=0.05") as old:
        connection, stream = old
        daemon.swap("b")
        daemon.process.send_signal(signal.SIGTERM)
        assert stream.read().endswith(b"data: [DONE]\n\n")
        connection.request("GET", "/")
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "shutting_down")


def test_a_service_that_has_stopped_says_so_while_another_one_still_drains():
    other = free_port()
    services = f'[services.other]\nlisten = "127.0.0.1:{other}"\nmodel = "b"\n'
    with Daemon([A, B]) as daemon:
        daemon.stop()
        daemon.config.write_text(daemon.config.read_text() + services)
        daemon.start()
        daemon.wait_healthy("other")
        with asking(daemon, "/stream?n=60&s=0.05") as (_, stream):
            client = Knocking(daemon, other)
            until(lambda: client.seen, what="the first answer")
            daemon.process.send_signal(signal.SIGTERM)
            until(lambda: [w["service"] for w in daemon.call("workers")] == ["chat"], what="the other one's end")
            assert daemon.get("/", port=other, timeout=5)[0] == 503
            assert daemon.get("/-/swapd/health", port=other, timeout=5)[0] == 503
            assert stream.read().endswith(b"data: [DONE]\n\n")
        assert client.end() == [200, STOPPING, "ConnectionRefusedError"]


def test_a_full_disk_neither_keeps_an_operator_from_going_back_nor_from_swapping_once_there_is_room():
    with Daemon([A, B]) as daemon:
        daemon.swap("b")
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (4096, unlimited))  # the journal cannot grow
        record = daemon.call("rollback", service="chat")
        until(lambda: daemon.model() == "a", what="the old model back")
        with pytest.raises(Refused) as caught:
            daemon.swap("b")
        assert caught.value.code == "JOURNAL_FAILED"
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        assert daemon.swap("b")["phase"] == "Soaking"
        assert daemon.call("show", id=record["id"])["phase"] == "Canceled"


def test_logs_that_cannot_be_tidied_do_not_silence_the_watchdog():
    with Daemon([A]) as daemon:
        worker = next(w for w in daemon.call("workers") if w["model"] == "a")
        log = daemon.dir / "s/logs" / f"{worker['id']}.log"
        log.with_name(log.name + ".tmp").mkdir()  # in the way of what is cut off
        os.truncate(log, 65 << 20)
        until(lambda: daemon.output.read_text().count("daemon.logs_not_tidied") > 1, what="a second round")


def test_sigint_stops_it_as_well_and_a_second_one_at_once():
    with Daemon([A]) as daemon:
        thread = threading.Thread(target=ask_in_vain, args=(daemon, "/sleep?s=60"))
        thread.start()
        until(lambda: daemon.call("workers")[0]["in_flight"], what="the request in flight")
        daemon.process.send_signal(signal.SIGINT)
        until(lambda: "daemon.stopping" in daemon.output.read_text())
        daemon.stop(signal.SIGINT)
        thread.join(10)
        assert daemon.process.returncode == 0


def test_an_address_in_use_is_named_and_so_is_every_other(tmp_path):
    with Daemon([A]) as daemon:
        second = Daemon([A], port=daemon.port)
        result = run("--config", second.config)
        assert result.returncode == 1
        assert f"127.0.0.1:{daemon.port}" in result.stderr
        assert "Traceback" not in result.stderr
        second.__exit__()


def test_a_wrong_configuration_is_explained_and_ends_with_2(tmp_path):
    config = tmp_path / "swapd.toml"
    config.write_text('[models.a]\nap = "x:y"\n[services.chat]\nlisten = 8000\nmodel = "b"\n')
    for flag in ("--config", "--check-config"):
        result = run(flag, config)
        assert result.returncode == 2
        shown = result.stdout + result.stderr
        assert "models.a.ap" in shown
        assert "services.chat.listen" in shown
        assert "Traceback" not in shown
    assert run("--check-config", tmp_path / "none.toml").returncode == 2


def test_a_reload_takes_over_what_it_can_and_names_what_it_cannot():
    from support.daemon_host import Refused

    with Daemon([A, B]) as daemon:
        text = daemon.config.read_text()
        daemon.config.write_text(text + 'soak = "1s"\n')
        assert daemon.call("reload", dry_run=True)["applied"] is False
        assert daemon.call("reload")["applied"] is True
        daemon.swap("b")
        until(lambda: daemon.call("history")[0]["phase"] == "Succeeded", what="the shorter soak over")
        daemon.config.write_text(text + 'protocol = "tcp"\n')
        with pytest.raises(Refused) as caught:
            daemon.call("reload")
        assert "services.chat.protocol" in caught.value.message
        daemon.config.write_text("nonsense")
        with pytest.raises(Refused) as caught:
            daemon.call("reload")
        assert caught.value.code == "CONFIG_INVALID"
        assert daemon.model() == "b"


def test_a_reload_that_asks_for_what_serves_already_is_done():
    with Daemon([A, B]) as daemon:
        swapped = daemon.swap("b")
        daemon.config.write_text(daemon.config.read_text().replace('model = "a"', 'model = "b"'))
        answer = daemon.call("reload")
        assert answer["applied"] is True
        assert answer["swaps"] == []
        assert daemon.service()["drift"] is None
        assert [r["id"] for r in daemon.call("history")] == [swapped["id"]]


def test_a_reload_whose_swap_is_refused_says_that_it_is_applied_all_the_same():
    with Daemon([A, model("big", memory="2GiB")]) as daemon:
        daemon.config.write_text(daemon.config.read_text().replace('model = "a"', 'model = "big"'))
        with pytest.raises(Refused, match="The configuration is applied, but not every swap") as caught:
            daemon.call("reload")
        assert caught.value.code == "VRAM_INSUFFICIENT"
        assert daemon.service()["drift"] == "config big, running a (#1)"


def test_a_changed_file_of_the_model_makes_a_swap_to_it_a_swap(tmp_path):
    from support.daemon_host import APPS, Refused

    code = (APPS / "model_app.py").read_text()
    (tmp_path / "model_app.py").write_text(code)
    mine = A.replace(str(APPS), str(tmp_path))
    with Daemon([mine]) as daemon:
        with pytest.raises(Refused) as caught:
            daemon.swap("a")
        assert caught.value.code == "ALREADY_SERVING"
        (tmp_path / "model_app.py").write_text(code.replace('"model": NAME', '"model": NAME + "2"'))
        assert daemon.swap("a")["phase"] == "Soaking"
        assert daemon.model() == "a2"
