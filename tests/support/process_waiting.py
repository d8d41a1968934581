"""Waiting on conditions with a deadline, for tests of processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
DEADLINE_S = 30.0  # a shared machine may be slow; only a failing test ever waits this long


def wait_until(condition: Callable[[], T], what: str = "the condition", deadline_s: float = DEADLINE_S) -> T:
    until_s = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > until_s:
            raise AssertionError(f"{what} did not come true within {deadline_s:g} s")
        time.sleep(0.01)
    return value


async def await_until(condition: Callable[[], T], what: str = "the condition", deadline_s: float = DEADLINE_S) -> T:
    until_s = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > until_s:
            raise AssertionError(f"{what} did not come true within {deadline_s:g} s")
        await asyncio.sleep(0.01)
    return value


def is_running(pid: int) -> bool:
    """Alive, and not merely a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
