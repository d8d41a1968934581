"""Real processes of every shape that a worker's tree may take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.process_waiting import DEADLINE_S, await_until, is_running, wait_until

from swapd.core.errors import COMMAND_NOT_FOUND, SPAWN_FAILED, TIMEOUT, SwapdError
from swapd.core.launch import Command
from swapd.host import processes
from swapd.host.processes import Process, ProcessIdentity, Supervisor, tree, tree_pids, trees_pids

WORKER = Path(__file__).parents[1] / "support" / "process_worker.py"
ENV = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}


def command(argv, *, log_path, **more) -> Command:
    return Command(name="chat-1", argv=tuple(argv), log_path=str(log_path), directory="", **more)


class Host:
    """A supervisor whose every process is gone when the test ends, whatever it did."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.supervisor = Supervisor()
        self.notes = directory / "notes"
        self.notes.mkdir()
        self.nonce = secrets.token_hex(4)  # what one run has left must not be found by the next
        self._spawned: list[Process] = []

    async def spawn(self, *argv: str, marker: str = "chat-1", **more) -> Process:
        more = {"env": ENV, "cwd": None, "log_path": self.directory / "worker.log", **more}
        process = await self.supervisor.spawn(command(argv, marker=f"{marker}:{self.nonce}", **more))
        self._spawned.append(process)
        return process

    async def spawn_tree(self, shape: str, marker: str = "chat-1") -> Process:
        return await self.spawn(sys.executable, str(WORKER), shape, str(self.notes), marker=marker)

    def named(self) -> dict[int, str]:
        return {int(note.name): note.read_text() for note in self.notes.iterdir() if note.name.isdigit()}

    async def names(self, *names: str) -> dict[int, str]:
        await await_until(lambda: set(names) <= set(self.named().values()), f"{names} started")
        return self.named()

    async def close(self) -> None:
        for process in self._spawned:
            with contextlib.suppress(SwapdError):
                await process.kill_tree(0)
        self.supervisor.close()
        await processes.kill_leftovers(f"chat-1:{self.nonce}")
        for pid in self.named():  # what swapd did not find, if a test failed
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def on_host(directory: Path, test) -> None:
    async def run():
        host = Host(directory)
        try:
            await asyncio.wait_for(test(host), 2 * DEADLINE_S)
        finally:
            await host.close()

    asyncio.run(run())


async def refused(host: Host, *argv: str, **more) -> SwapdError:
    with pytest.raises(SwapdError) as caught:
        await host.spawn(*argv, **more)
    return caught.value


# --- starting ----------------------------------------------------------------------------------------------


def test_a_worker_runs_in_its_own_session_with_exactly_the_environment_given(tmp_path):
    async def test(host):
        log = tmp_path / "worker.log"
        log.write_text("from an earlier run\n")
        script = "ps=$(cat /proc/self/stat); echo $$; umask; env; readlink /proc/$$/fd/0; echo oops >&2"
        process = await host.spawn("/bin/sh", "-c", script, cwd=str(tmp_path))
        assert os.getsid(process.pid) == process.pid
        assert await process.wait() == 0
        lines = log.read_text().splitlines()
        assert lines[0] == "from an earlier run"
        assert lines[1] == str(process.pid)
        assert lines[2] in ("0077", "077")
        assert f"SWAPD_WORKER={process.marker}" in lines
        assert not {line.partition("=")[0] for line in lines if "=" in line} - {
            *ENV,
            "SWAPD_WORKER",
            "PWD",
            "OLDPWD",
            "_",
        }
        assert lines[-2:] == ["/dev/null", "oops"]
        assert log.stat().st_mode & 0o777 == 0o640

    on_host(tmp_path, test)


