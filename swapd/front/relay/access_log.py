"""One line of JSON for each request that a gate has answered, or turned away: to a file, off the loop, not waited for.

The descriptor comes from the daemon, opened to append: a gate may not write into the log's directory, and the daemon
rotates the file as it does every worker's log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from swapd.front.relay.heads import HEAD_END, BadHead, parse_request

if TYPE_CHECKING:
    from swapd.front.relay.exchange import Exchange

log = logging.getLogger("swapd.relay")

MAX_QUEUED: Final = 20_000  # some 10 MB; what comes when the disk is that far behind is not logged, but counted
FLUSH_S: Final = 0.25
BATCH: Final = 16  # lines; between two batches the loop gets its turn
MAX_TARGET: Final = 2048
LAST_S: Final = 1.0  # at the end, for what is still queued


class AccessLog:
    def __init__(self, descriptor: int, service: str, *, query: bool) -> None:
        """Takes over the descriptor. `query`: of a request's target that is logged too."""
        self.written = 0
        self.dropped = 0
        self._descriptor = descriptor
        self._service = service
        self._query = query
        self._queue: deque[dict[str, Any]] = deque()
        self._ended = threading.Event()
        self._told_at: float | None = None  # when it last said that it cannot write
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def note(self, exchange: Exchange, now: float) -> None:
        """A request that is over. Times are CLOCK_MONOTONIC."""
        upstream, choice, head = exchange.upstream, exchange.choice, exchange.head
        route = upstream.route if upstream is not None else None
        sent_at = exchange.sent_at if route is not None else now
        answered = route is not None and exchange.first_at
        other = choice.instead_of if choice is not None else None
        self._note(
            {
                "revision": route.revision if route is not None else None,
                "worker": route.worker if route is not None else None,
                "method": head.method,
                "path": head.target,
                "status": exchange.status or None,
                "bytes": exchange.body_bytes,
                "first_byte_ms": _ms(exchange.first_at - sent_at) if answered else None,
                "held_ms": _ms(sent_at - exchange.came_at),
                "total_ms": _ms(now - exchange.came_at),
                "request_id": head.request_id,
                "chosen_by": choice.how if choice is not None and route is not None else None,
                "instead_of": other.worker if other is not None else None,
                "error": exchange.error,
            }
        )

    def note_turned_away(self, seen: bytes, waited_s: float, code: str) -> None:
        """A request that got a 503 before it was read. `seen`: what has come of it."""
        head, ms = None, _ms(waited_s)
        with contextlib.suppress(BadHead):
            end = seen.find(HEAD_END)
            head = parse_request(seen[: end + len(HEAD_END)]) if end >= 0 else None
        self._note(
            {
                **{"revision": None, "worker": None},
                "method": head.method if head is not None else b"",
                "path": head.target if head is not None else b"",
                **{"status": 503, "bytes": 0, "first_byte_ms": None, "held_ms": ms, "total_ms": ms},
                "request_id": head.request_id if head is not None else b"",
                **{"chosen_by": None, "instead_of": None, "error": code},
            }
        )

    def _note(self, entry: dict[str, Any]) -> None:
        if len(self._queue) >= MAX_QUEUED:
            self.dropped += 1
        else:
            self._queue.append({"time": time.time(), "service": self._service, **entry})

    def stats(self) -> dict[str, int]:
        """[any thread]"""
        return {"written": self.written, "dropped": self.dropped}

    def end(self) -> None:
        """Write what is there, and let go."""
        self._ended.set()

    def wait(self) -> None:
        """Until that is done, LAST_S at most."""
        self._thread.join(LAST_S)

    # --- on its thread -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            ended = self._ended.wait(FLUSH_S)
            while self._queue:
                self._write([self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))])
                time.sleep(0)
            if ended:
                os.close(self._descriptor)
                return

    def _write(self, entries: list[dict[str, Any]]) -> None:
        data = b"".join(self._line(entry) for entry in entries)
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            self.written += len(entries)
        except OSError as error:
            self.dropped += len(entries)
            now = time.monotonic()
            if self._told_at is None or now - self._told_at > 60.0:
                self._told_at = now
                log.warning("relay.access_log_not_written error=%s dropped=%d", error, self.dropped)

    def _line(self, entry: dict[str, Any]) -> bytes:
        at = datetime.fromtimestamp(entry["time"], timezone.utc).isoformat(timespec="milliseconds")
        entry["time"] = at.replace("+00:00", "Z")
        if not self._query:
            entry["path"] = entry["path"].partition(b"?")[0]
        for key in ("method", "path", "request_id"):
            entry[key] = entry[key][:MAX_TARGET].decode("latin-1")
        return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def _ms(seconds: float) -> float:
    return round(max(0.0, seconds) * 1000, 3)
