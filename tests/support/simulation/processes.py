"""Simulated workers and gates: each with the state that `hello` tells, a queue of requests, and a front.

A verb arrives (the worker's table says whether it may), is carried out some time later, and answers after that: whoever
dies in between leaves it at that. Fronts are `support.front_world`'s, so every decision of theirs is `core.handover`'s.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from support.front_world import LISTENER, Broken, Front, World

from swapd.core.delivery import Split
from swapd.core.errors import BAD_REQUEST, HAND_OVER_FAILED, LOAD_FAILED, Problem
from swapd.core.events import Observed
from swapd.core.handover import Kind as Event
from swapd.core.handover import Phase
from swapd.core.model import Kind, Revision, Slot
from swapd.core.states import WorkerState, step_worker

GIB = 1 << 30
RESIDUE = GIB  # what a parked model keeps
ENDS = {"stage": "staged", "load": "loaded", "park": "parked", "wake": "loaded"}
UP = frozenset({WorkerState.LOADED, WorkerState.SERVING, WorkerState.HANDING_OVER, WorkerState.QUIESCED})


@dataclass(eq=False)
class SimFront(Front):
    quiesced_at: float | None = None
    started_at: float | None = None


class Fronts(World):
    """The fronts of one service. A listener comes from the daemon with an order to adopt, or by a hand-over."""

    def __init__(self, clock):
        super().__init__(())
        self.clock = clock
        self.doomed = set()  # being ended: a client that it still accepts ends with it, and is read by nobody else

    def add(self, name):
        self.fronts[name] = front = SimFront(name)
        return front

    def remove(self, front):
        self.crash(front)
        self.doomed.discard(front.name)  # an older journal gives its name to another
        del self.fronts[front.name]
        self.daemon_copies |= front.copies.keys()  # what has died with it, nobody else closes by mistake
        self.links = [link for link in self.links if link.source.alive or link.target.alive]

    def adopt(self, front, epoch=None):
        before = front.state
        had = LISTENER in front.copies
        front.copies.setdefault(LISTENER, "held")
        super().adopt(front, epoch)
        if front.state == before and front.state.phase is not Phase.OWNER and not had:
            del front.copies[LISTENER]
        self.run(front)
        return front.state.phase is Phase.OWNER

    def start(self, front, epoch, link, message):
        front.started_at = self.clock()
        self.read_all(front, ("held", "frozen", "ready"))

    def quiesce(self, front, epoch, link, message):
        front.quiesced_at = self.clock()
        super().quiesce(front, epoch, link, message)

    def listen(self, front, link):
        """Take in what has been said there, before its sender's death counts as a proof of anything."""
        queue = link.to_source if front is link.source else link.to_target
        while queue:
            self.deliver(front, link)
            self.run(front)

    def check(self):
        listening = [f.name for f in self.alive() if f.copies.get(LISTENER) == "read" and f.name not in self.doomed]
        if len(listening) > 1:
            raise Broken(f"clients are accepted by {listening}")
        for front in self.alive():
            modes = front.copies.items()
            for other in self.alive():
                if other is front:
                    break
                both = [c for c, mode in modes if c and mode in ("read", "busy") and reads(other, c)]
                if both:
                    raise Broken(f"{both} are read by {front.name} and {other.name}")


def reads(front, connection):
    return front.copies.get(connection) in ("read", "busy")


@dataclass(frozen=True)
class Request:
    verb: str
    params: dict[str, Any]
    op: int | None  # whose answer goes to which operation
    boot: int  # of which daemon


