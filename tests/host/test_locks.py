"""Who holds a lock, seen without touching it."""

import fcntl
import os
import subprocess
import sys

from swapd.host import locks

HOLD = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(); sys.stdin.read()"


def test_the_holder_of_a_lock_is_named_and_the_lock_stays_free_for_others(tmp_path):
    assert locks.holder(tmp_path) is None
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert locks.holder(tmp_path) == process.pid
        process.stdin.close()
    assert locks.holder(tmp_path) is None
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(descriptor)


def test_a_directory_that_is_not_there_is_held_by_nobody(tmp_path):
    assert locks.holder(tmp_path / "none") is None
