"""What `status` tells of workers: asked for before anybody wants to know, and at once of a new owner."""

import asyncio
from types import SimpleNamespace

import pytest

from swapd.daemon import reading as reading_module
from swapd.daemon.reading import Reading

DEADLINE_S = 10.0


class Front:
    """A worker that answers `stats`, and says that it was asked."""

    channel = "open"

    def __init__(self):
        self.stats = {}
        self.asked = asyncio.Event()

    async def request(self, verb, *, deadline_s):
        assert verb == "stats"
        self.asked.set()
        return {"requests": 0}


@pytest.fixture(autouse=True)
def _no_period(monkeypatch):
    monkeypatch.setattr(reading_module, "STATS_PERIOD_S", 3600.0)


def reading_of(live):
    return Reading(None, SimpleNamespace(live=live), None, None, None)


def test_a_new_owner_is_asked_for_its_figures_at_once():
    async def scenario():
        old, new = Front(), Front()
        live = {"chat-1": old}
        reading = reading_of(live)
        polling = asyncio.ensure_future(reading.poll_stats())
        try:
            await asyncio.wait_for(old.asked.wait(), DEADLINE_S)
            live["chat-2"] = new
            reading.hear("service.changed")
            await asyncio.wait_for(new.asked.wait(), DEADLINE_S)
        finally:
            polling.cancel()
        assert new.stats == {"requests": 0}

    asyncio.run(scenario())


def test_the_last_owner_that_goes_does_not_keep_the_daemon_from_ending():
    """The change and the cancellation come in one turn of the loop: asyncio.wait_for would have lost the latter."""

    async def scenario():
        old = Front()
        reading = reading_of({"chat-1": old})
        polling = asyncio.ensure_future(reading.poll_stats())
        await asyncio.wait_for(old.asked.wait(), DEADLINE_S)
        await asyncio.sleep(0)  # it waits for the next time
        reading.hear("service.changed")
        await asyncio.sleep(0)
        polling.cancel()
        assert (await asyncio.wait({polling}, timeout=DEADLINE_S))[0]

    asyncio.run(scenario())
