"""The real daemon in its shipped unit, in a real systemd: started, asked, swapped, restarted, stopped."""

from __future__ import annotations

import json
import urllib.request

import pytest
from support import shipped
from support.process_waiting import wait_until
from support.systemd_host import PROJECT, SystemdHost

pytestmark = pytest.mark.systemd
UNIT = shipped.DAEMON
PORT = 18431  # in a network shared with the host: chosen outside the ephemeral range

CONFIG = """
[devices.host]
kind = "host"
memory = "1GiB"
[models.a]
app = "model_app:app"
directory = "{apps}"
device_memory = "100MiB"
env = {{ NAME = "a" }}
[models.b]
app = "model_app:app"
directory = "{apps}"
device_memory = "100MiB"
env = {{ NAME = "b" }}
[services.chat]
listen = "127.0.0.1:{port}"
model = "a"
"""


@pytest.fixture
def host(systemd, tmp_path):
    apps = PROJECT / "tests" / "support" / "apps"
    with SystemdHost(tmp_path, units=shipped.UNITS, files=shipped.FILES, prepare=shipped.PREPARE) as host:
        host.path("/etc/swapd/swapd.toml").write_text(CONFIG.format(apps=host.inside(apps), port=PORT))
        for name, module in (("swapd", "swapd.daemon.main"), ("swapd-cli", "swapd.cli.main")):
            shipped.install(host, shipped.python_script(host, f"-m {module}"), name)
        yield host


def asked() -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=30) as answer:
        return json.load(answer)["model"]


def cli(host: SystemdHost, *arguments: str) -> str:
    return host.run("/opt/swapd/current/bin/swapd-cli", *arguments)


def test_the_daemon_serves_swaps_restarts_and_stops_under_its_unit(host):
    host.systemctl("start", UNIT)  # returns at READY=1: control answers and the address is bound
    assert cli(host, "status")
    assert asked() == "a"
    cli(host, "swap", "chat", "--to", "b")
    assert asked() == "b"
    wait_until(lambda: host.show(UNIT, "StatusText").startswith("chat: b"), "the status line")
    host.systemctl("restart", UNIT)
    assert asked() == "b", "what was swapped to serves after a restart"
    host.systemctl("stop", UNIT)
    assert host.show(UNIT, "Result") == "success"
    assert host.show(UNIT, "ActiveState") == "inactive"


def test_a_daemon_that_is_killed_is_started_again_and_serves(host):
    host.systemctl("start", UNIT)
    assert asked() == "a"
    first = host.pid(UNIT)
    host.run("kill", "-9", str(first))
    wait_until(lambda: host.pid(UNIT) not in (0, first), "the next daemon")
    host.wait_for(UNIT, "ActiveState", "active")
    assert asked() == "a"


def test_what_a_model_was_declared_to_need_is_its_units_limit(host):
    host.systemctl("start", UNIT)
    [worker] = [w["id"] for w in json.loads(cli(host, "--json", "workers")) if w["role"] == "stable"]
    assert host.show(f"swapd-{worker}.service", "MemoryMax") == str((100 + 64) << 20)
