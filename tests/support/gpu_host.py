"""Fake GPUs (support/fake_gpu) for a real daemon with real workers, and what happened on them."""

from __future__ import annotations

import os
from pathlib import Path

from support.daemon_host import APPS, Daemon

SUPPORT = Path(__file__).parent
GIB = 1 << 30


class Gpus:
    """GPU-0, GPU-1 ... of so many GiB below `directory`; known to the daemon as gpu0, gpu1 ..."""

    def __init__(self, directory, *sizes_gib):
        self.directory = directory
        self.names = [f"gpu{number}" for number in range(len(sizes_gib))]
        for number, size in enumerate(sizes_gib):
            (directory / f"GPU-{number}" / "held").mkdir(parents=True)
            (directory / f"GPU-{number}" / "total").write_text(str(size * GIB))

    def daemon(self, models, **options):
        """A daemon that has these GPUs, and whose memory comes free soon or not at all."""
        devices = "".join(f'[devices.gpu{n}]\nkind = "nvml"\nmatch = "GPU-{n}"\n' for n in range(len(self.names)))
        path = [str(SUPPORT / "fake_gpu"), str(SUPPORT.parent), os.environ.get("PYTHONPATH", "")]
        env = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "FAKE_GPUS": str(self.directory)}
        options = {"daemon": 'release_timeout = "1s"', **options}
        return Daemon(models, devices=devices, env=env, **options)

    def model(self, name, app="Plain", *, holds=10, needs=None, extra="", **env):
        """A [models.NAME] block of support/apps/gpu_model.py. In GiB. `needs` 0: it does not say."""
        # "at": a plain path would count as the model's weights, and what happens on the GPUs as their change.
        values = {"NAME": name, "FAKE_GPUS": f"at {self.directory}", "HOLD_GIB": holds, **env}
        text = ", ".join(f'{key} = "{value}"' for key, value in values.items())
        need = f'device_memory = "{needs or holds}GiB"' if needs != 0 else ""
        return f"""
[models.{name}]
app = "gpu_model:{app}"
directory = "{APPS}"
{need}
env = {{ {text} }}
{extra}
[[models.{name}.probes]]
request = {{ path = "/probe" }}
expect = {{ status = 200, json = "/model" }}
"""

    def hold(self, pid, gib, number=0):
        (self.directory / f"GPU-{number}" / "held" / str(pid)).write_text(str(int(gib * GIB)))

    def fail(self, error, number=0):
        """Every question about the GPU gets this error of NVML; None: it is well again."""
        path = self.directory / f"GPU-{number}" / "error"
        if error is None:
            path.unlink()
        else:
            path.write_text(error)

    def hooks(self, number=0):
        """The hooks that ran, in order, as "NAME HOOK"."""
        path = self.directory / f"GPU-{number}" / "hooks"
        return path.read_text().splitlines() if path.exists() else []
