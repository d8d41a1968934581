"""Lines of the log say to which swap and worker they belong."""

import asyncio
import io
import logging
import re

import pytest
from support.daemon_host import Daemon, model

from swapd.daemon.work import Formatter, course_of


@pytest.fixture
def log():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter("%(levelname).1s: %(message)s"))
    logger = logging.getLogger("test.work")
    logger.propagate = False
    logger.addHandler(handler)
    logger.stream = stream
    yield logger
    logger.removeHandler(handler)


def test_a_line_gets_the_words_that_it_has_not(log):
    log.warning("before")
    with course_of(swap_id=3, worker="chat-2", op="load"):
        log.warning("a.thing worker=chat-2 x=1")
    log.warning("after")
    assert log.stream.getvalue().splitlines() == [
        "W: before",
        "W: a.thing worker=chat-2 x=1 swap_id=3 op=load",
        "W: after",
    ]


def test_what_is_not_known_is_not_said_and_a_traceback_comes_after_the_words(log):
    with course_of(swap_id=None, worker="w"):
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("a.bug")
    assert log.stream.getvalue().startswith("E: a.bug worker=w\nTraceback")


def test_it_goes_along_to_threads_and_tasks_and_ends_with_its_work(log):
    async def main():
        over = asyncio.Event()

        async def watch():
            log.warning("during")
            await over.wait()
            log.warning("later")

        async def other():
            log.warning("other")

        stranger = asyncio.create_task(other())
        with course_of(swap_id=1):
            await asyncio.to_thread(log.warning, "thread")
            watcher = asyncio.create_task(watch())
            await asyncio.sleep(0)
        over.set()
        await asyncio.gather(watcher, stranger)

    asyncio.run(main())
    lines = set(log.stream.getvalue().splitlines())
    assert lines == {"W: other", "W: thread swap_id=1", "W: during swap_id=1", "W: later"}


def test_what_an_operation_of_a_swap_logs_names_the_swap():
    """The old worker does not end in its time: the line is written far from where the swap is known."""
    hanging = model("a", FAIL="shutdown")
    with Daemon([hanging, model("b")], service='drain_timeout = "0s"', daemon='stop_timeout = "1s"') as daemon:
        record = daemon.swap("b", strategy="in-place")
        output = daemon.output.read_text()
    [line] = re.findall(r"worker\.stop_timeout .*", output)[:1]
    assert f" swap_id={record['id']}" in line
    assert " service=chat" in line
    assert " op=stop" in line
    assert line.count("worker=") == 1
