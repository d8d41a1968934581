"""What a device does by itself, as JSON on standard output: `python -m bench.apps.device cuda|cpu`.

In a process of its own, because imports and a CUDA context are made once in a process. Exit status 3: there is no such
device here.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

BLOCK_BYTES = 1 << 30
TIMES = 5
NO_DEVICE = 3


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def cpu() -> dict[str, Any]:
    """A copy from memory to memory: what "loading" means on the host device."""
    source, target = bytearray(BLOCK_BYTES // 4), bytearray(BLOCK_BYTES // 4)
    view = memoryview(target)

    def copy() -> None:
        view[:] = source

    copy()
    return {"copy_bytes_per_s": len(source) / statistics.median(timed(copy) for _ in range(TIMES))}


def cuda() -> dict[str, Any]:
    """Times in seconds: the import, the context with its memory, pinning; rates of pinned and pageable copies."""
    found: dict[str, Any] = {}
    begun = time.perf_counter()
    import torch

    found["import_s"] = time.perf_counter() - begun
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        sys.exit(NO_DEVICE)
    gpu = _Gpu()
    free = gpu.free_bytes()
    found["context_s"] = timed(lambda: torch.zeros(1, device="cuda").item())
    found["context_bytes"] = free - gpu.free_bytes()
    host, pageable = (torch.ones(BLOCK_BYTES, dtype=torch.uint8) for _ in range(2))
    register = torch.cuda.cudart().cudaHostRegister
    found["pin_s_per_gb"] = timed(lambda: register(host.data_ptr(), BLOCK_BYTES, 0)) / (BLOCK_BYTES / 1e9)
    device = torch.empty(BLOCK_BYTES, dtype=torch.uint8, device="cuda")

    def copy(source: Any) -> Callable[[], None]:
        def work() -> None:
            device.copy_(source, non_blocking=True)
            torch.cuda.synchronize()

        work()
        return work

    for name, source in (("copy_bytes_per_s", host), ("pageable_copy_bytes_per_s", pageable)):
        found[name] = BLOCK_BYTES / statistics.median(timed(copy(source)) for _ in range(TIMES))
    return {"torch": torch.__version__, "cuda": torch.version.cuda, **gpu.facts, **found}


class _Gpu:
    """The first GPU, as NVML has it."""

    def __init__(self) -> None:
        import pynvml

        pynvml.nvmlInit()
        self._nvml, self._handle = pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        self.facts = {
            "gpu": pynvml.nvmlDeviceGetName(self._handle),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "memory_bytes": pynvml.nvmlDeviceGetMemoryInfo(self._handle).total,
            "pcie_generation": self._ask("nvmlDeviceGetCurrPcieLinkGeneration"),
            "pcie_lanes": self._ask("nvmlDeviceGetCurrPcieLinkWidth"),
        }

    def free_bytes(self) -> int:
        return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).free)

    def _ask(self, name: str) -> int | None:
        try:
            return int(getattr(self._nvml, name)(self._handle))
        except self._nvml.NVMLError:
            return None


if __name__ == "__main__":
    print(json.dumps({"cuda": cuda, "cpu": cpu}[sys.argv[1]]()))
