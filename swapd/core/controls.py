"""What an operator does to a swap under way, and what a verdict does: `pause`, `resume`, `promote`, and `cancel` (which
`core.commands` has, being a return as well). One that makes no sense now is refused, and those that do are named."""

from __future__ import annotations

from typing import Final

from swapd.core import errors, events, recovery
from swapd.core.delivery import Pause
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.evidence import Outcome
from swapd.core.model import Service, Swap
from swapd.core.stages import go_on, next_stage, pause, stage_of
from swapd.core.states import Phase

PAUSE: Final = "pause"
RESUME: Final = "resume"
PROMOTE: Final = "promote"
PROMOTE_FULL: Final = "promote --full"
CANCEL: Final = "cancel"
ROLLBACK: Final = "rollback"


def possible(swap: Swap) -> tuple[str, ...]:
    """The controls that make sense where it stands."""
    in_stages = swap.delivery is not None and stage_of(swap) is not None
    unproved = swap.delivery is not None and swap.delivery.rehearsal and swap.stage_at is None
    match swap.phase:
        case Phase.PREPARING:
            return (PAUSE, *((PROMOTE_FULL,) if in_stages and not unproved else ()), CANCEL)
        case Phase.PAUSED if unproved:
            return (RESUME, CANCEL)  # a rehearsal that ends well has at least begun
        case Phase.PROGRESSING if in_stages:
            return (PAUSE, PROMOTE, PROMOTE_FULL, CANCEL)
        case Phase.PAUSED:
            return (RESUME, PROMOTE, PROMOTE_FULL, CANCEL)
        case Phase.SOAKING:
            return (PROMOTE_FULL, CANCEL, ROLLBACK)
        case Phase.ROLLING_BACK:
            return ()
        case _:
            return (CANCEL,)


def pause_requested(d: Draft, event: events.PauseRequested) -> Problem | str:
    swap = _swap_for(d, event.service, PAUSE)
    if isinstance(swap, Problem):
        return swap
    if swap.source is None:
        text = f"Nothing else answers the clients of {event.service}: a pause would only make them wait."
        return Problem(errors.NOT_POSSIBLE_NOW, text)
    why = f"paused by {event.actor}" + (f": {event.reason}" if event.reason else "")
    pause(d, event.service, Pause(d.at, why, event.actor))
    return event.service


def resumed(d: Draft, event: events.Resumed) -> Problem | str | None:
    service = d.services.get(event.service)
    if service is None or service.paused is not None or service.swap is None:
        return recovery.resumed(d, event)
    swap = _swap_for(d, event.service, RESUME)
    if isinstance(swap, Problem):
        return swap
    go_on(d, event.service)
    return event.service


def promote_requested(d: Draft, event: events.PromoteRequested) -> Problem | str:
    swap = _swap_for(d, event.service, PROMOTE_FULL if event.full else PROMOTE)
    if isinstance(swap, Problem):
        return swap
    why = f"promoted by {event.actor}" + (f": {event.reason}" if event.reason else "")
    if swap.phase is Phase.SOAKING:
        d.end_step(event.service, "soak", "done", why)
        d.finish_swap(event.service, Phase.SUCCEEDED, reason=f"{swap.target.model} serves; {why}")
        return event.service
    if swap.phase is Phase.PAUSED:
        go_on(d, event.service)
    if stage_of(swap) is not None:
        next_stage(d, event.service, why, to_the_end=event.full)
    return event.service


def judged(d: Draft, event: events.Judged) -> None:
    """`core.advance` looks up what follows."""
    service = d.services.get(event.service)
    swap = service.swap if service is not None else None
    if swap is None or swap.id != event.swap or swap.delivery is None:
        return
    known = swap.finding
    if swap.phase is Phase.PAUSED and known is not None and known.outcome is Outcome.FAIL:
        return  # what has failed is not measured on
    stage = None if swap.phase is Phase.SOAKING else swap.stage
    of_a_stage = swap.phase in (Phase.PROGRESSING, Phase.PAUSED) and swap.stage_at is not None
    if stage == event.stage and (swap.phase is Phase.SOAKING or of_a_stage):
        d.set_swap(event.service, finding=event.finding)


def _swap_for(d: Draft, name: str, control: str) -> Swap | Problem:
    """The service's swap, where this makes sense now."""
    service: Service | None = d.services.get(name)
    if service is None:
        return Problem(errors.UNKNOWN_SERVICE, f"There is no service {name!r}.")
    if service.swap is None:
        return Problem(errors.NOT_POSSIBLE_NOW, f"No swap of {name} is under way: there is nothing to {control}.")
    legal = possible(service.swap)
    if control in legal or (control == PROMOTE and PROMOTE_FULL in legal and service.swap.phase is Phase.SOAKING):
        return service.swap
    now = f"possible now: {', '.join(legal)}" if legal else "wait until it has ended"
    text = f"{control} is not possible while swap {service.swap.id} of {name} is {service.swap.phase.value}; {now}."
    return Problem(errors.NOT_POSSIBLE_NOW, text, {"phase": service.swap.phase.value, "possible": list(legal)})
