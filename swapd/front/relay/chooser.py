"""Whom the relay sends a request to: by the table of the moment, to the engines that it has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swapd.front.relay.heads import Header
from swapd.front.relay.routing import Table, choose
from swapd.front.relay.split import Choice, Sessions, Split

if TYPE_CHECKING:
    from swapd.front.relay.exchange import Exchange
    from swapd.front.relay.upstream import Upstream


class Chooser:
    """`upstreams`: those of the table, at least, by worker."""

    def __init__(self, table: Table, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams
        self._sessions = Sessions()
        self.point(table)

    def point(self, table: Table) -> None:
        self.table = table
        able = [route for route in table.routes if route.weight > 0]
        splits = bool(table.routes) and not table.hold and (table.split or table.session_key is not None)
        simple = len(able) == 1 and not (able[0].match or able[0].blocked or table.hold or splits)
        self.only = self._upstreams[able[0].worker] if simple else None  # where there is no choice
        self._split = Split(table, self._sessions) if splits else None  # where there are percents, or sessions to know
        key = table.session_key
        self.reads_bodies = splits and key is not None and key.kind == "json"

    def choose(self, exchange: Exchange, now: float) -> Upstream | None:
        """None: nobody is there for it."""
        split = self._split
        if split is None:
            return self._least_busy(exchange.unreachable, exchange.head.all_headers)
        choice = exchange.choice
        if choice is None or choice.route not in self.table.routes:
            headers = exchange.head.all_headers if split.reads_heads else ()
            choice = split.choose(headers, self._body(exchange) or b"", now)
        exchange.choice = choice = split.reachable(choice, exchange.unreachable)
        return self._upstreams[choice.route.worker] if choice is not None else None

    def choose_for_tunnel(self, unreachable: Collection[str], now: float) -> tuple[Upstream | None, Choice | None]:
        """For a connection of which nothing is read."""
        if self._split is None:
            return self._least_busy(unreachable), None
        choice = self._split.reachable(self._split.choose((), b"", now), unreachable)
        return (self._upstreams[choice.route.worker], choice) if choice is not None else (None, None)

    def _least_busy(self, unreachable: Collection[str], headers: Sequence[Header] = ()) -> Upstream | None:
        in_flight = {worker: upstream.in_flight for worker, upstream in self._upstreams.items()}
        route = choose(self.table, in_flight, unreachable, headers)
        return self._upstreams[route.worker] if route is not None else None

    def begins(self, choice: Choice, now: float) -> None:
        """What was chosen has a connection."""
        if self._split is not None:
            self._split.begins(choice, now)

    def avoid(self, exchange: Exchange, worker: str) -> None:
        """It has died with this request: where there are percents somebody else gets it, if there is anybody."""
        unreachable = (*exchange.unreachable, worker)
        split, choice = self._split, exchange.choice
        if split is not None and choice is not None and split.reachable(choice, unreachable) is not None:
            exchange.unreachable = unreachable

    def awaits_body(self, exchange: Exchange) -> bool:
        """Its session is told by its body, which has not all come."""
        return self._body(exchange) is None

    def _body(self, exchange: Exchange) -> bytes | None:
        """If the session's key may be in it: whole, or None."""
        key, head = self.table.session_key, exchange.head
        if not self.reads_bodies or key is None or not key.reads_body(head.headers, head.length):
            return b""
        return exchange.client.ahead(head.length)

    def stats(self) -> dict[str, Any] | None:
        """[any thread] Set and actual weights, how requests were chosen for, sessions; None: nothing is split."""
        split = self._split
        return split.stats() if split is not None else None
