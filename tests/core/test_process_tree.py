from __future__ import annotations

import signal

import pytest

from swapd.core.process_tree import UNKNOWN_EXIT, ProcessRow, describe_exit, find_members, parse_stat


def row(pid: int, ppid: int, session: int, *, start: int = 0, state: str = "S", threads: int = 1) -> ProcessRow:
    return ProcessRow(pid, ppid, session, start or pid, state, threads)


def members(*rows: ProcessRow, known=None, marked=(), never=(1,), foreign=(50,)) -> set[int]:
    table = {each.pid: each for each in rows}
    known = {100: 100} if known is None else known
    return set(find_members(table, known=known, marked=marked, never=never, foreign_sessions=foreign))


HOST = (row(1, 0, 1), row(50, 1, 50), row(51, 50, 50))  # init, and the daemon in its own session


def test_descendants_belong_at_any_depth_and_strangers_do_not():
    assert members(*HOST, row(100, 50, 100), row(101, 100, 100), row(102, 101, 102), row(200, 1, 200)) == {
        100,
        101,
        102,
    }


def test_an_orphan_in_the_session_of_a_member_belongs():
    assert members(*HOST, row(100, 50, 100), row(103, 1, 100)) == {100, 103}


def test_an_orphan_in_a_session_of_its_own_belongs_by_its_marker_with_its_children():
    assert members(*HOST, row(104, 1, 104), row(105, 104, 104), marked={104}) == {104, 105}


def test_what_was_known_belongs_after_every_tie_is_gone():
    assert members(*HOST, row(106, 1, 106), known={100: 100, 106: 106}) == {106}


def test_a_pid_that_is_used_again_does_not_belong_nor_does_its_session():
    assert members(*HOST, row(100, 1, 100, start=999), row(107, 100, 100)) == set()


def test_a_zombie_still_proves_its_session():
    assert members(*HOST, row(100, 50, 100, state="Z"), row(108, 1, 100)) == {100, 108}


def test_the_daemon_its_session_and_init_are_never_taken():
    strange = (row(1, 0, 1), row(50, 1, 50), row(51, 50, 50), row(100, 51, 50), row(101, 50, 0))
    assert members(*strange, marked={50, 51, 101}, never=(1, 50)) == {51, 100, 101}


@pytest.mark.parametrize("name", [b"python3", b"a b) (c", b")", b"", b"x" * 15])
def test_a_line_of_stat_is_read_whatever_the_name(name):
    rest = b"S 7 42 40 0 -1 4194560 1 0 0 0 5 6 0 0 20 0 3 0 123456 1000 10 18446744073709551615"
    assert parse_stat(b"42 (" + name + b") " + rest + b"\n") == ProcessRow(42, 7, 40, 123456, "S", 3)


@pytest.mark.parametrize("data", [b"", b"42 (x", b"42 (x) S 1 2", b"(x) " + b"S " * 30])
def test_what_is_no_line_of_stat_is_refused(data):
    with pytest.raises((ValueError, IndexError)):
        parse_stat(data)


@pytest.mark.parametrize(
    ("state", "threads", "alive"), [("S", 1, True), ("D", 1, True), ("T", 1, True), ("Z", 1, False), ("X", 0, False)]
)
def test_zombies_are_not_alive(state, threads, alive):
    assert row(100, 1, 100, state=state, threads=threads).alive is alive


def test_a_leader_that_ended_before_its_threads_is_alive():
    assert row(100, 1, 100, state="Z", threads=5).alive


@pytest.mark.parametrize(
    ("code", "more", "text"),
    [
        (0, {}, "exit code 0"),
        (3, {}, "exit code 3"),
        (-signal.SIGSEGV, {}, "killed by SIGSEGV"),
        (-40, {}, "killed by signal 40"),
        (-signal.SIGTERM, {}, "killed by SIGTERM"),
        (-signal.SIGTERM, {"by_swapd": True}, "killed by SIGTERM (sent by swapd)"),
        (-signal.SIGSEGV, {"by_swapd": True}, "killed by SIGSEGV"),
        (-signal.SIGKILL, {}, "killed by SIGKILL (often the kernel's OOM killer)"),
        (
            -signal.SIGKILL,
            {"oom_kills": 2},
            "killed by SIGKILL (the kernel's OOM killer struck on this host meanwhile: see dmesg)",
        ),
        (
            -signal.SIGKILL,
            {"oom_kills": 0},
            "killed by SIGKILL (not by the kernel's OOM killer: it did not strike on this host)",
        ),
        (-signal.SIGKILL, {"by_swapd": True}, "killed by SIGKILL (sent by swapd)"),
        (UNKNOWN_EXIT, {}, "ended; its exit status is not known"),
    ],
)
def test_an_exit_is_told_in_words(code, more, text):
    assert describe_exit(code, **more) == text