def test_no_descriptor_is_passed_on(tmp_path):
    async def test(host):
        ours, theirs = os.pipe()
        os.set_inheritable(ours, True)
        process = await host.spawn(sys.executable, "-c", f"import os; print(os.path.exists('/proc/self/fd/{ours}'))")
        assert await process.wait() == 0
        os.close(ours)
        os.close(theirs)
        assert (tmp_path / "worker.log").read_text() == "False\n"

    on_host(tmp_path, test)


def test_a_missing_command_is_named_with_the_path_searched(tmp_path):
    async def test(host):
        error = await refused(host, "no-such-server", env={"PATH": "/usr/bin:/bin"})
        assert error.code == COMMAND_NOT_FOUND
        assert "'no-such-server' not found in PATH (/usr/bin:/bin)" in error.message
        error = await refused(host, "/srv/none/python")
        assert (error.code, error.message) == (COMMAND_NOT_FOUND, "command '/srv/none/python' does not exist")

    on_host(tmp_path, test)


def test_a_missing_directory_is_not_mistaken_for_a_missing_command(tmp_path):
    async def test(host):
        error = await refused(host, "/bin/true", cwd=str(tmp_path / "gone"))
        assert error.code == COMMAND_NOT_FOUND
        assert "its directory" in error.message
        assert "gone' does not exist" in error.message

    on_host(tmp_path, test)


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("#!/bin/sh\n", 0o644, "is not executable"),
        ("#!/no/such/interpreter\n", 0o755, "the interpreter that its first line names does not"),
        ("\0\0\0\0", 0o755, "not a program for this machine"),
        (None, 0o755, "is a directory"),
    ],
)
def test_a_command_that_cannot_be_executed_says_why(tmp_path, content, mode, words):
    async def test(host):
        command = tmp_path / "server"
        if content is None:
            command.mkdir()
        else:
            command.write_text(content)
        command.chmod(mode)
        error = await refused(host, str(command))
        assert error.code == COMMAND_NOT_FOUND
        assert words in error.message

    on_host(tmp_path, test)


def test_a_log_that_cannot_be_opened_is_a_refusal(tmp_path):
    async def test(host):
        error = await refused(host, "/bin/true", log_path=tmp_path / "none" / "worker.log")
        assert error.code == SPAWN_FAILED
        assert "cannot open the log" in error.message
        (tmp_path / "link.log").symlink_to("/tmp/elsewhere")
        assert (await refused(host, "/bin/true", log_path=tmp_path / "link.log")).code == SPAWN_FAILED

    on_host(tmp_path, test)


def test_a_spawn_that_is_cancelled_leaves_no_process(tmp_path):
    async def test(host):
        spawning = asyncio.ensure_future(host.spawn_tree("sleep"))
        await asyncio.sleep(0)
        spawning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await spawning
        await await_until(lambda: not tree_pids(0, f"chat-1:{host.nonce}"), "nothing with the marker lives")

    on_host(tmp_path, test)


# --- the exit ----------------------------------------------------------------------------------------------


def test_the_exit_is_told_to_everybody_who_waits(tmp_path):
    async def test(host):
        process = await host.spawn("/bin/sh", "-c", "exit 5")
        assert await asyncio.gather(process.wait(), process.wait()) == [5, 5]
        assert await process.wait() == 5
        assert not process.alive
        assert process.exit_text == "exit code 5"

    on_host(tmp_path, test)


def test_a_crash_is_named_by_its_signal(tmp_path):
    async def test(host):
        process = await host.spawn_tree("segfault")
        assert await process.wait() == -signal.SIGSEGV
        assert process.exit_text == "killed by SIGSEGV"

    on_host(tmp_path, test)


def test_a_kill_from_elsewhere_is_told_apart_from_ours(tmp_path):
    async def test(host):
        process = await host.spawn("/bin/sleep", "3600")
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        assert process.exit_text.startswith("killed by SIGKILL (")
        assert "OOM killer" in process.exit_text
        assert process.oom_killed == ("struck on this host meanwhile" in process.exit_text)
        ours = await host.spawn("/bin/sleep", "3600")
        await ours.kill_tree(0)
        assert ours.exit_text == "killed by SIGKILL (sent by swapd)"
        assert not ours.oom_killed

    on_host(tmp_path, test)


