"""Whether a server's own words say that memory ran out: what is told apart, since more memory would have done.

Pure. A model that runs in the worker itself raises, and `worker.failures` reads the exception. A server prints, often
long before its last line: vLLM's engine tells the reason, and then its front end, at length, that the engine failed.

Sources: ggml-cuda.cu, ggml-backend.cpp and llama-model.cpp of llama.cpp; vllm/v1/worker/gpu_worker.py and
vllm/v1/core/kv_cache_utils.py; torch (OutOfMemoryError); cuBLAS; JAX and TensorFlow; glibc's strerror(ENOMEM).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from swapd.core.errors import (
    HOOK_FAILED,
    LOAD_FAILED,
    NOT_READY,
    OUT_OF_MEMORY,
    PROBE_FAILED,
    WARMUP_FAILED,
    WORKER_EXITED,
    Problem,
)

MAX_LINE: Final = 300
_SAID: Final = re.compile(
    r"out[ _]of[ _]memory\b|\bOutOfMemoryError\b|hipErrorOutOfMemory|cudaErrorMemoryAllocation"
    r"|\bMemoryError\b|\bstd::bad_alloc\b|\bCannot allocate memory\b|\bRESOURCE_EXHAUSTED\b|STATUS_ALLOC_FAILED"
    r"|\bcudaMalloc failed\b|\bunable to allocate \S+ buffer\b|\bfailed to allocate (?:\S+ )?buffer\b"
    r"|\bNo available memory for the cache blocks\b|\bFree memory on device .* is less than desired\b",
    re.IGNORECASE,
)
# Failures that may be what it looks like from outside.
_MAY_BE: Final = frozenset({HOOK_FAILED, LOAD_FAILED, NOT_READY, PROBE_FAILED, WARMUP_FAILED, WORKER_EXITED})


def said_line(lines: Sequence[str]) -> str | None:
    """The last of a worker's log lines that says so, shortened."""
    said = next((line for line in reversed(lines) if _SAID.search(line)), None)
    return None if said is None else " ".join(said.split())[:MAX_LINE]


def told_by_its_log(problem: Problem, lines: Sequence[str]) -> Problem:
    """The failure of a model, as OUT_OF_MEMORY where its log says that this is why."""
    line = said_line(lines) if problem.code in _MAY_BE else None
    if line is None:
        return problem
    return replace(problem, code=OUT_OF_MEMORY, message=f"{problem.message.rstrip('.')}. Memory ran out: {line}")
