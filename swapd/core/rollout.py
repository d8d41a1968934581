"""`step(state, event) -> Outcome`: the only way the daemon's state changes.

Pure and total: no I/O, no clock, no randomness, and an event that makes no sense here (a late result, a worker
that is gone) changes nothing. What an event *means* is decided here; what is to be done about it, in `advance`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from swapd.core import commands, controls, events, recovery, results
from swapd.core.advance import advance
from swapd.core.commands import can_park, plan
from swapd.core.draft import Draft
from swapd.core.errors import Problem
from swapd.core.events import Event, Outcome
from swapd.core.model import State, Swap
from swapd.core.states import Phase, WorkerState
from swapd.core.telling import tell

__all__ = ["can_park", "plan", "step"]

ROUNDS: Final = 8  # two are the most that the simulator has needed; a bound, so that `step` always ends


def step(state: State, event: Event) -> Outcome:
    """The state after `event`, what to do about it, and the answer if it was a command."""
    draft = Draft(state, event.at)
    handler: Callable[[Draft, Any], Swap | Problem | str | None] = _HANDLERS[type(event)]
    answer = handler(draft, event)
    if isinstance(answer, Problem):
        return Outcome(state, reply=answer)  # a refusal leaves everything untouched
    _advance_all(draft)
    _note_kept(draft)
    recovery.note_settled(draft)
    tell(draft)
    reply = answer
    if isinstance(answer, str):  # the service whose swap answers the command
        service = draft.services[answer]
        reply = service.swap or next((s for s in reversed(draft.finished_swaps) if s.service == answer), None)
    return draft.outcome(reply if not isinstance(reply, str) else None)


def _advance_all(draft: Draft) -> None:
    """Until nothing changes any more: what one rule has ended (a worker that was never spawned, a swap) another may
    have waited for, and no further event would come to tell it."""
    for _ in range(ROUNDS):
        before = draft.values()
        for name in list(draft.services):
            advance(draft, name)
        if draft.values() == before:
            return


def _note_kept(draft: Draft) -> None:
    """What became of the old revision's worker. Looked up, not inferred from the swap's steps: it may end by itself."""
    for service in list(draft.services.values()):
        swap = service.swap
        if swap is None or swap.phase is not Phase.SOAKING or swap.source is None:
            continue
        worker = draft.worker_of(service.name, swap.source.number)
        kept = "stopped"
        if worker is not None and worker.connected:
            kept = "parked" if worker.state is WorkerState.PARKED else "resident" if worker.verified else "stopped"
        if swap.kept != kept:
            draft.set_swap(service.name, kept=kept)


_HANDLERS: Final[dict[type, Callable[[Draft, Any], Any]]] = {
    events.ServiceAdded: commands.service_added,
    events.SettingsChanged: commands.settings_changed,
    events.ServiceRemoved: commands.service_removed,
    events.SwapRequested: commands.swap_requested,
    events.ReturnRequested: commands.return_requested,
    events.ShutdownRequested: commands.shutdown_requested,
    events.Resumed: controls.resumed,
    events.PauseRequested: controls.pause_requested,
    events.PromoteRequested: controls.promote_requested,
    events.Recovered: recovery.recovered,
    events.JournalFound: recovery.journal_found,
    events.Measured: results.measured,
    events.OpDone: results.op_done,
    events.OpFailed: results.op_failed,
    events.WorkerExited: results.worker_exited,
    events.WorkerHung: results.worker_hung,
    events.ContentChanged: results.content_changed,
    events.SuccessorNeeded: results.successor_needed,
    events.PeakSeen: results.peak_seen,
    events.Judged: controls.judged,
    events.TimerFired: results.timer_fired,
}
