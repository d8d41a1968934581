import time

from swapd.host import clock


def test_the_wall_clock_counts_from_1970():
    assert time.gmtime(clock.wall_s()).tm_year >= 2024
