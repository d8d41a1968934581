"""The daemon's own tasks: whatever becomes of one is told, and none is left when it ends."""

import asyncio
from types import SimpleNamespace

from swapd.core.errors import TIMEOUT, SwapdError
from swapd.daemon.daemon import Daemon


def test_a_worker_that_cannot_be_killed_is_told(caplog):
    async def kill_tree(grace_s):
        raise SwapdError(TIMEOUT, "something of chat-1 does not end")

    async def forced():
        daemon = Daemon(None, None, None)
        live = SimpleNamespace(process=SimpleNamespace(kill_tree=kill_tree), stopping=False)
        daemon.workers = SimpleNamespace(live={"chat-1": live})
        daemon._force()
        assert live.stopping
        assert len(daemon._tasks) == 1, "it is owned"
        await asyncio.gather(*daemon._tasks)

    asyncio.run(forced())
    assert "daemon.will_not_end worker=chat-1 because=something of chat-1 does not end" in caplog.text
    assert "daemon.bug" not in caplog.text


def test_no_task_outlives_the_daemon():
    async def ended():
        daemon = Daemon(None, None, None)
        daemon._begin(asyncio.Event().wait())
        (task,) = daemon._tasks
        await asyncio.sleep(0)
        await daemon._end_tasks()
        assert task.cancelled()
        assert not daemon._tasks

    asyncio.run(ended())
