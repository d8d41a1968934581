"""The shipped unit, sysusers and tmpfiles, as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from swapd.core.config import DaemonConfig

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = (UNITS / "swapd.service").read_text()

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def analyze(tmp_path: Path, *verb: str) -> str:
    # The program need not be installed for the unit to be right.
    unit = tmp_path / "swapd.service"
    unit.write_text(SERVICE.replace("/opt/swapd/current/bin/swapd", "/bin/true"))
    command = ["systemd-analyze", *verb, str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_analyze
def test_verify_prints_nothing(tmp_path):
    assert analyze(tmp_path, "verify") == ""


@needs_analyze
def test_the_sandbox_is_rated_as_the_header_says(tmp_path):
    said = re.search(r"rates it (\d+\.\d+), OK", SERVICE)
    rated = re.search(
        r"exposure level for swapd.service: (\d+\.\d+) OK", analyze(tmp_path, "security", "--offline=yes")
    )
    assert rated is not None
    # Each release of systemd asks a few more questions.
    assert abs(float(rated[1]) - float(said[1])) < 1.0


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in SERVICE.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_keeps_what_the_daemon_relies_on():
    unit = settings()
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]  # a worker must not speak for the daemon
    assert unit["ExecStart"] == ["/opt/swapd/current/bin/swapd --config /etc/swapd/swapd.toml"]
    assert unit["RuntimeDirectory"] == unit["StateDirectory"] == ["swapd"]
    assert unit["RuntimeDirectoryPreserve"] == ["restart"]
    assert unit["OOMPolicy"] == ["continue"]
    assert f"shutdown_timeout ({DaemonConfig().shutdown_timeout_s:g}s by default)" in SERVICE
    assert unit["RestartPreventExitStatus"] == ["2"]
    assert "PrivateDevices" not in unit  # would hide the GPUs
    assert "MemoryDenyWriteExecute" not in unit  # would break compilers at run time


def test_stopping_may_take_longer_than_the_daemon_allows_itself():
    from swapd.core.config import DaemonConfig

    assert float(settings()["TimeoutStopSec"][0].removesuffix("s")) > DaemonConfig().shutdown_timeout_s
