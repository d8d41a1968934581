"""The machine around a daemon, read for real, and systemd's word by a stand-in for its tools."""

import os

import pytest

from swapd.host import machine


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """`systemctl` and `journalctl` that answer with a text."""

    def write(name, script):
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return write


def test_it_is_read_for_real(tmp_path):
    host = machine.look_at_host([tmp_path / "not/there/yet", tmp_path, tmp_path], os.getpid())
    assert host.kernel.startswith("Linux ")
    assert 0 < host.open_files < host.max_files
    [disk] = host.disks  # one file system is told once
    assert disk.path == str(tmp_path)
    assert 0 < disk.free_bytes <= disk.total_bytes
    assert not disk.read_only
    assert host.up_s > 0
    assert host.clock_synchronized in (True, False)


def test_a_place_that_may_not_be_looked_at_is_told_by_the_one_above(tmp_path):
    """As state_dir is to whoever is no more than a member of group swapd; root may look everywhere, so by a name."""
    [disk] = machine.look_at_host([tmp_path / ("x" * 300) / "logs"], None).disks
    assert disk.path == str(tmp_path)


def test_of_a_daemon_that_is_gone_nothing_is_made_up(tmp_path):
    host = machine.look_at_host([tmp_path], None)
    assert (host.open_files, host.max_files) == (None, None)


def test_the_units_state_is_systemds_word(tools):
    tools("systemctl", "printf 'LoadState=loaded\\nActiveState=activating\\nNRestarts=17\\nMainPID=0\\n'")
    assert machine._unit_state("swapd.service", None) == ("activating", 17)
    assert machine._unit_state("swapd.service", 4711) == (None, None), "another process is its main one"
    tools("systemctl", "printf 'LoadState=not-found\\nActiveState=inactive\\nNRestarts=0\\n'")
    assert machine._unit_state("swapd.service", None) == (None, None)


def test_a_tool_that_fails_hangs_or_is_not_there_hides_nothing(tools, monkeypatch):
    tools("journalctl", "echo one; echo two")
    assert machine._daemon_log("swapd.service", 10) == ("one", "two")
    monkeypatch.setattr(machine, "TOOL_S", 0.2)
    tools("journalctl", "exec sleep 60")
    assert machine._daemon_log("swapd.service", 10) == ()
    assert machine._ask("no-such-tool-anywhere") == []
