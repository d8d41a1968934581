"""A swap's stages: which worker clients are answered by meanwhile, and when the next stage, or the cutover, has come.

Level-triggered like the rest of `advance`. What the controls of an operator (`core.controls`) change is the swap, and
what follows from it is looked up here.
"""

from __future__ import annotations

from swapd.core import errors
from swapd.core.delivery import Delivery, Pause, Split, Stage, StageKind, Then, turn
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.evidence import Outcome
from swapd.core.model import Revision, Service, Swap, Worker
from swapd.core.states import FORWARD, Phase


def stage_of(swap: Swap) -> Stage | None:
    """The stage that it is in, or comes to as soon as its candidate is ready. None: clients may be switched."""
    return swap.delivery.stage(swap.stage) if swap.delivery is not None and swap.phase in FORWARD else None


def answering(service: Service, goal: Revision | None) -> Revision | None:
    """The revision that clients shall be answered by now: the stable one until the candidate may have them."""
    swap = service.swap
    if swap is None or swap.source is None or swap.phase not in FORWARD:
        return goal
    return swap.source if swap.phase is Phase.PAUSED or stage_of(swap) is not None else goal


def split_for(d: Draft, service: Service, main: Worker) -> Split | None:
    """Who else a gate's table names beside `main`, who answers."""
    swap = service.swap
    if swap is None or swap.source is None or swap.delivery is None:
        return None
    candidate, stable = (d.worker_of(service.name, r.number) for r in (swap.target, swap.source))
    stage = stage_of(swap)
    if stage is not None and main == stable and candidate is not None and candidate.can_serve:
        if swap.phase is Phase.PAUSED and swap.stage_at is None:
            return _as_it_is(d, service, candidate)
        if stage.kind is StageKind.SHADOW:
            return Split(candidate.id, shadow=True, round=swap.round)
        return Split(candidate.id, stage.percent, round=swap.round)
    soaks = swap.phase is Phase.SOAKING and main == candidate
    if soaks and swap.delivery.session_key and stable is not None and stable.can_serve:
        return Split(stable.id, sessions=True)
    return None


def _as_it_is(d: Draft, service: Service, candidate: Worker) -> Split | None:
    """In a pause no stage begins; the share of the one before goes on."""
    owner = d.owner_of(service.name)
    split = owner.split if owner is not None else None
    return split if split is not None and split.worker == candidate.id else None


def proceed(d: Draft, name: str) -> None:
    """On to the next stage where this one has ended; what follows a verdict."""
    service = d.services[name]
    swap = service.swap
    if swap is None or swap.delivery is None or swap.phase not in (Phase.PREPARING, Phase.PROGRESSING, Phase.PAUSED):
        return
    stage, candidate = stage_of(swap), d.worker_of(name, swap.target.number)
    if stage is None or candidate is None or not candidate.can_serve:
        return
    if swap.phase is Phase.PAUSED:
        finding = swap.finding
        if finding is not None and finding.outcome is Outcome.FAIL and swap.delivery.on_fail is Then.ABORT:
            _abort(d, name, stage, finding.text)
    elif not (_stable_serves(d, name, swap) or swap.delivery.rehearsal):
        why = f"nobody else answers the clients, and {swap.target.model} has answered its probes"
        _end_stage(d, name, "canceled", why)
        d.set_swap(name, stage=len(swap.delivery.stages))
    elif swap.stage_at is not None:
        _take_turn(d, name, swap, swap.delivery, stage)


def _stable_serves(d: Draft, name: str, swap: Swap) -> bool:
    """It answers the clients, or will as soon as a gate before it is there again."""
    stable = d.worker_of(name, swap.source.number) if swap.source is not None else None
    return d.server_of(name) is not None or (stable is not None and stable.can_serve)


def _take_turn(d: Draft, name: str, swap: Swap, delivery: Delivery, stage: Stage) -> None:
    assert swap.stage_at is not None
    now = turn(delivery, stage, swap.stage_at, d.at, swap.finding)
    if now.then is Then.PROMOTE:
        next_stage(d, name, now.why)
    elif now.then is Then.PAUSE:
        pause(d, name, Pause(d.at, now.why))
    elif now.then is Then.ABORT:
        _abort(d, name, stage, now.why)
    elif now.look_at is not None:
        d.wake_at(name, now.look_at)


def _abort(d: Draft, name: str, stage: Stage, why: str) -> None:
    _end_stage(d, name, "failed", why)
    d.fail_swap(name, Problem(errors.ANALYSIS_FAILED, f"{stage.name}: {why}"), (), Phase.FAILED)
    d.end_candidate(name)


def begin_stage(d: Draft, name: str, split: Split | None) -> None:
    """A gate that has the clients goes by a table with this split."""
    swap = d.services[name].swap
    stage = stage_of(swap) if swap is not None else None
    if swap is None or stage is None or split is None or swap.stage_at is not None:
        return
    d.set_swap(name, stage_at=d.at, finding=None)
    d.begin_step(name, stage.name)


def begin_again(d: Draft, name: str, why: str) -> None:
    """What was measured is gone with the gate that did."""
    swap = d.services[name].swap
    if swap is not None and stage_of(swap) is not None and swap.stage_at is not None:
        _end_stage(d, name, "canceled", why)
        d.set_swap(name, stage_at=None, finding=None)


def next_stage(d: Draft, name: str, why: str, *, to_the_end: bool = False) -> None:
    """This one is over; after the last comes the cutover, or a rehearsal's end."""
    _end_stage(d, name, "done", why)
    swap = d.services[name].swap
    assert swap is not None
    assert swap.delivery is not None
    following = len(swap.delivery.stages) if to_the_end else swap.stage + 1
    swap = d.set_swap(name, stage=following, stage_at=None, finding=None)
    if swap.delivery is not None and swap.delivery.rehearsal and stage_of(swap) is None:
        _end_rehearsal(d, name, why)


def _end_rehearsal(d: Draft, name: str, why: str) -> None:
    swap = d.services[name].swap
    assert swap is not None
    if swap.phase is Phase.PREPARING:
        d.set_phase(name, Phase.PROGRESSING)
    d.finish_swap(name, Phase.SUCCEEDED, reason=f"rehearsed, and nothing was changed: {why}")


def _end_stage(d: Draft, name: str, status: str, why: str) -> None:
    swap = d.services[name].swap
    stage = stage_of(swap) if swap is not None else None
    if stage is not None:
        d.end_step(name, stage.name, status, why)


# --- pauses ----------------------------------------------------------------------------------------------------


def pause(d: Draft, name: str, why: Pause) -> None:
    d.set_phase(name, Phase.PAUSED, paused=why, reason=why.why)


def go_on(d: Draft, name: str) -> None:
    """After a pause: its time does not count, and a verdict that led to it is asked for anew. What has failed is not
    measured on with what made it fail."""
    swap = d.services[name].swap
    assert swap is not None
    assert swap.paused is not None
    since, paused, finding = swap.stage_at, swap.paused, swap.finding
    failed = finding is not None and finding.outcome is Outcome.FAIL
    if since is not None:
        since = since + d.at - max(since, paused.at) if paused.actor else d.at
    phase = Phase.PREPARING if swap.stage == 0 and since is None else Phase.PROGRESSING
    d.set_phase(name, phase, paused=None, stage_at=since, reason=f"{swap.target.model} is on its way")
    if not paused.actor:
        d.set_swap(name, finding=None)
    if failed:
        _end_stage(d, name, "failed", finding.text if finding is not None else "")
        d.set_swap(name, round=swap.round + 1, stage_at=None, finding=None)
