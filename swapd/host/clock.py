"""The two clocks of the daemon: one for people, one for waiting.

Duty: the only place that reads time for decisions; core gets it as an argument. Source: clock_gettime(2).
"""

from __future__ import annotations

import time


def wall_s() -> float:
    """Seconds since 1970, for records and people. It jumps when the clock is set: never subtract two of them."""
    return time.time()


def mono_s() -> float:
    """Seconds of CLOCK_MONOTONIC: for deadlines and durations, and comparable between processes of one boot.

    The same clock as asyncio's, and as the instants that fronts report (`quiesced_at`, `started_at`).
    """
    return time.monotonic()
