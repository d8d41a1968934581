"""What a worker's unit looks like, and what systemd's answers mean. tests/systemd has the same with a real systemd."""

from __future__ import annotations

from dataclasses import replace

import pytest

from swapd.core.launch import NVIDIA, Command, Confinement
from swapd.core.unit_settings import environment_text, explain_start, parse_show, properties, quote_word

COMMAND = Command(
    name="chat-1",
    marker="chat-1:0a",
    argv=("/usr/bin/python3", "launch.py"),
    env={},
    cwd="/srv/models",
    log_path="/var/lib/swapd/logs/chat-1.log",
    directory="/run/swapd/w/chat-1",
)
RUNNING = """\
MainPID=42
Result=success
ExecMainPID=42
ExecMainCode=0
ExecMainStatus=0
ControlGroup=/swapd.slice/swapd-workers.slice/swapd-chat-1.service
Id=swapd-chat-1.service
Description=swapd worker chat-1:0a
LoadState=loaded
ActiveState=active
SubState=running
"""


def settings(**confinement) -> list[str]:
    return list(properties(replace(COMMAND, confinement=Confinement(**confinement)), "/run/swapd/w/chat-1/environment"))


def test_a_gpu_is_seen_only_by_whom_it_is_given_to():
    assert "PrivateDevices=yes" in settings()
    given = settings(devices=(NVIDIA,))
    assert "PrivateDevices=yes" not in given
    assert {"DevicePolicy=closed", "DeviceAllow=/dev/nvidiactl rw", "DeviceAllow=char-nvidia* rw"} <= set(given)


def test_a_gate_outlives_the_process_of_its_shadow_when_memory_runs_out():
    gate = replace(COMMAND, argv=(*COMMAND.argv, "--gate", COMMAND.directory))
    assert "OOMPolicy=continue" in properties(gate, "/run/swapd/w/chat-1/environment")
    assert "OOMPolicy=kill" in settings()


def test_read_paths_hide_the_rest_of_the_data():
    assert "ProtectHome=read-only" in settings()
    hidden = settings(
        read_paths=("/srv/a", "/usr/share/a"), needed_paths=("/home/ana/venv",), write_paths=("/srv/out",)
    )
    assert not [each for each in hidden if each.startswith("ProtectHome=")]
    assert 'BindReadOnlyPaths="/home/ana/venv" "/srv/a"' in hidden  # what lies elsewhere was never hidden
    assert 'BindPaths="/srv/out"' in hidden
    assert 'ReadWritePaths="/run/swapd/w/chat-1" "/srv/out"' in hidden


def test_a_path_that_may_be_written_is_not_bound_read_only():
    both = settings(read_paths=("/srv/a",), write_paths=("/srv/a",))
    assert not [each for each in both if each.startswith("BindReadOnlyPaths=")]


def test_words_are_quoted():
    assert quote_word('a "b" \\ c') == '"a \\"b\\" \\\\ c"'


def test_an_environment_is_quoted_or_refused():
    assert environment_text({"A": 'x"$y`\\\n z'}) == 'A="x\\"\\$y\\`\\\\\n z"\n'
    for name, value in (("A-B", "x"), ("", "x"), ("1A", "x"), ("A", "\0"), ("A", "\udcff")):
        with pytest.raises(ValueError, match=r"systemd"):
            environment_text({name: value})


def test_what_systemd_shows_is_read():
    running, failed, gone, foreign = parse_show(
        RUNNING
        + "\n"
        + RUNNING.replace("MainPID=42\nResult=success", "MainPID=0\nResult=oom-kill", 1)
        .replace("ExecMainCode=0\nExecMainStatus=0", "ExecMainCode=2\nExecMainStatus=9")
        .replace("ActiveState=active", "ActiveState=failed")
        + "\nId=swapd-chat-2.service\nLoadState=not-found\nActiveState=inactive\nDescription=swapd-chat-2.service\n"
        + "\n"
        + RUNNING.replace("swapd worker chat-1:0a", "My own service")
    )
    assert (running.running, running.pid, running.exit_code, running.marker) == (True, 42, None, "chat-1:0a")
    assert running.cgroup.endswith("/swapd-chat-1.service")
    assert (failed.running, failed.pid, failed.exit_code, failed.out_of_memory) == (False, 42, -9, True)
    assert (gone.loaded, gone.running, gone.pid) == (False, False, 0)
    assert foreign.marker == ""


def test_a_worker_that_has_ended_while_others_of_its_tree_are_being_ended_does_not_run():
    text = RUNNING.replace("MainPID=42", "MainPID=0", 1).replace("ExecMainCode=0", "ExecMainCode=1")
    (state,) = parse_show(text.replace("ActiveState=active", "ActiveState=deactivating"))
    assert not state.running
    assert state.exit_code == 0


def test_systemds_exit_statuses_become_words():
    (state,) = parse_show(RUNNING.replace("ExecMainCode=0", "ExecMainCode=1").replace("Status=0", "Status=217"))
    command = replace(COMMAND, confinement=Confinement(user="llm"))
    assert explain_start(command, state, "Job failed.") == (
        'systemd cannot start chat-1: there is no user "llm" on this host'
    )
    (state,) = parse_show(RUNNING)
    assert explain_start(command, state, "Unit is\nmasked.") == "systemd cannot start chat-1: Unit is masked."
