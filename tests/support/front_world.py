"""A simulated world of fronts for core.handover: effects run one by one, and anything may die between two of them.

The shell around `step` does here, to tokens, what swapd.front does to descriptors. What it checks at every move:
never two living readers of one connection; no connection read again after another process has read from it
unbeknownst; no copy closed on purpose while it is the last; no answer by an owner whose time is over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import count

from swapd.core.handover import Effect, Event, Kind, Phase, State, step

LISTENER = 0
BATCH = 2


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(eq=False)
class Link:
    """One socketpair: what was sent stays readable after its sender's death."""

    epoch: int
    source: Front
    target: Front
    to_target: deque = field(default_factory=deque)
    to_source: deque = field(default_factory=deque)
    open_at: set = field(default_factory=set)  # the names of the fronts that hold their end open

    def ended(self, side):
        other = self.target if side is self.source else self.source
        queue = self.to_source if side is self.source else self.to_target
        return not queue and (not other.alive or other.name not in self.open_at)


@dataclass(eq=False)
class Front:
    """`copies` maps each connection held here to what is done with it:

    read (by its owner) · busy (a request is being answered) · frozen (offered, or waiting to be) · held (by a target)
    · ready (movable, to follow) · sent (a straggler, not acknowledged) · arrived (a straggler, not decided on)
    """

    name: str
    alive: bool = True
    state: State = field(default_factory=State)
    copies: dict = field(default_factory=dict)
    effects: deque = field(default_factory=deque)  # (effect, epoch, link, message)
    out: Link | None = None
    into: list = field(default_factory=list)
    offered: set = field(default_factory=set)

    @property
    def idle(self):
        return not self.effects


