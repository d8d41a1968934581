"""The end of a worker: told to the core exactly once, whatever else was under way."""

import asyncio
from types import SimpleNamespace

import pytest

from swapd.daemon.workers import Live, Workers


class Dead:
    """In place of a process: it has exited, and its tree is gone once `ended` is set."""

    alive = False
    exit_text = "exit code 1"

    def __init__(self):
        self.ended = asyncio.Event()

    async def wait(self):
        return 1

    async def kill_tree(self, grace_s):
        await self.ended.wait()


class World:
    def __init__(self, tmp_path):
        self.told = []
        config = SimpleNamespace(daemon=SimpleNamespace(state_dir=str(tmp_path), stop_timeout_s=1.0))
        self.workers = Workers(
            config,
            on_exit=lambda worker, problem, lines: self.told.append(worker),
            on_event=lambda *_: None,
            clock=lambda: 0.0,
        )
        self.process = Dead()
        self.live = Live("chat-1", "chat", tmp_path / "chat-1", tmp_path / "chat-1.log", self.process, 0.0)
        self.workers.live["chat-1"] = self.live


@pytest.fixture
def run(tmp_path):
    def run(test):
        async def bounded():
            await asyncio.wait_for(test(World(tmp_path)), 5.0)

        asyncio.run(bounded())

    return run


def test_a_worker_is_known_until_its_end_is_told(run):
    """An operation in between would fail by itself: a hand-over from it would cost its healthy target."""

    async def test(world):
        known = []
        world.workers.last_lines = lambda worker: known.append(worker in world.workers.live) or ()
        world.process.ended.set()
        await world.workers._watch(world.live)
        assert known == [True]
        assert world.told == ["chat-1"]
        assert world.workers.live == {}

    run(test)


def test_a_start_that_is_canceled_while_it_fails_is_told_by_its_exit(run):
    async def test(world):
        world.live.reported = True  # the operation meant to tell, and is void now
        watching = asyncio.ensure_future(world.workers._watch(world.live))
        stopping = asyncio.ensure_future(world.workers.stop("chat-1", force=True))
        await asyncio.sleep(0)
        world.process.ended.set()
        await asyncio.gather(watching, stopping)
        assert world.told == ["chat-1"]

    run(test)
