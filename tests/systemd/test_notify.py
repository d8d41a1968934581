"""The shipped unit in a real systemd, with a stand-in for the daemon that uses its service manager link."""

from __future__ import annotations

import json
import socket

import pytest
from support.process_waiting import wait_until
from support.systemd_host import PROJECT, SystemdHost

pytestmark = pytest.mark.systemd
UNIT = "swapd.service"
STARTS = "/var/lib/swapd/starts.jsonl"


@pytest.fixture
def host(systemd, tmp_path):
    files = {
        "/etc/sysusers.d/swapd.conf": (PROJECT / "systemd" / "swapd.sysusers.conf").read_text(),
        "/etc/tmpfiles.d/swapd.conf": (PROJECT / "systemd" / "swapd.tmpfiles.conf").read_text(),
        "/etc/swapd/swapd.toml": "# secret\n",
        f"/etc/systemd/system/{UNIT}.d/test.conf": "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n",
    }
    prepare = "systemd-sysusers /etc/sysusers.d/swapd.conf; systemd-tmpfiles --create /etc/tmpfiles.d/swapd.conf"
    units = {UNIT: (PROJECT / "systemd" / UNIT).read_text()}
    with SystemdHost(tmp_path, units=units, files=files, prepare=prepare) as host:
        notifier = host.inside(PROJECT / "tests" / "support" / "process_notifier.py")
        install(host, f'PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={host.inside(PROJECT)} exec {host.python} {notifier} "$@"')
        yield host


def install(host: SystemdHost, script: str) -> None:
    """What the unit's ExecStart runs."""
    program = host.path("/opt/swapd/current/bin/swapd")
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def starts(host: SystemdHost) -> list[dict]:
    return [json.loads(line) for line in host.path(STARTS).read_text().splitlines()]


def served_by(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        return int(client.makefile().readline())


def restarted(host: SystemdHost, count: int) -> dict:
    """Waits for the `count`-th start to be ready."""
    wait_until(lambda: len(starts(host)) >= count, f"start {count}")
    host.wait_for(UNIT, "ActiveState", "active")
    found = starts(host)
    assert len(found) == count
    return found[-1]


def test_the_unit_starts_stops_and_keeps_its_descriptors(host):
    host.systemctl("start", UNIT)  # returns at READY=1
    assert host.show(UNIT, "ActiveState") == "active"
    assert host.show(UNIT, "StatusText") == "sert modèle a → 127.0.0.1"
    first = starts(host)[0]
    assert first["pid"] == host.pid(UNIT)
    assert first["uid"] == int(host.run("id", "-u", "swapd"))
    assert first["argv"] == ["--config", "/etc/swapd/swapd.toml"]
    assert first["environ"] == []
    assert first["watchdog_interval_s"] == 1.0
    assert (first["sockets"], first["others"]) == ([], [])
    wait_until(lambda: host.show(UNIT, "NFileDescriptorStore") == "2", "both descriptors are stored")
    assert served_by(first["port"]) == first["pid"]

    # A crash: the next life has the same listener, and what queued meanwhile is answered.
    host.run("kill", "-KILL", str(first["pid"]))
    second = restarted(host, 2)
    assert second["sockets"] == ["front-chat"]
    assert second["others"] == ["generation"]
    assert second["memory"] == "1"
    assert second["port"] == first["port"]
    assert served_by(first["port"]) == second["pid"]

    # A hang: the watchdog ends it.
    host.run("kill", "-STOP", str(second["pid"]))
    third = restarted(host, 3)
    assert served_by(first["port"]) == third["pid"]

    # An order.
    host.systemctl("restart", UNIT)
    fourth = restarted(host, 4)
    assert fourth["sockets"] == ["front-chat"]
    assert served_by(first["port"]) == fourth["pid"]
    assert host.show(UNIT, "NRestarts") in ("0", "2")

    host.systemctl("stop", UNIT)
    assert host.show(UNIT, "ActiveState") == "inactive"
    assert host.show(UNIT, "Result") == "success"
    with pytest.raises(OSError, match=r"refused"):
        served_by(first["port"])


def test_the_files_are_whose_they_should_be(host):
    def owner(path: str) -> str:
        return host.run("stat", "-c", "%a %U:%G", path).strip()

    host.systemctl("start", UNIT)
    assert owner("/run/swapd") == "750 swapd:swapd"
    assert owner("/var/lib/swapd") == "750 swapd:swapd"
    assert owner("/etc/swapd") == "750 root:swapd"
    assert owner("/etc/swapd/swapd.toml") == "640 root:swapd"
    assert owner("/etc/swapd/models.d") == "750 root:swapd"


def test_a_worker_cannot_speak_for_the_daemon(host):
    host.systemctl("start", UNIT)
    pid = host.pid(UNIT)
    say = "import socket; socket.socket(1, 2).sendto(b'STATUS=hijacked', '/run/systemd/notify')"
    join = (
        f"echo $$ > /sys/fs/cgroup{host.show(UNIT, 'ControlGroup')}/cgroup.procs"  # as a child of the daemon would be
    )
    host.run("sh", "-ec", f'{join}; exec {host.python} -c "{say}"')
    host.systemctl("daemon-reload")  # handled after the message
    assert host.pid(UNIT) == pid
    assert "hijacked" not in host.show(UNIT, "StatusText")


def test_a_wrong_configuration_is_not_tried_again(host):
    install(host, "exit 2")
    host.systemctl("start", UNIT, check=False)
    host.wait_for(UNIT, "ActiveState", "failed")
    assert host.show(UNIT, "NRestarts") == "0"
    assert host.show(UNIT, "ExecMainStatus") == "2"


def test_workers_can_live_and_be_ended_in_the_sandbox(host):
    program = host.inside(PROJECT / "tests" / "support" / "process_sandboxed.py")
    path = f"{host.inside(PROJECT)}:{host.inside(PROJECT / 'tests')}"
    install(host, f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path} exec {host.python} {program}")
    host.systemctl("start", UNIT)
    host.wait_for(UNIT, "ActiveState", "inactive", "failed")
    assert host.show(UNIT, "Result") == "success", host.units_log
    assert json.loads(host.path("/var/lib/swapd/result.json").read_text()) == {
        "found": True,
        "left": [],
        "exit": "killed by SIGKILL (sent by swapd)",
        "jit": True,
        "runtime": True,
        "read_only": ["/etc", "/usr", "/home", "/srv"],
        "devices": ["null", "zero", "urandom", "shm"],
    }
