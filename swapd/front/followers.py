"""What follows a hand-over: connections that could not move with the offer, one by one, as they become able to.

Each is the source's until ADOPTED: what a target has not acknowledged it has not read, so it can be sent another way,
or stay, without a byte lost. Knows nothing of how the offer itself is made.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from swapd.core.handover import Phase
from swapd.front.common import Common
from swapd.front.peer import PeerLink
from swapd.front.reports import Copy
from swapd.wire import peer as wire

REFUSED_RETRY_S: Final = 0.5
ASK_AGAIN_S: Final = 1.0  # there may have been no owner when we asked, or he has died since


class Followers(Common):
    def _follow(self, copy: Copy) -> None:
        """A connection became movable after the offer was made."""
        self._ready.append(copy)
        self._send_ready()

    def _send_ready(self) -> None:
        giving = self._giving
        if self._state.phase is not Phase.VACANT or not self._state.gave or giving is None:
            return
        if giving.link is None or giving.link.closed:
            if not giving.blocked:
                self._ask_for_successor()
            return
        while self._ready:
            copy = self._ready.popleft()
            if not copy.gone:
                self._send_straggler(giving.link, giving.epoch, copy)

    def _send_straggler(self, link: PeerLink, epoch: int, copy: Copy) -> None:
        number = self._next_id
        self._next_id += 1
        read = copy.carried()
        for at in range(0, len(read), wire.MAX_PART_BYTES):
            link.send(wire.Bytes(epoch, number, read[at : at + wire.MAX_PART_BYTES]))
        self._unacknowledged[number] = (link, copy)
        link.send(wire.Straggler(epoch, number, len(read)), [copy.fd])

    def _reclaim(self, link: PeerLink) -> None:
        """What was sent there and not acknowledged was never read by anybody: ADOPTED leaves before the first byte."""
        for number, (sent_on, copy) in list(self._unacknowledged.items()):
            if sent_on is link:
                del self._unacknowledged[number]
                if not copy.gone:
                    self._ready.append(copy)
        self._retry_refused()

    def _stragglers(self) -> int:
        return len(self._ready) + len(self._unacknowledged) + self._busy_count()

    def _ask_for_successor(self) -> None:
        if self._asked or self._closed or self._state.phase is not Phase.VACANT or not self._state.gave:
            return
        count = self._stragglers()
        if count:
            self._asked = True
            self._loop.call_later(ASK_AGAIN_S, self._ask_again)
            self.on_needs_successor(self._state.epoch, count)

    def _ask_again(self) -> None:
        self._asked = False
        giving = self._giving
        if giving is not None and giving.link is None and not giving.blocked:
            self._ask_for_successor()

    def _let_go_of_links(self) -> None:
        """Close the ways to our successors on which nothing can follow, and nothing is owed, any more."""
        owed = {link for link, _ in self._unacknowledged.values()}
        current = self._giving.link if self._giving is not None and self._may_still_follow() else None
        for link in self._outbound - owed:
            if link is not current:
                self._close_outbound(link)

    def _may_still_follow(self) -> bool:
        if self._state.phase is Phase.OWNER:
            return False
        if self._state.phase is not Phase.VACANT:
            return True
        return bool(self._links or self._stragglers() or (self._giving is not None and self._giving.offered))

    def _close_outbound(self, link: PeerLink) -> None:
        self._outbound.discard(link)
        link.close()
        if self._giving is not None and self._giving.link is link:
            self._giving.link = None

    def _straggler_answered(self, link: PeerLink, answer: wire.Adopted | wire.Refused) -> None:
        sent_on, copy = self._unacknowledged.get(answer.id, (None, None))
        if copy is None or sent_on is not link:
            return
        del self._unacknowledged[answer.id]
        if not copy.gone:
            if isinstance(answer, wire.Adopted):
                copy.release()
            else:
                self._ready.append(copy)
                self._loop.call_later(REFUSED_RETRY_S, self._retry_refused)
        self._let_go_of_links()

    def _retry_refused(self) -> None:
        if self._state.phase is Phase.OWNER:
            self._restore_ready()
        else:
            self._send_ready()

    def _restore_ready(self) -> None:
        ready, self._ready = self._ready, deque()
        for copy in ready:
            if not copy.gone:
                self._restore(copy)
