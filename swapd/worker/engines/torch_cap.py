"""The framework's own limit on device memory, where the model's process has one: PyTorch's caching allocator.

Duty: set it, right before the model loads, in a process that has imported torch already: swapd imports none itself. It
holds for tensors, not for the CUDA context and what libraries take by themselves. Never raises: a model serves as well
without.

Source: torch.cuda.set_per_process_memory_fraction, of the whole device's memory.
"""

from __future__ import annotations

import logging
import sys

log = logging.getLogger("swapd.worker.engine")


def limit_torch(cap_bytes: int) -> tuple[float, ...]:
    """The fraction that was set of each visible GPU; none: no cap, no torch, or no GPU that it sees."""
    torch = sys.modules.get("torch")
    if not cap_bytes or torch is None:
        return ()
    fractions = []
    try:
        for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
            total_bytes = int(torch.cuda.get_device_properties(number).total_memory)
            fraction = min(1.0, cap_bytes / total_bytes)
            torch.cuda.set_per_process_memory_fraction(fraction, number)
            fractions.append(fraction)
    except Exception as error:
        log.warning("worker.torch_not_limited error=%r", error)
    log.info("worker.torch_limited fractions=%s", ",".join(f"{fraction:.3f}" for fraction in fractions))
    return tuple(fractions)
