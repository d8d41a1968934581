"""What may happen in the simulated world, one thing at a time, each chosen by a number: so a list of (name, number) is
a whole story, and still one when parts of it are left out.

A move that is not possible does nothing. `NORMAL` moves are what goes on by itself; `calm` makes all of them, and
nothing else, until nothing is left to do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from support.simulation.processes import GIB
from support.simulation.world import World

from swapd.core import errors, events
from swapd.core.delivery import Delivery, Ends, Finding, Stage, StageKind, Then
from swapd.core.draft import TRANSFERS
from swapd.core.evidence import Outcome
from swapd.core.handover import Kind as Front
from swapd.core.handover import Phase
from swapd.core.model import OpKind
from swapd.core.rules import parse_rule
from swapd.core.states import Phase as SwapPhase
from swapd.core.states import WorkerState
from swapd.core.strategies import BASELINE

MODELS = ("a", "b", "big", "bad")
HUNG = frozenset(
    {OpKind.ADOPT, OpKind.POINT, OpKind.STAGE, OpKind.LOAD, OpKind.WAKE, OpKind.WARM, OpKind.VERIFY, OpKind.DRAIN}
)
CALM_ROUNDS = 600
VAIN_ROUNDS = 60

Move = Callable[[World, int], Any]


def choose(things: Any, pick: int) -> Any:
    found = sorted(things)
    return found[pick % len(found)] if found else None


# --- what goes on by itself -----------------------------------------------------------------------------------------


def go_on(w: World, pick: int) -> bool:
    """An operation comes a step further."""
    daemon = w.daemon
    if daemon is None or not daemon.ready or not daemon.pending:
        return False
    op_id = choose(daemon.pending, pick)
    before = (daemon.stage[op_id], len(daemon.mail), len(w.living))
    daemon.go_on(op_id)
    return before != (daemon.stage.get(op_id), len(daemon.mail), len(w.living))


def request(w: World, pick: int) -> bool:
    """A worker carries out what it was asked for."""
    able = {p.worker: p for p in w.living.values() if p.inbox and not p.hung and not p.mute}
    worker = choose(able, pick)
    if worker is not None:
        w.processes.carry_out(able[worker])
    return worker is not None


def step_ends(w: World, pick: int) -> bool:
    able = {p.worker: p for p in w.living.values() if p.step is not None and not p.hung and not p.mute}
    worker = choose(able, pick)
    if worker is not None:
        w.processes.end_step(able[worker], well=True)
    return worker is not None


def stopped_ends(w: World, pick: int) -> bool:
    able = [p.worker for p in w.living.values() if p.state is WorkerState.STOPPING and not p.inbox and not p.hung]
    draining = {r.op.worker for r in w.daemon.pending.values() if r.op.kind is OpKind.DRAIN} if w.daemon else ()
    worker = choose(set(able) - set(draining), pick)
    if worker is not None:
        w.end(worker)
    return worker is not None


def front_moves(w: World, pick: int) -> bool:
    """A front does one thing, or hears of one."""
    able = []
    for name in sorted(w.processes.fronts):
        fronts = w.processes.fronts[name]
        awake = [f for f in fronts.alive() if not w.living[f.name].hung and not w.living[f.name].mute]
        able += [(fronts, front, None) for front in awake if front.effects]
        able += [(fronts, front, link) for front, link in fronts.deliverable() if front in awake]
    if not able:
        return False
    fronts, front, link = able[pick % len(able)]
    if link is None:
        fronts.run_one(front)
    else:
        fronts.deliver(front, link)
    w.processes.settle(w.living[front.name])
    return True


def notice(w: World, pick: int) -> bool:
    """The daemon sees that a process has ended."""
    daemon = w.daemon
    worker = choose({d for d in w.deaths if daemon is not None and d in daemon.live}, pick)
    if worker is not None:
        w.deaths.remove(worker)
        daemon.notice(worker)
    return worker is not None


def tell(w: World, pick: int) -> bool:
    """What has come of something is told to the core."""
    if w.daemon is None or not w.daemon.mail:
        return False
    mail = w.daemon.mail
    w.daemon.hear(mail.pop(pick % len(mail)))
    return True


def measure(w: World, pick: int) -> bool:
    if w.daemon is None or not w.daemon.measures:
        return False
    w.daemon.measure()
    return True


def start(w: World, pick: int) -> bool:
    """A daemon starts, or comes further in seeing what there is."""
    if w.daemon is None:
        w.boot()
    elif w.daemon.exited:
        w.crash()
    elif w.daemon.ready:
        return False
    elif not w.daemon.greet():
        w.daemon.recover()
    return True


NORMAL: dict[str, Move] = {
    "go on": go_on,
    "request": request,
    "step ends": step_ends,
    "stopped ends": stopped_ends,
    "front moves": front_moves,
    "notice": notice,
    "tell": tell,
    "measure": measure,
    "start": start,
}


def busy(w: World, pick: int) -> None:
    """Much happens, and nothing else, for a while."""
    for turn in range(10 + pick % 50):
        list(NORMAL.values())[(pick * 7 + turn * 5) % len(NORMAL)](w, pick + turn * 31)
        w.books.check()


# --- clients and operators ----------------------------------------------------------------------------------------


def connect(w: World, pick: int) -> None:
    fronts = w.processes.fronts.get(choose(w.config, pick))
    if fronts is not None and sum(len(f.copies) for f in fronts.alive()) < 8:
        fronts.connect()


def client(w: World, pick: int) -> None:
    """A request comes on an open connection, or its answer is out."""
    able = [
        (fronts, front, connection, mode)
        for _, fronts in sorted(w.processes.fronts.items())
        for front in fronts.alive()
        for connection, mode in front.copies.items()
        if connection and mode in ("read", "busy") and not w.living[front.name].hung
    ]
    if able:
        fronts, front, connection, mode = able[pick % len(able)]
        (fronts.request if mode == "read" else fronts.finish)(front, connection)


def ask(w: World, event: events.Event) -> None:
    if w.daemon is not None and w.daemon.ready and not w.daemon.state.stopping:
        w.daemon.take(event)


def swap(w: World, pick: int) -> None:
    if w.daemon is not None and w.daemon.ready and w.journal.works and not w.daemon.lost:
        service = choose(w.config, pick)
        if service is not None:
            ask(w, w.swap_request(service, MODELS[pick // 7 % len(MODELS)], again=pick % 5 == 0))


def proved_swap(w: World, pick: int) -> None:
    """A swap whose candidate proves itself in stages."""
    if w.daemon is not None and w.daemon.ready and w.journal.works and not w.daemon.lost:
        service = choose(w.config, pick)
        if service is not None:
            ask(w, w.swap_request(service, MODELS[pick // 7 % len(MODELS)], again=True, delivery=delivery(pick // 3)))


def delivery(pick: int) -> Delivery:
    ends = list(Ends)[pick % 3]
    stages = (Stage(StageKind.SHADOW, 20, 5, 30, ends), Stage(StageKind.CANARY, 5, 0, 30, ends))
    return Delivery(
        "guarded",
        (stages, stages[1:], (*stages, Stage(StageKind.CANARY, 50, 5, 5, Ends.TIME)), (), (BASELINE,))[pick // 3 % 5],
        rules=(parse_rule("error_rate < 1%"),) if pick // 9 % 4 else (),
        on_fail=(Then.ABORT, Then.PAUSE)[pick // 36 % 2],
        on_inconclusive=list(Then)[pick // 72 % 3],
        session_key="header:x" if pick // 216 % 2 else "",
        rehearsal=pick // 432 % 4 == 0,
    )


def judge(w: World, pick: int) -> None:
    if (service := choose(w.config, pick)) is None:
        return
    found = w.state.service(service)
    if found is not None and found.swap is not None:
        stage = None if found.swap.phase is SwapPhase.SOAKING else found.swap.stage
        verdict = (Outcome.PASS, Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL)[pick // 7 % 4]
        ask(w, events.Judged(w.now, service, found.swap.id, stage, Finding(verdict, "seen", w.now)))


def pause(w: World, pick: int) -> None:
    if (service := choose(w.config, pick)) is not None:
        ask(w, events.PauseRequested(w.now, service, "t"))


def promote(w: World, pick: int) -> None:
    if (service := choose(w.config, pick)) is not None:
        ask(w, events.PromoteRequested(w.now, service, "t", full=pick // 7 % 2 == 0))


def cancel(w: World, pick: int) -> None:
    if (service := choose(w.config, pick)) is not None:
        ask(w, events.ReturnRequested(w.now, service, "t"))


def roll_back(w: World, pick: int) -> None:
    if (service := choose(w.config, pick)) is not None:
        ask(w, events.ReturnRequested(w.now, service, "t", only_soaking=True))


def resume(w: World, pick: int) -> None:
    if (service := choose(w.config, pick)) is not None:
        ask(w, events.Resumed(w.now, service, "t"))


def reload(w: World, pick: int) -> None:
    """Another front, or another gate; sometimes while no daemon is there to see it."""
    service = choose(w.config, pick)
    if service is None:
        return
    settings, model = w.config[service]
    change: dict[str, Any] = {"gated": not settings.gated} if pick % 2 else {"gate": "x" if not settings.gate else ""}
    w.config[service] = (replace(settings, **change), model)
    ask(w, events.SettingsChanged(w.now, service, w.config[service][0], model))


def come_or_go(w: World, pick: int) -> None:
    """A service is removed, or added."""
    if w.daemon is None or not w.daemon.ready or w.daemon.state.stopping:
        return
    if "embed" in w.config:
        del w.config["embed"]
        ask(w, events.ServiceRemoved(w.now, "embed"))
    elif w.daemon.state.service("embed") is None:
        w.add("embed", "b", gated=bool(pick % 2))


def retrain(w: World, pick: int) -> None:
    """A model's files are overwritten."""
    model = MODELS[pick % len(MODELS)]
    w.contents[model] = w.contents.get(model, 0) + 1


