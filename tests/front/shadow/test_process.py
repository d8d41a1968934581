"""What the shadow's process takes on, and what it knows of the time when it was at work."""

import asyncio

import pytest

from swapd.front.shadow.frames import Frame
from swapd.front.shadow.process import WAITING_A_SLOT, Work
from swapd.front.shadow.settings import read_shadow

CANDIDATE = {"worker": "b", "revision": 2, "address": "unix:/nowhere", "share": 1.0, "noise": 0.0}


@pytest.fixture
def run():
    """Runs a coroutine function with a `Work` whose copies last until its `gate` is set."""

    def run(scenario, **settings):
        async def main():
            work = Work(asyncio.get_running_loop(), read_shadow({**CANDIDATE, **settings}), None)
            work.gate = asyncio.Event()

            async def copy(frame):
                work.figures.copied()
                await work.gate.wait()

            work._copy = copy
            await scenario(work)

        asyncio.run(main())

    return run


def frame(began, ended, kind="copy", size=10):
    return Frame({"kind": kind, "began": began, "ended": ended}, b"", b"x" * size, b"")


def dropped(work):
    return work.figures.to_json()["dropped_for"]


async def settled(work):
    work.gate.set()
    while work._running:  # noqa: ASYNC110
        await asyncio.sleep(0)
    work.gate.clear()


def test_no_more_is_taken_than_can_be_worked_on_and_a_few_that_wait(run):
    async def scenario(work):
        room = 2 + WAITING_A_SLOT * 2
        for _ in range(room + 5):
            work.take(frame(0.0, 0.1))
        await asyncio.sleep(0)
        assert work.figures.to_json()["copied"] == 2
        assert dropped(work) == {"busy": 5}
        await settled(work)
        assert work.figures.to_json()["copied"] == room
        assert work._waiting_bytes == 0

    run(scenario)


def test_what_waits_is_bounded_in_bytes_too(run):
    async def scenario(work):
        for _ in range(20):
            work.take(frame(0.0, 0.1, size=5 * 1024 * 1024))
        assert dropped(work) == {"busy": 20 - 2 - 3}
        await settled(work)

    run(scenario, concurrency=2)


def test_it_knows_when_it_was_at_work(run, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("swapd.front.shadow.process.time.monotonic", lambda: now[0])

    async def scenario(work):
        for start, end in ((1.0, 2.0), (5.0, 6.0)):
            now[0] = start
            work.take(frame(0.0, 0.1))
            work.take(frame(0.0, 0.1))
            await asyncio.sleep(0)
            now[0] = end
            await settled(work)
        now[0] = 8.0
        work.take(frame(0.0, 0.1))
        seen = {moment: work._working_at(moment) for moment in (0.5, 1.0, 1.5, 2.5, 4.9, 5.5, 7.0, 8.5)}
        assert [moment for moment, working in seen.items() if working] == [1.0, 1.5, 5.5, 8.5]
        await settled(work)

    run(scenario)


def test_requests_without_copies_are_seen_in_a_pause(run):
    async def scenario(work):
        for _ in range(200):
            work.take(frame(1e9, 1e9 + 0.02))  # while copies are worked on
        await asyncio.sleep(0)
        assert work.throttle.quiet
        await settled(work)
        before = work.figures.to_json()["copied"]
        work.take(frame(0.0, 0.01))
        assert dropped(work)["quiet"] >= 1
        assert work.figures.to_json()["copied"] == before

    run(scenario)
