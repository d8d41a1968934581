"""Engines that hold memory of a fake GPU (support/fake_gpu), and write down which of their hooks ran.

HOLD_GIB: what they take at load and wake; more than is free fails, as on a real GPU. KEEP_GIB: what they keep while
parked, 1 if not set. LEAVES: "PID:GIB", what another process holds once this one has ended. FAIL: load, park or wake,
which then raises (load: an error that says that the worker has ended). $FAKE_GPUS/GPU-0/hooks has a line "NAME HOOK" a
call.
"""

import os
import time
from pathlib import Path

from model_app import NAME, app

from swapd.core.errors import WORKER_EXITED, SwapdError

GIB = 1 << 30
GPUS = [
    Path(os.environ["FAKE_GPUS"].removeprefix("at "), uuid) for uuid in os.environ["CUDA_VISIBLE_DEVICES"].split(",")
]


def note(hook):
    with (GPUS[0] / "hooks").open("a") as file:
        file.write(f"{NAME} {hook}\n")


def alive(pid):
    """As the fake GPU sees it: what has ended and is not waited for yet holds nothing any more."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def hold(gib):
    """Be the process that holds so much of each GPU that it was given."""
    size = int(float(gib) * GIB)
    for gpu in GPUS:
        files = [f for f in (gpu / "held").iterdir() if f.name.isdigit() and int(f.name) != os.getpid()]
        others = sum(int(f.read_text()) for f in files if alive(f.name))
        if others + size > int((gpu / "total").read_text()):
            raise RuntimeError(f"CUDA out of memory. Tried to allocate {gib} GiB")
        written = gpu / "held" / f"{os.getpid()}.new"
        written.write_text(str(size))
        written.replace(gpu / "held" / str(os.getpid()))


def leave(pid, gib):
    """Another process has so much of the first GPU from now on."""
    written = GPUS[0] / "held" / f"{pid}.new"
    written.write_text(str(int(float(gib) * GIB)))
    written.replace(GPUS[0] / "held" / pid)


note("import")


class Plain:
    app = staticmethod(app)

    def load(self):
        note("load")
        if os.environ.get("FAIL") == "load":
            raise SwapdError(WORKER_EXITED, "I am not there.")
        time.sleep(float(os.environ.get("LOAD_S", "0")))
        hold(os.environ["HOLD_GIB"])


class Stages(Plain):
    def stage(self):
        note("stage")


class StagesOnTheGpu(Plain):
    """STAGED_GIB: what its stage hook takes, for long."""

    def stage(self):
        note("stage")
        hold(os.environ["STAGED_GIB"])
        time.sleep(60)


class Leaves(Plain):
    def unload(self):
        leave(*os.environ["LEAVES"].split(":"))


class ParksForGood(Plain):
    def park(self):
        note("park")
        if os.environ.get("FAIL") == "park":
            raise RuntimeError("the allocator is busy")
        hold(os.environ.get("KEEP_GIB", "1"))


class Parks(ParksForGood):
    def wake(self):
        note("wake")
        if os.environ.get("FAIL") == "wake":
            raise RuntimeError("the weights in host memory are gone")
        hold(os.environ["HOLD_GIB"])
