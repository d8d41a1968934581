"""A worker's process tree of a chosen shape, for tests: `python process_worker.py SHAPE DIRECTORY`.

Each process of it leaves a file named by its pid in DIRECTORY, so that a test knows them all without asking
swapd.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def _note(directory: Path, name: str) -> None:
    temporary = directory / f".{os.getpid()}"
    temporary.write_text(name)
    temporary.rename(directory / str(os.getpid()))


def _sleep() -> None:
    while True:
        time.sleep(60)


def _fork(then) -> int:
    pid = os.fork()
    if pid == 0:
        then()
        os._exit(0)
    return pid


def main(shape: str, directory: Path) -> None:
    def sleeper(name):
        def run():
            _note(directory, name)
            _sleep()

        return run

    def setsid_child():
        os.setsid()
        sleeper("setsid")()

    def double_fork():
        os.setsid()
        _fork(sleeper("daemon"))

    def scrubbed_child():
        # Same session, but neither the marker nor, once its parent is gone, the parent.
        _note(directory, "scrubbed")
        os.execve("/bin/sleep", ["sleep", "3600"], {})

    def helper():
        os.setsid()
        _note(directory, "helper")
        os.execve("/bin/sleep", ["sleep", "3600"], {})

    def loser():
        # Its helper shares nothing with anybody once it has ended, at the sight of the file "lose".
        _fork(helper)
        while not (directory / "lose").exists():
            time.sleep(0.01)

    def respawner():
        _note(directory, "respawner")
        while True:
            pid = _fork(sleeper("respawned"))
            os.waitpid(pid, 0)

    def hydra(until_s):
        # Whoever loses its parent leaves a successor: of many, some are always ahead of one kill after another.
        _note(directory, "head")
        while time.monotonic() < until_s:  # not for ever, should a test fail
            parent = os.getppid()
            while os.getppid() == parent and time.monotonic() < until_s:
                time.sleep(0.0002)
            _fork(lambda: hydra(until_s))

    def terminable():
        def end(*_):
            _note(directory, "terminated")
            os._exit(0)

        signal.signal(signal.SIGTERM, end)
        sleeper("child")()

    if shape == "sleep":
        pass
    elif shape == "tree":
        _fork(sleeper("child"))
        _fork(setsid_child)
        os.waitpid(_fork(double_fork), 0)
    elif shape == "terminable-child":
        _fork(terminable)
    elif shape == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _fork(sleeper("child"))
    elif shape == "leaves-children":
        _fork(sleeper("child"))
        _fork(setsid_child)
        os.waitpid(_fork(double_fork), 0)
        _fork(scrubbed_child)
        while len([name for name in os.listdir(directory) if name.isdigit()]) < 4:
            time.sleep(0.01)
        _note(directory, "root")
        os._exit(3)
    elif shape == "leaves-scrubbed":
        _fork(scrubbed_child)
        while not any(name.isdigit() for name in os.listdir(directory)):
            time.sleep(0.01)
        os._exit(3)
    elif shape == "loses-helper":
        os.waitpid(_fork(loser), 0)
    elif shape == "respawns":
        for _ in range(3):
            _fork(respawner)
    elif shape == "hydra":
        until_s = time.monotonic() + 30
        for _ in range(24):
            _fork(lambda: hydra(until_s))
    elif shape == "short-orphans":
        # Grandchildren whose parent is gone, and which then end: zombies of whoever adopted them.
        for _ in range(3):
            os.waitpid(_fork(lambda: _fork(lambda: time.sleep(0.05))), 0)
    elif shape == "terminates":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    elif shape == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    _note(directory, "root")
    _sleep()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
