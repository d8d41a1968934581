from __future__ import annotations

import asyncio
import time

from swapd.host import clock


def test_the_monotonic_clock_is_the_loops_and_the_fronts():
    async def test():
        loop = asyncio.get_running_loop()
        before, here, after = loop.time(), clock.mono_s(), time.clock_gettime(time.CLOCK_MONOTONIC)
        assert before <= here <= after

    asyncio.run(test())


def test_the_wall_clock_counts_from_1970():
    assert time.gmtime(clock.wall_s()).tm_year >= 2024
