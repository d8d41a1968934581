"""Which engine gets a request: a gate's routing table, replaced as a whole, and the choice within it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """One engine."""

    worker: str
    revision: int
    address: str  # unix:/path or host:port, private to the engine
    weight: float = 1.0  # its share; 0: none


@dataclass(frozen=True, slots=True)
class Table:
    """`epoch` counts tables: an older one than is known is void. `hold`: no request begins, clients wait."""

    epoch: int
    routes: tuple[Route, ...] = ()
    hold: bool = False

    def after(self, other: Table) -> Table:
        """The newer of the two; of equals the one that is there already."""
        return self if self.epoch > other.epoch else other


def choose(table: Table, in_flight: Mapping[str, int], unreachable: Collection[str] = ()) -> Route | None:
    """The engine with the fewest requests in flight for its weight; the first named of equals. None: clients wait."""
    if table.hold:
        return None
    candidates = [r for r in table.routes if r.weight > 0 and r.worker not in unreachable]
    return min(candidates, key=lambda r: (in_flight.get(r.worker, 0) + 1) / r.weight, default=None)
