"""What a front tells the daemon, and the little that its parts share.

Times are CLOCK_MONOTONIC seconds, comparable between the processes of a host.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from dataclasses import dataclass, field
from typing import Protocol

from swapd.front.peer import PeerLink


@dataclass(frozen=True, slots=True)
class HandOverReport:
    """Times are CLOCK_MONOTONIC seconds, comparable between processes. `blocked`: the loop did not answer, so only
    the listeners moved at once; the connections follow. `turned_away`: clients that a gate answered with 503 since it
    became the owner."""

    quiesced_at: float
    started_at: float
    listeners: int
    moved: int
    stragglers: int
    blocked: bool = False
    turned_away: int = 0


@dataclass(frozen=True, slots=True)
class PointReport:
    """Between the two times nothing begins. `turned_away`: clients who got a 503 since the gate last began to hold."""

    quiesced_at: float
    started_at: float
    held: int
    turned_away: int


@dataclass(frozen=True, slots=True)
class SourceDeadReport:
    started: bool
    listeners: list[str]
    connections: int


@dataclass(frozen=True, slots=True)
class DrainReport:
    finished: int
    cut: int
    left: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """`epoch` is the last that this front has heard of; the times are those of its last transfers."""

    epoch: int
    quiesced_at: float | None
    started_at: float | None


@dataclass(frozen=True, slots=True)
class FrontStats:
    owner: bool
    epoch: int
    connections: int
    idle: int
    in_flight: int
    streams: int
    upgraded: int
    held: int
    requests: int
    cut: int
    oldest_in_flight_s: float
    loop_blocked_s: float
    stragglers: int
    quiet_s: float | None  # since the model here last sent a part of an answer that is no 5xx; None: it has not yet


class Copy(Protocol):
    """A connection that may follow its listener: our copy of its descriptor, and what was read from it."""

    fd: int
    gone: bool

    def carried(self) -> bytes: ...

    def release(self) -> None:
        """Another front has it: close our copy."""


@dataclass(slots=True)
class Giving:
    """One hand-over in which this front is the source."""

    epoch: int
    quiesced_at: float
    listeners: int = 0
    blocked: bool = False  # a thread gives the listeners; `link` is None until the loop is back
    link: PeerLink | None = None
    offered: list[Copy] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    reason: str = ""
    done: concurrent.futures.Future[HandOverReport] = field(default_factory=concurrent.futures.Future)
