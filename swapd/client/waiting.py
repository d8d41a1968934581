"""How a client waits: in a thread, or on an event loop.

What to wait for is worked out once, in generators (`talk`) that yield each wait and are sent what came of it.

Source: zmq_getsockopt(7) on ZMQ_FD and ZMQ_EVENTS.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import zmq

Event = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait until the socket is ready for `flags`, or the time is over; without a socket, for the time."""

    socket: zmq.Socket[bytes] | None
    flags: int
    seconds: float


Steps = Generator[Wait, int, T]  # yields waits, is sent the flags that came true, returns the result


def sit_out(wait: Wait) -> int:
    if wait.socket is None:
        time.sleep(wait.seconds)
        return 0
    return wait.socket.poll(int(wait.seconds * 1000) + 1, wait.flags)


async def await_it(wait: Wait) -> int:
    if wait.socket is None:
        await asyncio.sleep(wait.seconds)
        return 0
    loop = asyncio.get_running_loop()
    end = loop.time() + wait.seconds
    descriptor = wait.socket.getsockopt(zmq.FD)
    assert isinstance(descriptor, int)
    while True:
        # zmq's descriptor only says that something changed, and only once: EVENTS says what, and must come first.
        ready = wait.socket.getsockopt(zmq.EVENTS)
        assert isinstance(ready, int)
        left = end - loop.time()
        if ready & wait.flags or left <= 0:
            return ready & wait.flags
        changed = asyncio.Event()
        loop.add_reader(descriptor, changed.set)
        try:
            await asyncio.wait_for(changed.wait(), left)
        except (asyncio.TimeoutError, TimeoutError):
            pass
        finally:
            loop.remove_reader(descriptor)
