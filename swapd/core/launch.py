"""One worker to be started, as a value: what runs, with which environment, and what it may touch.

Duty: the words in which the daemon tells a host of workers (transient units, or plain processes) what to start. May not
know: how either of them starts anything, or whether a path exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

MARKER: Final = "SWAPD_WORKER"  # environment variable that every descendant inherits
NVIDIA: Final = "nvidia"  # every GPU node: CUDA_VISIBLE_DEVICES chooses among them


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a worker may touch where the host can confine it. Plain processes are not confined."""

    user: str = ""  # "": the daemon's own
    group: str = ""  # "": the user's own
    devices: tuple[str, ...] = ()  # (NVIDIA,): its nodes; (): none but the harmless ones
    read_paths: tuple[str, ...] = ()  # all it sees of homes, /srv, /mnt and /media; (): what its user may read there
    needed_paths: tuple[str, ...] = ()  # seen besides those: the model's directory, its weights, its interpreter
    write_paths: tuple[str, ...] = ()  # beside its own directory and the cache
    cache_dir: str = ""  # its user's alone, and its HOME; "": none
    memory_max_bytes: int | None = None  # of the whole tree; past it the kernel kills the tree
    cpu_weight: int | None = None  # 1 to 10000; 100 is everybody's


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to start, and under which name it is found again."""

    name: str  # the worker's id
    marker: str  # "ID:NONCE": never used twice, not even after the journal was lost
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # all of it; secrets among it
    cwd: str | None
    log_path: str  # output is appended there
    directory: str  # the worker's own; made and filled by the caller
    confinement: Confinement = Confinement()
