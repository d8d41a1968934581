"""The loop: the only owner of the state.

An event comes in, `core.rollout.step` decides, the journal has it before any of it is done, and then the effects
go to the executor. `take` runs to its end without a pause, so events never interleave; whoever wants to act on
the state sends an event and does not decide on a read of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from swapd.core.errors import Problem, SwapdError
from swapd.core.events import Amend, Event, Exit, Measure, OpDone, OpFailed, Outcome, Publish, Run, WakeAt
from swapd.core.model import Revision, Service, State, Swap
from swapd.core.redact import Redactor
from swapd.core.report import problem_record, swap_record
from swapd.core.rollout import step
from swapd.core.telling import troubles
from swapd.host.journal import Journal

log = logging.getLogger("swapd.loop")


class Effects(Protocol):
    """What the loop asks of the host. None of these may call back before it returns."""

    def run(self, effect: Run) -> None: ...
    def measure(self, effect: Measure) -> None: ...
    def wake_at(self, effect: WakeAt) -> None: ...
    def exit(self) -> None: ...


class Loop:
    def __init__(
        self,
        state: State,
        journal: Journal,
        effects: Effects,
        publish: Callable[[str, Mapping[str, Any]], None],
        redactor: Redactor | None = None,
    ) -> None:
        self.state = state
        self.redactor = redactor or Redactor()
        self.journal_problem: Problem | None = None
        self._written = state  # what the journal holds: older than `state` while it cannot be written
        self._unwritten: list[Swap] = []  # swaps that ended meanwhile
        self._journal = journal
        self._effects = effects
        self._publish = publish

    def take(self, event: Event) -> Swap | Problem | None:
        """Decide on one event and begin what follows from it. Returns the answer to a command."""
        event = self.redactor.event(event)  # here, since whatever is told or kept comes from the state and its events
        outcome = step(self.state, event)
        self._write(outcome, event)
        for name, words in troubles(self.state, event, outcome.state):
            log.warning("%s %s", name, _line(words))
        self.state = outcome.state
        for effect in outcome.effects:
            if isinstance(effect, Run):
                self._effects.run(effect)
            elif isinstance(effect, Measure):
                self._effects.measure(effect)
            elif isinstance(effect, WakeAt):
                self._effects.wake_at(effect)
            elif isinstance(effect, Publish):
                self._tell(effect)
            elif isinstance(effect, Exit):
                self._effects.exit()
        return outcome.reply

    # --- the journal ---------------------------------------------------------------------------------------------

    def _write(self, outcome: Outcome, event: Event) -> None:
        """One transaction for the step. A journal that fails stops new swaps, never the service.

        What it missed of the state is written once it works again: a restarted daemon goes by it.
        """
        self._unwritten += outcome.finished
        try:
            with self._journal.transaction():
                self._write_state(outcome.state)
                if isinstance(event, OpDone):
                    self._journal.conclude(event.op, {"ok": dict(event.result)}, event.at)
                elif isinstance(event, OpFailed):
                    self._journal.conclude(event.op, {"error": problem_record(event.problem)}, event.at)
                for effect in outcome.effects:
                    self._write_effect(outcome.state, effect, event.at)
        except SwapdError as error:
            if self.journal_problem is None:
                log.error("journal.failed %s", error.message)
            self.journal_problem = error.problem
        else:
            self.journal_problem = None
            self._written, self._unwritten = outcome.state, []

    def _write_state(self, state: State) -> None:
        before = self._written
        for service in state.services:
            old = before.service(service.name)
            if old is None or _durable(old) != _durable(service):
                self._journal.save_service(service.name, _durable(service))
            if service.swap is not None and (old is None or old.swap != service.swap):
                self._journal.save_swap(swap_record(service.swap))
        if before.next_worker != state.next_worker:
            self._journal.save_number("next_worker", state.next_worker)
        for swap in self._unwritten:
            self._journal.save_swap(swap_record(swap))

    def _write_effect(self, state: State, effect: object, at: float) -> None:
        if isinstance(effect, Run):
            op = effect.op
            service = state.service(op.service)
            swap_id = service.swap.id if service is not None and service.swap is not None else None
            args = {"target": op.target, "epoch": op.epoch, "deadline_s": op.deadline_s, "force": op.force}
            self._journal.intend(op.id, swap_id, op.service, op.worker, op.kind.value, args, at)
        elif isinstance(effect, Publish):
            self._journal.add_transition(effect.body.get("swap_id"), effect.event, effect.body, at)
        elif isinstance(effect, Amend):
            record = self._journal.last_swap_from(effect.service, effect.revision)
            if record is not None:
                record["cut_requests"] += effect.cut_requests
                self._journal.save_swap(record)

    def _tell(self, effect: Publish) -> None:
        if effect.event != "swap.step" or effect.body.get("status") != "running":
            log.info("%s %s", effect.event, _line(effect.body))
        self._publish(effect.event, effect.body)


def _line(body: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={_word(v)}" for k, v in body.items() if v not in (None, ""))


def _word(value: object) -> str:
    text = " ".join(str(value).split())  # a model's own words may have lines
    return f'"{text}"' if " " in text else text


def _durable(service: Service) -> dict[str, Any]:
    """What a restarted daemon must know of a service."""
    return {
        "config_model": service.config_model,
        "epoch": service.epoch,
        "stable": revision_record(service.revision(service.stable)),
        "previous": revision_record(service.revision(service.previous)),
        "last_revision": service.last_revision,
    }


def revision_record(revision: Revision | None) -> dict[str, Any] | None:
    if revision is None:
        return None
    return {
        "number": revision.number,
        "model": revision.model,
        "settings_digest": revision.settings_digest,
        "fingerprint": revision.fingerprint,
    }


def revision_from(service: str, record: Mapping[str, Any] | None) -> Revision | None:
    if record is None:
        return None
    return Revision(record["number"], service, record["model"], record["settings_digest"], record["fingerprint"])
