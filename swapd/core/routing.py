"""Who answers a service's clients: who owns the listeners, and where a gate's table points.

Level-triggered like the rest of `advance`, whose third rule this is. A worker with a front of its own gets the
listeners themselves, unless the service is gated; any other is pointed to by a gate that has them. So a switch is a
table where the owner is a gate already, else a hand-over: to a gate that points there before it gets anything.

A gate that points to nobody holds the clients, or turns them away where waiting is in vain (`core.crash_loop`).
A gate that has handed over relays what is in flight until it is drained, and is pointed to whoever answers by then.
"""

from __future__ import annotations

from swapd.core.crash_loop import crash_loops
from swapd.core.delivery import Split
from swapd.core.draft import Draft
from swapd.core.model import RESTORE, Kind, OpKind, Revision, Service, Worker
from swapd.core.stages import begin_stage, split_for
from swapd.core.states import FORWARD, Phase, WorkerState


def route(d: Draft, name: str, goal: Revision | None) -> None:
    """Bring the clients to the best worker that can serve; where nobody can, to a gate that holds or tells them."""
    service, owner, server = d.services[name], d.owner_of(name), d.server_of(name)
    if d.transferring(name) or (owner is not None and owner.ending):
        return
    worker = d.worker_of(name, goal.number) if goal is not None else None
    answered = server is not None and not server.ending
    if worker is not None and worker.can_serve and (worker.op is None or worker.op.kind is OpKind.DRAIN):
        _serve_by(d, service, worker, step_of(d, worker, "switch"))
    elif goal is None and answered and owner is not None and owner.op is None:
        hold(d, service, f"{RESTORE}hold")  # canceled at the very switch, with nothing to go back to
    elif not answered:
        stand_in = _stand_in(d, service)
        if stand_in is not None:
            _serve_by(d, service, stand_in, None)
        else:
            hold(d, service, None, turn_away=crash_loops(service))
    if not d.transferring(name):
        _renew(d, service)
    if not d.transferring(name):
        _rebind(d, d.services[name])
    if not d.transferring(name):
        _follow(d, name)


def hold(d: Draft, service: Service, step: str | None, *, turn_away: bool = False) -> None:
    """Let the clients wait, or tell them off: the gate that owns them points to nobody, or such a one is given them."""
    owner = d.owner_of(service.name)
    if d.transferring(service.name) or (owner is not None and owner.ending):
        return
    if owner is not None and owner.kind is Kind.GATE:
        if owner.points_to is not None or owner.turns_away is not turn_away:
            if owner.points_to is not None:
                _progress(d, service, "clients are held")
            _point(d, service, owner, None, step, turn_away=turn_away)
        return
    gate = _gate_for(d, service)
    if gate is None:
        return
    if gate.points_to is not None or gate.turns_away is not turn_away:
        _point(d, service, gate, None, None, turn_away=turn_away)
    elif owner is None:
        _adopt(d, service, gate, None)
    else:
        _progress(d, service, "clients are held")
        _hand_over(d, service, owner, gate, step)


def _serve_by(d: Draft, service: Service, worker: Worker, step: str | None) -> None:
    """The next operation towards `worker` answering the clients; none if it does."""
    owner, split = d.owner_of(service.name), split_for(d, service, worker)
    if owner is not None and owner.kind is Kind.GATE and service.gated(worker.kind):
        if owner.points_to != worker.id:
            _progress_to(d, service, worker)
            _point(d, service, owner, worker.id, step, split=split)
        elif owner.split != split:
            if split is not None:
                _progress(d, service, "the candidate proves itself on requests of clients")
            _point(d, service, owner, worker.id, None, split=split)
        elif service.swap is not None and service.swap.phase is not Phase.PAUSED:
            begin_stage(d, service.name, split)  # by a table that an older journal has nothing of
        return
    front: Worker | None = worker
    if service.gated(worker.kind):
        front = _gate_for(d, service)
        if front is not None and (front.points_to, front.split) != (worker.id, None):
            _point(d, service, front, worker.id, None)  # it owns nothing yet: its hand-over is the switch
            return
    if front is None:
        return
    if owner is None:
        _adopt(d, service, front, step)
    elif owner.id != front.id:
        _progress_to(d, service, worker)
        _hand_over(d, service, owner, front, step)


