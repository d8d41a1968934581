"""What can be said of the services without a daemon: records made of the journal's rows and the workers' own words.

Duty: the shapes of `core.report`, as far as they are known. What only a daemon knows (memory reserved and used, who
steers) stays None, and health is another word: not whether the wanted revision serves, but what clients get. Pure.
Rows of the journal may be of any version of swapd, so what is missing in them is not known, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from swapd.core.errors import TIMEOUT, WORKER_EXITED
from swapd.core.model import Kind
from swapd.core.states import FORWARD, TERMINAL, Phase

Record = Mapping[str, Any]

_ENDED: Final = frozenset(phase.value for phase in TERMINAL)
_BROUGHT: Final = (Phase.SOAKING.value, Phase.SUCCEEDED.value)


class Reach(str, Enum):
    """What clients get, by the workers' word."""

    SERVING = "Serving"  # a worker has the addresses, and a model answers
    HOLDING = "Holding"  # a gate has them, and lets clients wait
    DOWN = "Down"  # nobody alive has them, or the gate's model is gone
    UNKNOWN = "Unknown"  # who might have them does not answer


@dataclass(frozen=True, slots=True)
class Seen:
    """One worker's directory, and what its process says. `gone`: nobody listens there any more. `problem`: why there
    is no answer."""

    id: str
    service: str
    kind: str  # a Kind's value
    revision: int
    model: str
    devices: tuple[str, ...] = ()  # that it was placed on
    pid: int | None = None
    uptime_s: float | None = None
    version: str | None = None
    stats: Record = field(default_factory=dict)
    gone: bool = False
    problem: str | None = None

    @property
    def answers(self) -> bool:
        return self.problem is None and not self.gone

    @property
    def is_gate(self) -> bool:
        return self.kind == Kind.GATE.value


@dataclass(frozen=True, slots=True)
class Known:
    """Of one service: its row in the journal, its swaps (newest first), its configuration and its workers."""

    name: str
    row: Record = field(default_factory=dict)
    swaps: Sequence[Record] = ()
    listen: Sequence[str] = ()
    config_model: str | None = None
    workers: Sequence[Seen] = ()

    @property
    def owner(self) -> Seen | None:
        """Who has the listeners. In the middle of a hand-over two may say so: the later epoch is right."""
        owners = [w for w in self.workers if w.answers and w.stats.get("owner")]
        return max(owners, key=lambda w: w.stats.get("epoch") or 0, default=None)

    @property
    def server(self) -> Seen | None:
        """Who answers the clients: the owner's own model, or whom the owner, a gate, points to."""
        owner = self.owner
        if owner is None or not owner.is_gate:
            return owner
        return next((w for w in self.workers if w.id == owner.stats.get("points_to")), None)

    @property
    def last_swap(self) -> Record | None:
        return self.swaps[0] if self.swaps else None

    @property
    def under_way(self) -> Record | None:
        """The swap that nobody has ended: Soaking is one."""
        swap = self.last_swap
        return swap if swap is not None and swap["phase"] not in _ENDED else None


def revision_in(row: Record, key: str) -> Record | None:
    """`stable` or `previous` of a service's row: {"number", "model", …}. A row holds it whole, or as the number of one
    of its `revisions`."""
    value = row.get(key)
    if isinstance(value, Mapping):
        return value
    revisions = row.get("revisions")
    if isinstance(value, int) and isinstance(revisions, list):
        return next((r for r in revisions if isinstance(r, Mapping) and r.get("number") == value), None)
    return None


def reach(known: Known) -> Reach:
    owner, server = known.owner, known.server
    if owner is None:
        silent = any(not w.gone and not w.answers for w in known.workers)
        return Reach.UNKNOWN if silent else Reach.DOWN
    if owner.is_gate and owner.stats.get("points_to") is None:
        return Reach.HOLDING if "points_to" in owner.stats else Reach.UNKNOWN
    if server is None or server.gone:
        return Reach.DOWN
    return Reach.SERVING if server.answers else Reach.UNKNOWN


def service_record(known: Known, *, daemon_runs: bool) -> dict[str, Any]:
    """As `report.service_record`: `health` is a word of `Reach`, and what is not known is None. `note`: what waits for
    the daemon, where it does not run."""
    owner, server, swap = known.owner, known.server, known.last_swap
    stable = revision_in(known.row, "stable")
    serving = server is not None and server.answers
    how = reach(known)
    soaking = swap is not None and swap["phase"] == Phase.SOAKING.value
    stats = owner.stats if owner is not None else {}
    return {
        "name": known.name,
        "listen": list(known.listen),
        "health": how.value,
        "model": server.model if server is not None and serving else stable and stable.get("model"),
        "revision": server.revision if server is not None and serving else None,
        "config_model": known.config_model,
        "drift": _drift(known, stable),
        "front": None if owner is None else "gate" if owner.is_gate else "direct",
        "holding": how is Reach.HOLDING,
        "swap": swap,
        "soak": {"until": swap["soak_until"], "previous": swap["from"]} if swap is not None and soaking else None,
        "rollback": _rollback(known, soaking),
        "workers": [w.id for w in known.workers if not w.gone],
        **{key: stats.get(key) for key in ("requests", "in_flight", "streams", "held")},
        "failures": known.row.get("failures"),
        "retry_at": None,
        "problem": _problem(known, how),
        "note": None if daemon_runs else _note(known),
    }


