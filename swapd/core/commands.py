"""What an operator's command, or the configuration, means for the state.

A handler answers with a `Problem` (a refusal: nothing is changed), with the name of the service whose swap is the
answer, or with nothing. What is to be done follows in `core.advance`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from swapd.core import contract, errors, events, placement
from swapd.core.delivery import Delivery
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.fallback import fallback_of
from swapd.core.model import Kind, Revision, Service, State, Strategy, Swap, Worker
from swapd.core.states import Phase, WorkerState
from swapd.core.to_come import promised

KEPT_REVISIONS: Final = 32


def service_added(d: Draft, event: events.ServiceAdded) -> Problem | None:
    if event.name in d.services and d.services[event.name].leaving:
        return leaving(event.name)
    known = [r for r in (event.previous, event.revision) if r is not None]
    d.services[event.name] = Service(
        event.name,
        event.settings,
        event.config_model,
        revisions=tuple(known),
        stable=event.revision.number,
        previous=event.previous.number if event.previous else 0,
        last_revision=max(event.last_revision, *(r.number for r in known)),
        epoch=event.epoch,
    )
    return None


def service_removed(d: Draft, event: events.ServiceRemoved) -> None:
    if event.service in d.services:
        d.set_service(event.service, leaving=True)


def leaving(service: str) -> Problem:
    text = f"{service} was removed from the configuration and is being stopped; wait until `status` shows it no more."
    return Problem(errors.SHUTTING_DOWN, text)


def number_anew(d: Draft, name: str, fresh: Revision) -> Revision:
    """`fresh` becomes the service's stable revision, under the next number."""
    service = d.services[name]
    new = replace(fresh, number=service.last_revision + 1)
    d.set_service(name, revisions=(*_kept_revisions(service), new), last_revision=new.number, stable=new.number)
    return new


def settings_changed(d: Draft, event: events.SettingsChanged) -> None:
    if event.service in d.services:
        d.set_service(event.service, settings=event.settings, config_model=event.config_model)


def swap_requested(d: Draft, event: events.SwapRequested) -> Problem | str:
    planned = plan(d.before, event)
    if isinstance(planned, Problem):
        return planned
    service = d.services[event.service]
    if _way_back(d.before, service, event) is not None:
        begin_return(d, service, Phase.CANCELED, _by("returned", event))
        return event.service
    if service.swap is not None:  # soaking: a new swap ends it
        d.end_step(service.name, "soak", "done")
        d.finish_swap(service.name, Phase.SUCCEEDED, reason="its soak was ended by a new swap")
        service = d.services[event.service]
    source = _what_serves(d, service)
    number = service.last_revision + 1
    target = replace(event.candidate, number=number)
    slot = event.measurement.slot(planned.devices, planned.need_bytes)
    wish = event.strategy or service.settings.strategy
    swap = Swap(
        d.next_swap,
        service.name,
        source,
        target,
        planned.strategy,
        planned.why,
        Phase.PREPARING,
        event.actor,
        event.reason,
        d.at,
        reason=f"{target.model} is being prepared",
        parks=bool(planned.parks),
        may_stop=event.way_back or wish.value == Strategy.IN_PLACE.value,
        fallback=fallback_of(planned, wish, event.measurement),
        delivery=_delivery(event, planned) if source is not None else None,
        allow_name_mismatch=event.allow_name_mismatch,
        allow_breaking=event.allow_breaking,
        goes_back=event.goes_back,
        differences=tuple(each.text for each in breaks(event)),
    )
    d.next_swap += 1
    d.set_service(
        service.name,
        swap=swap,
        revisions=(*_kept_revisions(service), target),
        last_revision=number,
        slots=(*((n, s) for n, s in service.slots if source is not None and n == source.number), (number, slot)),
        retry_at=None,
        measuring=False,
    )
    worker = d.add_worker(service.name, slot.kind, number, 0.0)
    if swap.strategy is not Strategy.IN_PLACE:
        d.reserve(worker, slot)
    return service.name


def _delivery(event: events.SwapRequested, planned: placement.Placement) -> Delivery | None:
    in_place = planned.strategy is Strategy.IN_PLACE
    return event.delivery.in_place() if in_place and event.delivery is not None else event.delivery


def _kept_revisions(service: Service) -> tuple[Revision, ...]:
    """The latest ones, and those that clients are served by or may go back to, however old these are."""
    old = len(service.revisions) - KEPT_REVISIONS + 1
    needed = (service.stable, service.previous)
    return tuple(r for n, r in enumerate(service.revisions) if n >= old or r.number in needed)