def _stand_in(d: Draft, service: Service) -> Worker | None:
    """The old revision's worker, while its successor is being prepared beside it."""
    swap = service.swap
    if swap is None or swap.phase not in FORWARD or swap.source is None:
        return None
    worker = d.worker_of(service.name, swap.source.number)
    target = d.worker_of(service.name, swap.target.number)
    if worker is None or worker.op is not None or not worker.can_serve:
        return None
    return worker if target is None or target.id in d.reservations else None


def _renew(d: Draft, service: Service) -> None:
    """A gate of other settings, or of another version, gives all it has to a new one that points where it does."""
    owner, swap = d.owner_of(service.name), service.swap
    if owner is None or owner.kind is not Kind.GATE or owner.made_of == service.settings.gate:
        return
    if swap is not None and swap.phase is not Phase.SOAKING:
        return
    gate = _gate_for(d, service)
    if gate is None:
        return
    if (gate.points_to, gate.turns_away, gate.split) != (owner.points_to, owner.turns_away, owner.split):
        _point(d, service, gate, owner.points_to, None, turn_away=owner.turns_away, split=owner.split)
    else:
        _hand_over(d, service, owner, gate, None)


def _rebind(d: Draft, service: Service) -> None:
    """The owner is given the addresses that the service has now, and lets go of those that it has no more."""
    owner = d.owner_of(service.name)
    if owner is not None and not owner.ending and owner.op is None and service.bound != service.settings.listen:
        _adopt(d, service, owner, None)


def _follow(d: Draft, name: str) -> None:
    """Gates that have handed over: what still begins there goes where everything goes. One at a time."""
    server = d.server_of(name)
    wanted = server.id if server is not None and not server.ending else None
    for gate in d.gates_of(name):
        relays = gate.state is WorkerState.QUIESCED and not gate.drained and gate.points_to is not None
        if relays and (gate.points_to, gate.split) != (wanted, None):
            _point(d, d.services[name], gate, wanted, None)
            return


# --- gates -----------------------------------------------------------------------------------------------------


def _gate_for(d: Draft, service: Service) -> Worker | None:
    """A gate that may be given the clients, made of the settings of now; None until it is up. Begun if need be."""
    gate = _spare_gate(d, service) or d.add_worker(service.name, Kind.GATE, 0, 0.0)
    if gate.connected:
        return gate
    if gate.op is None and d.at < gate.not_before:
        d.wake_at(service.name, gate.not_before)
    elif gate.op is None:
        d.run(OpKind.SPAWN, d.set_worker(gate.id, made_of=service.settings.gate))
    return None


def _spare_gate(d: Draft, service: Service) -> Worker | None:
    """One that is up before one that has yet to be started."""
    gates = [g for g in d.gates_of(service.name) if g.id != service.owner and not g.outlived_kill]
    fit = [g for g in gates if (g.op is None and not g.connected) or g.made_of == service.settings.gate]
    return min(fit, key=lambda g: not g.connected, default=None)


def release_gates(d: Draft, name: str, goal: Revision | None) -> None:
    """Drain and stop the gates that nobody is about to be given to."""
    if d.transferring(name):
        return
    service = d.services[name]
    spare = _spare_gate(d, service) if _needs_spare(d, service, goal) else None
    for gate in d.gates_of(name):
        if gate.id == service.owner or gate.op is not None or (spare is not None and gate.id == spare.id):
            continue
        if gate.state is WorkerState.QUIESCED and not gate.drained:
            deadline_s = max(service.settings.drain_timeout_s, service.settings.soak_s)
            d.run(OpKind.DRAIN, gate, deadline_s=deadline_s)
        else:
            d.stop(gate, force=False)


