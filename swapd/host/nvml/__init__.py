"""NVIDIA GPUs and MIG slices through NVML: what there is, what is free, who holds it.

Sole importer of pynvml (nvidia-ml-py). `readings` asks for memory, `holders` for who has it, `health` for what the card
tells of itself. A reading is always given, never an exception: what NVML does not tell is `None` with the reason in
`detail`, and never 0. Every call runs on one thread with a deadline, because a driver in trouble may not answer at all.

Source: the NVML API reference; the traps are named where they are met.
"""

from swapd.host.nvml.readings import MAX_FOREIGN, Nvml

__all__ = ["MAX_FOREIGN", "Nvml"]