@dataclass(eq=False)
class Process:
    """What is really on the host, whatever the core believes."""

    worker: str
    service: str
    kind: Kind
    need: int = 0
    hooks: frozenset[str] = frozenset()
    fit: bool = True  # whether it answers its probes as it should
    revision: Revision | None = None
    slot: Slot | None = None
    made_of: str = ""
    state: WorkerState = WorkerState.SPAWNED
    front: SimFront | None = None
    table: str | None = None  # a gate's
    split: Split | None = None  # a gate's
    table_epoch: int = 0
    pointed_at: float | None = None
    held: int = 0
    verified: bool = False  # its probes have been answered since it was loaded
    granted: int | None = None  # what others, not ours, held when its memory was confirmed
    inbox: deque[Request] = field(default_factory=deque)
    step: str | None = None
    waiting: list[Request] = field(default_factory=list)  # for the end of the step
    order: Request | None = None  # the hand-over under way
    hung: bool = False  # its loop stands still; its channel answers
    closing: bool = False  # it turns clients away, to the end
    mute: bool = False  # nothing of it answers

    @property
    def owner(self) -> bool:
        return self.front is not None and self.front.state.phase in (Phase.OWNER, Phase.OFFERING)

    def look(self) -> WorkerState:
        """As `worker.life`: a front becomes the owner by itself."""
        if self.state in (WorkerState.LOADED, WorkerState.QUIESCED) and self.owner:
            self.state = WorkerState.SERVING
        return self.state

    def hello(self) -> Observed:
        front = self.front
        return Observed(
            self.worker,
            self.look(),
            owner=self.owner and LISTENER in front.copies,
            epoch=front.state.epoch if front is not None else 0,
            table_epoch=self.table_epoch,
            points_to=self.table,
            split=self.split,
            hooks=self.hooks if self.kind is not Kind.GATE else frozenset(),
            quiesced_at=front.quiesced_at if front is not None else None,
            started_at=front.started_at if front is not None else None,
            pointed_at=self.pointed_at,
            service=self.service,
            kind=self.kind,
            revision=self.revision,
            slot=self.slot,
            made_of=self.made_of,
        )


