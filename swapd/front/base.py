"""A front: the daemon's orders, carried out as `core.handover` decides.

Everything here runs on the event loop's thread, except what says otherwise.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping

from swapd.core.errors import HAND_OVER_FAILED, SwapdError
from swapd.core.handover import Effect, Event, Kind, Phase
from swapd.front.blocked import PastTheLoop
from swapd.front.idle import RawCopy
from swapd.front.peer import PeerLink
from swapd.front.reports import Copy, DrainReport, FrontStats, Giving, HandOverReport, SourceDeadReport
from swapd.front.target import Target
from swapd.wire import peer as wire

__all__ = ["Copy", "DrainReport", "Front", "FrontStats", "HandOverReport", "SourceDeadReport"]


class Front(PastTheLoop, Target):
    @property
    def owner(self) -> bool:
        return self._state.phase in (Phase.OWNER, Phase.OFFERING)

    def adopt(self, epoch: int, listeners: Mapping[str, socket.socket]) -> float:
        """Become the owner at once: no living source exists. An owner has these listeners from now on, and no others;
        whoever waits in the queues of those is let in yet. Takes over the sockets. Returns when it started."""
        self._acceptor.keep_only(listeners)
        for name, listener in listeners.items():
            self._acceptor.add(name, listener)
        self._started_at = started_at = time.monotonic()
        effects = self._apply(Event(Kind.ADOPT, epoch))
        if not effects and self._state.phase is not Phase.OWNER:
            if self._state.phase is Phase.VACANT:
                self._acceptor.close()
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
            self._arm_timer()

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

    def turn_away(self) -> None:
        """The service is being stopped: from here to the end, a request that begins is answered with 503 at once."""
        self.turning_away = True

    def let_go_of_listeners(self) -> None:
        """Nobody accepts here after this. While turning away: whoever is in the queue now is answered yet."""
        if self.turning_away:
            self._acceptor.accept_rest()
        self._acceptor.close()

    def stop_accepting(self) -> None:
        """This process ends, and the service may not: who has not been accepted waits for the next owner."""
        self._acceptor.close()

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

    # --- effects -----------------------------------------------------------------------------------------------

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

    def _send_abort(self, epoch: int, link: PeerLink | None) -> None:
        giving = self._giving
        if giving is not None and giving.epoch == epoch and giving.link is not None:
            giving.link.send(wire.Abort(epoch, giving.reason))
            return
        if self._armed is not None and self._armed[0] == epoch:
            link = self._armed[1]
        if link is not None:
            link.send(wire.Abort(epoch, "the target let go of this hand-over"))
