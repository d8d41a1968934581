"""The shipped unit in a real systemd, with a stand-in for the daemon that uses its service manager link."""

from __future__ import annotations

import json
import socket

import pytest
from support import shipped
from support.process_waiting import wait_until
from support.systemd_host import PROJECT, SystemdHost

pytestmark = pytest.mark.systemd
UNIT = shipped.DAEMON
SUPPORT = PROJECT / "tests" / "support"
STARTS = "/var/lib/swapd/starts.jsonl"


@pytest.fixture
def host(systemd, tmp_path):
    files = {
        "/etc/swapd/swapd.toml": "# secret\n",
        "/etc/swapd/a.env": "TOKEN=1\n",
        f"/etc/systemd/system/{UNIT}.d/test.conf": "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n",
    }
    with SystemdHost(tmp_path, units=shipped.UNITS, files=shipped.FILES | files, prepare=shipped.PREPARE) as host:
        shipped.install(host, shipped.python_script(host, str(host.inside(SUPPORT / "process_notifier.py"))))
        yield host


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
    assert first["uid"] == 0
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
    assert owner("/run/swapd") == "711 root:root"
    assert owner("/var/lib/swapd") == "750 root:root"
    assert owner("/var/cache/swapd") == "711 root:root"
    assert owner("/etc/swapd") == "755 root:root"
    assert owner("/etc/swapd/swapd.toml") == "640 root:swapd"
    assert owner("/etc/swapd/a.env") == "600 root:root"
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
    shipped.install(host, "exit 2")
    host.systemctl("start", UNIT, check=False)
    host.wait_for(UNIT, "ActiveState", "failed")
    assert host.show(UNIT, "NRestarts") == "0"
    assert host.show(UNIT, "ExecMainStatus") == "2"


def test_the_daemons_sandbox_lets_it_do_what_it_must_with_a_worker(host):
    """Each of its three capabilities is needed: plant it by leaving one out."""
    apps = host.inside(SUPPORT / "apps")
    program = host.inside(SUPPORT / "process_sandboxed.py")
    shipped.install(host, shipped.python_script(host, f"{program} {apps}").replace(' "$@"', ""))
    host.run("sh", "-c", "mkdir -p /home/ana; echo weights > /home/ana/model.bin; chmod 700 /home/ana")
    host.run("sh", "-c", "useradd --system ana; chown -R ana /home/ana; chmod 600 /home/ana/model.bin")
    once = host.path(f"/etc/systemd/system/{UNIT}.d/zz-once.conf")
    once.write_text("[Service]\nRestart=no\nWatchdogSec=0\n")
    host.systemctl("daemon-reload")
    host.systemctl("start", UNIT)
    host.wait_for(UNIT, "ActiveState", "inactive", "failed")
    assert host.show(UNIT, "Result") == "success", host.units_log
    assert json.loads(host.path("/var/lib/swapd/result.json").read_text()) == {
        "hello": "chat-1",
        "pids": True,
        "memory": True,
        "model": "weights\n",
        "read_only": ["/etc", "/usr", "/home", "/srv"],
        "devices": ["null", "zero", "urandom", "shm"],
    }
    assert shipped.workers(host) == []
