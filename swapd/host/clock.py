"""The daemon's clock. Duty: the only place that reads time for decisions; core gets it as an argument."""

from __future__ import annotations

import time


def wall_s() -> float:
    """Seconds since 1970, for records and people. It jumps when the clock is set: never subtract two of them."""
    return time.time()
