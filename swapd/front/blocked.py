"""A hand-over past an event loop that the model blocks: on the channel's thread, the listeners alone.

The connections follow by themselves when the loop comes back. Nothing here may touch what the loop owns: it reads
descriptors' numbers, talks on a socket of its own, and steps the state under its lock.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import select
import socket
import time
from typing import Final

from swapd.core.errors import HAND_OVER_FAILED, TIMEOUT, SwapdError
from swapd.core.handover import Effect, Event, Kind, Phase
from swapd.front.reports import Giving, HandOverReport
from swapd.front.source import Source
from swapd.wire import peer as wire

STARTED_WAIT_S: Final = 5.0  # how long a thread waits for STARTED; the loop goes on waiting, without limit


class PastTheLoop(Source):
    def hand_over_blocked(self, epoch: int, peer: socket.socket, deadline_s: float) -> HandOverReport:
        """[the channel's thread] The loop does not answer: give the listeners alone. Connections follow by themselves
        when the loop comes back. If the loop began this hand-over after all, its report is waited for instead.
        """
        giving, claimed = self._claim(epoch, blocked=True)
        if not claimed:
            try:
                return giving.done.result(deadline_s + STARTED_WAIT_S)
            except concurrent.futures.TimeoutError:
                raise SwapdError(TIMEOUT, "committed, and the target has not started yet") from None
        wire.prepare(peer)
        deadline = time.monotonic() + deadline_s
        try:
            report = self._give_listeners(giving, peer, deadline)
        except (OSError, wire.WireError, _Refused) as error:
            return self._blocked_failed(giving, peer, str(error))
        self._loop.call_soon_threadsafe(self._loop_came_back, giving, peer)
        if report is None:
            raise SwapdError(TIMEOUT, "committed, and the target has not started yet")
        if not giving.done.done():
            giving.done.set_result(report)
        return report

    def _give_listeners(self, giving: Giving, peer: socket.socket, deadline: float) -> HandOverReport | None:
        """OFFER to STARTED on this thread. None: committed, not started within STARTED_WAIT_S."""
        listeners = self._acceptor.descriptors()
        giving.listeners = len(listeners)
        for offer, fds in wire.batches(giving.epoch, listeners, []):
            wire.send(peer, offer, fds)
        self._step(Event(Kind.SEALED, giving.epoch, 1))
        while True:
            received = _wait_message(peer, deadline)
            if received is None:
                if self._state.phase is Phase.COMMITTED:
                    return None
                raise _Refused("the target did not take hold in time")
            message = received.message
            if isinstance(message, wire.Abort) and self._step(Event(Kind.ABORT, message.epoch)):
                raise _Refused(message.reason)
            if isinstance(message, wire.Held) and Effect.SEND_COMMIT in self._step(Event(Kind.HELD, message.epoch)):
                wire.send(peer, wire.Commit(giving.epoch))
                deadline = time.monotonic() + STARTED_WAIT_S
            if isinstance(message, wire.Started) and self._step(Event(Kind.STARTED, message.epoch)):
                return HandOverReport(
                    giving.quiesced_at,
                    message.started_at,
                    giving.listeners,
                    0,
                    self._busy_count(),
                    blocked=True,
                    turned_away=self._turned_away_as_owner(),
                )

    def _blocked_failed(self, giving: Giving, peer: socket.socket, reason: str) -> HandOverReport:
        """Resume, if that is allowed; else leave it to the loop and the daemon."""
        giving.reason = reason
        self._step(Event(Kind.DEADLINE, giving.epoch))
        if self._state.phase is Phase.COMMITTED:
            self._loop.call_soon_threadsafe(self._loop_came_back, giving, peer)
            raise SwapdError(TIMEOUT, f"committed, and the target has not started yet: {reason}")
        with contextlib.suppress(OSError):
            wire.send(peer, wire.Abort(giving.epoch, reason))
        peer.close()
        self._loop.call_soon_threadsafe(self._resume)
        raise SwapdError(HAND_OVER_FAILED, f"the hand-over failed, and this front goes on serving: {reason}")

    def _loop_came_back(self, giving: Giving, peer: socket.socket) -> None:
        """The listeners went without the loop: now it lets go of them, and sends its connections after them."""
        if self._giving is not giving or self._state.phase not in (Phase.COMMITTED, Phase.VACANT):
            peer.close()
            return
        self._acceptor.unwatch()
        giving.blocked = False
        giving.link = self._link_to_target(peer)
        copies = self._pause()
        if self._state.phase is Phase.COMMITTED:
            self._ready.extend(copies)
            return
        self._acceptor.close()
        self._left()
        self._ready.extend(copies)
        self._send_ready()


class _Refused(Exception):
    """The other side will not, or not in time."""


def _wait_message(peer: socket.socket, deadline: float) -> wire.Received | None:
    """The next message, or None at the deadline. Raises OSError at the end of file."""
    poll = select.poll()
    poll.register(peer, select.POLLIN)
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        try:
            received = wire.receive(peer)
        except BlockingIOError:
            continue
        if received is None:
            raise OSError("the target's end of the socket was closed")
        wire.close_all(received.fds)
        return received