class Processes:
    """All that live. `reply(request, result)` hears of each answer; `refused` collects verbs that no state allows."""

    def __init__(self, clock, reply):
        self.clock = clock
        self.reply = reply
        self.living: dict[str, Process] = {}
        self.fronts: dict[str, Fronts] = {}
        self.refused: list[str] = []

    def begin(self, process: Process) -> None:
        self.living[process.worker] = process
        if process.kind is Kind.GATE:
            process.state = WorkerState.LOADED
            self.give_front(process)

    def of(self, service: str) -> Fronts:
        if service not in self.fronts:
            self.fronts[service] = Fronts(self.clock)
        return self.fronts[service]

    def give_front(self, process: Process) -> None:
        if process.kind is not Kind.ENGINE and process.front is None:
            process.front = self.of(process.service).add(process.worker)

    def end(self, worker: str) -> Process | None:
        process = self.living.pop(worker, None)
        if process is not None and process.front is not None:
            self.of(process.service).remove(process.front)
        return process

    # --- requests -------------------------------------------------------------------------------------------

    def ask(self, process: Process, request: Request) -> None:
        """It arrives: the table is asked at once, also by a worker whose loop is blocked."""
        after = step_worker(process.look(), request.verb)
        if isinstance(after, Problem):
            again = request.verb == "drain" and process.owner  # since it was to be drained: nothing comes of that
            if not again and not self.is_behind(process):
                self.refused.append(f"{request.verb} of {process.worker}: {after.message}")
            self.reply(request, after)
            return
        before, process.state = process.state, after
        if request.verb in ENDS:
            process.waiting.append(request)
            if before is not after:
                process.step = request.verb
                if request.verb in ("load", "wake"):
                    process.held = process.need  # from the first moment on, at the worst
        else:
            process.inbox.append(request)

    def is_behind(self, process: Process) -> bool:
        """Its loop has not done yet what it has been told, so that it is not where it should be."""
        front = process.front
        if process.hung or process.mute or process.inbox or front is None:
            return process.hung or process.mute or bool(process.inbox)
        if process.owner and LISTENER not in front.copies:
            return True  # its source died before it had sent anything: an owner of nothing
        return bool(front.effects) or (front.out is not None and bool(front.out.to_source))

    def abandon(self, boot: int) -> None:
        """The daemon's connections break."""
        for process in self.living.values():
            process.inbox.append(Request("gone", {}, None, boot))

    def carry_out(self, process: Process) -> None:
        """The next request in the queue."""
        request = process.inbox.popleft()
        result = getattr(self, f"_{request.verb.replace(' ', '_')}")(process, request)
        if result is not None:
            self.reply(request, result)
        self.settle(process)

    def _adopt(self, process, request):
        done = self.of(process.service).adopt(process.front, request.params["epoch"])
        if not done:
            return Problem(HAND_OVER_FAILED, f"epoch {request.params['epoch']} is not newer")
        return {"started_at": self.clock()}

    def _receive(self, process, request):
        source = self.living.get(request.params["source"])
        if source is None or source.front is None:
            return {}  # its end of the socket is closed already
        link = self.of(process.service).receive(source.front, process.front, request.params["epoch"])
        return {"link": link}

    def _hand_over(self, process, request):
        link = request.params["link"]
        if not self.of(process.service).hand_over(link):
            self._no_hand_over(process)
            return Problem(HAND_OVER_FAILED, f"{process.worker} cannot give epoch {link.epoch}")
        process.order = request
        return None

    def _no_hand_over(self, process):
        process.state = WorkerState.SERVING if process.owner else WorkerState.QUIESCED

    def _successor(self, process, request):
        target = self.living.get(request.params["target"])
        front = process.front
        if target is not None and target.front is not None and front.state.phase is Phase.VACANT and front.state.gave:
            self.of(process.service).successor(front, target.front)
        return {}

    def _source_dead(self, process, request):
        fronts, front, epoch = self.of(process.service), process.front, request.params["epoch"]
        fronts.run(front)
        link = fronts.armed_link(front)
        if link is not None and link.epoch == epoch:
            fronts.listen(front, link)
        fronts.event(front, Event.SOURCE_DEAD, epoch, link)
        fronts.run(front)
        started = front.state.phase is Phase.OWNER and front.state.owned == epoch
        return {"started": started, "listeners": started and LISTENER in front.copies, "started_at": self.clock()}

    def _target_dead(self, process, request):
        fronts, front, epoch = self.of(process.service), process.front, request.params["epoch"]
        fronts.run(front)
        if front.out is not None and front.out.epoch == epoch:
            fronts.listen(front, front.out)
        fronts.event(front, Event.TARGET_DEAD, epoch, front.out)
        fronts.run(front)
        return {"resumed": process.owner}

    def _gone(self, process, request):
        order = process.order
        if order is not None and order.boot == request.boot:
            fronts = self.of(process.service)
            fronts.run(process.front)
            fronts.event(process.front, Event.DAEMON_GONE, order.params["link"].epoch, process.front.out)

    def _point(self, process, request):
        if request.params["epoch"] <= process.table_epoch:
            self.refused.append(f"a table of epoch {request.params['epoch']} for {process.worker}")
            return Problem(BAD_REQUEST, "not newer")
        process.table, process.table_epoch = request.params["target"], request.params["epoch"]
        process.split = request.params["split"]
        process.pointed_at = self.clock()
        return {"quiesced_at": self.clock(), "started_at": self.clock()}

    def _drain(self, process, request):
        return None  # its end is the daemon's to see

    def _drain_and_close(self, process, request):
        process.closing = True

    def _stop(self, process, request):
        return None

    # --- by themselves --------------------------------------------------------------------------------------

    def settle(self, process: Process) -> None:
        """A hand-over that has ended, one way or the other, is reported."""
        front = process.front
        if front is None or not front.idle or front.state.phase not in (Phase.OWNER, Phase.VACANT):
            return
        order, process.order = process.order, None
        if order is None:
            return
        if process.state is WorkerState.HANDING_OVER:
            self._no_hand_over(process)
        if process.owner:
            self.reply(order, Problem(HAND_OVER_FAILED, f"{process.worker} goes on serving"))
        else:
            self.reply(order, {"quiesced_at": front.quiesced_at, "started_at": self.clock(), "turned_away": 0})

    def end_step(self, process: Process, *, well: bool) -> None:
        verb, process.step = process.step, None
        assert verb is not None
        if process.state is not WorkerState.STOPPING:
            process.state = WorkerState(ENDS[verb]) if well else WorkerState.FAILED
        if verb == "park" and well:
            process.held, process.verified = RESIDUE, False
        if verb == "load" and well:
            self.give_front(process)
        waiting, process.waiting = process.waiting, []
        problem = Problem(LOAD_FAILED, f"{verb} of {process.worker} failed")
        for request in waiting:
            self.reply(request, {"hooks": sorted(process.hooks)} if well else problem)
