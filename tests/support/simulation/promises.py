"""The six promises, as what may never be seen in the simulated world, and what must be so once faults have stopped."""

from __future__ import annotations

from typing import Any

from support.front_world import LISTENER
from support.simulation.processes import UP, Broken, Process

from swapd.core.events import Event, Outcome, Recovered, Run
from swapd.core.model import DeviceKind, Kind, Op, OpKind, Service, State, Swap
from swapd.core.recovery import MAX_RECOVERIES
from swapd.core.stages import stage_of
from swapd.core.states import SWAP_TABLE, TERMINAL, Phase, WorkerState

MOVES = frozenset({WorkerState.LOADING, WorkerState.WAKING})  # what a worker takes is measured by the difference
WHILE_PAUSED = frozenset({OpKind.SOURCE_DEAD, OpKind.TARGET_DEAD, OpKind.DRAIN, OpKind.STOP})

# One that is under way in the worker is waited for, and one that may come to pass yet is begun again, and so ended.
AGAIN = frozenset({OpKind.STAGE, OpKind.LOAD, OpKind.PARK, OpKind.WAKE, OpKind.ADOPT, OpKind.POINT})


class Books:
    """What must be remembered to tell that a promise is broken."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.last = State()
        self.ways: set[tuple[str, str]] = set()  # (front, worker): requests are in flight that way, at the worst
        self.undrained: set[str] = set()  # fronts that own, or have owned
        self.failed: set[str] = set()  # workers that may be ended at once, whatever they do
        self.reached: dict[str, int] = {}  # service -> the swap whose new revision has answered somebody
        self.crashes: dict[
            str, int
        ] = {}  # service -> lives of the daemon in a row that ended in the middle of something

    # --- what is noted ----------------------------------------------------------------------------------------

    def ended(self, worker: str) -> None:
        self.failed.discard(worker)
        self.ways = {way for way in self.ways if worker not in way}
        self.undrained.discard(worker)

    def drained(self, worker: str) -> None:
        self.ways = {way for way in self.ways if worker not in way}
        self.undrained.discard(worker)

    def booted(self, durable: State) -> None:
        """What is durable may be older than the host: who has answered then says nothing about swaps."""
        if durable.services != self.last.services:
            self.reached = {}
        for fronts in self.world.processes.fronts.values():
            fronts.answered_epoch = max((f.state.owned for f in fronts.alive()), default=0)

    # --- at each decision ---------------------------------------------------------------------------------------

    def decided(self, before: State, event: Event, outcome: Outcome) -> None:
        self._swaps(before, outcome)
        if isinstance(event, Recovered) and event.crashed:
            self._count(before)
        for effect in outcome.effects:
            if isinstance(effect, Run) and effect.op.kind is OpKind.STOP:
                self._decided_to_end(effect.op, event)
            elif isinstance(effect, Run) and effect.op.kind is OpKind.DRAIN and not effect.op.force:
                owners = [s.owner for s in outcome.state.services]
                self.demand(5, effect.op.worker not in owners, f"the owner is drained: {effect.op}")
        for old in before.services:
            now = outcome.state.service(old.name)
            if now is None or (old.paused is not None and now.paused is None):
                self.crashes.pop(old.name, None)
        for service in outcome.state.services:
            if outcome.state.server_of(service.name) is not None and not _under_way(service):
                self.crashes.pop(service.name, None)
            if service.paused is not None and not service.leaving and not outcome.state.stopping:
                runs = [e.op for e in outcome.effects if isinstance(e, Run) and e.op.service == service.name]
                again = AGAIN if isinstance(event, Recovered) else frozenset()
                begun = [op for op in runs if op.kind not in WHILE_PAUSED | again]
                self.demand(5, not begun, f"{service.name} is paused, and {begun} is begun")
            crashes = self.crashes.get(service.name, 0)
            looping = isinstance(event, Recovered) and crashes > MAX_RECOVERIES
            self.demand(5, not looping or service.paused is not None, f"{service.name}: {crashes} crashes, not paused")

    def _decided_to_end(self, op: Op, event: Event) -> None:
        """A target that is late is given up, also by a daemon that has just started. One that does not answer anybody
        may still begin to before it is ended."""
        observed = event.observed if isinstance(event, Recovered) else ()
        late = any(o.service == op.service and o.state is WorkerState.HANDING_OVER for o in observed)
        process = self.world.living.get(op.worker)
        if op.force and process is not None and (late or not any(op.worker in way for way in self.ways)):
            self.failed.add(op.worker)

    def _count(self, durable: State) -> None:
        """Daemons in a row that found their predecessor to have ended in the middle of something."""
        if self.world.journal.works and not self.world.daemon.lost:
            for service in durable.services:
                if _busy(service, durable) and service.paused is None:
                    self.crashes[service.name] = self.crashes.get(service.name, 0) + 1
        else:
            self.crashes = {}

    def _swaps(self, before: State, outcome: Outcome) -> None:
        for swap in outcome.finished:
            self.demand(6, swap.phase in TERMINAL, f"swap {swap.id} ends as {swap.phase}")
            running = [s for s in swap.steps if s.status == "running" or s.finished_at is None]
            self.demand(6, not running, f"swap {swap.id} has ended, and its steps have not: {running}")
        now = {s.swap.id: s.swap for s in outcome.state.services if s.swap is not None}
        now |= {swap.id: swap for swap in outcome.finished}
        for service in before.services:
            if service.swap is not None and (after := now.get(service.swap.id)) is not service.swap:
                self.demand(6, after is not None, f"swap {service.swap.id} is gone without an end")
                if after is not None:
                    self._change(service.swap, after)

    def _change(self, before: Swap, after: Swap) -> None:
        legal = {before.phase}
        for _ in SWAP_TABLE:
            legal |= {following for phase in legal for following in SWAP_TABLE[phase]}
        self.demand(6, after.phase in legal, f"swap {after.id}: {before.phase} becomes {after.phase}")
        self.demand(6, len(after.steps) >= len(before.steps), f"swap {after.id} has lost steps")
        for old, new in zip(before.steps, after.steps, strict=False):
            same = (old.name, old.started_at) == (new.name, new.started_at)
            self.demand(6, same and old.status in ("running", new.status), f"swap {after.id}: {old} becomes {new}")
            backwards = new.finished_at is not None and new.finished_at < new.started_at
            self.demand(6, not backwards, f"swap {after.id}: {new} ends before it begins")

    # --- at each act ----------------------------------------------------------------------------------------------

    def about_to_step(self, process: Process, verb: str) -> None:
        world = self.world
        if verb not in ("load", "wake") or process.look() in MOVES:
            return
        others = [p for p in world.living.values() if p is not process and p.state in MOVES and p.slot is not None]
        alone = world.device is not DeviceKind.NVML or not [p for p in others if p.worker not in self.failed]
        self.demand(4, alone, f"{verb} of {process.worker} beside {[p.worker for p in others]}")
        held = sum(p.held for p in world.living.values()) - process.held
        foreign = min(world.foreign, process.granted if process.granted is not None else world.foreign)
        room = world.total - held - foreign
        self.demand(4, process.need <= room, f"{verb} of {process.worker} takes {process.need}, and there are {room}")

    def about_to_end(self, process: Process, op: Op) -> None:
        """Nothing that answers requests is ended, unless it has failed."""
        world, worker = self.world, op.worker
        if worker in self.failed:
            return
        fit = world.living.keys() - self.failed
        alive = [way for way in self.ways if worker in way and fit.issuperset(way)]
        self.demand(5, not alive, f"{op.kind.value} of {worker} with requests in flight: {alive}")
        relaying = [g for g in fit & self.undrained if worker in names(world.living[g])]
        self.demand(5, not relaying, f"{op.kind.value} of {worker}, to which {relaying} point")

    # --- at every instant -----------------------------------------------------------------------------------------

    def check(self) -> None:
        world = self.world
        for name, fronts in world.processes.fronts.items():
            fronts.check()
            self._clients(name)
        held = sum(p.held for p in world.living.values())
        self.demand(4, held <= world.total, f"{held} bytes are held of {world.total}")
        if world.processes.refused:
            self.demand(5, False, f"a worker is asked for what it cannot do: {world.processes.refused}")
        for service in world.state.services:
            live = [w for w in world.state.workers_of(service.name) if w.kind is not Kind.GATE and not w.ending]
            self.demand(6, len({w.revision for w in live}) == len(live), f"two workers of one revision: {live}")

    def answering(self, service: str) -> tuple[Process, Process] | None:
        """The front that reads the clients, and the process that answers a request which comes now."""
        world = self.world
        fronts = world.processes.fronts.get(service)
        for front in fronts.alive() if fronts is not None else ():
            if front.copies.get(LISTENER) != "read" or front.name in fronts.doomed:
                continue
            process = world.living[front.name]
            if process.closing:
                return None
            answers = process if process.kind is not Kind.GATE else world.living.get(process.table or "")
            return (process, answers) if answers is not None else None
        return None

    def _clients(self, name: str) -> None:
        found = self.answering(name)
        if found is None:
            return
        front, process = found
        self.ways.add((front.worker, process.worker))
        self.undrained.add(front.worker)
        self.demand(3, process.verified, f"{process.worker} answers unverified")
        beside = self.world.living.get(front.split.worker) if front.split is not None else None
        if beside is not None:
            self.demand(3, beside.verified, f"{beside.worker} is asked beside {process.worker}, unverified")
            if not front.split.shadow:
                self.ways.add((front.worker, beside.worker))
        ending = process is front and process.state is WorkerState.STOPPING  # it answers to the end
        able = ending or process.look() in UP or not self.failed.isdisjoint((front.worker, process.worker))
        self.demand(1, able, f"{process.worker} is to answer, and is {process.state.value}")
        service = self.world.state.service(name)
        swap = service.swap if service is not None else None
        if swap is None or process.revision is None:
            return
        early = process.revision.number == swap.target.number and stage_of(swap) is not None
        self.demand(2, not early, f"{process.worker} has all clients before its stages are over")
        if process.revision.number == swap.target.number:
            self.reached[name] = swap.id
        elif self.reached.get(name) == swap.id and swap.phase is not Phase.ROLLING_BACK:
            self.demand(2, False, f"{process.worker} answers again after revision {swap.target.number}")

    # --- once faults have stopped ---------------------------------------------------------------------------------

    def settled(self) -> None:
        world, state = self.world, self.world.state
        homeless = {s.name for s in state.services if self.answering(s.name) is None and self._cannot_fit(s)}
        for service in state.services:
            self.demand(6, service.swap is None, f"{service.name}: swap without an end: {service.swap}")
            if service.name not in homeless:
                self._healthy(service)
        known = {w.id: w for w in state.workers}
        self.demand(5, world.living.keys() <= known.keys(), f"orphans: {world.living.keys() - known.keys()}")
        gone = [w.id for w in state.workers if w.id not in world.living and w.service not in homeless]
        self.demand(5, not gone, f"known and not there: {gone}")
        held = {r.worker_id for r in state.reservations}
        self.demand(5, held <= known.keys(), f"reserved for nobody: {held - known.keys()}")
        rows = world.journal.rows["service"]
        self.demand(6, all(rows[s.name] is s for s in state.services), "the journal is not the state")
        open_swaps = [s.id for s in world.journal.history.values() if s.phase not in TERMINAL]
        self.demand(6, not open_swaps, f"in the history without an end: {open_swaps}")

    def _healthy(self, service: Service) -> None:
        world, state, name = self.world, self.world.state, service.name
        found = self.answering(name)
        if found is None:
            raise Broken(f"promise 3: nobody answers {name}: {service.problem}, {world.daemon.pending}")
        front, process = found
        self.demand(3, service.owner == front.worker, f"{name} is owned by {service.owner}, not {front.worker}")
        server = state.server_of(name)
        self.demand(3, server is not None and server.id == process.worker, f"{name}: {server} is not {process}")
        stable = process.revision is not None and process.revision.number == service.stable
        self.demand(3, stable, f"{process.worker} of {process.revision} answers, {service.stable} is stable")
        self.demand(3, (front.kind is Kind.GATE) is service.gated(process.kind), f"{name}: front {front.worker}")
        others = [p.worker for p in world.living.values() if p.service == name and p not in found]
        self.demand(5, not others, f"left over: {others}")

    def _cannot_fit(self, service: Service) -> bool:
        """Another service has the memory, by the operator's own doing."""
        stable = service.revision(service.stable)
        held = sum(p.held for p in self.world.living.values() if p.service != service.name)
        return stable is not None and self.world.needs[stable.model] > self.world.total - held

    def demand(self, promise: int, so: bool, text: str) -> None:
        if not so:
            raise Broken(f"promise {promise}: {text}")


def names(gate: Process) -> tuple[str | None, ...]:
    """Whom its table names."""
    return (gate.table, gate.split.worker if gate.split is not None else None)


def _under_way(service: Service) -> bool:
    return service.swap is not None and service.swap.phase is not Phase.SOAKING


def _busy(service: Service, state: State) -> bool:
    starts = state.server_of(service.name) is None and any(w.op is not None for w in state.workers_of(service.name))
    return starts or _under_way(service)
