"""GPUs that are directories, read by the daemon in place of the real pynvml: put this directory on its PYTHONPATH.

$FAKE_GPUS/GPU-0/total holds a GPU's size in bytes, GPU-0/held/PID what that process holds; what a dead process held is
free again. GPU-0/error, where it is, holds the name of the error that every question about this GPU gets.
"""

import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from support import fake_nvml

_HERE = os.path.dirname(os.path.abspath(__file__))
_spec = PathFinder.find_spec("pynvml", [path for path in sys.path if os.path.abspath(path) != _HERE])
_real = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_real)


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _gpu(path):
    held = {int(file.name): int(file.read_text()) for file in (path / "held").iterdir() if file.name.isdigit()}
    processes = [(pid, size) for pid, size in held.items() if _alive(pid)]
    total = int((path / "total").read_text())
    error = getattr(_real, (path / "error").read_text()) if (path / "error").exists() else None
    free = total - sum(size for _, size in processes)
    return fake_nvml.Gpu(path.name, total, free, 0, processes, error=error)


_library = fake_nvml.Library(_real)


def __getattr__(name):
    """Whatever is asked, the GPUs are those of this moment."""
    _library.gpus = [_gpu(path) for path in sorted(Path(os.environ["FAKE_GPUS"]).glob("GPU-*"))]
    return getattr(_library, name)