def _needs_spare(d: Draft, service: Service, goal: Revision | None) -> bool:
    """Whether a gate besides the owner is about to be given the clients."""
    owner = d.owner_of(service.name)
    if owner is None or goal is None:
        return True
    if owner.kind is Kind.GATE:
        return owner.made_of != service.settings.gate
    worker = d.worker_of(service.name, goal.number)
    if worker is not None and service.gated(worker.kind):
        return True
    holds_soon = service.swap is not None and service.swap.phase is not Phase.SOAKING
    return holds_soon and worker is not None and worker.id not in d.reservations


def is_pointed_to(d: Draft, worker: Worker) -> bool:
    """A gate that has clients, or had them and is not drained, relays to it; one that is being ended, until it is."""
    service = d.services[worker.service]
    relaying = (WorkerState.QUIESCED, WorkerState.STOPPING)
    return any(
        _names(g.points_to, g.split, worker) and not g.drained and (g.id == service.owner or g.state in relaying)
        for g in d.workers_of(worker.service)
    )


def _names(main: str | None, split: Split | None, worker: Worker) -> bool:
    return worker.id == main or (split is not None and worker.id == split.worker)


def is_target(d: Draft, worker: Worker) -> bool:
    """A transfer that may bring the clients to it is in flight: its end is waited for, whichever it is."""
    for other in d.workers_of(worker.service):
        if other.op is None or other.op.kind not in (OpKind.HAND_OVER, OpKind.POINT, OpKind.ADOPT):
            continue
        front = d.workers.get(other.op.target or "") if other.op.kind is OpKind.HAND_OVER else other
        if front is None:
            continue
        if worker.id == front.id or _names(front.points_to, front.split, worker):
            return True
        if _names(other.op.target, other.op.split, worker):
            return True
    return False


# --- the operations --------------------------------------------------------------------------------------------


def step_of(d: Draft, worker: Worker, name: str) -> str | None:
    """The name of the step in the service's swap, if this work belongs to it."""
    swap = d.services[worker.service].swap
    if swap is None or swap.phase is Phase.SOAKING:
        return None
    back = swap.phase is Phase.ROLLING_BACK
    if worker.kind is not Kind.GATE and (worker.revision == swap.target.number) is back:
        return None  # the other side of the swap: its own restart, or its end
    return f"{RESTORE}{name}" if back else name


def _progress(d: Draft, service: Service, reason: str) -> None:
    if service.swap is not None and service.swap.phase is Phase.PREPARING:
        d.set_phase(service.name, Phase.PROGRESSING, reason=reason)


def _progress_to(d: Draft, service: Service, worker: Worker) -> None:
    """A gate that comes before the old model changes nothing for its clients."""
    if service.swap is not None and worker.revision == service.swap.target.number:
        _progress(d, service, "clients are switched")


def next_epoch(d: Draft, service: str) -> int:
    return d.set_service(service, epoch=d.services[service].epoch + 1).epoch


def _adopt(d: Draft, service: Service, front: Worker, step: str | None) -> None:
    """Once nobody else can: one that is being killed may have been told to, and do it yet."""
    ops = [w.op for w in d.workers_of(service.name) if w.kind is not Kind.ENGINE]
    killed = any(op.kind is OpKind.STOP and op.force for op in ops if op is not None)
    if service.owner is not None or not killed:
        d.run(OpKind.ADOPT, front, epoch=next_epoch(d, service.name), step=step)


def _hand_over(d: Draft, service: Service, source: Worker, target: Worker, step: str | None) -> None:
    d.run(OpKind.HAND_OVER, source, target=target.id, epoch=next_epoch(d, service.name), step=step)


def _point(
    d: Draft,
    service: Service,
    gate: Worker,
    target: str | None,
    step: str | None,
    *,
    turn_away: bool = False,
    split: Split | None = None,
) -> None:
    epoch = next_epoch(d, service.name)
    d.run(OpKind.POINT, gate, target=target, epoch=epoch, step=step, turn_away=turn_away, split=split)
