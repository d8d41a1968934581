"""A service's golden requests, asked of a candidate before it gets clients.

As traffic, at their rate, while another model serves; where clients wait for the candidate, at once, and only until one
is answered wrongly. A start without a swap and a way back ask none: they would keep clients from what has served.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from swapd.core.config import ModelConfig
from swapd.core.errors import SwapdError
from swapd.core.golden import failure
from swapd.core.model import Golden, Op, State
from swapd.daemon.contracts import swap_of
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.live import Live
from swapd.host.probes import GOLDEN_AT_ONCE, run_golden


async def ask_golden(
    state: State,
    knowledge: Knowledge,
    op: Op,
    live: Live,
    model: ModelConfig,
    proved: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> Mapping[str, Any]:
    """What has been found of the candidate so far, and where there are any to ask, as `golden`, how they went. Raises
    SwapdError: GOLDEN_FAILED, WORKER_EXITED."""
    if swap_of(state.service(op.service), state.worker(op.worker)) is None:
        return proved
    settings = knowledge.service_config(op.service)
    if not settings.golden:
        return proved
    per_s = settings.golden_rate if state.server_of(op.service) is not None else None
    golden = await run_golden(
        live.address,
        settings.golden,
        repeat=settings.golden_repeat,
        per_s=per_s,
        alive=live.alive,
        progress=progress,
    )
    problem = failure(model.name, golden)
    if problem is not None:
        raise SwapdError(problem.code, problem.message, {**proved, **problem.details})
    knowledge.learn_time(model, "golden", _without_pauses_s(golden))
    return {**proved, "golden": asdict(golden)}


def _without_pauses_s(golden: Golden) -> float:
    """About how long they take where clients wait."""
    return (golden.p50_ms or 0.0) / 1000 * golden.requests / GOLDEN_AT_ONCE
