"""Who gets a request where a table has percents: by match, by session, by count; and who gets it instead. Pure.

Counting is not chance: each route's credit grows by its percent with every request, the richest gets it and pays 100
(smooth weighted round-robin, as nginx has it). So of any 100 requests in a row a route of 5 percent gets 5.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from swapd.front.relay.routing import Route, Table
from swapd.front.relay.session import digest, point_of

MAX_SESSIONS: Final = 65536  # some 10 MB; beyond that the one that was silent for the longest is forgotten

# How a route was chosen.
MATCH: Final = "match"
SESSION: Final = "session"  # it stayed where it was
KEY: Final = "key"  # by the place of its key
COUNT: Final = "count"
FALLBACK: Final = "fallback"
HOW: Final = (MATCH, SESSION, KEY, COUNT, FALLBACK)


class Sessions:
    """Where each session was last, and when. Outlives tables: at the cutover it matters who began on the stable."""

    def __init__(self, limit: int = MAX_SESSIONS) -> None:
        self.forgotten = 0  # for want of room: they go by their key's place from then on
        self._limit = limit
        self._last: dict[int, tuple[str, float]] = {}  # the longest silent first

    def __len__(self) -> int:
        return len(self._last)

    def of(self, session: int, now: float, keep_s: float) -> str | None:
        """The worker; None: it is new, or has been silent for longer than `keep_s`."""
        worker, seen_at = self._last.get(session, (None, 0.0))
        return worker if now - seen_at <= keep_s else None

    def note(self, session: int, worker: str, now: float) -> None:
        self._last.pop(session, None)
        self._last[session] = (worker, now)
        if len(self._last) > self._limit:
            del self._last[next(iter(self._last))]
            self.forgotten += 1


@dataclass(frozen=True, slots=True)
class Choice:
    route: Route
    how: str  # of HOW
    session: int | None = None  # to be noted with whoever gets the request
    instead_of: Route | None = None  # which could not be reached


class Split:
    """Of one table. The first route is the stable's: who has nowhere else to go goes there."""

    def __init__(self, table: Table, sessions: Sessions) -> None:
        self.how = dict.fromkeys(HOW, 0)
        self.begun = {route.worker: 0 for route in table.routes}
        self._table = table
        self._sessions = sessions
        self._credit = [0.0] * len(table.routes)
        self._salt = table.routes[-1].revision  # the candidate's
        self._total = sum(route.weight for route in table.routes)
        self._by_match = [Choice(route, MATCH) for route in table.routes if route.match]
        self._counted = [Choice(route, COUNT) for route in table.routes]
        self.reads_heads = bool(self._by_match) or table.session_key is not None

    def choose(self, headers: Sequence[tuple[bytes, bytes]], body: bytes, now: float) -> Choice:
        """For a request that has not been chosen for yet. `body`: whole, or nothing."""
        table = self._table
        for choice in self._by_match:
            if any(match.fits(headers) for match in choice.route.match):
                return choice
        key = table.session_key.find(headers, body) if table.session_key is not None else b""
        if not key:
            return self._by_count()
        session = digest(key)
        worker = self._sessions.of(session, now, table.keep_sessions_s) if table.keep_sessions_s else None
        route_kept = next((route for route in table.routes if route.worker == worker), None)
        if route_kept is not None:
            return Choice(route_kept, SESSION, session)
        return Choice(self._by_place(session), KEY, session)

    def reachable(self, choice: Choice, unreachable: Collection[str]) -> Choice | None:
        """That choice; or where its engine cannot be reached, the stable, or who has most of the requests. A candidate
        that gets none yet gets none in this way either."""
        if choice.route.worker not in unreachable:
            return choice
        able = [r for n, r in enumerate(self._table.routes) if r.worker not in unreachable and (r.weight > 0 or n == 0)]
        other = max(able, key=lambda route: route.weight, default=None)
        return replace(choice, route=other, how=FALLBACK, instead_of=choice.route) if other is not None else None

    def begins(self, choice: Choice, now: float) -> None:
        """The request goes there. One that was chosen by an older table counts for none."""
        if choice.route.worker not in self.begun:
            return
        self.how[choice.how] += 1
        self.begun[choice.route.worker] += 1
        if choice.session is not None:
            self._sessions.note(choice.session, choice.route.worker, now)

    def stats(self) -> dict[str, Any]:
        """[any thread]"""
        begun = dict(self.begun)
        total = sum(begun.values())
        weights = {
            str(route.revision): {
                "worker": route.worker,
                "set": route.weight,
                "actual": round(100.0 * begun[route.worker] / total, 3) if total else None,
                "requests": begun[route.worker],
            }
            for route in self._table.routes
        }
        sessions = {"known": len(self._sessions), "forgotten": self._sessions.forgotten}
        return {"weights": weights, "how": dict(self.how), "sessions": sessions}

    def _by_count(self) -> Choice:
        credit, richest = self._credit, 0
        for n, choice in enumerate(self._counted):
            credit[n] += choice.route.weight
            if credit[n] > credit[richest]:
                richest = n
        credit[richest] -= self._total
        return self._counted[richest]

    def _by_place(self, session: int) -> Route:
        """Those after the stable lie at the beginning of [0, 1): when their percents grow, no key goes back to it."""
        place = point_of(session, self._salt) * self._total
        for route in self._table.routes[1:]:
            if place < route.weight:
                return route
            place -= route.weight
        return self._table.routes[0]
