"""What the history keeps: so many swaps, and none older than a setting says."""

import time

import pytest
from host.test_journal import record
from support.daemon_host import Daemon, model, until

from swapd.host.journal import Journal

SWAPS = 450  # several pieces


@pytest.mark.parametrize(
    ("settings", "left"), [("history_keep = 20", 20), ('history_max_age = "1h"', 5), ("history_keep = 1000", SWAPS)]
)
def test_old_swaps_are_forgotten_after_a_start(settings, left):
    daemon = Daemon([model("a")], daemon=settings)
    journal = Journal(daemon.dir / "s/journal.db")
    with journal.transaction():
        for number in range(1, SWAPS + 1):
            ended_at = time.time() - (60 if number > SWAPS - 5 else 7200)
            journal.save_swap({**record(number), "finished_at": ended_at, "steps": []})
    journal.close()
    with daemon:
        until(lambda: len(daemon.call("history", limit=1000)) == left, what=f"{left} swaps")
        assert daemon.call("history")[0]["id"] == SWAPS
