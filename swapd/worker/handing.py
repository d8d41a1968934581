"""Ordering the front to hand over: by the loop if it answers within CLAIM_S, else by a thread of its own.

The loop may be blocked by the model. `quiesce_from_thread` sets the front's flag at once; whoever claims the order
first, the loop or the timer on the channel's thread, carries it out, and only that one. A daemon's connection
that is lost takes its uncommitted order with it. Knows nothing of the protocol between the fronts.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

from swapd.core.errors import INTERNAL, Problem, SwapdError

if TYPE_CHECKING:
    from swapd.worker.channel import Channel, Link
    from swapd.worker.direct import Front
    from swapd.worker.life import Answer, Life

log = logging.getLogger("swapd.worker.handing")

CLAIM_S: Final = 0.25


class Order:
    """One hand_over request. `claim` is true for the first caller only."""

    def __init__(self, answer: Answer, epoch: int, peer: socket.socket, deadline_s: float) -> None:
        self.answer = answer
        self.epoch = epoch
        self.peer = peer
        self.deadline_s = deadline_s
        self._unclaimed = threading.Lock()

    def claim(self) -> bool:
        return self._unclaimed.acquire(blocking=False)


class Handing:
    """The order under way, of which there is at most one: the table refuses a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop, life: Life) -> None:
        self._loop = loop
        self._life = life
        self._order: Order | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, front: Front, order: Order, channel: Channel) -> None:
        """[channel thread] The state is `handing_over` already."""
        self._order = order
        front.quiesce_from_thread(order.epoch)
        self._loop.call_soon_threadsafe(self._on_loop, front, order)
        channel.call_later(CLAIM_S, lambda: self._off_loop(front, order))

    def lost(self, front: Front | None, link: Link) -> None:
        """[channel thread] A daemon's connection is gone: what it ordered and is not committed is taken back."""
        order = self._order
        if order is None or front is None or order.answer.link is not link:
            return
        if order.claim():  # not even begun
            order.peer.close()
            self._loop.call_soon_threadsafe(self._take_back, front, order)
        else:
            self._loop.call_soon_threadsafe(front.abort_hand_over)

    async def settled(self, timeout_s: float = 1.0) -> None:
        """Wait until the order that the loop carries out has been answered."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)

    def _take_back(self, front: Front, order: Order) -> None:
        front.abort_hand_over()
        self._end(order, Problem(INTERNAL, "the daemon's connection was lost"))

    def _on_loop(self, front: Front, order: Order) -> None:
        if order.claim():
            task = self._loop.create_task(self._carry_out(front, order))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, front: Front, order: Order) -> None:
        result: dict[str, Any] | Problem
        try:
            result = report(await front.hand_over(order.epoch, order.peer, order.deadline_s))
        except Exception as error:
            order.peer.close()  # the front is the owner as before, and may not even have looked at it
            result = problem_of(error, "hand_over")
        self._end(order, result)

    def _off_loop(self, front: Front, order: Order) -> None:
        if order.claim():
            log.warning("worker.loop_blocked epoch=%d handing over from the channel's thread", order.epoch)
            threading.Thread(
                target=self._carry_out_blocked, args=(front, order), name="swapd-hand-over", daemon=True
            ).start()

    def _carry_out_blocked(self, front: Front, order: Order) -> None:
        result: dict[str, Any] | Problem
        try:
            result = report(front.hand_over_blocked(order.epoch, order.peer, order.deadline_s))
        except Exception as error:
            result = problem_of(error, "hand_over")
        self._end(order, result)

    def _end(self, order: Order, result: dict[str, Any] | Problem) -> None:
        if self._order is order:
            self._order = None
        self._life.end_hand_over()
        order.answer(result)


def report(value: Any) -> dict[str, Any]:
    """A front's report as the parameters of a reply."""
    return dataclasses.asdict(value)


def problem_of(error: Exception, verb: str) -> Problem:
    """What to reply for `error`; anything but a SwapdError is a bug, and logged."""
    if isinstance(error, SwapdError):
        return error.problem
    log.error("worker.request_bug verb=%s", verb, exc_info=error)
    return Problem(INTERNAL, f"a bug in swapd's worker, in {verb}: {type(error).__name__}: {error}")
