"""One worker on the host, as the daemon has it: its process, its channel, and where it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swapd.core.errors import WORKER_EXITED, Problem, SwapdError
from swapd.core.model import Kind
from swapd.daemon.hosting import WorkerProcess
from swapd.daemon.spec import Facts
from swapd.host.worker_channel import WorkerChannel


@dataclass(slots=True)
class Live:
    id: str
    directory: Path
    process: WorkerProcess
    facts: Facts
    address: str  # where it answers, to the daemon and a gate alone: unix:/path; or host:port, once it is loaded
    hello: Mapping[str, Any] = field(default_factory=dict)
    channel: WorkerChannel | None = None
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    stats: Mapping[str, Any] = field(default_factory=dict)
    shadow: Mapping[str, Any] | None = None  # a gate's: what it last told of its copies, where metrics are served
    stopping: bool = False
    upstreams: set[str] = field(default_factory=set)  # a gate's: every worker that it was ever pointed to
    cpu_weight: int | None = None  # that it was last given; None: as it was started
    access_log: tuple[tuple[int, int] | None, bool] | None = None  # a gate's: its file, and whether with queries
    access_log_problem: str = ""  # why it has none, as it was told
    condemned: Problem | None = None  # why it was killed, if it was not asked to end
    ready_in_log: int = 0  # where its log ended when it was seen ready: what ran short before then did not stop it
    reported: bool = False  # its failure to start is told by the operation, so its exit needs no telling

    @property
    def kind(self) -> Kind:
        return self.facts.kind

    @property
    def revision(self) -> int:
        return self.facts.revision.number if self.facts.revision is not None else 0

    @property
    def route(self) -> dict[str, Any]:
        """Of a gate's table, to this worker."""
        named = {"worker": self.id, "revision": self.revision, "address": self.address}
        facts = self.facts
        return {**named, "blocked": list(facts.blocked), "uid": facts.uid, "reuse": facts.reuse}

    def alive(self) -> bool:
        return self.process.alive

    async def request(
        self, verb: str, params: Mapping[str, Any] | None = None, *, fds: tuple[int, ...] = (), deadline_s: float
    ) -> Mapping[str, Any]:
        if self.channel is None:
            raise SwapdError(WORKER_EXITED, f"{self.id} does not answer yet.")
        return await self.channel.request(verb, params, fds=fds, deadline_s=deadline_s)
