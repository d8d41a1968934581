"""What subscribers and the daemon's log are told: found by comparing the state before and after, so that no transition
can be forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.events import Event, WorkerExited, WorkerHung
from swapd.core.model import Service, State, Swap, Worker
from swapd.core.report import health_with
from swapd.core.states import WorkerState


def tell(d: Draft) -> None:
    """Publish what changed, by comparing before and after: no transition can be forgotten."""
    for finished in d.finished_swaps:
        old = d.before.service(finished.service)
        before = old.swap if old is not None and old.swap is not None and old.swap.id == finished.id else None
        _tell_swap(d, finished, before)
        d.publish("swap.finished", swap_id=finished.id, service=finished.service, phase=finished.phase.value)
    for name, service in d.services.items():
        old = d.before.service(name)
        swap, old_swap = service.swap, old.swap if old is not None else None
        if swap is not None and (old_swap is None or old_swap.id != swap.id):
            d.publish("swap.created", swap_id=swap.id, service=name)
            old_swap = None
        if swap is not None:
            _tell_swap(d, swap, old_swap)
        server, server_before = _id(d.server_of(name)), _id(d.before.server_of(name))
        told = service.owner, server, service.failures, service.problem
        if old is None or told != (old.owner, server_before, old.failures, old.problem):
            d.publish("service.changed", service=name, owner=service.owner, server=server, failures=service.failures)
        state = _health(service, d.server_of(name))
        if old is None or state != _health(old, d.before.server_of(name)):
            d.publish("service.health", service=name, **state)
    for gone in d.before.services:
        if gone.name not in d.services:
            d.publish("service.removed", service=gone.name)
    for worker in d.workers.values():
        was = d.before.worker(worker.id)
        if was is None or was.state is not worker.state:
            d.publish("worker.state", worker=worker.id, service=worker.service, state=worker.state.value)
    for ended in d.before.workers:
        if ended.id not in d.workers:
            d.publish("worker.state", worker=ended.id, service=ended.service, state=WorkerState.GONE.value)


def _health(service: Service, server: Worker | None) -> dict[str, Any]:
    problem = service.problem
    return {
        "health": health_with(service, server).value,
        "code": problem.code if problem is not None else None,
        "message": problem.message if problem is not None else None,
    }


def _id(worker: Worker | None) -> str | None:
    return worker.id if worker is not None else None


def _tell_swap(d: Draft, swap: Swap, before: Swap | None) -> None:
    if before is None or before.phase is not swap.phase:
        d.publish("swap.phase", swap_id=swap.id, service=swap.service, phase=swap.phase.value, reason=swap.reason)
    if before is not None and before.strategy is not swap.strategy:
        d.publish("swap.strategy", swap_id=swap.id, service=swap.service, strategy=swap.strategy.value, why=swap.why)
    old_steps = before.steps if before is not None else ()
    for index, record in enumerate(swap.steps):
        if index >= len(old_steps) or old_steps[index] != record:
            ms = None if record.finished_at is None else round((record.finished_at - record.started_at) * 1000, 1)
            d.publish(
                "swap.step",
                swap_id=swap.id,
                service=swap.service,
                step=record.name,
                status=record.status,
                ms=ms,
                detail=record.detail,
            )


def troubles(before: State, event: Event, after: State) -> Iterator[tuple[str, dict[str, Any]]]:
    """What somebody who asks why a service is down must find in the log: a name and its words, once for each cause."""
    told = None
    if isinstance(event, WorkerExited):
        worker = before.worker(event.worker)
        if worker is not None and not worker.ending and not before.stopping:
            told = event.problem
            yield "worker.ended", {"worker": worker.id, "service": worker.service, **_words(told)}
    if isinstance(event, WorkerHung) and before != after:
        told = event.problem
        yield "worker.hung", {"worker": event.worker, **_words(told)}
    for service in after.services:
        old = before.service(service.name)
        if service.problem not in (None, told, old.problem if old is not None else None):
            yield "service.problem", {"service": service.name, **_words(service.problem)}


def _words(problem: Problem) -> dict[str, str]:
    return {"code": problem.code, "message": problem.message}
