"""What the line of a log belongs to: the swap, worker and operation in whose course it was written.

A line that an operation causes in any part of the daemon, on its loop or on another thread, ends with the words of it
that the line has not itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final


@dataclass(slots=True)
class Work:
    """Whatever an operation has begun that goes on after it (a watcher of the process that it started) has its context
    still: by then `over` says that it is not its work any more."""

    words: dict[str, object]
    over: bool = False


_NOW: Final[ContextVar[Work | None]] = ContextVar("work", default=None)


@contextlib.contextmanager
def course_of(**words: object) -> Iterator[None]:
    """Words whose value is None are not known."""
    work = Work({name: value for name, value in words.items() if value is not None})
    token = _NOW.set(work)
    try:
        yield
    finally:
        work.over = True
        _NOW.reset(token)


class Formatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without a traceback, which follows it."""
        line = super().formatMessage(record)
        work = _NOW.get()
        if work is None or work.over:
            return line
        missing = [f"{name}={value}" for name, value in work.words.items() if f"{name}=" not in record.message]
        return " ".join([line, *missing])