def stop(w: World, pick: int) -> None:
    if pick % 4 == 0:
        ask(w, events.ShutdownRequested(w.now))


# --- what goes wrong ------------------------------------------------------------------------------------------------


def time(w: World, pick: int) -> None:
    w.pass_time((0.1, 1.0, 5.0, 40.0, 700.0)[pick % 5])


def crash(w: World, pick: int) -> None:
    if w.daemon is not None:
        w.crash()


def restart(w: World, pick: int) -> None:
    """At once: another daemon finds the first one's requests still on their way."""
    if w.daemon is not None:
        w.crash()
        w.boot()
        while pick % 2 and w.daemon is not None and not w.daemon.ready:
            request(w, pick)
            front_moves(w, pick)
            start(w, pick)


def kill(w: World, pick: int) -> None:
    worker = choose(w.living, pick)
    if worker is not None:
        w.end(worker)


def kill_two(w: World, pick: int) -> None:
    """Both parties of something, or all of a service."""
    service = choose({p.service for p in w.living.values()}, pick)
    for worker in [p.worker for p in w.living.values() if p.service == service]:
        if pick % 3 == 0 or w.living[worker].look() in (WorkerState.HANDING_OVER, WorkerState.SERVING):
            w.end(worker)


def in_a_transfer(w: World, pick: int) -> None:
    """A party of it ends or stands still, and the daemon ends with it, or right after."""
    ops = [r.op for r in w.daemon.pending.values() if r.op.kind in TRANSFERS] if w.daemon is not None else []
    if not ops:
        return
    op = ops[pick % len(ops)]
    turn = pick // 7 % 6
    if turn < 2:
        w.end(op.worker if turn else op.target or "")
    elif turn < 4 and op.worker in w.living:
        w.living[op.worker].hung = True
    if turn != 1:
        (crash if pick % 2 else restart)(w, pick // 5)


def reboot(w: World, pick: int) -> None:
    if pick % 8 == 0:
        if w.daemon is not None:
            w.crash()
        for worker in list(w.living):
            w.end(worker)


def step_fails(w: World, pick: int) -> None:
    able = {p.worker: p for p in w.living.values() if p.step is not None}
    worker = choose(able, pick)
    if worker is not None:
        w.excuse(worker)
        w.processes.end_step(able[worker], well=False)


def memory_runs_out(w: World, pick: int) -> None:
    """A model finds less memory than it needs, or takes so much that it is killed for it."""
    pending = w.daemon.pending.items() if w.daemon is not None else ()
    able = [i for i, run in pending if run.op.kind in (OpKind.LOAD, OpKind.WAKE, OpKind.WARM, OpKind.VERIFY)]
    beside = {s.name for s in w.state.services if s.swap is not None and s.swap.fallback is not None}
    op_id = choose([i for i in able if w.daemon.pending[i].op.service in beside] or able, pick)
    if op_id is None:
        return
    worker = w.daemon.pending[op_id].op.worker
    w.excuse(worker)
    w.daemon.failed(op_id, errors.GUARD_KILLED if pick % 2 else errors.OUT_OF_MEMORY, "there is no memory for it")
    if pick % 2:
        w.end(worker)


def hang(w: World, pick: int) -> None:
    worker = choose(w.living, pick)
    if worker is not None:
        process = w.living[worker]
        process.hung = not process.hung
        process.mute = process.hung and pick % 3 == 0


def late(w: World, pick: int) -> None:
    """The daemon waits for somebody no longer."""
    if w.daemon is None or not w.daemon.ready:
        return
    pending = {i: r.op for i, r in w.daemon.pending.items()}
    op_id = choose([i for i, op in pending.items() if op.kind in HUNG], pick)
    if op_id is not None and (w.living.get(pending[op_id].worker) or pending[op_id].kind is OpKind.SPAWN):
        w.daemon.failed(op_id, errors.TIMEOUT, f"{pending[op_id].kind.value} takes too long")


def no_room(w: World, pick: int) -> bool:
    """Memory has not become free in time."""
    pending = w.daemon.pending.items() if w.daemon is not None else ()
    op_id = choose([i for i, run in pending if run.op.kind is OpKind.CONFIRM], pick)
    if op_id is not None:
        w.daemon.failed(op_id, errors.MEMORY_NOT_RELEASED, "there is no room")
    return op_id is not None


def deadline(w: World, pick: int) -> bool:
    """A source or a target of a hand-over has waited long enough; the daemon waits longer than that."""
    late = False
    for process in w.living.values():
        front = process.front
        if front is None or process.hung or not front.idle:
            continue
        fronts = w.processes.of(process.service)
        late = late or front.state.phase in (Phase.OFFERING, Phase.COMMITTED)
        if front.state.phase is Phase.OFFERING:
            w.excuse(front.out.target.name if front.out is not None else "")
            fronts.event(front, Front.DEADLINE, front.state.epoch, front.out)
        elif front.state.phase is Phase.COMMITTED and w.daemon is not None and process.order is not None:
            op_id = process.order.op
            if op_id in w.daemon.pending:
                w.daemon.failed(op_id, errors.TIMEOUT, "the target does not start")
        w.processes.settle(process)
    return late


def spawn_fails(w: World, pick: int) -> None:
    if w.daemon is not None and w.daemon.ready:
        able = [i for i, r in w.daemon.pending.items() if r.op.kind is OpKind.SPAWN and not w.daemon.stage[i]]
        op_id = choose(able, pick)
        if op_id is not None:
            w.daemon.failed(op_id, errors.SPAWN_FAILED, "too many processes")


def foreign(w: World, pick: int) -> None:
    """Somebody else takes memory of the device, or gives it back."""
    free = w.total - sum(p.held for p in w.living.values())
    w.foreign = min(free, (0, 2, 8, 12)[pick % 4] * GIB)


def journal(w: World, pick: int) -> None:
    """The disk is full, or is not any more."""
    w.journal.works = not w.journal.works


def journal_catches_up(w: World, pick: int) -> None:
    if w.daemon is not None and w.daemon.ready and not w.daemon.lost:
        w.journal.write(w.daemon.state, ())


def journal_lost(w: World, pick: int) -> None:
    """A daemon starts that cannot read its journal; later it can."""
    if w.daemon is None:
        if pick % 3 == 0:
            w.boot(lost=True)
    elif w.daemon.lost and w.daemon.ready:
        w.daemon.find_journal()


MOVES: dict[str, tuple[int, Move]] = {
    "busy": (14, busy),
    **{name: (6, move) for name, move in NORMAL.items()},
    "connect": (1, connect),
    "client": (3, client),
    "swap": (5, swap),
    "proved swap": (3, proved_swap),
    "judge": (2, judge),
    "pause": (1, pause),
    "promote": (1, promote),
    "cancel": (1, cancel),
    "roll back": (1, roll_back),
    "resume": (1, resume),
    "reload": (1, reload),
    "come or go": (1, come_or_go),
    "retrain": (1, retrain),
    "stop": (1, stop),
    "time": (2, time),
    "crash": (3, crash),
    "restart": (2, restart),
    "kill": (2, kill),
    "kill two": (1, kill_two),
    "in a transfer": (3, in_a_transfer),
    "reboot": (1, reboot),
    "step fails": (1, step_fails),
    "memory runs out": (4, memory_runs_out),
    "hang": (1, hang),
    "late": (1, late),
    "no room": (1, no_room),
    "deadline": (2, deadline),
    "spawn fails": (1, spawn_fails),
    "foreign": (1, foreign),
    "journal": (1, journal),
    "journal catches up": (1, journal_catches_up),
    "journal lost": (1, journal_lost),
}


def calm(w: World) -> None:
    """No more faults: everything that is under way ends, every service is healthy, and nothing is left over."""
    w.journal.works, w.foreign = True, 0
    vain = 0
    for turn in range(CALM_ROUNDS):
        for process in w.living.values():
            process.hung = process.mute = False
        if w.daemon is not None and w.daemon.ready:
            if w.daemon.lost:
                w.daemon.find_journal()
            for service in w.daemon.state.services:
                if service.paused is not None:
                    ask(w, events.Resumed(w.now, service.name, "t"))
                if service.swap is not None and service.swap.phase is SwapPhase.PAUSED:
                    ask(w, events.PromoteRequested(w.now, service.name, "t", full=turn % 2 == 0))
        went_on = [move(w, turn) for name, move in NORMAL.items() if name != "measure"]
        w.books.check()
        if any(went_on) or no_room(w, turn) or deadline(w, turn):
            vain = 0
            continue
        vain += 1
        if measure(w, turn):
            continue
        waiting = w.daemon.wake if w.daemon is not None else {}
        if not waiting or vain > VAIN_ROUNDS:
            break
        w.pass_time(max(0.0, min(waiting.values()) - w.now))
    journal_catches_up(w, 0)
    w.books.settled()
