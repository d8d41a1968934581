import asyncio
import contextlib
from pathlib import Path

import pytest

import swapd
from swapd.host.deadlines import within


def test_work_that_ends_in_time_gives_its_result_or_what_it_raises():
    async def fail():
        raise ValueError("as it came")

    async def check():
        assert await within(30, asyncio.sleep(0, "done")) == "done"
        with pytest.raises(ValueError, match="as it came"):
            await within(30, fail())

    asyncio.run(check())


def test_work_that_does_not_is_cancelled_and_has_ended_when_that_is_told():
    ended = []

    async def work():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(True)

    async def check():
        with pytest.raises(asyncio.TimeoutError):
            await within(0.01, work())
        assert ended

    asyncio.run(check())


@pytest.mark.parametrize("answers_first", [True, False])
def test_who_asks_for_ever_hears_that_it_shall_end_also_in_the_turn_in_which_the_answer_comes(answers_first):
    async def check():
        answers = [asyncio.get_running_loop().create_future() for _ in range(3)]

        async def ask():
            for answer in answers:
                await within(30, answer)

        asking = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        if answers_first:
            answers[0].set_result(None)
        asking.cancel()
        if not answers_first:
            with contextlib.suppress(asyncio.InvalidStateError):
                answers[0].set_result(None)
        done, _ = await asyncio.wait({asking}, timeout=5)
        asking.cancel()
        assert done, "it goes on"
        assert asking.cancelled()

    asyncio.run(check())


def test_the_daemon_waits_in_no_other_way():
    root = Path(swapd.__file__).parent
    files = [*root.glob("daemon/**/*.py"), *root.glob("host/**/*.py")]
    assert [path for path in files if "asyncio.wait_for(" in path.read_text()] == []
