"""Which engine gets a request: a gate's routing table, replaced as a whole, and the choice within it. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from swapd.front.relay.session import SessionKey, cookies, read_session_key
from swapd.front.shadow.settings import Shadow, read_shadow

ALL_PERCENT: Final = 100.0
MAX_KEEP_SESSIONS_S: Final = 7 * 86400.0
MAX_LABEL: Final = 200


@dataclass(frozen=True, slots=True)
class Match:
    """A header field, or a cookie, that a request must have with this value."""

    kind: str  # "header" | "cookie"
    name: bytes  # a header's in lower case
    value: bytes

    def fits(self, headers: Sequence[tuple[bytes, bytes]]) -> bool:
        if self.kind == "header":
            return any(name == self.name and value == self.value for name, value in headers)
        return (self.name, self.value) in cookies(headers)


@dataclass(frozen=True, slots=True)
class Route:
    """One engine. `match`: it gets the requests that fit one of these, and no others; in a split, beside its percent.
    `blocked`: paths that are the daemon's to ask for, not the clients'."""

    worker: str
    revision: int
    address: str  # unix:/path or host:port, private to the engine
    weight: float = 1.0  # its share, in a split in percent; 0: none
    match: tuple[Match, ...] = ()
    blocked: tuple[bytes, ...] = ()
    uid: int | None = None  # of the user that a Unix socket's other end must be of
    reuse: bool = True  # its connections may carry one request after the other

    def blocks(self, target: bytes) -> bool:
        """By the path as the most generous server reads it: unescaped, without doubled or trailing slashes, steps up,
        parameters, and white space at the ends of its parts (Starlette's routes match in spite of a final newline)."""
        if not self.blocked:
            return False
        parts: list[bytes] = []
        for part in unquote_to_bytes(target.partition(b"?")[0]).replace(b"\\", b"/").split(b"/"):
            part = part.partition(b";")[0].partition(b"\0")[0].strip()
            if part == b"..":
                del parts[-1:]
            elif part not in (b"", b"."):
                parts.append(part)
        return b"/" + b"/".join(parts).lower() in self.blocked


@dataclass(frozen=True, slots=True)
class Table:
    """`epoch` counts tables: an older one than is known is void. `hold`: no request begins, clients wait. With neither
    that nor a route they are turned away. `split`: weights are percents of the requests, the first route is the
    stable's. `keep_sessions_s`: a session goes on where it was last, if it has not been silent for longer.
    `label` is the daemon's own, kept for the next one that asks."""

    epoch: int
    routes: tuple[Route, ...] = ()
    hold: bool = False
    split: bool = False
    session_key: SessionKey | None = None
    keep_sessions_s: float = 0.0
    label: str = ""
    shadow: Shadow | None = None

    @property
    def open(self) -> bool:
        return not self.hold and any(route.weight > 0 for route in self.routes)

    @property
    def turns_away(self) -> bool:
        return not self.hold and not self.routes


def choose(
    table: Table,
    in_flight: Mapping[str, int],
    unreachable: Collection[str] = (),
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> Route | None:
    """The engine with the fewest requests in flight for its weight; the first named of equals. None: clients wait."""
    if table.hold:
        return None
    able = [r for r in table.routes if r.weight > 0 and r.worker not in unreachable]
    named = [r for r in able if r.match and any(match.fits(headers) for match in r.match)]
    candidates = named or [r for r in able if not r.match]
    return min(candidates, key=lambda r: (in_flight.get(r.worker, 0) + 1) / r.weight, default=None)


def read_table(params: Mapping[str, Any]) -> Table:
    """A table from the parameters of the verb `point`. Raises ValueError naming what is wrong."""
    epoch, hold, routes = params.get("epoch"), params.get("hold", False), params.get("routes", [])
    if not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 1:
        raise ValueError("epoch must be an integer, 1 or more")
    if not isinstance(hold, bool):
        raise ValueError("hold must be true or false")
    if not isinstance(routes, list) or not all(isinstance(route, dict) for route in routes):
        raise ValueError("routes must be a list of objects")
    split, key, keep_s = params.get("split", False), params.get("session_key"), params.get("keep_sessions_s", 0.0)
    if not isinstance(split, bool):
        raise ValueError("split must be true or false")
    if not isinstance(keep_s, (int, float)) or isinstance(keep_s, bool) or not 0 <= keep_s <= MAX_KEEP_SESSIONS_S:
        raise ValueError(f"keep_sessions_s must be a number of seconds, 0 to {MAX_KEEP_SESSIONS_S:.0f}")
    session_key = read_session_key(key) if key is not None else None
    label = params.get("label", "")
    if not isinstance(label, str) or len(label) > MAX_LABEL:
        raise ValueError(f"label must be a text of at most {MAX_LABEL} characters")
    routes_read = tuple(_read_route(route) for route in routes)
    shadow = params.get("shadow")
    shadow = None if shadow is None else read_shadow(shadow)
    table = Table(epoch, routes_read, hold, split, session_key, float(keep_s), label, shadow)
    _check(table)
    return table


def _check(table: Table) -> None:
    """Raises ValueError."""
    routes = table.routes
    if len({route.worker for route in routes}) < len(routes):
        raise ValueError("routes: a worker occurs twice")
    if table.split and len(routes) < 2:
        raise ValueError("split: needs two routes or more")
    total = math.fsum(route.weight for route in routes)
    if table.split and abs(total - ALL_PERCENT) > 1e-6:
        raise ValueError(f"split: the weights are percents, and their sum must be 100, not {total:g}")
    if table.session_key is not None and len(routes) > 1 and not table.split:
        raise ValueError("session_key: with several routes it needs split")
    if table.keep_sessions_s and table.session_key is None:
        raise ValueError("keep_sessions_s needs a session_key")


def _read_route(route: Mapping[str, Any]) -> Route:
    worker, address = route.get("worker"), route.get("address")
    revision, weight = route.get("revision"), route.get("weight", 1.0)
    if not isinstance(worker, str) or not worker:
        raise ValueError("routes: worker must be an id")
    if not isinstance(address, str) or not (address.startswith("unix:/") or address.rpartition(":")[2].isdecimal()):
        raise ValueError(f"routes: {address!r} is neither unix:/path nor host:port")
    if not isinstance(revision, int) or isinstance(revision, bool):
        raise ValueError("routes: revision must be an integer")
    if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 <= weight < 1e9:
        raise ValueError("routes: weight must be a number, 0 or more")
    blocked = route.get("blocked", [])
    if not isinstance(blocked, list) or not all(isinstance(path, str) and path.startswith("/") for path in blocked):
        raise ValueError("routes: blocked must be a list of paths")
    uid = route.get("uid")
    if uid is not None and (not isinstance(uid, int) or isinstance(uid, bool)):
        raise ValueError("routes: uid must be an integer")
    reuse = route.get("reuse", True)
    if not isinstance(reuse, bool):
        raise ValueError("routes: reuse must be true or false")
    matches = route.get("match", [])
    if not isinstance(matches, list):
        raise ValueError("routes: match must be a list")
    match = tuple(_read_match(match) for match in matches)
    return Route(
        worker, revision, address, float(weight), match, tuple(path.lower().encode() for path in blocked), uid, reuse
    )


def _read_match(match: object) -> Match:
    if not isinstance(match, dict) or not all(isinstance(match.get(key), str) for key in ("kind", "name", "value")):
        raise ValueError("match: needs kind, name and value")
    if match["kind"] not in ("header", "cookie"):
        raise ValueError("match: kind must be header or cookie")
    name = match["name"].lower() if match["kind"] == "header" else match["name"]
    return Match(match["kind"], name.encode(), match["value"].encode())
