"""The end of a worker: told to the core exactly once, whatever else was under way."""

import asyncio
from types import SimpleNamespace

import pytest

from swapd.core.errors import OUT_OF_MEMORY, WORKER_EXITED
from swapd.core.model import Kind
from swapd.daemon import workers
from swapd.daemon.live import Live
from swapd.daemon.spec import Facts
from swapd.daemon.workers import Workers, exit_problem


class Dead:
    """In place of a process: it has exited, and its tree is gone once `ended` is set."""

    alive = False
    exit_text = "exit code 1"
    oom_killed = False

    def __init__(self):
        self.ended = asyncio.Event()

    async def wait(self):
        return 1

    async def kill_tree(self, grace_s):
        await self.ended.wait()


class Dying(Dead):
    """Its channel is closed already, its exit comes when `exited` is set; `killed` says whether it was alive then."""

    def __init__(self):
        super().__init__()
        self.ended.set()
        self.exited = asyncio.Event()
        self.killed = []

    @property
    def alive(self):
        return not self.exited.is_set()

    async def wait(self):
        await self.exited.wait()
        return 1

    async def kill_tree(self, grace_s):
        self.killed.append(self.alive)


class World:
    def __init__(self, tmp_path, process=Dead):
        self.told = []
        config = SimpleNamespace(daemon=SimpleNamespace(state_dir=str(tmp_path), stop_timeout_s=1.0))
        self.workers = Workers(
            config,
            on_exit=lambda worker, problem, lines: self.told.append(worker),
            on_event=lambda *_: None,
            clock=lambda: 0.0,
        )
        self.process = process()
        log = str(tmp_path / "chat-1.log")
        facts = Facts(service="chat", kind=Kind.DIRECT, revision=None, nonce="n", started_at=0.0, log_path=log)
        self.live = Live("chat-1", tmp_path / "chat-1", self.process, facts, "")
        self.workers.live["chat-1"] = self.live


@pytest.fixture
def run(tmp_path):
    def run(test, process=Dead):
        async def bounded():
            await asyncio.wait_for(test(World(tmp_path, process)), 5.0)

        asyncio.run(bounded())

    return run


def test_a_worker_is_known_until_its_end_is_told(run):
    """An operation in between would fail by itself: a hand-over from it would cost its healthy target."""

    async def test(world):
        known = []
        world.workers.reasons = lambda worker: known.append(worker in world.workers.live) or ()
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


def closed_channel():
    channel = SimpleNamespace(closed=asyncio.Event(), closed_because="the worker closed it", close=lambda: None)
    channel.closed.set()
    return channel


def test_a_worker_whose_channel_is_closed_may_end_by_itself_before_it_is_killed(run):
    async def test(world):
        world.live.channel = closed_channel()
        world.live.connected.set()
        watching = asyncio.ensure_future(world.workers._watch(world.live))
        for _ in range(10):  # turns of the loop: it would be killed by then
            await asyncio.sleep(0)
        world.process.exited.set()
        await watching
        assert world.process.killed == [False]

    run(test, Dying)


def test_a_worker_whose_channel_is_closed_and_that_lives_on_is_killed(run, monkeypatch):
    monkeypatch.setattr(workers, "EXIT_NOTICED_S", 0.05)

    async def test(world):
        world.live.channel = closed_channel()
        world.live.connected.set()
        await world.workers._watch(world.live)
        assert world.process.killed == [True]

    run(test, Dying)


@pytest.mark.parametrize(
    ("oom_killed", "lines", "code"),
    [
        (True, (), OUT_OF_MEMORY),
        (False, ("RuntimeError: CUDA out of memory",), OUT_OF_MEMORY),
        (False, ("an OOM report",), WORKER_EXITED),
    ],
)
def test_memory_ran_out_when_the_kernel_or_the_model_says_so(oom_killed, lines, code):
    text = "killed by SIGKILL (not by the kernel's OOM killer: it did not strike on this host)"
    process = SimpleNamespace(exit_text=text, oom_killed=oom_killed)
    assert exit_problem("chat-1", process, lines).code == code
