"""The verbs that only look, and can be answered without the daemon as well: `status`, `workers`, `history`, `show`,
`logs`."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from swapd.cli import render, text
from swapd.cli.render import Output
from swapd.core import errors
from swapd.core.errors import SwapdError

DONE: Final = 0

REFRESH_S: Final = 1.0
FOLLOW_S: Final = 0.5

Arguments = argparse.Namespace


class Source(Protocol):
    """Where the records come from: the daemon's client, or `Offline`."""

    def status(self, service: str | None = None) -> Any: ...
    def workers(self) -> Any: ...
    def history(self, service: str | None = None, limit: int | None = None) -> Any: ...
    def show(self, id: int) -> Any: ...
    def logs(self, target: str, lines: int | None = None, *, offset: int | None = None) -> Any: ...


class Looking:
    """One method a verb, named as it is; each returns the exit status."""

    def __init__(self, source: Source, arguments: Arguments, output: Output) -> None:
        self._source = source
        self._arguments = arguments
        self._output = output

    def run(self) -> int:
        verb: Callable[[], int] = getattr(self, self._arguments.verb.replace("-", "_"))
        return verb()

    def _json(self, value: Any) -> bool:
        """Prints the answer as it is, where --json is given."""
        if self._arguments.json:
            self._output.line(json.dumps(value, indent=2, ensure_ascii=False))
        return bool(self._arguments.json)

    def status(self) -> int:
        if self._arguments.watch:
            return self._watch_status()
        status = self._source.status(self._arguments.service)
        if not self._json(status):
            now_s = time.time()
            self._output.line(render.status_head(status))
            self._output.table(render.STATUS_HEADER, render.status_rows(status, now_s))
            self._output.lines(render.status_notes(status, now_s))
        return DONE

    def _watch_status(self) -> int:
        """On a terminal redrawn in place; in a pipe, told again when a service changes."""
        if self._output.live and not self._arguments.json:
            return self._draw_status()
        before: Any = None
        while True:
            status = self._source.status(self._arguments.service)
            rows = render.status_rows(status, time.time())
            changed = [row[:5] for row in rows]  # not the counters
            if changed != before:
                before = changed
                if self._arguments.json:
                    self._output.line(json.dumps(status, ensure_ascii=False))
                else:
                    self._output.lines(text.columns(render.STATUS_HEADER, rows))
            time.sleep(REFRESH_S)

    def _draw_status(self) -> int:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.text import Text

        console = Console(file=self._output.file, highlight=False)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                status = self._source.status(self._arguments.service)
                now_s = time.time()
                table = render.rich_table(render.STATUS_HEADER, render.status_rows(status, now_s))
                notes = "\n".join(render.status_notes(status, now_s))
                live.update(Group(Text(render.status_head(status)), table, Text(notes)), refresh=True)
                time.sleep(REFRESH_S)

    def workers(self) -> int:
        workers = self._source.workers()
        if not self._json(workers):
            self._output.table(render.WORKERS_HEADER, render.worker_rows(workers))
        return DONE

    def history(self) -> int:
        history = self._source.history(self._arguments.service, self._arguments.limit)
        if not self._json(history):
            self._output.table(render.HISTORY_HEADER, render.history_rows(history, time.time()))
        return DONE

    def show(self) -> int:
        record = self._source.show(self._arguments.id)
        if not self._json(record):
            self._output.lines(render.swap_lines(record, time.time()))
        return DONE

    def logs(self) -> int:
        target = self._arguments.target
        found = self._source.logs(target, self._arguments.lines)
        if not self._arguments.follow:
            if not self._json(found):
                self._log_lines(found)
            return DONE
        self._log_lines(found)
        while True:
            time.sleep(FOLLOW_S)
            found = self._next_log(target, found)

    def _next_log(self, target: str, last: Mapping[str, Any]) -> Mapping[str, Any]:
        """Shows what was written after `last`, and returns where it ends. A service's log becomes another one with its
        next worker: then the rest of the old one comes first, and the new one from its beginning."""
        worker = last["worker"]
        try:
            found: Mapping[str, Any] = self._source.logs(target, offset=last["offset"])
            if found["worker"] == worker:
                self._log_lines(found)
                return found
        except SwapdError as gone:
            if gone.code != errors.UNKNOWN_WORKER or target == worker:
                raise
            return last  # its log was tidied away, and the next worker has none yet
        with contextlib.suppress(SwapdError):  # tidied away meanwhile
            while (rest := self._source.logs(worker, offset=last["offset"]))["offset"] > last["offset"]:
                self._log_lines(rest)
                last = rest
        self._output.line(f"==> {text.printable(found['worker'])}")
        return {"worker": found["worker"], "offset": 0}

    def _log_lines(self, found: Mapping[str, Any]) -> None:
        for line in found["lines"]:
            # In a pipe as it was written; on a terminal it must not steer it.
            self._output.line(text.printable(line) if self._output.live else line)
