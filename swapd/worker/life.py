"""The worker's state, shared by its two threads, and the requests that wait for the step under way.

Only `swapd.core.states` decides what is legal; this adds the lock. Knows nothing of verbs' meaning.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swapd.core import states
from swapd.core.errors import Problem, SwapdError
from swapd.core.states import WorkerState, step_worker

if TYPE_CHECKING:
    from swapd.worker.channel import Channel, Link


@dataclass(frozen=True, slots=True)
class Answer:
    """Where the reply to one request goes. May be called from any thread, once."""

    channel: Channel
    link: Link
    re: int

    def __call__(self, result: dict[str, Any] | Problem) -> None:
        self.channel.reply(self.link, self.re, result)


class Life:
    """The state of one worker. Every method may be called from any thread."""

    def __init__(self, is_owner: Callable[[], bool]) -> None:
        self._lock = threading.Lock()
        self._state = WorkerState.SPAWNED
        self._waiting: list[Answer] = []
        self._is_owner = is_owner

    @property
    def state(self) -> WorkerState:
        """A front becomes the owner when its source commits: the front is asked, never remembered."""
        with self._lock:
            return self._observed()

    def request(self, event: str) -> WorkerState:
        """The verb begins. Returns the state before it; raises SwapdError(BAD_REQUEST) naming the legal verbs."""
        with self._lock:
            before = self._observed()
            self._apply(event)
            return before

    def begin_step(self, verb: str, answer: Answer) -> bool:
        """A verb that takes its time: `answer` waits for its end. False if the same step is under way already."""
        with self._lock:
            before = self._observed()
            self._apply(verb)
            self._waiting.append(answer)
            return self._state is not before

    def end_step(self, ok: bool) -> list[Answer]:
        """The step under way has ended: who waits for it. A worker told to stop meanwhile goes on stopping."""
        with self._lock:
            if self._state is not WorkerState.STOPPING:
                self._apply(states.DONE if ok else states.STEP_FAILED)
            waiting, self._waiting = self._waiting, []
            return waiting

    def end_hand_over(self) -> None:
        """The hand-over has ended, one way or the other: whoever owns the clients now decides the state."""
        with self._lock:
            if self._state is WorkerState.HANDING_OVER:
                self._apply(states.RESUMED if self._is_owner() else states.HANDED_OVER)

    def _observed(self) -> WorkerState:
        if self._state in (WorkerState.LOADED, WorkerState.QUIESCED) and self._is_owner():
            self._apply(states.STARTED)
        return self._state

    def _apply(self, event: str) -> None:
        after = step_worker(self._state, event)
        if isinstance(after, Problem):
            raise SwapdError.of(after)
        self._state = after
