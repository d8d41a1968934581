"""The daemon as it is shipped, under a real systemd, while clients ask: no end of it costs them a request."""

from __future__ import annotations

import contextlib
import json

import pytest
from support import shipped
from support.daemon_host import Crowd, free_port
from support.process_waiting import wait_until
from support.systemd_host import PROJECT, SystemdHost

pytestmark = pytest.mark.systemd
UNIT = shipped.DAEMON
DROP_IN = "[Service]\nWatchdogSec=3s\n"

CONFIG = """
[devices.host]
kind = "host"
memory = "2GiB"
[models.a]
app = "model_app:app"
directory = "{apps}"
device_memory = "100MiB"
env = {{ NAME = "a" }}
[models.b]
app = "model_app:app"
directory = "{apps}"
device_memory = "100MiB"
env = {{ NAME = "b", TOKEN = "s3cret" }}
[models.c]
engine = "command"
command = ["{python}", "-m", "uvicorn", "model_app:app", "--uds", "{{socket}}", "--log-level", "warning"]
directory = "{apps}"
device_memory = "100MiB"
env = {{ NAME = "c" }}
user = "llm"
[models.c.ready]
path = "/ready"
[services.direct]
listen = "127.0.0.1:{direct}"
model = "a"
[services.gated]
listen = "127.0.0.1:{gated}"
model = "c"
"""


@pytest.fixture
def ports():
    return {"direct": free_port(), "gated": free_port()}


@pytest.fixture
def host(systemd, tmp_path, ports):
    files = {f"/etc/systemd/system/{UNIT}.d/test.conf": DROP_IN}
    with SystemdHost(
        tmp_path,
        units=shipped.UNITS,
        files=shipped.FILES | files,
        prepare=f"rm -rf /var/lib/swapd /var/cache/swapd; useradd --system llm; {shipped.PREPARE}",
    ) as host:
        apps = host.inside(PROJECT / "tests" / "support" / "apps")
        text = CONFIG.format(apps=apps, python=host.python, **ports)
        host.path("/etc/swapd/swapd.toml").write_text(text)
        for name, module in (("swapd", "swapd.daemon.main"), ("swapd-cli", "swapd.cli.main")):
            shipped.install(host, shipped.python_script(host, f"-m {module}"), name)
        host.systemctl("start", UNIT)
        for service in ports:
            cli(host, "wait", service, "--healthy")
        yield host


def cli(host: SystemdHost, *arguments: str) -> str:
    return host.run("/opt/swapd/current/bin/swapd-cli", *arguments)


def workers(host: SystemdHost) -> dict[str, int]:
    return {worker["id"]: worker["pid"] for worker in json.loads(cli(host, "--json", "workers"))}


def next_daemon(host: SystemdHost, first: int) -> None:
    wait_until(lambda: host.pid(UNIT) not in (0, first), "the next daemon")
    host.wait_for(UNIT, "ActiveState", "active")


@contextlib.contextmanager
def crowds(ports):
    """Clients of both services; none of them is refused, reset, or answered wrongly."""
    with Crowd(ports["direct"]) as direct, Crowd(ports["gated"]) as gated:
        yield direct, gated
        direct.more()
        gated.more()
    direct.check()
    gated.check()


def test_no_end_of_the_daemon_costs_a_request(host, ports):
    before = workers(host)
    assert len(before) == 3
    with crowds(ports) as clients:
        for end in ("-KILL", "-STOP", "restart", "-KILL"):
            first = host.pid(UNIT)
            if end == "restart":
                host.systemctl("restart", UNIT)
            else:
                host.run("kill", end, str(first))
            next_daemon(host, first)
            assert workers(host) == before, end
            for crowd in clients:
                crowd.more(20)
        assert host.show(UNIT, "NFileDescriptorStore") == "3", "two addresses and the control socket"
        for crowd in clients:
            crowd.mark()
        cli(host, "swap", "direct", "--to", "b")
        cli(host, "swap", "gated", "--to", "a")
        first = host.pid(UNIT)
        host.run("kill", "-KILL", str(first))
        next_daemon(host, first)
        host.systemctl("reload", UNIT)
    host.systemctl("stop", UNIT)
    host.wait_for(shipped.KEEP, "ActiveState", "inactive")
    assert host.show(UNIT, "Result") == "success"
    assert shipped.workers(host) == []
    assert not host.path("/run/swapd").exists()
    assert "llm" not in host.run("ps", "-eo", "user")
    for port in ports.values():
        with pytest.raises(OSError, match="refused"):
            Crowd(port)._connect().connect()


def test_a_worker_that_dies_while_no_daemon_is_there_is_told_of_and_started_again(host, ports):
    host.path(f"/etc/systemd/system/{UNIT}.d/slow.conf").write_text("[Service]\nRestartSec=3s\n")
    host.systemctl("daemon-reload")
    (worker,) = (name for name in workers(host) if name.startswith("direct-") and "gate" not in name)
    host.run("kill", "-KILL", str(host.pid(UNIT)))
    host.wait_for(UNIT, "SubState", "auto-restart")
    host.run("kill", "-SEGV", str(host.pid(f"swapd-{worker}.service")))
    host.wait_for(UNIT, "ActiveState", "active")
    cli(host, "wait", "direct", "--healthy")
    assert f"recovery.worker_had_ended worker={worker} because={worker} ended: killed by SIGSEGV" in host.units_log
    assert f"swapd-{worker}.service" not in shipped.workers(host)


def test_a_worker_runs_as_its_user_and_secrets_are_nowhere(host, ports):
    cli(host, "swap", "direct", "--to", "b")
    processes = host.run("ps", "-eo", "user:20,args")
    assert [line for line in processes.splitlines() if line.startswith("llm ") and "uvicorn" in line]
    assert [line for line in processes.splitlines() if line.startswith("swapd ") and "--gate" in line]
    for unit in shipped.workers(host):
        assert "s3cret" not in host.systemctl("show", unit)
    assert "s3cret" not in processes


def test_a_socket_unit_gives_the_address_and_another_one_is_refused(host, ports):
    host.systemctl("stop", UNIT)
    host.wait_for(shipped.KEEP, "ActiveState", "inactive")
    text = (PROJECT / "systemd" / "swapd.socket").read_text().replace("=chat", "=direct")
    socket = host.path("/etc/systemd/system/swapd.socket")
    socket.write_text(text.replace("0.0.0.0:80", f"127.0.0.1:{ports['direct']}"))
    host.systemctl("daemon-reload")
    host.systemctl("start", "swapd.socket")
    with Crowd(ports["direct"], first_answers=0) as crowd:  # which starts the daemon: they wait for it and its model
        crowd.more(50)
        first = host.pid(UNIT)
        host.run("kill", "-KILL", str(first))
        next_daemon(host, first)
        crowd.more(50)
    assert not crowd.errors
    assert host.show(UNIT, "NFileDescriptorStore") == "2", "the other address, and the control socket"
    host.systemctl("stop", "swapd.socket", UNIT)
    host.wait_for(shipped.KEEP, "ActiveState", "inactive")
    socket.write_text(text.replace("0.0.0.0:80", f"127.0.0.1:{free_port()}"))
    host.systemctl("daemon-reload")
    host.systemctl("start", "swapd.socket")
    host.systemctl("start", "--no-block", UNIT)
    wait_until(lambda: "FileDescriptorName=direct listens on" in host.units_log, "the refusal")
