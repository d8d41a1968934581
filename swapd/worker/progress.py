"""What a hook may call while it works: `progress(done, total, unit="bytes")`. Never raises at the model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any, Final

from swapd.wire import worker as wire

EVERY_S: Final = 0.1

Progress = Callable[..., None]


def progress_of(step: str, tell: Callable[[wire.WorkerEvent], None]) -> Progress:
    """From any thread and as often as the model likes: `tell` hears of it some ten times a second, and of the end."""
    last = {"at": -math.inf}

    def progress(done: Any = None, total: Any = None, unit: Any = "bytes") -> None:
        done, total = number(done), number(total)
        now = time.monotonic()
        at_end = done is not None and done == total
        if now - last["at"] < EVERY_S and not at_end:
            return
        last["at"] = now
        told = {"step": step, "done": done, "total": total, "unit": str(unit)[:32]}
        tell(wire.WorkerEvent(wire.PROGRESS, told))

    return progress


def number(value: Any) -> int | float | None:
    """A model's figure (an int, a float, a NumPy scalar) as JSON has it; None when it is none."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        as_float = float(value)
        if math.isfinite(as_float):
            return int(as_float) if as_float.is_integer() else as_float
    return None
