"""A front as the target: it holds what is offered, untouched, until COMMIT or the proof that the source is dead.

HELD, STARTED and ADOPTED are sent before the first byte is read: `swapd.core.handover` says why.
"""

from __future__ import annotations

import time
from typing import Final

from swapd.core.handover import Effect, Event, Kind
from swapd.front.accept import listeners_of
from swapd.front.followers import Followers
from swapd.front.idle import RawCopy
from swapd.front.peer import PeerLink
from swapd.wire import peer as wire

ARMED_LIMIT_S: Final = 120.0  # a target lets go of what it holds when nobody decides for this long


class Target(Followers):
    def _on_source_message(self, link: PeerLink, received: wire.Received) -> None:
        message = received.message
        if isinstance(message, wire.Offer):
            if received.short:
                wire.close_all(received.fds)
                link.send(wire.Abort(message.epoch, "the target's descriptor table is full (RLIMIT_NOFILE)"))
                self._apply(Event(Kind.DEADLINE, message.epoch), link)
                return
            if Effect.HOLD not in self._apply(Event(Kind.OFFER, message.epoch), link, received):
                wire.close_all(received.fds)
        elif isinstance(message, wire.Commit):
            self._apply(Event(Kind.COMMIT, message.epoch), link)
        elif isinstance(message, wire.Abort):
            self._apply(Event(Kind.ABORT, message.epoch), link)
        elif isinstance(message, wire.Bytes):
            self._add_part(link, message)
        elif isinstance(message, wire.Straggler):
            if received.short or len(self._parts.get((link, message.id), b"")) != message.carried:
                wire.close_all(received.fds)
                self._parts.pop((link, message.id), None)
                link.send(wire.Refused(message.epoch, message.id))
                return
            self._apply(Event(Kind.STRAGGLER, message.epoch), link, received)
        else:
            wire.close_all(received.fds)

    def _add_part(self, link: PeerLink, message: wire.Bytes) -> None:
        key = (link, message.id)
        parts = self._parts.get(key, b"") + message.data
        if len(parts) <= wire.MAX_CARRIED_BYTES:
            self._parts[key] = parts

    def _do_straggler(self, effect: Effect, link: PeerLink, received: wire.Received) -> None:
        message = received.message
        assert isinstance(message, wire.Straggler)
        if effect is Effect.SEND_ADOPTED:
            link.send(wire.Adopted(message.epoch, message.id))  # before anything is read
            return
        read = self._parts.pop((link, message.id), b"")
        if effect is Effect.SEND_REFUSED:
            wire.close_all(received.fds)
            link.send(wire.Refused(message.epoch, message.id))
        elif effect is Effect.TAKE:
            self._take(received.fds[0], read)
        else:
            self._follow(RawCopy(received.fds[0], read))

    def _hold_offer(self, received: wire.Received) -> None:
        offer = received.message
        assert isinstance(offer, wire.Offer)
        names, fds = offer.listeners, received.fds
        for name, listener in listeners_of(names, fds[: len(names)]).items():
            self._acceptor.add(name, listener)
        for fd, read in zip(fds[len(names) :], offer.heads, strict=True):
            self._hold(fd, read)

    def _start(self) -> None:
        self._disarm()
        self._started_at = time.monotonic()
        self._set_quiesced(False)
        self._acceptor.watch()
        self._restore_ready()
        self._unpause()

    def _drop(self) -> None:
        self._disarm()
        self._acceptor.close()
        self._drop_held()
        self._send_ready()  # stragglers of an earlier hand-over, kept in case they were to come home

    def _disarm(self) -> None:
        self._armed = None
        if self._armed_timer is not None:
            self._armed_timer.cancel()
            self._armed_timer = None

    def _arm_timer(self) -> None:
        if self._armed_timer is not None:
            self._armed_timer.cancel()
        self._armed_timer = self._loop.call_later(ARMED_LIMIT_S, self._armed_too_long)

    def _armed_too_long(self) -> None:
        self._armed_timer = None
        if self._armed is not None:
            self._apply(Event(Kind.DEADLINE, self._armed[0]), self._armed[1])

    def _on_source_gone(self, link: PeerLink) -> None:
        self._links.pop(link, None)
        self._forget_parts(link)
        self._let_go_of_links()

    def _close_link(self, link: PeerLink) -> None:
        self._links.pop(link, None)
        self._forget_parts(link)
        link.close()

    def _forget_parts(self, link: PeerLink) -> None:
        for key in [key for key in self._parts if key[0] is link]:
            del self._parts[key]
