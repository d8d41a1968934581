"""Bytes and seconds as people read them.

A refusal compares two figures, so the rounding has a direction: a need is rounded up and what is available is
rounded down. Otherwise a message could say "needs 6.0 GiB, 6.0 GiB free" and mean it.
"""

from __future__ import annotations

import math

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def human_bytes(size_bytes: int, *, up: bool = False, down: bool = False) -> str:
    """1 GiB and more with one decimal, below that whole MiB, KiB or bytes."""
    if size_bytes < 0:
        return "-" + human_bytes(-size_bytes, up=down, down=up)
    for unit_bytes, name in _UNITS:
        if size_bytes < unit_bytes:
            continue
        # Integer tenths: floats lose exactness above 2^53, and the direction of rounding must hold.
        scale = 10 if name == "GiB" else 1
        scaled = size_bytes * scale
        count = -(-scaled // unit_bytes) if up else (scaled if down else scaled + unit_bytes // 2) // unit_bytes
        return f"{count // 10}.{count % 10} GiB" if scale == 10 else f"{count} {name}"
    return f"{size_bytes} B"


def human_seconds(duration_s: float) -> str:
    """40 ms, 3.5 s, 42 s, 3 min 20 s; rounded up, because it is a time somebody may wait."""
    if duration_s < 1:
        return f"{math.ceil(duration_s * 1000)} ms"
    if duration_s < 10:
        return f"{math.ceil(duration_s * 10) / 10:g} s"
    whole_s = math.ceil(duration_s)
    if whole_s < 120:
        return f"{whole_s} s"
    minutes, seconds = divmod(whole_s, 60)
    return f"{minutes} min {seconds} s" if seconds else f"{minutes} min"