def test_a_cancelled_wait_does_not_harm_the_others(tmp_path):
    async def test(host):
        process = await host.spawn("/bin/sleep", "3600")
        waiting = asyncio.ensure_future(process.wait())
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert await waiting == -signal.SIGTERM

    on_host(tmp_path, test)


def test_it_works_on_uvloop_too(tmp_path):
    uvloop = pytest.importorskip("uvloop")

    async def test():
        host = Host(tmp_path)
        try:
            process = await host.spawn_tree("tree")
            await host.names("root", "child", "setsid", "daemon")
            await process.kill_tree(0)
            assert await process.wait() == -signal.SIGKILL
            assert not [pid for pid in host.named() if is_running(pid)]
        finally:
            await host.close()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(test())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


# --- the tree ----------------------------------------------------------------------------------------------


def test_children_are_found_also_after_setsid_and_a_double_fork(tmp_path):
    async def test(host):
        process = await host.spawn_tree("tree")
        named = await host.names("root", "child", "setsid", "daemon")
        assert tree_pids(process.pid, process.marker) == set(named)

    on_host(tmp_path, test)


def test_two_workers_trees_do_not_mix(tmp_path):
    async def test(host):
        first = await host.spawn_tree("tree", marker="chat-1")
        second = await host.spawn("/bin/sleep", "3600", marker="chat-10")  # whose marker begins alike
        named = await host.names("root", "child", "setsid", "daemon")
        found = trees_pids({first.marker: first.pid, second.marker: second.pid})
        assert found == {first.marker: set(named), second.marker: {second.pid}}
        await first.kill_tree(0)
        assert second.alive
        assert is_running(second.pid)

    on_host(tmp_path, test)


def test_kill_tree_ends_every_process_of_it(tmp_path):
    async def test(host):
        process = await host.spawn_tree("tree")
        named = await host.names("root", "child", "setsid", "daemon")
        await process.kill_tree(0)
        assert not [name for pid, name in named.items() if is_running(pid)]
        assert tree_pids(process.pid, process.marker) == set()
        assert process.reaped

    on_host(tmp_path, test)


def test_the_root_may_end_by_itself_within_the_grace(tmp_path):
    async def test(host):
        process = await host.spawn_tree("terminates")
        await host.names("root")
        await process.kill_tree(DEADLINE_S)
        assert await process.wait() == 7

    on_host(tmp_path, test)


def test_what_the_root_leaves_gets_its_own_sigterm_within_the_grace(tmp_path):
    async def test(host):
        process = await host.spawn_tree("terminable-child")
        await host.names("root", "child")
        await process.kill_tree(DEADLINE_S)
        assert await process.wait() == -signal.SIGTERM
        assert sorted(host.named().values()) == ["root", "terminated"]

    on_host(tmp_path, test)


def test_sigterm_ignored_is_followed_by_sigkill(tmp_path):
    async def test(host):
        process = await host.spawn_tree("stubborn")
        await host.names("root", "child")
        await process.kill_tree(0.2)
        assert await process.wait() == -signal.SIGKILL

    on_host(tmp_path, test)


def test_a_stopped_worker_is_ended_by_sigterm(tmp_path):
    async def test(host):
        process = await host.spawn_tree("terminates")
        await host.names("root")
        os.kill(process.pid, signal.SIGSTOP)
        await process.kill_tree(DEADLINE_S)
        assert await process.wait() == 7

    on_host(tmp_path, test)


