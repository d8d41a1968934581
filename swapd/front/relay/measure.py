"""What clients got from each revision since a table began, and under the table before it that saw requests.

A request costs one entry in a queue when it ends; windows are filled at the beat, or when somebody asks. What is by far
the most frequent, an answer in one piece that is good, is queued as its seconds alone.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from swapd.core.window import Window
from swapd.front.relay.routing import Table

if TYPE_CHECKING:
    from swapd.front.relay.exchange import Exchange

# The reply to `stats` is one message of at most 128 KiB, with other figures in it.
MAX_TOLD_BYTES: Final = 80 * 1024


class Samples:
    """Of one revision under one table: its requests that have ended, in that order."""

    __slots__ = ("queue", "window")

    def __init__(self) -> None:
        self.queue: deque[Any] = deque()  # seconds (float), or what Window.add takes (dict)
        self.window = Window()

    def failed(self, status: int = 0) -> None:
        """An engine died, or said nonsense, or could not be reached when another one could. `status`: of an answer that
        had begun."""
        self.queue.append({"seconds": 0.0, "status": status, "failed": True})

    def answered(self, exchange: Exchange, now: float) -> None:
        """To its end, by the engine."""
        first_s, rate = exchange.first_at - exchange.sent_at, None
        if exchange.events > 1 and now > exchange.first_at:
            rate = (exchange.events - 1) / (now - exchange.first_at)
        self.queue.append(
            {
                "seconds": now - exchange.sent_at,
                "status": exchange.status,
                "failed": exchange.status >= 500,
                "first_byte": first_s,
                "tokens_per_s": rate,
                "streamed_bytes": exchange.body_bytes if exchange.events else 0,
            }
        )

    def given_up(self, seconds: float) -> None:
        """Its client had sent it all, and left before anything of the answer came: it counts with the time it waited.
        Who leaves later has got what it wanted, or not; that is not known."""
        self.queue.append({"seconds": seconds, "status": 0})

    def fill(self) -> None:
        queue, window = self.queue, self.window
        for kind, samples in groupby([queue.popleft() for _ in range(len(queue))], type):
            if kind is float:
                window.add_whole(list(samples))
            else:
                for sample in samples:
                    window.add(**sample)


class Period:
    """Of one table."""

    def __init__(self, table: Table, now: float) -> None:
        self.epoch = table.epoch
        self.began_at = now
        self.samples = {route.revision: Samples() for route in table.routes}

    def seen(self) -> bool:
        return any(samples.window.requests for samples in self.samples.values())

    def told(self, *, slices: bool) -> dict[str, Any]:
        windows = {str(revision): samples.window.to_json() for revision, samples in self.samples.items()}
        if not slices:
            for window in windows.values():
                del window["slices"]
        return {"epoch": self.epoch, "revisions": windows}


class Measure:
    def __init__(self, table: Table, now: float) -> None:
        self._lock = threading.Lock()  # `stats` is answered on another thread than the loop's
        self._now = Period(table, now)
        self._past: list[Period] = []

    def point(self, table: Table, now: float) -> None:
        """Requests that begin from here on count for this table; those in flight for the one they began with. Waits
        for nobody."""
        self._past.append(self._now)
        self._now = Period(table, now)

    def samples_of(self, revision: int) -> Samples:
        return self._now.samples[revision]

    def beat(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self._fill()
            finally:
                self._lock.release()

    def _fill(self) -> None:
        past = self._past[:]
        for period in (*past, self._now):
            for samples in period.samples.values():
                samples.fill()
        # Only the last that saw requests is told of; the newest may see some yet, which were in flight when it ended.
        last_seen = next((period for period in reversed(past) if period.seen()), None)
        for period in past[:-1]:
            if period is not last_seen:
                self._past.remove(period)

    def stats(self, now: float) -> dict[str, Any]:
        """[any thread] Without slices, and then without the table before, where it would be too long."""
        with self._lock:
            self._fill()
            current = self._now
            before = next((period for period in reversed(self._past) if period.seen()), None)
            told: dict[str, Any] = {"since": max(0.0, now - current.began_at), **current.told(slices=True)}
            told["before"] = before.told(slices=False) if before is not None else None
            if len(json.dumps(told)) > MAX_TOLD_BYTES:
                told |= current.told(slices=False)
            if len(json.dumps(told)) > MAX_TOLD_BYTES:
                told["before"] = None
            return told
