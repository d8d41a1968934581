"""Processes that are named for ever, and told of after others have reaped them."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest

from swapd.host.pids import ProcessIdentity, age_s, exit_status, oom_kills

KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
tells_exits = pytest.mark.skipif(KERNEL < (6, 15), reason="this kernel does not tell how a reaped process ended")


def started(code: str) -> tuple[subprocess.Popen[bytes], int]:
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    return process, os.pidfd_open(process.pid)


@tells_exits
@pytest.mark.parametrize(
    ("code", "status"),
    [("", 0), ("raise SystemExit(7)", 7), (f"import os; os.kill(os.getpid(), {signal.SIGSEGV:d})", -signal.SIGSEGV)],
)
def test_the_exit_of_a_process_that_somebody_else_has_reaped_is_told(code, status):
    process, pidfd = started(f"input(); {code}")
    try:
        assert exit_status(pidfd) is None, "it lives"
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        process.wait()
        assert exit_status(pidfd) == status
    finally:
        os.close(pidfd)


def test_what_is_no_pidfd_tells_no_exit():
    with open(os.devnull, "rb") as file:
        assert exit_status(file.fileno()) is None


def test_an_identity_outlives_its_pid():
    process, pidfd = started("input()")
    os.close(pidfd)
    identity = ProcessIdentity.of(process.pid)
    assert identity is not None
    assert identity.alive
    process.communicate(b"\n")
    assert not identity.alive
    assert not ProcessIdentity(os.getpid(), identity.start_time - 1, identity.boot_id).alive


def test_the_age_of_a_process_is_told_while_it_is_there():
    process, pidfd = started("input()")
    os.close(pidfd)
    age = age_s(process.pid)
    assert age is not None
    assert 0 <= age < 60
    process.communicate(b"\n")
    assert age_s(process.pid) is None


def test_the_kernels_kills_for_want_of_memory_are_counted():
    assert (oom_kills() or 0) >= 0