def plan(state: State, event: events.SwapRequested) -> placement.Placement | Problem:
    """What `swap` would do with this request now: its placement, or the refusal. Changes nothing."""
    service = state.service(event.service)
    if state.stopping:
        return Problem(errors.SHUTTING_DOWN, "swapd is shutting down; no swap is begun.")
    if service is None:
        return Problem(errors.UNKNOWN_SERVICE, f"There is no service {event.service!r}.")
    if service.leaving:
        return leaving(service.name)
    if service.paused is not None:
        return service.paused
    swap = service.swap
    if swap is not None and swap.phase is not Phase.SOAKING:
        text = (
            f"Swap {swap.id} of {service.name} to {swap.target.model} is under way ({swap.phase.value});"
            f" wait for it (swapd-cli wait {service.name}) or cancel it (swapd-cli cancel {service.name})."
        )
        return Problem(errors.SWAP_IN_PROGRESS, text, {"swap": swap.id, "phase": swap.phase.value})
    if event.delivery is not None and event.delivery.rehearsal:
        refusal = _no_rehearsal(state, service)
        if refusal is not None:
            return refusal
    stable = service.revision(service.stable)
    if stable is not None and stable.same_content(event.candidate) and not event.again:
        text = (
            f"{service.name} already serves {stable.model} (revision {stable.number}) with this content and these"
            f" settings; to start it afresh: swapd-cli restart {service.name}."
        )
        serving = state.server_of(service.name)
        if serving is not None and serving.revision == stable.number:
            return Problem(errors.ALREADY_SERVING, text, {"revision": stable.number})
    back = _way_back(state, service, event)
    if back is not None:
        return _return_placement(service, back, event)
    broken = contract.not_allowed(breaks(event), names=event.allow_name_mismatch, all=event.allow_breaking)
    if broken:
        return contract.refusal(service.name, event.candidate.model, broken, event.incumbent, event.offers)
    placed = placement.place(_placement_request(state, service, event))
    if isinstance(placed, Problem) or placed.strategy is not Strategy.IN_PLACE or not event.measurement.host_note:
        return placed
    return replace(placed, why=f"{placed.why}; {event.measurement.host_note}")


def _no_rehearsal(state: State, service: Service) -> Problem | None:
    """It changes nothing: neither who serves, nor that the way back from a soak is open."""
    if service.swap is not None:
        text = (
            f"Swap {service.swap.id} of {service.name} to {service.swap.target.model} is in its soak, which a rehearsal"
            f" would end: wait until it has ended (swapd-cli wait {service.name}), or end it (swapd-cli promote"
            f" {service.name} --full)."
        )
        return Problem(errors.SWAP_IN_PROGRESS, text, {"swap": service.swap.id, "phase": service.swap.phase.value})
    if not any(w.revision == service.stable and w.can_serve for w in state.workers_of(service.name)):
        text = f"Nothing serves {service.name} now, so that there is nothing to rehearse beside."
        return Problem(errors.NOT_POSSIBLE_NOW, text)
    return None


def breaks(event: events.SwapRequested) -> tuple[contract.Difference, ...]:
    """By what both models declare, before anything is loaded: how clients would break."""
    return () if event.goes_back else contract.differences(event.incumbent, event.offers)


def can_park(state: State, service: Service) -> bool:
    """Whether what serves now can give its memory back without ending."""
    serving = (w for w in state.workers_of(service.name) if w.revision == service.stable and w.can_serve)
    return any(w.can_park for w in serving)


def _way_back(state: State, service: Service, event: events.SwapRequested) -> Worker | None:
    """The worker that the soak keeps for a return, when it is what the request asks for."""
    source = service.swap.source if service.swap is not None and service.swap.phase is Phase.SOAKING else None
    if source is None or event.again or not source.same_content(event.candidate):
        return None
    kept = (w for w in state.workers_of(service.name) if w.revision == source.number and not w.ending)
    return next((w for w in kept if w.can_serve or w.state is WorkerState.PARKED), None)


def _return_placement(service: Service, kept: Worker, event: events.SwapRequested) -> placement.Placement:
    parked = kept.state is WorkerState.PARKED
    slot = service.slot(kept.revision)
    name = f"{event.candidate.model} (revision {kept.revision})"
    return placement.Placement(
        Strategy.IN_PLACE if parked else Strategy.DUAL,
        slot.devices if slot is not None else (),
        f"a return: {name} is {'parked and is woken' if parked else 'kept in memory and takes the clients at once'}",
        alternatives=(),
        would_change=(),
        expected_outage_s=None if parked else 0.0,
        need_bytes=slot.need_bytes if slot is not None else None,
        need_source=slot.source if slot is not None else event.measurement.footprint.source,
        is_return=True,
    )


