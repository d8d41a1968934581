"""The shipped units, sysusers and tmpfiles, and a worker's unit, as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support import shipped
from support.systemd_host import PROJECT

from swapd.core.config import DaemonConfig
from swapd.core.launch import NVIDIA, Command, Confinement
from swapd.core.unit_settings import STOP_LIMIT_S, properties

OPERATIONS = (PROJECT / "docs" / "operations.md").read_text()
GOAL = 3.0

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def analyze(tmp_path: Path, units: dict[str, str], name: str, *verb: str) -> str:
    for unit, text in units.items():
        # The program need not be installed for the unit to be right.
        (tmp_path / unit).write_text(re.sub(r"/opt/swapd/current/bin/\S+", "/bin/true", text))
    command = ["systemd-analyze", *verb, str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def worker_unit(**confinement) -> str:
    command = Command(
        name="chat-1",
        marker="chat-1:0a",
        argv=("/bin/true",),
        env={},
        cwd="/",
        log_path="/var/lib/swapd/logs/chat-1.log",
        directory="/run/swapd/w/chat-1",
        confinement=Confinement(user="swapd", group="swapd-workers", **confinement),
    )
    lines = list(properties(command, "/run/swapd/w/chat-1/environment"))
    of_unit = [line for line in lines if line.startswith(("Description=", "Before="))]
    of_service = [line for line in lines if line not in of_unit]
    return "\n".join(["[Unit]", *of_unit, "[Service]", *of_service, "ExecStart=/bin/true", ""])


def rated(tmp_path: Path, units: dict[str, str], name: str) -> tuple[float, set[str]]:
    """The exposure, and the names of what it consists of."""
    text = analyze(tmp_path, units, name, "security", "--offline=yes", "--no-pager")
    found = re.search(rf"exposure level for {re.escape(name)}: (\d+\.\d+)", text)
    assert found is not None, text
    return float(found[1]), set(re.findall(r"^✗ (\S+)", text, re.MULTILINE))


@needs_analyze
@pytest.mark.parametrize("name", list(shipped.UNITS))
def test_verify_prints_nothing(tmp_path, name):
    assert analyze(tmp_path, shipped.UNITS, name, "verify") == ""


WORKERS = {"": worker_unit(), " with a GPU": worker_unit(devices=(NVIDIA,))}
RATED = {
    "daemon": (shipped.UNITS, shipped.DAEMON),
    **{f"worker{what}": ({"swapd-chat-1.service": text}, "swapd-chat-1.service") for what, text in WORKERS.items()},
}


@needs_analyze
@pytest.mark.parametrize("what", list(RATED))
def test_each_unit_is_rated_as_the_docs_say_and_each_exposure_is_explained_there(tmp_path, what):
    units, name = RATED[what]
    figure, exposures = rated(tmp_path, units, name)
    said = re.search(rf"^\| {what} \| (\d+\.\d+) \|", OPERATIONS, re.MULTILINE)
    assert said is not None, f"docs/operations.md does not rate the {what}"
    # Each release of systemd asks a few more questions.
    assert abs(figure - float(said[1])) < 0.3
    assert float(said[1]) <= GOAL
    unexplained = {each for each in exposures if f"`{each}`" not in OPERATIONS.replace("\\|", "|")}
    assert unexplained == set()


def settings(unit: str = shipped.DAEMON) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in shipped.UNITS[unit].splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_keeps_what_the_daemon_relies_on():
    unit = settings()
    assert unit["Type"] == ["notify"]
    assert unit["NotifyAccess"] == ["main"]  # a worker must not speak for the daemon
    assert unit["ExecStart"] == ["/opt/swapd/current/bin/swapd --config /etc/swapd/swapd.toml"]
    assert unit["StateDirectory"] == unit["CacheDirectory"] == settings(shipped.KEEP)["RuntimeDirectory"] == ["swapd"]
    assert unit["RestartKillSignal"] == ["SIGUSR2"]
    assert unit["RestartPreventExitStatus"] == ["2"]
    assert "PrivateDevices" not in unit  # would hide the GPUs


def seconds(value: str) -> float:
    return float(value.removesuffix("s"))


def test_stopping_may_take_longer_than_the_daemon_allows_itself():
    assert seconds(settings()["TimeoutStopSec"][0]) > DaemonConfig().shutdown_timeout_s + 30
    assert f"shutdown_timeout ({DaemonConfig().shutdown_timeout_s:g}s by default)" in shipped.UNITS[shipped.DAEMON]
    assert seconds(settings(shipped.KEEP)["TimeoutStopSec"][0]) > STOP_LIMIT_S
    assert f"({STOP_LIMIT_S}s)" in shipped.UNITS[shipped.KEEP]
