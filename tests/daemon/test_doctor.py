"""`swapd-cli doctor`: with the daemon, without it, and what it writes for others to read."""

import json
import os
import signal
import subprocess
import sys
import tarfile

import pytest
from support.daemon_host import Daemon, model, server, until
from support.leftovers import end_workers

IN_ENV, IN_FILE, IN_COMMAND = "env-secret-0123456789", "file-secret-0123456789", "arg-secret-0123456789"


@pytest.fixture
def daemon():
    with Daemon([model("a"), model("b", FAIL="exit")]) as daemon:
        until(lambda: len(daemon.call("workers")) == 1, what="the end of the gate that held until a served")
        yield daemon
        end_workers(daemon)


def doctor(daemon, *arguments):
    command = [sys.executable, "-m", "swapd.cli.main", "doctor", "--config", str(daemon.config), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def findings(daemon):
    return json.loads(doctor(daemon, "--json").stdout)["findings"]


def test_where_all_is_well_it_says_so_and_exits_0(daemon):
    result = doctor(daemon)
    assert (result.returncode, result.stderr) == (0, "")
    assert "chat: Healthy, a serves" in result.stdout
    assert "nothing wrong was found" in result.stdout
    assert [f for f in findings(daemon) if f["severity"] != "note"] == []


def test_a_failed_swap_is_told_with_its_step_and_the_candidates_last_words(daemon):
    daemon.swap("b")
    result = doctor(daemon, "chat")
    assert result.returncode == 1
    assert "    load            failed" in result.stdout
    assert "    | I cannot find my weights" in result.stdout
    assert "warning: The last swap of chat (1, to b) failed in load" in result.stdout
    assert "  try: swapd-cli show 1" in result.stdout
    assert len(result.stdout.splitlines()) < 50, "a screenful"


def test_a_model_that_does_not_start_is_told_with_its_log():
    daemon = Daemon([model("a", FAIL="exit")])
    try:
        daemon.start(healthy=False)
        until(lambda: daemon.service()["failures"] >= 2, what="the second failure")
        result = doctor(daemon)
        assert result.returncode == 1
        assert "PROBLEM: chat is Unavailable: " in result.stdout
        assert "    | I cannot find my weights" in result.stdout
    finally:
        daemon.__exit__()


def test_a_stopped_daemon_is_told_with_what_wakes_it(daemon):
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        result = doctor(daemon)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert result.returncode == 1
    assert "Its workers go on serving chat." in result.stdout
    assert f"  try: kill -CONT {daemon.process.pid}" in result.stdout
    [holder] = [line for line in result.stdout.splitlines() if line.startswith("    chat-")]
    assert holder.endswith(" MiB"), "who holds memory is measured without the daemon"


def test_without_the_daemon_it_says_why_it_does_not_start(daemon):
    daemon.process.send_signal(signal.SIGKILL)
    daemon.process.wait()
    assert findings(daemon)[0]["what"].startswith("swapd is not running: ")
    daemon.config.write_text(daemon.config.read_text() + '\nsoak = "soon"\n')
    result = doctor(daemon)
    assert result.returncode == 1
    assert "PROBLEM: swapd is not running, and would not start: " in result.stdout
    assert f"  try: swapd --check-config {daemon.config}" in result.stdout
    assert "chat: Serving, a serves" in result.stdout


def test_what_cannot_be_asked_for_is_refused(daemon, tmp_path):
    unknown = doctor(daemon, "chatt")
    assert (unknown.returncode, "UNKNOWN_SERVICE" in unknown.stderr) == (4, True)
    there = tmp_path / "there.tar.gz"
    there.write_text("mine")
    refused = doctor(daemon, "--bundle", str(there))
    assert (refused.returncode, "is there already" in refused.stderr) == (4, True)
    assert there.read_text() == "mine"
    assert "cannot be written" in doctor(daemon, "--bundle", str(tmp_path / "no/where.tar.gz")).stderr


# --- the bundle ----------------------------------------------------------------------------------------------------


@pytest.fixture
def talkative(tmp_path):
    """A daemon whose models have secrets everywhere, and say them."""
    env_file = tmp_path / "b.env"
    env_file.write_text(f"LEAK={IN_FILE}\n")
    env_file.chmod(0o600)
    a = model("a", API_TOKEN=IN_ENV, LEAK=IN_ENV)
    b = model("b", extra=f'env_file = "{env_file}"', FAIL="load")
    c = server("c").replace('"--uds"', f'"--api-key", "{IN_COMMAND}", "--uds"')
    with Daemon([a, b, c]) as daemon:
        daemon.swap("b")
        daemon.env_file = env_file
        yield daemon
        end_workers(daemon)


def bundle(daemon, path):
    """Its files, by name."""
    assert doctor(daemon, "--bundle", str(path)).returncode == 1
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        return {each.name.partition("/")[2]: archive.extractfile(each).read().decode() for each in archive.getmembers()}


def with_secrets(files):
    return [name for name, text in files.items() if any(s in text for s in (IN_ENV, IN_FILE, IN_COMMAND))]


@pytest.mark.parametrize("alive", [True, False], ids=["with the daemon", "without it"])
def test_a_bundle_has_all_that_explains_and_no_secret(talkative, tmp_path, alive):
    if not alive:
        talkative.process.send_signal(signal.SIGKILL)
        talkative.process.wait()
    files = bundle(talkative, tmp_path / "chat.tar.gz")
    assert with_secrets(files) == []
    assert {"doctor.txt", "doctor.json", "versions.json", "config.json", "journal.json"} <= files.keys()
    logs = [text for name, text in files.items() if name.startswith("logs/chat-")]
    assert sum("the token is ***" in text for text in logs) == 2, "of a and of b"
    journal = json.loads(files["journal.json"])
    assert journal["swaps"][0]["phase"] == "Failed"
    assert journal["transitions"]["1"]
    assert [row["method"] for row in journal["command"]] == ["swap"]
    assert json.loads(files["config.json"])["models"]["a"]["env"]["API_TOKEN"] != IN_ENV
    assert "failed in load" in files["doctor.txt"]


def test_where_not_every_secret_is_known_no_log_is_taken_along(talkative, tmp_path):
    os.chmod(talkative.env_file, 0o644)  # now it is refused, and its values are not read
    files = bundle(talkative, tmp_path / "chat.tar.gz")
    assert with_secrets(files) == []
    assert "logs-left-out.txt" in files
    assert not [name for name in files if name.startswith("logs/")]


def test_secrets_of_a_configuration_that_was_replaced_are_masked_without_the_daemon(tmp_path):
    old, new = "old-token-1234", "new-token-5678"
    with Daemon([model("a", API_TOKEN=old, LEAK=old)]) as daemon:
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
        daemon.write([model("a", API_TOKEN=new)])
        files = bundle(daemon, tmp_path / "chat.tar.gz")
        assert [name for name, text in files.items() if old in text] == []
        assert "the token is ***" in "".join(text for name, text in files.items() if name.startswith("logs/"))


def test_settings_of_a_revision_that_cannot_be_read_leave_the_logs_out_too(tmp_path):
    with Daemon([model("a", API_TOKEN=IN_ENV, LEAK=IN_ENV)]) as daemon:
        daemon.process.send_signal(signal.SIGKILL)
        daemon.process.wait()
        [kept] = (daemon.dir / "r/revisions").glob("*.json")
        kept.write_text("damaged")
        assert "logs-left-out.txt" in bundle(daemon, tmp_path / "chat.tar.gz")
