"""The loop: the only owner of the state.

An event comes in, `core.rollout.step` decides, the journal has it before any of it is done, and then the effects
go to the executor. `take` runs to its end without a pause, so events never interleave; whoever wants to act on
the state sends an event and does not decide on a read of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from swapd.core.errors import Problem
from swapd.core.events import Event, Exit, Measure, Outcome, Publish, Run, WakeAt
from swapd.core.model import State, Swap
from swapd.core.redact import Redactor
from swapd.core.rollout import step
from swapd.core.telling import troubles
from swapd.daemon.records import Records

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
        records: Records,
        effects: Effects,
        publish: Callable[[str, Mapping[str, Any]], None],
        redactor: Redactor | None = None,
    ) -> None:
        self.state = state
        self.redactor = redactor or Redactor()
        self.observe: Callable[[State, Event, Outcome], None] = lambda before, event, outcome: None  # told of each step
        self._records = records
        self._effects = effects
        self._publish = publish

    @property
    def journal_problem(self) -> Problem | None:
        return self._records.problem

    def take(self, event: Event) -> Swap | Problem | None:
        """Decide on one event and begin what follows from it. Returns the answer to a command."""
        event = self.redactor.event(event)  # here, since whatever is told or kept comes from the state and its events
        outcome = step(self.state, event)
        self._records.write(outcome, event)
        for name, words in troubles(self.state, event, outcome.state):
            log.warning("%s %s", name, _line(words))
        self.observe(self.state, event, outcome)
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

    def _tell(self, effect: Publish) -> None:
        if effect.event != "swap.step" or effect.body.get("status") != "running":
            log.info("%s %s", effect.event, _line(effect.body))
        self._publish(effect.event, effect.body)


def _line(body: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={_word(v)}" for k, v in body.items() if v not in (None, ""))


def _word(value: object) -> str:
    text = " ".join(str(value).split())  # a model's own words may have lines
    return f'"{text}"' if " " in text else text
