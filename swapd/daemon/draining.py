"""Draining one worker: wherever its requests are in flight, they are finished or, at the deadline, cut."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from swapd.core import errors
from swapd.core.errors import SwapdError
from swapd.core.model import Kind, Op
from swapd.daemon.live import Live
from swapd.daemon.transfers import REQUEST_S


async def drain(live: Live, op: Op, everybody: Mapping[str, Live]) -> Mapping[str, Any]:
    """Ask its own front, and each gate that relays to it, at once; `cut` adds up what they ended."""
    params = {"deadline_s": op.deadline_s, "and_close": op.force}
    asked = [_own(live, params)] if live.kind is not Kind.ENGINE else []
    asked += [
        _upstream(gate, {**params, "upstream": live.id}) for gate in everybody.values() if live.id in gate.upstreams
    ]
    cut = sum(await asyncio.gather(*asked))
    return {"cut": cut, "detail": f"{cut} cut" if cut else ""}


async def _own(live: Live, params: Mapping[str, Any]) -> int:
    try:
        return await _cut(live, params)
    except SwapdError as error:
        if error.code != errors.TIMEOUT:
            raise
        return live.stats.get("in_flight") or 0  # the model blocks its loop: it is cut when that is ended


async def _upstream(gate: Live, params: Mapping[str, Any]) -> int:
    try:
        return await _cut(gate, params)
    except SwapdError as error:
        if error.code == errors.WORKER_EXITED:  # its requests have ended with it
            return 0
        if error.code != errors.TIMEOUT:
            raise
        return in_flight_through(gate.stats, params["upstream"]).get("in_flight") or 0


async def _cut(live: Live, params: Mapping[str, Any]) -> int:
    result = await live.request("drain", params, deadline_s=params["deadline_s"] + REQUEST_S)
    return int(result.get("cut", 0))


def in_flight_through(stats: Mapping[str, Any], worker_id: str) -> Mapping[str, Any]:
    """A gate's figures of one worker; empty: not known, or told in a way that makes no sense."""
    upstreams = stats.get("upstreams")
    figures = upstreams.get(worker_id) if isinstance(upstreams, Mapping) else None
    return figures if isinstance(figures, Mapping) else {}
