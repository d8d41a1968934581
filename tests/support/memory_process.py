"""A real process that takes memory when told to, for tests of who holds what."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from types import TracebackType

PROGRAM = r"""
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
kept, children = [], []

def touch(view, start=0, stop=None):
    for at in range(start, len(view) if stop is None else stop, 4096):
        view[at]

def dirty(view):
    for at in range(0, len(view), 4096):
        view[at] = 1

def anon(mib):
    view = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    dirty(view)
    kept.append(view)

def shared(mib):
    view = mmap.mmap(-1, mib << 20, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
    dirty(view)
    kept.append(view)

def file(path, start_mib=0, stop_mib=None, execute=False, private=True):
    with open(path, "rb") as f:
        prot = mmap.PROT_READ | (mmap.PROT_EXEC if execute else 0)
        view = mmap.mmap(f.fileno(), 0, flags=mmap.MAP_PRIVATE if private else mmap.MAP_SHARED, prot=prot)
    touch(view, start_mib << 20, None if stop_mib is None else stop_mib << 20)
    kept.append(view)

def pieces(path, piece_mib):
    with open(path, "rb") as f:
        size = os.fstat(f.fileno()).st_size
        for offset in range(0, size, piece_mib << 20):
            view = mmap.mmap(f.fileno(), piece_mib << 20, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ, offset=offset)
            touch(view)
            kept.append(view)

def memfd(mib):
    fd = os.memfd_create("weights")
    os.ftruncate(fd, mib << 20)
    view = mmap.mmap(fd, mib << 20)
    os.close(fd)
    dirty(view)
    kept.append(view)

def write_on(index):
    dirty(kept[index])

def read_on(index):
    touch(kept[index])

def serve(commands, answers):
    for line in commands:
        result = eval(line)
        answers.write(f"{result}\n")
        answers.flush()

def fork():
    "A child that takes orders by child(n, text)."
    to_child, from_child = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(to_child[1]); os.close(from_child[0])
        try:
            serve(os.fdopen(to_child[0]), os.fdopen(from_child[1], "w"))
        finally:
            os._exit(0)
    os.close(to_child[0]); os.close(from_child[1])
    children.append((os.fdopen(to_child[1], "w"), os.fdopen(from_child[0])))
    return pid

def child(number, text):
    commands, answers = children[number]
    commands.write(text + "\n"); commands.flush()
    return answers.readline().strip()

serve(sys.stdin, sys.stdout)
"""


class MemoryProcess:
    """`do("anon(50)")` runs a line of the program's functions and returns what it gives, within a deadline."""

    def __init__(self, deadline_s: float = 30.0, **popen: object) -> None:
        self.deadline_s = deadline_s
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **popen,  # type: ignore[call-overload]
        )
        self.pids = {self.process.pid}
        self.forks: list[int] = []
        self.do("None")  # what starting takes is taken

    def do(self, line: str) -> str:
        stdin, stdout = self.process.stdin, self.process.stdout
        stdin.write(line + "\n")
        stdin.flush()
        ready, _, _ = select.select([stdout], [], [], self.deadline_s)
        assert ready, f"{line} took more than {self.deadline_s} s"
        return stdout.readline().strip()

    def fork(self) -> int:
        pid = int(self.do("fork()"))
        self.pids.add(pid)
        self.forks.append(os.pidfd_open(pid))
        return pid

    def end(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            pipe.close()
        if self.process.poll() is None:
            os.kill(self.process.pid, 9)
        self.process.wait(self.deadline_s)
        while self.forks:  # they are not ours to wait for, and hold memory until they are gone
            fork = self.forks.pop()
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fork, signal.SIGKILL)
            ended, _, _ = select.select([fork], [], [], self.deadline_s)
            os.close(fork)
            assert ended, f"a fork did not end in {self.deadline_s} s"

    def __enter__(self) -> MemoryProcess:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.end()