def test_what_a_dead_worker_left_is_ended_even_without_marker_or_parent(tmp_path):
    async def test(host):
        process = await host.spawn_tree("leaves-children")
        assert await process.wait() == 3
        named = await host.names("child", "setsid", "daemon", "scrubbed")
        await await_until(lambda: process.reaped, "the root is reaped")
        left = {pid: name for pid, name in named.items() if name != "root"}
        assert all(is_running(pid) for pid in left)
        await process.kill_tree(0)
        assert not [name for pid, name in left.items() if is_running(pid)]

    on_host(tmp_path, test)


def test_children_that_are_started_anew_do_not_outrun_the_kill(tmp_path):
    async def test(host):
        process = await host.spawn_tree("respawns")
        await await_until(lambda: list(host.named().values()).count("respawned") >= 3, "three children")
        await process.kill_tree(0)
        assert not [name for pid, name in host.named().items() if is_running(pid)]
        assert tree_pids(process.pid, process.marker) == set()

    on_host(tmp_path, test)


def test_processes_that_leave_a_successor_when_they_lose_their_parent_are_ended(tmp_path):
    async def test(host):
        process = await host.spawn_tree("hydra")
        await await_until(lambda: list(host.named().values()).count("head") >= 24, "all of them")
        await process.kill_tree(0)
        assert not [name for pid, name in host.named().items() if is_running(pid)]

    on_host(tmp_path, test)


def test_nothing_is_killed_before_everything_is_frozen(tmp_path, monkeypatch):
    """The kernel fails a fork while a signal is pending, so a frozen tree cannot grow; one killed bit by bit can."""
    frozen, killed = set(), set()
    send = tree._send_signals

    def watch(rows, *signals):
        pids = {row.pid for row in rows}
        if signal.SIGSTOP in signals:
            frozen.update(pids)
        if signal.SIGKILL in signals:
            assert pids <= frozen
            killed.update(pids)
        send(rows, *signals)

    async def test(host):
        process = await host.spawn_tree("tree")
        named = await host.names("root", "child", "setsid", "daemon")
        with monkeypatch.context() as patched:
            patched.setattr(tree, "_send_signals", watch)
            await process.kill_tree(0)
        assert killed == set(named)

    on_host(tmp_path, test)


def test_what_shares_nothing_but_the_session_is_found_though_the_root_is_reaped(tmp_path):
    async def test(host):
        process = await host.spawn_tree("leaves-scrubbed")
        assert await process.wait() == 3
        (left,) = host.named()
        await await_until(lambda: process.reaped, "the root is reaped")
        await process.kill_tree(0)
        assert not is_running(left)

    on_host(tmp_path, test)


def test_what_was_seen_once_is_counted_and_ended_though_it_has_lost_every_tie(tmp_path):
    """Its memory would be nobody's, and stay so for good."""

    async def test(host):
        process = await host.spawn_tree("loses-helper")
        roots = {process.marker: process.pid}
        [helper] = await host.names("helper")
        seen = await host.supervisor.pids(roots)
        assert helper in seen[process.marker]
        (host.notes / "lose").touch()
        await host.names("root")
        seen = await host.supervisor.pids(roots)
        assert helper in seen[process.marker]
        await process.kill_tree(0)
        assert not is_running(helper)

    on_host(tmp_path, test)


def test_what_outlives_sigkill_is_named_with_its_state(tmp_path, monkeypatch):
    """A process in state D cannot be made at will; one that never gets its signals looks the same from here."""

    async def test(host):
        process = await host.spawn("/bin/sleep", "3600")
        with monkeypatch.context() as patched:
            patched.setattr(tree, "_send_signals", lambda rows, *signals: None)
            patched.setattr(tree, "KILL_DEADLINE_S", 0.1)
            with pytest.raises(SwapdError) as caught:
                await process.kill_tree(0)
        assert caught.value.code == TIMEOUT
        assert f"{process.pid} (sleep, state S" in caught.value.message
        assert caught.value.details["pids"] == [process.pid]

    on_host(tmp_path, test)


