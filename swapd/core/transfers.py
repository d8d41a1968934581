"""What came of a transfer: who owns the listeners and who answers the clients now, and what that means for the swap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swapd.core import events
from swapd.core.draft import Draft
from swapd.core.model import Op, OpKind, Swap, Worker
from swapd.core.outage import waits_ms
from swapd.core.stages import begin_stage
from swapd.core.states import FORWARD, Phase


def owns(d: Draft, worker: Worker, epoch: int) -> None:
    d.set_service(worker.service, owner=worker.id, epoch=max(epoch, d.services[worker.service].epoch))
    d.settle_roles(worker.service)


def pointed(d: Draft, gate: Worker, op: Op, result: Mapping[str, Any]) -> None:
    d.set_worker(gate.id, points_to=op.target, turns_away=op.turn_away, split=op.split)
    if d.services[op.service].owner == gate.id:
        d.settle_roles(op.service)
        switched(d, op.service, result)
        begin_stage(d, op.service, op.split)


def transferred(d: Draft, worker: Worker, op: Op, event: events.OpDone) -> None:
    if op.kind is OpKind.TARGET_DEAD:
        if event.result.get("resumed", True):
            owns(d, worker, op.epoch)
        else:  # the target had started before it died, so its clients died with it: nobody owns the listeners
            d.set_service(worker.service, owner=None)
            d.settle_roles(worker.service)
        return
    if op.kind is OpKind.SOURCE_DEAD:
        if event.result.get("started") and event.result.get("listeners"):
            owns(d, worker, op.epoch)
            switched(d, op.service, event.result)
        return  # otherwise nobody owns the listeners, and `advance` gives them to it
    target = d.workers.get(op.target or "")
    if target is None:
        return
    owns(d, target, op.epoch)
    switched(d, op.service, event.result)


def switched(d: Draft, name: str, result: Mapping[str, Any]) -> None:
    """The clients have come to another front, or a gate to another table: what that means for the swap."""
    service, server, before = d.services[name], d.server_of(name), d.before.server_of(name)
    if server is not None and (service.failures or service.problem is not None):
        d.set_service(name, problem=None)
    if service.swap is None:
        return
    turned_away = int(result.get("turned_away", 0))  # by the gate that gave them, or that held them
    swap = d.set_swap(name, refused_requests=service.swap.refused_requests + turned_away)
    if server is None:
        held_at = result.get("quiesced_at", result.get("started_at"))  # the latter when nobody handed them over
        if swap.held_at_mono_s is None and held_at is not None:
            d.set_swap(name, held_at_mono_s=float(held_at))
    elif before is None or before.id != server.id:
        served(d, d.set_swap(name, held_at_mono_s=None), server, *waits_ms(swap, result))


def served(d: Draft, swap: Swap, worker: Worker, cutover_ms: float | None, outage_ms: float | None) -> None:
    """Another worker answers the clients from now on."""
    service = d.services[worker.service]
    if swap.phase is Phase.ROLLING_BACK and swap.source is not None and worker.revision == swap.source.number:
        d.set_swap(service.name, return_cutover_ms=cutover_ms, return_outage_ms=outage_ms)
    if swap.phase not in FORWARD or worker.revision != swap.target.number:
        return
    if swap.phase is Phase.PREPARING:
        d.set_phase(service.name, Phase.PROGRESSING)
    soak_until = d.at + service.settings.soak_s
    d.set_phase(
        service.name,
        Phase.SOAKING,
        cutover_ms=cutover_ms,
        outage_ms=outage_ms,
        soak_until=soak_until,
        reason=f"{swap.target.model} serves",
    )
    d.begin_step(service.name, "soak")
    previous = swap.source.number if swap.source is not None else 0
    d.set_service(service.name, stable=swap.target.number, previous=previous, failures=0, problem=None, retry_at=None)


def end_transfer(d: Draft, dead: Worker) -> None:
    """A party of a hand-over is proven dead: tell the other, so that somebody reads the clients again."""
    op = dead.op
    if op is not None and op.kind is OpKind.HAND_OVER:
        target = d.workers.get(op.target or "")
        if target is not None and not target.ending:
            d.run(OpKind.SOURCE_DEAD, target, epoch=op.epoch, step=op.step)
    for other in list(d.workers.values()):
        if other.op is not None and other.op.kind is OpKind.HAND_OVER and other.op.target == dead.id:
            d.end_step(other.service, other.op.step, "failed", "the target of the hand-over ended")
            d.run(OpKind.TARGET_DEAD, other, epoch=other.op.epoch)
