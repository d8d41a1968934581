"""`make install` and `make uninstall` on a running systemd, and into a root of a packager's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import shipped
from support.daemon_host import Crowd, free_port
from support.systemd_host import PROJECT, SystemdHost

import swapd

pytestmark = pytest.mark.systemd
PYTHON = Path(sys.base_prefix, "bin", "python3")
VERSION = swapd.__version__


@pytest.fixture(scope="session")
def wheels(tmp_path_factory):
    """swapd and what it needs, as wheels: inside there is no index."""
    directory = tmp_path_factory.mktemp("wheels")
    make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(directory), str(PROJECT)]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no wheels to be had here: {done.stderr.strip()[-300:]}")
    return directory


@pytest.fixture
def host(systemd, tmp_path, wheels):
    with SystemdHost(tmp_path, keep=[wheels]) as host:
        yield host


def make(host: SystemdHost, wheels: Path, *arguments: str) -> str:
    (wheel,) = wheels.glob("swapd-*.whl")
    offline = ["PIP_NO_INDEX=1", f"PIP_FIND_LINKS={wheels}", "PIP_DISABLE_PIP_VERSION_CHECK=1"]
    command = ["make", "--silent", "-C", str(PROJECT), *arguments, f"PYTHON={PYTHON}", f"SOURCE={wheel}"]
    return host.run("env", *offline, *command, timeout_s=120)


def test_installed_upgraded_and_removed(host, wheels):
    said = make(host, wheels, "install")
    assert f"swapd {VERSION} is installed. Next: edit /etc/swapd/swapd.toml" in said
    assert host.run("swapd", "--version").strip() == f"swapd {VERSION}"
    assert os.readlink(host.path("/opt/swapd/current")) == VERSION
    for name in shipped.UNITS:
        assert host.show(name, "LoadState") == "loaded"
    stat = ("stat", "-c", "%a %U:%G", "/etc/swapd/swapd.toml")
    assert host.run(*stat).strip() == "640 root:swapd"
    assert host.run("swapd", "--check-config", "/etc/swapd/swapd.toml", check=False), "it is there to be edited"

    files = "cd /opt/swapd/" + VERSION + " && find . -type f -printf '%p %T@ %i\\n' | sort"
    before = host.run("sh", "-c", files)
    host.path("/etc/swapd/swapd.toml").write_text("# mine\n")
    assert "is installed" in make(host, wheels, "install")
    assert os.readlink(host.path("/opt/swapd/current")) == f"{VERSION}-2"
    assert host.run("sh", "-c", files) == before, "no file changes under a process that runs"
    assert host.path("/etc/swapd/swapd.toml").read_text() == "# mine\n"

    host.run("touch", "/opt/swapd/notes")
    make(host, wheels, "uninstall")
    assert "swapd" not in host.run("ls", "/usr/local/bin")
    assert sorted(os.listdir(host.path("/opt/swapd"))) == ["notes"], "what is not ours stays"
    for name in (shipped.DAEMON, shipped.KEEP):
        assert host.show(name, "LoadState") == "not-found"
    assert host.path("/etc/swapd/swapd.toml").read_text() == "# mine\n"
    make(host, wheels, "uninstall", "PURGE=1")
    assert not host.path("/etc/swapd").exists()


CONFIG = """
[devices.host]
kind = "host"
memory = "1GiB"
[models.a]
app = "model_app:app"
directory = "{apps}"
device_memory = "100MiB"
[services.chat]
listen = "127.0.0.1:{port}"
model = "a"
"""


def command_of(host: SystemdHost, pid: int) -> str:
    return host.path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")


def test_an_upgrade_is_not_noticed_by_clients_and_a_worker_keeps_its_code(host, wheels):
    port = free_port()
    make(host, wheels, "install")
    apps = host.inside(PROJECT / "tests" / "support" / "apps")
    host.path("/etc/swapd/swapd.toml").write_text(CONFIG.format(apps=apps, port=port))
    host.systemctl("enable", "--now", shipped.DAEMON)
    host.run("swapd-cli", "wait", "chat", "--healthy")
    (unit,) = (name for name in shipped.workers(host) if "gate" not in name)
    first = host.pid(unit)
    with Crowd(port) as crowd:
        make(host, wheels, "install")
        host.systemctl("restart", shipped.DAEMON)
        crowd.more()
        assert f"/opt/swapd/{VERSION}-2/" in command_of(host, host.pid(shipped.DAEMON))
        assert host.pid(unit) == first
        host.run("swapd-cli", "restart", "chat")
        (second,) = (name for name in shipped.workers(host) if "gate" not in name and name != unit)
        assert f"/opt/swapd/{VERSION}-2/" in command_of(host, host.pid(second))
        assert f"/opt/swapd/{VERSION}/" in command_of(host, first)
    assert not crowd.errors
    make(host, wheels, "uninstall")
    assert shipped.workers(host) == []
    assert not host.path("/run/swapd").exists()


def test_a_packagers_root_is_filled_and_nothing_else(host, wheels):
    make(host, wheels, "install", "DESTDIR=/srv/a root", "PREFIX=/usr/lib/swapd")
    assert not host.path("/opt/swapd").exists()
    assert host.show(shipped.DAEMON, "LoadState") == "not-found"
    root = host.path("/srv/a root")
    unit = (root / "usr/local/lib/systemd/system/swapd.service").read_text()
    assert "ExecStart=/usr/lib/swapd/current/bin/swapd --config" in unit
    assert "/opt/swapd" not in unit
    assert os.readlink(root / "usr/local/bin/swapd-cli") == "/usr/lib/swapd/current/bin/swapd-cli"
    host.run("mv", "/srv/a root/usr/lib/swapd", "/usr/local/lib/swapd")
    program = host.path(f"/usr/local/lib/swapd/{VERSION}/bin/swapd").read_text()
    assert f"/usr/lib/swapd/{VERSION}/bin/python" in program.splitlines()[1]  # pip's way with a space in a path
    assert "a root" not in program


def test_a_failed_installation_leaves_nothing_and_changes_nothing(host, wheels):
    broken = ["make", "--silent", "-C", str(PROJECT), "install", f"PYTHON={PYTHON}", "SOURCE=/none.whl"]
    said = host.run("env", "PIP_NO_INDEX=1", *broken, check=False, timeout_s=120)
    assert "/none.whl" in said
    assert os.listdir(host.path("/opt/swapd")) == []
    assert host.show(shipped.DAEMON, "LoadState") == "not-found"