def test_a_pid_that_is_used_again_is_not_signalled(tmp_path):
    async def test(host):
        process = await host.spawn("/bin/sleep", "3600")
        row = tree.read_row(process.pid)
        stale = type(row)(row.pid, row.ppid, row.session, row.start_time - 1, row.state, row.threads)
        tree._send_signals([stale], signal.SIGKILL)
        tree._send_signals([row], signal.SIGTERM)
        assert await process.wait() == -signal.SIGTERM

    on_host(tmp_path, test)


def test_leftovers_of_an_earlier_daemon_are_found_by_their_marker_alone(tmp_path):
    async def test(host):
        process = await host.spawn_tree("tree")
        named = await host.names("root", "child", "setsid", "daemon")
        await processes.kill_leftovers(process.marker)
        assert not [name for pid, name in named.items() if is_running(pid)]

    on_host(tmp_path, test)


def test_an_identity_outlives_neither_its_process_nor_its_boot(tmp_path):
    async def test(host):
        process = await host.spawn("/bin/sleep", "3600")
        identity = process.identity
        assert identity == ProcessIdentity.of(process.pid)
        assert identity.alive
        assert not ProcessIdentity(identity.pid, identity.start_time + 1, identity.boot_id).alive
        assert not ProcessIdentity(identity.pid, identity.start_time, "another boot").alive
        await process.kill_tree(0)
        assert not identity.alive

    on_host(tmp_path, test)


# --- orphans -----------------------------------------------------------------------------------------------

SUBREAPER = """
import asyncio, sys, time
from pathlib import Path
from swapd.core.launch import Command
from swapd.host import processes
from swapd.host.processes import supervisor as module

async def main(worker, notes):
    supervisor = processes.Supervisor()
    module.ORPHAN_PERIOD_S = 3600  # rounds are run by hand
    supervisor.become_subreaper()
    argv = (sys.executable, worker, "short-orphans", notes)
    env = {"PATH": "/usr/bin:/bin"}
    log = str(Path(notes) / "log")
    process = await supervisor.spawn(
        Command(name="o-1", marker="o-1:1", argv=argv, env=env, cwd=None, log_path=log, directory="")
    )
    watched = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 9")
    until = time.monotonic() + 30
    reaped = 0
    while reaped < 3 and time.monotonic() < until:
        reaped += supervisor.reap_orphans()
        await asyncio.sleep(0.05)
    left = [pid for pid in module._children_of_self() if pid != process.pid]
    await process.kill_tree(0)
    supervisor.close()
    print("reaped", reaped, "left", len(left), "watched", await watched.wait(), "root", process.exit_code)

asyncio.run(main(*sys.argv[1:]))
"""


def test_orphans_are_reaped_and_nobody_elses_exit_status_is_taken(tmp_path):
    (tmp_path / "notes").mkdir()
    command = [sys.executable, "-c", SUBREAPER, str(WORKER), str(tmp_path / "notes")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)
    assert done.stdout.strip() == "reaped 3 left 0 watched 9 root -9", done.stderr


def test_a_child_that_is_only_just_dead_is_left_to_its_owner():
    child = subprocess.Popen(["/bin/sh", "-c", "exit 9"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie now, which nobody has asked about
    assert Supervisor().reap_orphans() == 0
    assert child.wait() == 9


def test_exit_statuses_come_back_when_sigchld_was_ignored(tmp_path):
    """`nohup`-like starters may leave SIGCHLD ignored: the kernel then throws every exit status away."""
    program = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n" + SUBREAPER
    (tmp_path / "notes").mkdir()
    command = [sys.executable, "-c", program, str(WORKER), str(tmp_path / "notes")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False)
    assert done.stdout.strip().endswith("watched 9 root -9"), done.stderr


def test_waiting_helper_reports_what_never_came():
    with pytest.raises(AssertionError, match="a unicorn"):
        wait_until(lambda: False, "a unicorn", deadline_s=0.01)
