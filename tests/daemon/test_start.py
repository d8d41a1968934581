"""What a daemon does before its first worker: its directories, its locks, and what another one left behind."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.daemon_host import Daemon, free_port, model

from swapd.core.config import Config, DaemonConfig
from swapd.core.errors import SwapdError
from swapd.daemon.start import make_directories

A = model("a")


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "swapd.daemon.main", *map(str, arguments)], capture_output=True, text=True, timeout=30
    )


def other_config(daemon, **replaced):
    """The daemon's configuration on another port, with some of its text replaced."""
    text = daemon.config.read_text().replace(f"127.0.0.1:{daemon.port}", f"127.0.0.1:{free_port()}")
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    path = daemon.dir / "other.toml"
    path.write_text(text)
    return path


def worker_pid(daemon):
    return next(w["pid"] for w in daemon.call("workers") if w["model"] == "a")


def opened(pid):
    """What a process holds open, by path."""
    links = set()
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.add(os.readlink(each))
    return links


def test_a_second_daemon_on_the_same_state_directory_is_refused():
    with Daemon([A]) as daemon:
        second = other_config(daemon, runtime=(f"{daemon.dir}/r", f"{daemon.dir}/r2"))
        result = run("--config", second)
        assert result.returncode == 1
        assert f'Another swapd runs with state_dir = "{daemon.dir}/s": stop it, or write another' in result.stderr
        assert daemon.model() == "a"


def test_a_second_daemon_on_the_same_runtime_directory_is_refused_before_it_touches_a_worker():
    with Daemon([A]) as daemon:
        pid = worker_pid(daemon)
        second = other_config(daemon, state=(f"{daemon.dir}/s", f"{daemon.dir}/s2"))
        result = run("--config", second)
        assert result.returncode == 1
        assert f'Another swapd runs with runtime_dir = "{daemon.dir}/r": stop it, or write another' in result.stderr
        assert "leftover" not in result.stderr
        assert daemon.model() == "a"
        assert worker_pid(daemon) == pid


def test_a_killed_daemon_holds_no_directory_through_its_workers_and_the_next_takes_them_over():
    with Daemon([A]) as daemon:
        pid = worker_pid(daemon)
        directories = {f"{daemon.dir}/r", f"{daemon.dir}/s"}
        assert opened(daemon.process.pid) >= directories
        assert not opened(pid) & directories
        daemon.stop(signal.SIGKILL)
        assert daemon.model() == "a", "its worker serves on"
        daemon.start()
        assert worker_pid(daemon) == pid
        assert daemon.model() == "a"


def test_one_directory_may_be_both():
    with Daemon([A]) as daemon:
        daemon.stop()
        daemon.config.write_text(daemon.config.read_text().replace(f"{daemon.dir}/s", f"{daemon.dir}/r"))
        daemon.start()
        assert daemon.model() == "a"


@pytest.mark.parametrize(("number", "as_another_user"), [(errno.EACCES, True), (errno.EROFS, False)])
def test_another_user_is_proposed_only_where_one_may_make_the_directory(tmp_path, monkeypatch, number, as_another_user):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    daemon = DaemonConfig(runtime_dir=str(tmp_path), state_dir=str(tmp_path / "s"))
    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(SwapdError) as caught:
        make_directories(Config(file="/etc/x.toml", daemon=daemon, devices={}, models={}, services={}))
    assert f"{os.strerror(number)}; write another daemon.runtime_dir in /etc/x.toml" in caught.value.message
    assert ("run swapd as a user" in caught.value.message) is as_another_user
