"""A front as the source: it offers what it has, commits once all is held, and lets go once the target has started.

Before COMMIT anything that goes wrong makes it resume; after it, only proof does (`swapd.core.handover`).
"""

from __future__ import annotations

import socket
import time
from collections import deque
from typing import Final

from swapd.core.errors import HAND_OVER_FAILED, SwapdError
from swapd.core.handover import Event, Kind, Phase, step
from swapd.front.followers import Followers
from swapd.front.peer import PeerLink
from swapd.front.reports import Copy, Giving, HandOverReport
from swapd.wire import peer as wire

RELEASES_A_TURN: Final = 64  # copies closed between two turns of the loop, after the cutover


class Source(Followers):
    def _claim(self, epoch: int, *, blocked: bool) -> tuple[Giving, bool]:
        """Begin the hand-over of that epoch, unless the other of loop and channel thread has."""
        with self._lock:
            giving = self._giving
            if giving is not None and giving.epoch == epoch and not giving.done.done():
                return giving, False
            self._state, effects = step(self._state, Event(Kind.HAND_OVER, epoch))
            if not effects:
                if self._state.phase is Phase.OWNER:
                    self._on_loop(self._resume_reading)
                phase, seen = self._state.phase.value, self._state.epoch
                raise SwapdError(
                    HAND_OVER_FAILED,
                    f"this front cannot give epoch {epoch}: it is {phase} in epoch {seen}",
                    {"phase": phase, "epoch": seen},
                )
            self._set_quiesced(True)
            self._giving = giving = Giving(epoch, time.monotonic(), blocked=blocked)
            return giving, True

    def _offer(self, giving: Giving, peer: socket.socket, deadline_s: float) -> None:
        giving.timer = self._loop.call_later(deadline_s, self._too_late, giving)
        self._acceptor.unwatch()
        copies = self._pause()
        giving.link = link = self._link_to_target(peer)
        connections = []
        for copy in copies:
            read = copy.carried()
            if len(read) > wire.MAX_HEAD_BYTES:
                self._ready.append(copy)
            else:
                giving.offered.append(copy)
                connections.append((copy.fd, read))
        listeners = self._acceptor.descriptors()
        giving.listeners = len(listeners)
        offers = wire.batches(giving.epoch, listeners, connections)
        for offer, fds in offers:
            link.send(offer, fds)
        self._apply(Event(Kind.SEALED, giving.epoch, len(offers)))

    def _too_late(self, giving: Giving) -> None:
        giving.timer = None
        giving.reason = giving.reason or "the target did not take hold in time"
        self._apply(Event(Kind.DEADLINE, giving.epoch))

    def _on_target_message(self, link: PeerLink, received: wire.Received) -> None:
        message = received.message
        wire.close_all(received.fds)  # nothing that a target says comes with one
        if isinstance(message, wire.Adopted | wire.Refused):
            self._straggler_answered(link, message)
            return
        giving = self._giving
        if giving is None or giving.link is not link:
            return
        if isinstance(message, wire.Held):
            self._apply(Event(Kind.HELD, message.epoch), link)
        elif isinstance(message, wire.Started):
            self._started(giving, message)
        elif isinstance(message, wire.Abort):
            giving.reason = giving.reason or message.reason
            self._apply(Event(Kind.ABORT, message.epoch), link)

    def _link_to_target(self, peer: socket.socket) -> PeerLink:
        link = PeerLink(self._loop, peer, self._on_target_message, self._on_target_gone)
        self._outbound.add(link)
        return link

    def _on_target_gone(self, link: PeerLink) -> None:
        self._outbound.discard(link)
        self._reclaim(link)
        giving = self._giving
        if giving is None or giving.link is not link:
            return
        if self._state.phase is Phase.COMMITTED:
            return  # no proof of anything: `target_dead` or nothing
        giving.link = None
        giving.reason = giving.reason or "the target's end of the socket was closed"
        self._apply(Event(Kind.PEER_GONE, giving.epoch), link)
        self._ask_for_successor()

    def _started(self, giving: Giving, message: wire.Started) -> None:
        if message.epoch != self._state.epoch or self._state.phase is not Phase.COMMITTED:
            return
        if giving.timer is not None:
            giving.timer.cancel()
        offered = [copy for copy in giving.offered if not copy.gone]
        report = HandOverReport(
            giving.quiesced_at,
            message.started_at,
            giving.listeners,
            len(offered),
            self._busy_count() + len(self._ready),
            giving.blocked,
            self._turned_away_as_owner(),
        )
        self._apply(Event(Kind.STARTED, message.epoch))
        if not giving.done.done():
            giving.done.set_result(report)

    def _given_away(self) -> None:
        """After STARTED: nothing here is read again; the copies are closed at leisure, the followers sent at once."""
        giving = self._giving
        assert giving is not None
        self._left()
        self._send_ready()
        self._acceptor.close()
        self._release_some(deque(giving.offered))
        giving.offered = []

    def _release_some(self, copies: deque[Copy]) -> None:
        for _ in range(min(RELEASES_A_TURN, len(copies))):
            copy = copies.popleft()
            if not copy.gone:
                copy.release()
        if copies:
            self._loop.call_soon(self._release_some, copies)
        else:
            self._let_go_of_links()

    def _resume(self) -> None:
        """The hand-over failed, and the target reads nothing: everything goes on here."""
        giving = self._giving
        if giving is not None:
            if giving.timer is not None:
                giving.timer.cancel()
            if giving.link is not None:
                self._close_outbound(giving.link)
                giving.link = None
        if self._state.phase is not Phase.OWNER:
            return  # a newer hand-over began in between
        self._resume_reading()
        if giving is not None and not giving.done.done():
            giving.done.set_exception(
                SwapdError(HAND_OVER_FAILED, f"the hand-over failed, and this front goes on serving: {giving.reason}")
            )

    def _resume_reading(self) -> None:
        giving = self._giving
        self._set_quiesced(False)
        self._acceptor.watch()
        if giving is not None:
            offered, giving.offered = giving.offered, []
            for copy in offered:
                if not copy.gone:
                    self._restore(copy)
        self._restore_ready()
        self._unpause()
