"""A front's part in hand-overs: carries out what `core.handover` decides, over `front.peer`'s links.

Everything here runs on the event loop's thread, except what says otherwise. What is being moved, and how it is
paused and read again, is the subclass's affair (`front.direct`, `front.hold`); the order of things is here.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import fcntl
import os
import resource
import select
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from swapd.core.errors import HAND_OVER_FAILED, TIMEOUT, SwapdError
from swapd.core.handover import Effect, Event, Kind, Phase, State, step
from swapd.front.accept import Acceptor, listeners_of
from swapd.front.idle import RawCopy
from swapd.front.peer import PeerLink
from swapd.wire import peer as wire

BEAT_S: Final = 0.1
RELEASES_A_TURN: Final = 64  # copies closed between two turns of the loop, after the cutover
REFUSED_RETRY_S: Final = 0.5
ARMED_LIMIT_S: Final = 120.0  # a target lets go of what it holds when nobody decides for this long
DESCRIPTORS: Final = 16384  # 128 KiB of kernel memory
STARTED_WAIT_S: Final = 5.0  # how long a thread waits for STARTED; the loop goes on waiting, without limit


@dataclass(frozen=True, slots=True)
class HandOverReport:
    """Times are CLOCK_MONOTONIC seconds, comparable between processes. `blocked`: the loop did not answer, so only
    the listeners moved at once; the connections follow."""

    quiesced_at: float
    started_at: float
    listeners: int
    moved: int
    stragglers: int
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class SourceDeadReport:
    started: bool
    listeners: list[str]
    connections: int


@dataclass(frozen=True, slots=True)
class DrainReport:
    finished: int
    cut: int
    left: int = 0


@dataclass(frozen=True, slots=True)
class FrontStats:
    owner: bool
    epoch: int
    connections: int
    idle: int
    in_flight: int
    streams: int
    upgraded: int
    held: int
    requests: int
    cut: int
    oldest_in_flight_s: float
    loop_blocked_s: float
    stragglers: int


class Copy(Protocol):
    """A connection that may follow its listener: our copy of its descriptor, and what was read from it."""

    fd: int
    gone: bool

    def carried(self) -> bytes: ...

    def release(self) -> None:
        """Another front has it: close our copy."""


@dataclass(slots=True)
class Giving:
    """One hand-over in which this front is the source."""

    epoch: int
    quiesced_at: float
    listeners: int = 0
    blocked: bool = False  # a thread gives the listeners; `link` is None until the loop is back
    link: PeerLink | None = None
    offered: list[Copy] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    reason: str = ""
    done: concurrent.futures.Future[HandOverReport] = field(default_factory=concurrent.futures.Future)


class Front(ABC):
    def __init__(self, loop: asyncio.AbstractEventLoop, *, health_path: str, retry_after_s: int) -> None:
        self.on_needs_successor: Callable[[int, int], None] = lambda epoch, count: None
        self._loop = loop
        self._thread = threading.get_ident()
        self._health_path = health_path
        self._retry_after_s = retry_after_s
        self._lock = threading.RLock()  # around every step: a hand-over past a blocked loop runs on another thread
        self._state = State()
        self._acceptor = Acceptor(loop, self._accepted, self._may_read, self._has_room)
        self._giving: Giving | None = None
        # as a target
        self._links: dict[PeerLink, int] = {}  # and the epoch that each was armed for
        self._armed: tuple[int, PeerLink] | None = None
        self._armed_timer: asyncio.TimerHandle | None = None
        self._parts: dict[tuple[PeerLink, int], bytes] = {}
        # what follows later
        self._ready: deque[Copy] = deque()
        self._outbound: set[PeerLink] = set()  # this hand-over's link, and older ones that still owe an answer
        self._unacknowledged: dict[int, tuple[PeerLink, Copy]] = {}
        self._next_id = 1
        self._asked = False
        _widen_descriptor_table()
        self._beat_at = time.monotonic()
        self._beat_timer = loop.call_later(BEAT_S, self._beat)
        self._closed = False

    # --- what a subclass provides ------------------------------------------------------------------------------

    @abstractmethod
    def _set_quiesced(self, quiesced: bool) -> None:
        """[any thread] While set: accept nothing, parse nothing new."""

    @abstractmethod
    def _may_read(self) -> bool: ...

    @abstractmethod
    def _pause(self) -> list[Copy]:
        """Stop reading wherever possible; the copies that can move now. The others call `_follow` when they can."""

    @abstractmethod
    def _unpause(self) -> None:
        """Read again: everything of ours that is here."""

    @abstractmethod
    def _left(self) -> None:
        """What `_pause` returned is the new owner's now (each copy is released soon): never read it again."""

    @abstractmethod
    def _hold(self, fd: int, read: bytes) -> None:
        """Keep an offered descriptor, untouched."""

    @abstractmethod
    def _drop_held(self) -> None: ...

    @abstractmethod
    def _take(self, fd: int, read: bytes) -> None:
        """Read from a connection, as its owner."""

    @abstractmethod
    def _restore(self, copy: Copy) -> None:
        """A copy that `_pause` or `_follow` offered stays here after all."""

    @abstractmethod
    def _accepted(self, sock: socket.socket) -> None: ...

    def _has_room(self) -> bool:
        """Whether one more connection may be accepted."""
        return True

    @abstractmethod
    def _held_count(self) -> int: ...

    @abstractmethod
    def _busy_count(self) -> int:
        """Connections that will follow once they can."""

    @abstractmethod
    def _on_beat(self) -> None: ...

    @abstractmethod
    def stats(self) -> FrontStats:
        """[any thread]"""

    # --- the daemon's orders -----------------------------------------------------------------------------------

    @property
    def owner(self) -> bool:
        return self._state.phase in (Phase.OWNER, Phase.OFFERING)

    def adopt(self, epoch: int, listeners: Mapping[str, socket.socket]) -> float:
        """Become the owner at once: no living source exists. Takes over the sockets. Returns when it started."""
        for name, listener in listeners.items():
            self._acceptor.add(name, listener)
        started_at = time.monotonic()
        effects = self._apply(Event(Kind.ADOPT, epoch))
        if not effects and self._state.phase is not Phase.OWNER:
            raise SwapdError(
                HAND_OVER_FAILED,
                f"epoch {epoch} is not newer than {self._state.epoch}, and this front owns nothing",
                {"epoch": self._state.epoch},
            )
        return started_at

    def receive(self, epoch: int, peer: socket.socket) -> None:
        """Listen to a source: of a hand-over to come (a newer epoch), or of stragglers."""
        link = PeerLink(self._loop, peer, self._on_source_message, self._on_source_gone)
        self._links[link] = epoch
        armed = self._armed
        self._apply(Event(Kind.RECEIVE, epoch), link)
        if self._state.phase is Phase.ARMED and self._state.epoch == epoch:
            if armed is not None and armed[0] != epoch:
                self._close_link(armed[1])
            self._armed = (epoch, link)
            self._arm_timer(ARMED_LIMIT_S)

    async def hand_over(self, epoch: int, peer: socket.socket, deadline_s: float) -> HandOverReport:
        """Give everything to the front at the other end of `peer`; at most `deadline_s` until COMMIT.

        Raises SwapdError(HAND_OVER_FAILED) when this front has resumed and owns as before. Once committed it waits,
        without limit, for the target to start, or for `target_dead`.
        """
        giving, claimed = self._claim(epoch, blocked=False)
        if claimed:
            try:
                self._offer(giving, peer, deadline_s)
            except OSError as error:  # no descriptor left for a duplicate, for example
                giving.reason = str(error)
                self._apply(Event(Kind.PEER_GONE, epoch))
        return await asyncio.wrap_future(giving.done, loop=self._loop)

    def successor(self, epoch: int, peer: socket.socket) -> None:
        """A new way for what has yet to follow (after `on_needs_successor`)."""
        if self._giving is None:
            self._giving = Giving(epoch, time.monotonic())
        self._giving.link = self._link_to_target(peer)
        self._asked = False
        self._send_ready()

    def source_dead(self, epoch: int) -> SourceDeadReport:
        """The source is proven dead: start with all that is held."""
        armed = self._armed
        if armed is not None and armed[0] == epoch:
            armed[1].drain()  # a COMMIT, or a last batch, may be in there
        held = self._held_count()
        effects = self._apply(Event(Kind.SOURCE_DEAD, epoch))
        started = Effect.START in effects or (self._state.phase is Phase.OWNER and self._state.owned == epoch)
        return SourceDeadReport(started, self._acceptor.names if started else [], held if started else 0)

    def target_dead(self, epoch: int) -> bool:
        """The target is proven dead: resume, even after COMMIT. False when nothing of that epoch is left to resume.

        What it had said comes first: once it has started, bytes may have died with it, and a connection of which
        another process has read something must never be read again.
        """
        giving = self._giving
        if giving is not None and giving.epoch == epoch:
            if giving.link is not None:
                giving.link.drain()
            giving.reason = giving.reason or "the target died"
        return bool(self._apply(Event(Kind.TARGET_DEAD, epoch)))

    def abort_hand_over(self) -> None:
        """The daemon's connection is gone: be the owner again if not committed."""
        giving = self._giving
        if giving is not None and not giving.done.done():
            giving.reason = giving.reason or "the daemon's connection broke"
            self._apply(Event(Kind.DAEMON_GONE, giving.epoch))
        if self._state.phase is Phase.OWNER:
            self._resume_reading()

    def quiesce_from_thread(self, epoch: int) -> None:
        """[any thread] From here on nothing new is accepted or parsed; a `hand_over` of that epoch must follow."""
        with self._lock:
            if self._state.phase is Phase.OWNER and epoch > self._state.epoch:
                self._set_quiesced(True)

    async def drain(self, deadline_s: float, and_close: bool = False) -> DrainReport:
        """Wait for what is in flight; end it with an explicit error at the deadline. `and_close`: the service ends."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close every descriptor of ours."""
        self._closed = True
        self._beat_timer.cancel()
        if self._armed_timer is not None:
            self._armed_timer.cancel()
        self._acceptor.close()
        for link in list(self._links):
            self._close_link(link)
        giving = self._giving
        if giving is not None:
            if giving.timer is not None:
                giving.timer.cancel()
            if not giving.done.done():
                giving.done.set_exception(SwapdError(HAND_OVER_FAILED, "this front was closed"))
        for link in list(self._outbound):
            self._close_outbound(link)
        for copy in [*self._ready, *(copy for _, copy in self._unacknowledged.values())]:
            if isinstance(copy, RawCopy):
                copy.release()

    # --- carrying out effects ----------------------------------------------------------------------------------

    def _apply(
        self, event: Event, link: PeerLink | None = None, received: wire.Received | None = None
    ) -> tuple[Effect, ...]:
        with self._lock:
            before = self._state
            self._state, effects = step(before, event)
        for effect in effects:
            self._perform(effect, before.epoch, link, received)
        return effects

    def _perform(self, effect: Effect, epoch: int, link: PeerLink | None, received: wire.Received | None) -> None:
        giving = self._giving
        if effect is Effect.SEND_COMMIT:
            assert giving is not None
            assert giving.link is not None
            giving.link.send(wire.Commit(epoch))
        elif effect is Effect.CLOSE_COPIES:
            self._given_away()
        elif effect is Effect.RESUME:
            self._on_loop(self._resume)
        elif effect is Effect.HOLD:
            assert received is not None
            self._hold_offer(received)
        elif effect is Effect.SEND_HELD:
            assert link is not None
            assert received is not None
            assert isinstance(received.message, wire.Offer)
            link.send(wire.Held(epoch, received.message.batch))
        elif effect is Effect.SEND_STARTED:
            assert link is not None
            link.send(wire.Started(epoch, time.monotonic()))  # before anything is read
        elif effect is Effect.START:
            self._start()
        elif effect is Effect.DROP:
            self._drop()
        elif effect is Effect.SEND_ABORT:
            self._send_abort(epoch, link)
        elif effect in (Effect.SEND_ADOPTED, Effect.SEND_REFUSED, Effect.TAKE, Effect.KEEP):
            assert link is not None
            assert received is not None
            self._do_straggler(effect, link, received)

    def _on_loop(self, call: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            call()
        else:
            self._loop.call_soon_threadsafe(call)

    def _send_abort(self, epoch: int, link: PeerLink | None) -> None:
        giving = self._giving
        if giving is not None and giving.epoch == epoch and giving.link is not None:
            giving.link.send(wire.Abort(epoch, giving.reason))
            return
        if self._armed is not None and self._armed[0] == epoch:
            link = self._armed[1]
        if link is not None:
            link.send(wire.Abort(epoch, "the target let go of this hand-over"))

    # --- as the source -----------------------------------------------------------------------------------------

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

    def _restore_ready(self) -> None:
        ready, self._ready = self._ready, deque()
        for copy in ready:
            if not copy.gone:
                self._restore(copy)

    # --- followers ---------------------------------------------------------------------------------------------

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
            self.on_needs_successor(self._state.epoch, count)

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

    # --- as the target -----------------------------------------------------------------------------------------

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
        self._set_quiesced(False)
        self._acceptor.watch()
        self._restore_ready()
        self._unpause()

    def _drop(self) -> None:
        self._disarm()
        self._acceptor.close()
        self._drop_held()

    def _disarm(self) -> None:
        self._armed = None
        if self._armed_timer is not None:
            self._armed_timer.cancel()
            self._armed_timer = None

    def _arm_timer(self, limit_s: float) -> None:
        if self._armed_timer is not None:
            self._armed_timer.cancel()
        self._armed_timer = self._loop.call_later(limit_s, self._armed_too_long)

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

    # --- past a blocked loop -----------------------------------------------------------------------------------

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
                    giving.quiesced_at, message.started_at, giving.listeners, 0, self._busy_count(), blocked=True
                )

    def _step(self, event: Event) -> tuple[Effect, ...]:
        with self._lock:
            self._state, effects = step(self._state, event)
        return effects

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

    # --- the beat ----------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._beat_at = time.monotonic()
        self._beat_timer = self._loop.call_later(BEAT_S, self._beat)
        self._on_beat()
        self._let_go_of_links()

    def _blocked_s(self) -> float:
        return max(0.0, time.monotonic() - self._beat_at - BEAT_S)


def _widen_descriptor_table() -> None:
    """Let the kernel grow this process's table of descriptors now. In a process with threads each doubling waits for an
    RCU grace period: measured, it made the first cutover of 1,000 connections 33 ms long instead of 4."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, DESCRIPTORS)
    with contextlib.suppress(OSError), open(os.devnull) as any_file:
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD_CLOEXEC, wanted - 1))


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
