"""A service's access log: given to its gates by whichever daemon runs, kept through swaps, moved files and rotation."""

import json
import signal
import time

import pytest
from support.daemon_host import Daemon, model, server, until

from swapd.front.relay.access_log import FLUSH_S

ON = "access_log = true"
SMALL = 'log_max_size = "1MiB"'


class Log:
    def __init__(self, path):
        self.path = path

    def lines(self):
        text = self.path.read_text() if self.path.exists() else ""
        return [json.loads(line) for line in text.split("\n")[:-1]]

    def until_has(self, path, ask=None):
        """The line of a request for this path; `ask` makes one, as often as it takes."""

        def look():
            if ask is not None:
                ask()
            return next((line for line in self.lines() if line["path"] == path), None)

        return until(look, what=f"a line of {path}")


@pytest.fixture
def logged():
    with Daemon([server("a"), server("b")], service=ON, daemon=SMALL) as daemon:
        yield daemon, Log(daemon.dir / "s/logs/chat-access.log")


def test_every_request_from_the_first_one_on_through_a_swap_and_without_a_daemon(logged):
    daemon, log = logged
    first = daemon.get("/first")
    assert log.until_has("/first")["revision"] == first[1]
    assert daemon.swap("b")["phase"] == "Soaking"
    second = daemon.get("/second?token=1")
    line = log.until_has("/second")
    assert (line["revision"], line["service"], line["status"]) == (second[1], "chat", second[0])
    assert second[1] != first[1]
    daemon.stop(signal.SIGKILL)
    daemon.get("/alone")
    log.until_has("/alone")
    daemon.start()
    daemon.get("/again")
    log.until_has("/again")
    assert log.path.stat().st_mode & 0o777 == 0o640


def test_a_reload_turns_it_off_and_on_and_takes_the_query_in(logged):
    daemon, log = logged
    models = [server("a"), server("b")]
    daemon.write(models, daemon=SMALL)
    daemon.call("reload")
    [gate] = [w for w in daemon.call("workers") if w["role"] == "gate"]
    silent = silenced(daemon, log)
    daemon.write(models, service=f"{ON}\naccess_log_query = true", daemon=SMALL)
    daemon.call("reload")
    log.until_has("/on?x=1", ask=lambda: daemon.get("/on?x=1"))
    assert silent not in [line["path"] for line in log.lines()]
    daemon.stop(signal.SIGKILL)
    daemon.write(models, daemon=SMALL)
    daemon.start()  # one that has not given it takes it away as well
    silenced(daemon, log)
    assert [w["id"] for w in daemon.call("workers") if w["role"] == "gate"] == [gate["id"]]


def silenced(daemon, log):
    """A path that was asked for when nothing was logged any more."""
    asked = []

    def look():
        asked.append(f"/silent-{len(asked)}")
        daemon.get(asked[-1])
        ends = time.monotonic() + 4 * FLUSH_S
        while time.monotonic() < ends:
            if any(line["path"] == asked[-1] for line in log.lines()):
                return None
            time.sleep(0.02)
        return asked[-1]

    return until(look, what="a request that is not logged")


def test_it_is_rotated_and_a_moved_file_is_made_anew(logged):
    daemon, log = logged
    former = log.path.with_name("chat-access.log.1")

    def fill():
        for _ in range(20):
            daemon.get("/" + "x" * 2000)
        return former.exists()

    until(fill, what="a rotation")
    moved = log.path.rename(log.path.with_name("moved"))
    log.until_has("/new", ask=lambda: daemon.get("/new"))
    assert moved.exists()


def test_a_file_that_cannot_be_opened_stops_nothing_and_is_told_once(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file/access.log"
    with Daemon([server("a")], service=f'access_log = "{path}"') as daemon:
        assert daemon.get("/")[0] == 200
        until(lambda: "worker.access_log_not_given" in daemon.output.read_text(), what="a warning")
        (tmp_path / "file").unlink()
        log = Log(path)
        log.until_has("/late", ask=lambda: daemon.get("/late"))
        assert daemon.output.read_text().count("worker.access_log_not_given") == 1


def test_a_service_with_a_front_of_its_own_logs_in_a_gate():
    with Daemon([model("a")], service=f'front = "gate"\n{ON}') as daemon:
        log = Log(daemon.dir / "s/logs/chat-access.log")
        log.until_has("/own", ask=lambda: daemon.get("/own"))
