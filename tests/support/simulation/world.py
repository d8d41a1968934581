"""A simulated host, with a daemon that may not be there: what is really so, whatever the core believes.

It keeps its own books (never the ledger's) of what processes hold, of who has been proved, and of the ways that
requests are in flight, and compares them with the promises after every move: `support.simulation.promises`.
"""

from __future__ import annotations

from typing import Any

from support.simulation.daemon import Daemon
from support.simulation.journal import Journal
from support.simulation.processes import GIB, Process, Processes, Request
from support.simulation.promises import Books

from swapd.core import errors, events
from swapd.core.delivery import Delivery
from swapd.core.errors import Problem
from swapd.core.events import Event, Measurement, Outcome
from swapd.core.model import (
    DeviceKind,
    DeviceReading,
    Footprint,
    FootprintSource,
    Kind,
    Op,
    OpKind,
    Revision,
    ServiceSettings,
    Slot,
    State,
    Strategy,
    Swap,
    Worker,
)
from swapd.core.outage import ExpectedTimes

NEEDS = {"a": 10 * GIB, "b": 10 * GIB, "big": 20 * GIB, "bad": 6 * GIB}
UNFIT = frozenset({"bad"})
STORY = 80  # events kept for whoever asks how it came to this


class World:
    def __init__(
        self,
        *,
        total: int = 24 * GIB,
        hooks: frozenset[str] = frozenset(),
        kinds: dict[str, Kind] | None = None,
        device: DeviceKind = DeviceKind.NVML,
    ) -> None:
        self.now = 1000.0
        self.total = total
        self.foreign = 0
        self.device = device
        self.hooks = hooks
        self.reads = False  # models have weight files, which are brought into the page cache
        self.kinds = kinds or {}
        self.needs = dict(NEEDS)
        self.contents: dict[str, int] = {}
        self.config: dict[str, tuple[ServiceSettings, str]] = {}
        self.journal = Journal()
        self.processes = Processes(lambda: self.now, self.answer)
        self.left: set[str] = set()  # directories of workers: what a daemon that starts goes by
        self.daemon: Daemon | None = None
        self.boots = 0
        self.crashed = False  # the last daemon, not ended as it was meant to
        self.deaths: list[str] = []  # processes whose end nobody has seen yet
        self.story: list[str] = []
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.books = Books(self)

    @property
    def living(self) -> dict[str, Process]:
        return self.processes.living

    @property
    def state(self) -> State:
        """As the daemon has it; as the last one had it, while there is none that has looked at the host."""
        return self.daemon.state if self.daemon is not None and self.daemon.ready else self.books.last

    def note(self, event: Event | str) -> None:
        if isinstance(event, events.TimerFired):
            return
        self.story.append(f"{self.now:.1f} {event if isinstance(event, str) else repr(event)[:240]}")
        del self.story[:-STORY]

    # --- the daemon's life ------------------------------------------------------------------------------------

    def boot(self, *, lost: bool = False) -> None:
        self.boots += 1
        self.note(f"--- daemon {self.boots} starts{', its journal is lost' if lost else ''}")
        self.journal.forget()
        state = State() if lost else self.journal.read()
        if lost:
            self._carry_out_all()
        self.deaths = []
        self.daemon = Daemon(self, self.boots, state, lost=lost)
        self.books.booted(state)

    def crash(self) -> None:
        assert self.daemon is not None
        self.note(f"--- daemon {self.daemon.boot} ends")
        self.books.last = self.state
        self.crashed = not self.daemon.exited
        behind = self.journal.is_behind(self.daemon.state)
        self.daemon = None
        if behind:
            self._carry_out_all()
        self.processes.abandon(self.boots)

    def _carry_out_all(self) -> None:
        """An order that no journal knows of, in a front that is blocked, is one trouble too many: none is left."""
        for process in list(self.living.values()):
            process.hung = process.mute = False
            while process.inbox:
                self.processes.carry_out(process)

    def send(self, event: Event) -> Swap | Problem | None:
        assert self.daemon is not None
        return self.daemon.take(event)

    def answer(self, request: Request, result: Any) -> None:
        if self.daemon is not None:
            self.daemon.answered(request, result)

    def decided(self, before: State, event: Event, outcome: Outcome) -> None:
        self.books.decided(before, event, outcome)

    # --- processes --------------------------------------------------------------------------------------------

    def spawn(self, worker: Worker, revision: Revision | None, slot: Slot | None) -> None:
        model = revision.model if revision is not None else ""
        need = slot.need_bytes if slot is not None and slot.need_bytes else 0
        gate = worker.kind is Kind.GATE
        process = Process(
            worker.id,
            worker.service,
            worker.kind,
            0 if gate else need,
            frozenset() if gate else self.hooks,
            model not in UNFIT,
            None if gate else revision,
            None if gate else slot,
            worker.made_of,
        )
        assert worker.id not in self.living, f"{worker.id} is started twice"
        self.processes.begin(process)
        self.left.add(worker.id)

    def end(self, worker: str) -> None:
        """The whole process tree is gone, expected or not."""
        if self.processes.end(worker) is not None:
            self.note(f"{worker} is gone")
            self.books.ended(worker)
            self.deaths.append(worker)

    def forget(self, worker: str) -> None:
        """Nobody watches for its end any more."""
        self.left.discard(worker)
        self.deaths = [dead for dead in self.deaths if dead != worker]

    def excuse(self, worker: str) -> None:
        """Something has gone wrong with it: it may be ended at once."""
        self.books.failed.add(worker)

    def has_failed(self, op: Op) -> None:
        """A source that has given nothing serves on."""
        self.excuse(op.target or "" if op.kind is OpKind.HAND_OVER else op.worker)

    def about_to_end(self, process: Process, op: Op) -> None:
        self.books.about_to_end(process, op)
        if process.front is not None:
            self.processes.of(process.service).doomed.add(process.worker)

    def about_to_step(self, process: Process, verb: str) -> None:
        self.books.about_to_step(process, verb)

    def drained(self, process: Process) -> None:
        """What is in flight there has ended; where it owns, so does what still comes."""
        self.books.drained(process.worker)
        if process.front is not None:
            fronts = self.processes.of(process.service)
            for connection, mode in list(process.front.copies.items()):
                if mode == "busy":
                    fronts.finish(process.front, connection)

    # --- figures ----------------------------------------------------------------------------------------------

    def reading(self) -> DeviceReading:
        used = tuple((p.worker, p.held) for p in self.living.values() if self.daemon and p.worker in self.daemon.live)
        free = self.total - self.foreign - sum(p.held for p in self.living.values())
        return DeviceReading("gpu0", self.device, 0, self.total, max(0, free), used)

    def measurement(self, model: str) -> Measurement:
        footprint = Footprint(self.needs[model], FootprintSource.DECLARED)
        kind = self.kinds.get(model, Kind.DIRECT)
        expected = ExpectedTimes(load_s=1.0)
        return Measurement(footprint, (self.reading(),), expected, can_stage=True, kind=kind, reads=self.reads)

    def content(self, model: str) -> str:
        return f"{model}{self.contents.get(model, 0)}"

    def revision(self, service: str, model: str, number: int = 0) -> Revision:
        return Revision(number, service, model, "s", self.content(model))

    # --- operators --------------------------------------------------------------------------------------------

    def add(self, service: str, model: str, **settings: Any) -> None:
        self.config[service] = (ServiceSettings(**settings), model)
        self.processes.fronts.pop(service, None)  # another service, of the same name: epochs begin anew
        if self.daemon is not None and self.daemon.ready:
            added = events.ServiceAdded(
                self.now, service, self.config[service][0], model, self.revision(service, model, 1)
            )
            if isinstance(self.send(added), Problem):
                del self.config[service]

    def swap_request(
        self, service: str, model: str, *, again: bool = False, delivery: Delivery | None = None
    ) -> events.SwapRequested:
        measured = self.measurement(model)
        wish = Strategy.DUAL if delivery is not None and delivery.shares else None
        return events.SwapRequested(
            self.now, service, self.revision(service, model), measured, wish, None, "t", again=again, delivery=delivery
        )

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        daemon = self.daemon
        if daemon is None or not daemon.ready:
            return
        for service, at in list(daemon.wake.items()):
            if at <= self.now and self.daemon is daemon:
                del daemon.wake[service]
                daemon.take(events.TimerFired(self.now, service))

    def problem(self, text: str) -> Problem:
        return Problem(errors.LOAD_FAILED, text)