def _note(known: Known) -> str | None:
    swap, paused = known.under_way, known.row.get("paused")
    if swap is not None:
        return f"swap {swap['id']} was left {swap['phase']}: it goes on, or is undone, when swapd runs again"
    return f"paused: {paused.get('message')}" if isinstance(paused, Mapping) else None


def _drift(known: Known, stable: Record | None) -> str | None:
    if stable is None or known.config_model is None or stable.get("model") == known.config_model:
        return None
    number = stable.get("number")
    brought = (s for s in known.swaps if (s["to"] or {}).get("revision") == number and s["phase"] in _BROUGHT)
    actor = next((f", {s['actor']}" for s in brought), "")
    return f"config {known.config_model}, running {stable.get('model')} (#{number}{actor})"


def _rollback(known: Known, soaking: bool) -> str | None:
    """The way back that there will be once the daemon is there again."""
    if soaking and known.last_swap is not None and known.last_swap["from"] is not None:
        source = known.last_swap["from"]["revision"]
        for worker in known.workers:
            if worker.revision == source and worker.answers:
                return "parked" if worker.stats.get("state") == "parked" else "instant"
        return "cold"
    if not known.row:
        return None
    return "cold" if known.row.get("previous") else "none"


def _problem(known: Known, how: Reach) -> dict[str, Any] | None:
    """Why clients are not served, or may not be."""
    owner = known.owner
    silent = [w for w in known.workers if w.problem is not None and not w.gone]
    if how is Reach.DOWN and owner is not None:
        text = f"{owner.id}, a gate, has the clients and passes them to {owner.stats.get('points_to')}, which is gone."
        return _told(WORKER_EXITED, text)
    if how is Reach.DOWN:
        text = "No living worker has its addresses: clients are refused, or wait in the queue, until swapd runs again."
        return _told(WORKER_EXITED, text)
    if silent:
        return _told(TIMEOUT, " ".join(f"{w.id} (pid {w.pid or '?'}): {w.problem}" for w in silent))
    if how is Reach.HOLDING and owner is not None:
        return _told(TIMEOUT, f"{owner.id}, a gate, lets the clients wait: it has no model to pass them to.")
    return None


def _told(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "details": {}}


def worker_record(known: Known, worker: Seen) -> dict[str, Any]:
    """As `report.worker_record`, with the figures that the worker itself gives."""
    return {
        "id": worker.id,
        "service": worker.service,
        "revision": worker.revision or None,
        "model": worker.model or None,
        "role": _role(known, worker),
        "state": "gone" if worker.gone else worker.stats.get("state") or "no answer",
        "device": worker.devices[0] if worker.devices else None,
        "devices": list(worker.devices),
        "reserved_bytes": None,
        "pid": worker.pid,
        "used_bytes": None,
        "uptime_s": worker.uptime_s,
        "in_flight": worker.stats.get("in_flight"),
        "connections": worker.stats.get("connections"),
        "version": worker.version,
    }


def _role(known: Known, worker: Seen) -> str | None:
    if worker.is_gate:
        return "gate"
    swap, stable = known.under_way, revision_in(known.row, "stable")
    forward = {phase.value for phase in FORWARD}
    if swap is not None and swap["phase"] in forward and (swap["to"] or {}).get("revision") == worker.revision:
        return "candidate"
    if stable is None:
        return None
    return "stable" if stable.get("number") == worker.revision else "previous"


def known_services(
    configured: Iterable[tuple[str, Sequence[str], str]],
    rows: Mapping[str, Record],
    seen: Sequence[Seen],
    swaps: Mapping[str, Sequence[Record]],
) -> list[Known]:
    """Those of the configuration (name, listen, model), of the journal where that cannot be read, and of workers."""
    listed = {name: (listen, model) for name, listen, model in configured}
    names = dict.fromkeys([*(listed or rows), *(w.service for w in seen)])
    found = []
    for name in names:
        listen, model = listed.get(name, ((), None))
        workers = [w for w in seen if w.service == name]
        found.append(Known(name, rows.get(name, {}), swaps.get(name, ()), listen, model, workers))
    return found
