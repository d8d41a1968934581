"""Work with a deadline, in a task that may be told to end.

Duty: what `asyncio.wait_for` is for. That of Python 3.11 and older returns as if nothing were when the task is
cancelled in the same turn of the loop in which the work ends: whoever asks for ever would go on, and who waits for its
end would wait for ever (cpython issue 86296).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def within(deadline_s: float, work: Awaitable[T]) -> T:
    """Its result. Raises asyncio.TimeoutError when it has not ended by then, and was cancelled; and what it raises."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # seen, also if nobody asks any more
    try:
        in_time, _ = await asyncio.wait({task}, timeout=deadline_s)
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
    if not in_time and task.cancelled():
        raise asyncio.TimeoutError
    return task.result()
