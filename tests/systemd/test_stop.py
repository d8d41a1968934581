"""What is left and what is ended, under the shipped units, with a stand-in for the daemon that has one worker."""

from __future__ import annotations

import json

import pytest
from support import shipped
from support.process_waiting import wait_until
from support.systemd_host import PROJECT, SystemdHost

pytestmark = pytest.mark.systemd
UNIT = shipped.DAEMON
WORKER = "swapd-chat-1.service"
# Long enough to be met between a crash and the next start.
DROP_IN = "[Service]\nRestartSec=4s\nWatchdogSec=2s\n"


@pytest.fixture
def host(systemd, tmp_path):
    files = {f"/etc/systemd/system/{UNIT}.d/test.conf": DROP_IN, "/etc/swapd/swapd.toml": ""}
    with SystemdHost(tmp_path, units=shipped.UNITS, files=shipped.FILES | files, prepare=shipped.PREPARE) as host:
        program = host.inside(PROJECT / "tests" / "support" / "process_keeper.py")
        shipped.install(host, shipped.python_script(host, str(program)))
        host.systemctl("start", UNIT)
        yield host


def told(host: SystemdHost) -> list[dict]:
    return [json.loads(line) for line in host.path("/var/lib/swapd/told.jsonl").read_text().splitlines()]


def crashed(host: SystemdHost) -> None:
    host.run("kill", "-9", str(host.pid(UNIT)))
    host.wait_for(UNIT, "SubState", "auto-restart")


def nothing_is_left(host: SystemdHost) -> None:
    host.wait_for(shipped.KEEP, "ActiveState", "inactive")
    assert shipped.workers(host) == []
    assert not host.path("/run/swapd").exists()
    assert "sleep" not in host.run("ps", "-eo", "comm")


def test_restart_and_crash_leave_the_worker_and_its_directory(host):
    worker = host.pid(WORKER)
    host.systemctl("restart", UNIT)
    assert told(host)[-2:] == [
        {"did": "SIGUSR2", "worker_alive": True},
        {"did": "adopted", "worker": worker, "directory": True},
    ]
    crashed(host)
    host.systemctl("restart", UNIT)  # does not wait for RestartSec=
    assert told(host)[-1] == {"did": "adopted", "worker": worker, "directory": True}
    crashed(host)
    host.wait_for(UNIT, "ActiveState", "active")
    assert told(host)[-1] == {"did": "adopted", "worker": worker, "directory": True}
    host.run("kill", "-STOP", str(host.pid(UNIT)))
    host.wait_for(UNIT, "SubState", "auto-restart")
    assert host.show(UNIT, "Result") == "watchdog"
    host.wait_for(UNIT, "ActiveState", "active")
    assert told(host)[-1] == {"did": "adopted", "worker": worker, "directory": True}
    assert host.pid(WORKER) == worker


def test_stop_drains_first_and_leaves_nothing(host):
    host.systemctl("stop", UNIT)
    assert told(host)[-2:] == [
        {"did": "SIGTERM", "worker_alive": True},
        {"did": "drained", "worker": "killed by SIGTERM (sent by swapd)"},
    ]
    assert host.show(UNIT, "Result") == "success"
    assert "units.not_stopped" not in host.units_log, "the worker's end waited for the daemon's, and that for it"
    nothing_is_left(host)


def test_stop_after_a_crash_ends_the_worker(host):
    crashed(host)
    host.systemctl("stop", UNIT)
    nothing_is_left(host)


def test_stop_after_a_failure_for_good_ends_the_worker(host):
    """The configuration was broken while the daemon ran, and then it crashed: its worker serves until a stop."""
    host.path("/etc/swapd/wrong").write_text("")
    host.run("kill", "-9", str(host.pid(UNIT)))
    host.wait_for(UNIT, "ActiveState", "failed")
    assert host.show(WORKER, "ActiveState") == "active"
    assert host.path("/run/swapd/w/chat-1").exists()
    host.systemctl("stop", UNIT)
    nothing_is_left(host)


def test_a_start_after_a_stop_begins_anew(host):
    for wait in (True, False):  # without: it may meet the worker's end, and must get over it
        crashed(host)
        host.systemctl("stop", UNIT)
        if wait:
            nothing_is_left(host)
        host.systemctl("start", UNIT)
        assert told(host)[-1]["did"] == "started" or not wait


def test_at_a_shutdown_the_daemon_drains_before_its_worker_is_ended(host):
    host.systemctl("stop", "--no-block", UNIT, WORKER, shipped.SLICE, shipped.KEEP)
    wait_until(lambda: told(host)[-1]["did"] == "drained", "the drain")
    assert {"did": "SIGTERM", "worker_alive": True} in told(host)
    nothing_is_left(host)


def test_reload_tells_what_the_client_says(host):
    shipped.install(host, 'test "$1" = reload && echo "swapd.toml: services: nothing is served" && exit 4', "swapd-cli")
    host.systemctl("reload", UNIT, check=False)
    assert "nothing is served" in host.units_log
    assert host.show(UNIT, "ActiveState") == "active"
    shipped.install(host, "exit 0", "swapd-cli")
    host.systemctl("reload", UNIT)