def _placement_request(state: State, service: Service, event: events.SwapRequested) -> placement.PlacementRequest:
    workers = [w for w in state.workers_of(service.name) if w.kind is not Kind.GATE]
    reserved = {r.worker_id for r in state.reservations}
    serving = tuple(w.id for w in workers if w.revision == service.stable and w.can_serve)
    held = tuple(w.id for w in workers if w.id in reserved and w.id not in serving)
    kept = service.swap.source if service.swap is not None else None  # the swap is soaking, or there is none
    wish = event.strategy or service.settings.strategy
    max_outage_s = event.max_outage_s if event.max_outage_s is not None else service.settings.max_outage_s
    everybody = ((w, s.revision(w.revision)) for s in state.services for w in state.workers_of(s.name))
    return placement.PlacementRequest(
        service=service.name,
        model=event.candidate.model,
        footprint=event.measurement.footprint,
        readings=event.measurement.readings,
        # A soak that this swap would end keeps nothing promised any more.
        reservations=tuple(r for r in promised(state) if not (r.for_return and r.service == service.name)),
        incumbents=serving,
        retiring=held,
        soaking=tuple(w.id for w in workers if kept is not None and w.revision == kept.number),
        wish=wish,
        max_outage_s=max_outage_s,
        outage_must_be_known=event.max_outage_s is not None,
        way_back=event.way_back,
        expected=event.measurement.expected,
        gpus=event.measurement.gpus,
        can_park=can_park(state, service) and event.measurement.may_park,
        parked_residue_bytes=event.measurement.parked_residue_bytes,
        model_of=tuple((w.id, revision.model) for w, revision in everybody if revision is not None),
    )


def _what_serves(d: Draft, service: Service) -> Revision | None:
    """What a failed swap goes back to. A stable revision that does not serve makes way: it is not retried while its
    successor is prepared, and what it was promised is free for others, so it would have to be admitted anew."""
    worker = d.worker_of(service.name, service.stable)
    if worker is not None and worker.can_serve:
        return service.revision(service.stable)
    if worker is not None:
        d.stop(worker, force=True)
    return None


def return_requested(d: Draft, event: events.ReturnRequested) -> Problem | str:
    service = d.services.get(event.service)
    if service is None:
        return Problem(errors.UNKNOWN_SERVICE, f"There is no service {event.service!r}.")
    swap = service.swap
    soaking = swap is not None and swap.phase is Phase.SOAKING
    if (event.only_soaking and not soaking) or (soaking and swap is not None and swap.source is None):
        text = f"{service.name} has no revision to return to; to swap to another model: swapd-cli swap."
        return Problem(errors.NOTHING_TO_ROLL_BACK, text)
    if service.paused is not None:  # the operator has looked at it
        service = d.set_service(service.name, paused=None, recoveries=0)
    if event.only_soaking:
        begin_return(d, service, Phase.CANCELED, _by("rolled back", event))
        return service.name
    if swap is None:
        return Problem(errors.NOTHING_TO_CANCEL, f"No swap of {service.name} is under way.")
    if swap.phase is Phase.SOAKING:
        begin_return(d, service, Phase.CANCELED, _by("canceled", event))
    elif swap.phase is not Phase.ROLLING_BACK:
        d.fail_swap(service.name, Problem(errors.CANCELED, _by("canceled", event)), (), Phase.CANCELED)
        d.end_candidate(service.name)
    return service.name


def _by(what: str, event: events.SwapRequested | events.ReturnRequested) -> str:
    return f"{what} by {event.actor}" + (f": {event.reason}" if event.reason else "")


def begin_return(d: Draft, service: Service, end: Phase, why: str) -> None:
    """From a soak back to the old revision."""
    swap = service.swap
    assert swap is not None
    assert swap.source is not None
    d.end_step(service.name, "soak", "failed" if end is Phase.FAILED else "canceled")
    d.set_phase(service.name, Phase.ROLLING_BACK, end_phase=end, reason=why)
    d.set_service(service.name, stable=swap.source.number, previous=0)


def shutdown_requested(d: Draft, event: events.ShutdownRequested) -> None:
    d.stopping = True