class World:
    def __init__(self, names, step=step):
        self.step = step
        self.fronts = {name: Front(name) for name in names}
        self.links = []
        self.epochs = count(1)
        self.connections = count(1)
        self.straggler_ids = count(1)
        self.answered_epoch = 0
        self.touched = {}  # connection: the last front that read from it
        self.daemon_copies = {LISTENER}

    # --- the environment's moves -------------------------------------------------------------------------------

    def alive(self):
        return [front for front in self.fronts.values() if front.alive]

    def adopt(self, front, epoch=None):
        self.event(front, Kind.ADOPT, epoch or next(self.epochs))

    def order(self, source, target):
        """The daemon introduces two fronts."""
        self.hand_over(self.receive(source, target, next(self.epochs)))

    def receive(self, source, target, epoch):
        """The first half: the target knows of the source, which knows nothing yet."""
        link = Link(epoch, source, target, open_at={source.name, target.name})
        self.links.append(link)
        target.into.append(link)
        self.event(target, Kind.RECEIVE, epoch, link)
        self.run(target)
        return link

    def hand_over(self, link):
        """The second half. False: the source will not, and serves on if it did."""
        source = link.source
        source.state, effects = self.step(source.state, Event(Kind.HAND_OVER, link.epoch))
        if not effects:
            link.open_at.discard(source.name)
            return False
        source.out = link
        source.effects.extend((effect, link.epoch, link, None) for effect in effects)
        return True

    def successor(self, front, owner):
        link = Link(front.state.epoch, front, owner, open_at={front.name, owner.name})
        self.links.append(link)
        owner.into.append(link)
        front.out = link
        self.follow(front)

    def abandon(self, front):
        front.out.open_at.discard(front.name)

    def connect(self):
        """A client connects: whoever accepts gets it."""
        for front in self.alive():
            if front.copies.get(LISTENER) == "read":
                front.copies[next(self.connections)] = "read"
                return

    def request(self, front, connection):
        """A request arrives on a connection, and is read by who reads it."""
        if front.state.owned < self.answered_epoch:
            raise Broken(
                f"{front.name} (epoch {front.state.owned}) reads a request after {self.answered_epoch} answered"
            )
        front.copies[connection] = "busy"
        self.touched[connection] = front.name

    def finish(self, front, connection):
        """The answer is out."""
        self.answered_epoch = max(self.answered_epoch, front.state.owned)
        starting = any(effect in (Effect.START, Effect.RESUME) for effect, *_ in front.effects)
        owner = front.state.phase is Phase.OWNER and not starting
        front.copies[connection] = "read" if owner else "ready"
        self.follow(front)

    def crash(self, front):
        front.alive = False
        front.effects.clear()

    def deadline(self, front):
        self.event(front, Kind.DEADLINE, front.state.epoch, self.armed_link(front))

    def event(self, front, kind, epoch, link=None, message=None, amount=0):
        before = front.state
        front.state, effects = self.step(before, Event(kind, epoch, amount))
        if Effect.DROP in effects:
            self.check_drop(front, before.epoch)
        front.effects.extend((effect, before.epoch, link, message) for effect in effects)

    def check_drop(self, front, epoch):
        for link in self.links:
            source = link.source
            undecided = source.state.phase in (Phase.OFFERING, Phase.COMMITTED) and source.state.epoch == epoch
            if link.target is front and link.epoch == epoch and not source.alive and undecided:
                raise Broken(f"{front.name} drops what it alone holds: {source.name} died before it decided")

    def armed_link(self, front):
        for link in front.into:
            if link.epoch == front.state.epoch:
                return link
        return None

    # --- messages ----------------------------------------------------------------------------------------------

    def deliverable(self):
        """(front, link) of every message that may arrive next."""
        result = []
        for link in self.links:
            for front, queue in ((link.target, link.to_target), (link.source, link.to_source)):
                if front.alive and front.idle and front.name in link.open_at and (queue or link.ended(front)):
                    result.append((front, link))
        return result

    def deliver(self, front, link):
        queue = link.to_source if front is link.source else link.to_target
        if not queue:
            self.end_of_file(front, link)
            return
        kind, epoch, content = queue.popleft()
        if front is link.source and link is not front.out and kind not in ("adopted", "refused"):
            return
        if kind == "adopted":
            self.acknowledged(front, content)
        elif kind == "refused":
            for connection, mode in front.copies.items():
                if isinstance(mode, tuple) and mode[1] == content:
                    front.copies[connection] = "ready"
        else:
            if kind == "straggler":
                front.copies[content[1]] = "arrived"
            self.event(front, Kind(kind), epoch, link, content)

    def end_of_file(self, front, link):
        link.open_at.discard(front.name)
        if front is link.target:
            front.into.remove(link)
            return
        self.reclaim(front, link)
        if link is front.out and front.state.phase is not Phase.COMMITTED:
            front.out = None
            self.event(front, Kind.PEER_GONE, front.state.epoch, link)

    def acknowledged(self, front, number):
        for connection, mode in list(front.copies.items()):
            if isinstance(mode, tuple) and mode[1] == number:
                self.close(front, connection)

    def reclaim(self, front, link):
        """What was sent there and not acknowledged was never read."""
        for connection, mode in list(front.copies.items()):
            if isinstance(mode, tuple) and mode[2] is link:
                front.copies[connection] = "ready"
        if front.state.phase is Phase.OWNER and front.idle:
            self.read_all(front, ("ready",))

    # --- effects -----------------------------------------------------------------------------------------------

    def run(self, front):
        while front.effects and front.alive:
            self.run_one(front)

    def run_one(self, front):
        effect, epoch, link, message = front.effects.popleft()
        getattr(self, effect.value)(front, epoch, link, message)
        if front.idle:
            self.follow(front)
        self.check()

    def quiesce(self, front, epoch, link, message):
        for connection, mode in front.copies.items():
            if mode == "read":
                front.copies[connection] = "frozen"
        movable = [c for c, mode in sorted(front.copies.items()) if mode == "frozen"]
        front.offered = set(movable)
        batches = [movable[at : at + BATCH] for at in range(0, len(movable), BATCH)] or [[]]
        for batch in batches:
            link.to_target.append(("offer", epoch, batch))
        self.event(front, Kind.SEALED, epoch, link, amount=len(batches))

    def hold(self, front, epoch, link, batch):
        for connection in batch:
            front.copies[connection] = "held"

    def send_held(self, front, epoch, link, message):
        link.to_source.append(("held", epoch, None))

    def send_commit(self, front, epoch, link, message):
        front.out.to_target.append(("commit", epoch, None))

    def send_started(self, front, epoch, link, message):
        link.to_source.append(("started", epoch, None))

    def send_abort(self, front, epoch, link, message):
        if front.out is not None and front.out.epoch == epoch:
            front.out.to_target.append(("abort", epoch, None))
            return
        link = next((one for one in front.into if one.epoch == epoch), link)
        if link is not None:
            link.to_source.append(("abort", epoch, None))

    def start(self, front, epoch, link, message):
        front.copies.setdefault(LISTENER, "held")  # with an order to adopt, the daemon sends it
        self.read_all(front, ("held", "frozen", "ready"))

    def resume(self, front, epoch, link, message):
        if front.out is not None:
            self.abandon(front)
            front.out = None
        front.offered = set()
        self.read_all(front, ("frozen", "ready"))

    def read_all(self, front, modes):
        for connection, mode in front.copies.items():
            if mode in modes:
                last = self.touched.get(connection)
                if connection != LISTENER and mode != "held" and last not in (None, front.name):
                    raise Broken(f"{front.name} reads {connection} on, of which {last} has read in the meantime")
                front.copies[connection] = "read"
                self.touched[connection] = front.name

    def drop(self, front, epoch, link, message):
        for connection, mode in list(front.copies.items()):
            if mode == "held":
                self.close(front, connection)

    def close_copies(self, front, epoch, link, message):
        for connection in front.offered:
            self.close(front, connection)
        front.offered = set()

    def send_adopted(self, front, epoch, link, message):
        link.to_source.append(("adopted", epoch, message[0]))

    def send_refused(self, front, epoch, link, message):
        del front.copies[message[1]]
        link.to_source.append(("refused", epoch, message[0]))

    def take(self, front, epoch, link, message):
        front.copies[message[1]] = "read"
        self.touched[message[1]] = front.name

    def keep(self, front, epoch, link, message):
        front.copies[message[1]] = "ready"
        self.touched[message[1]] = front.name  # the source has let go: reading on is this front's right

    def follow(self, front):
        if front.state.phase is Phase.VACANT and front.state.gave and front.out is not None and front.idle:
            for connection, mode in list(front.copies.items()):
                if mode in ("ready", "frozen") and connection not in front.offered:
                    number = next(self.straggler_ids)
                    front.copies[connection] = ("sent", number, front.out)
                    front.out.to_target.append(("straggler", front.out.epoch, (number, connection)))

    # --- invariants --------------------------------------------------------------------------------------------

    def close(self, front, connection):
        """Close a copy on purpose: somebody else must have it (or have died with it)."""
        front.copies.pop(connection, None)
        if connection in self.daemon_copies:
            return
        if any(connection in other.copies for other in self.fronts.values()):
            return
        for link in self.links:
            for kind, _, content in link.to_target:
                if (kind == "offer" and connection in content) or (kind == "straggler" and connection == content[1]):
                    return
        raise Broken(f"{front.name} closed the last copy of {connection}")

    def check(self):
        readers = {}
        for front in self.alive():
            for connection, mode in front.copies.items():
                if mode in ("read", "busy"):
                    readers.setdefault(connection, []).append(front.name)
        for connection, names in readers.items():
            if len(names) > 1:
                raise Broken(f"{connection} is read by {names}")

    def settle(self):
        """Everything arrives, everything ends, the daemon proves every death: then somebody owns all that is left."""
        for _ in range(200):
            self.quiet()
            if not self.decide():
                break
        else:
            raise Broken("the world does not come to rest")
        if not self.alive():
            return
        owners = [front for front in self.alive() if front.state.phase is Phase.OWNER]
        if len(owners) != 1:
            raise Broken(f"owners: {[front.name for front in owners]}")
        if owners[0].copies.get(LISTENER) != "read":
            raise Broken("nobody accepts")
        for front in self.alive():
            for connection, mode in front.copies.items():
                if front is not owners[0] or mode != "read":
                    raise Broken(f"{connection} is left with {front.name}, {mode}")

    def quiet(self):
        """Until no message and no request is under way."""
        while True:
            for front in self.alive():
                self.run(front)
                for connection, mode in list(front.copies.items()):
                    if mode == "busy":
                        self.finish(front, connection)
            pending = self.deliverable()
            if not pending:
                return
            self.deliver(*pending[0])

    def decide(self):
        """The daemon's next step towards rest; False when there is none."""
        for front in self.alive():
            link = front.out if front.state.phase in (Phase.OFFERING, Phase.COMMITTED) else self.armed_link(front)
            if front.state.phase in (Phase.OFFERING, Phase.COMMITTED):
                if link is None or not link.target.alive:
                    self.event(front, Kind.TARGET_DEAD, front.state.epoch)
                else:
                    self.event(front, Kind.DEADLINE, front.state.epoch)
                return True
            if front.state.phase is Phase.ARMED:
                source_lives = any(
                    link.epoch == front.state.epoch and link.target is front and link.source.alive
                    for link in self.links
                )
                kind = Kind.DEADLINE if source_lives else Kind.SOURCE_DEAD
                self.event(front, kind, front.state.epoch, link)
                return True
        owners = [front for front in self.alive() if front.state.phase is Phase.OWNER]
        if not owners and self.alive():
            self.adopt(self.alive()[0])
            return True
        for front in self.alive():
            if front not in owners and any(mode in ("ready", "frozen") for mode in front.copies.values()):
                self.successor(front, owners[0])
                return True
        return False
