"""Has the candidate of each swap under way judged: asks its gate what it has measured, and tells the core the verdict.

Nothing is kept here: windows are the gate's, by its table, so that the next daemon goes on where this one was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from swapd.core.delivery import Delivery, Finding
from swapd.core.errors import SwapdError
from swapd.core.events import Judged
from swapd.core.evidence import Evidence, Outcome, Shadow
from swapd.core.model import Service, Swap
from swapd.core.rules import Metric
from swapd.core.stages import stage_of
from swapd.core.states import Phase
from swapd.core.verdict import Verdict, judge
from swapd.core.window import Window
from swapd.daemon.loop import Loop
from swapd.daemon.workers import Workers
from swapd.host.clock import wall_s as now
from swapd.host.prometheus import value_of

log = logging.getLogger("swapd.analysis")

LOOK_S: Final = 1.0
TELL_S: Final = 5.0  # a verdict that stays the same is told again, with its newest figures
STATS_S: Final = 5.0
QUERY_S: Final = 10.0  # from one question to a Prometheus to the next


class Analysis:
    def __init__(self, loop: Loop, workers: Workers) -> None:
        self._loop = loop
        self._workers = workers
        self._values: dict[tuple[str, str], tuple[float, float | None]] = {}  # by address and query: when, and what
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}

    async def run(self) -> None:
        try:
            while True:
                judged = [(s, s.swap) for s in self._loop.state.services if s.swap is not None and is_judged(s.swap)]
                await asyncio.gather(*(self._look(service, swap) for service, swap in judged))
                await asyncio.sleep(LOOK_S)
        finally:
            for task in self._asking.values():
                task.cancel()

    async def _look(self, service: Service, swap: Swap) -> None:
        """A gate that does not answer is asked again; what it says that makes no sense is told in the log."""
        assert swap.delivery is not None
        live = self._workers.live.get(service.owner or "")
        if live is None:
            return
        try:
            stats = await live.request("stats", {"windows": True}, deadline_s=STATS_S)
            evidence = evidence_of(swap, stats, now(), self._queried(swap, swap.delivery))
        except (SwapdError, ValueError) as error:
            log.warning("analysis.not_measured service=%s gate=%s why=%s", service.name, live.id, error)
            return
        except Exception:  # a bug of ours: other swaps are judged, and this one stays inconclusive
            log.exception("analysis.bug service=%s", service.name)
            return
        if evidence is not None:
            self._tell(swap, judge(swap.delivery.rules, evidence))

    def _tell(self, swap: Swap, verdict: Verdict) -> None:
        at, known = now(), swap.finding
        text = f"{verdict.text}; {verdict.note}" if verdict.note else verdict.text
        if known is not None and known.outcome is verdict.outcome and (known.text == text or at < known.at + TELL_S):
            return
        stage = None if swap.phase is Phase.SOAKING else swap.stage
        self._loop.take(Judged(at, swap.service, swap.id, stage, Finding(verdict.outcome, text, at)))

    def _queried(self, swap: Swap, delivery: Delivery) -> dict[str, float | None]:
        """Values of rules that ask a Prometheus, which is asked beside the looks: they wait for nobody. One that cannot
        be asked is not known, nor what was asked before the stage began: that fails nothing."""
        found: dict[str, float | None] = {}
        for rule in delivery.rules:
            if rule.metric is not Metric.QUERY:
                continue
            key = (rule.url or DEFAULT_URL, rule.query)
            at, value = self._values.get(key, (0.0, None))
            is_old = at < (swap.stage_at or 0.0)
            if key not in self._asking and (is_old or now() - at > QUERY_S):
                self._asking[key] = asyncio.create_task(self._ask(key, rule.text))
            found[rule.text] = None if is_old else value
        return found

    async def _ask(self, key: tuple[str, str], rule: str) -> None:
        at, value = now(), None
        try:
            value = await value_of(*key)
        except SwapdError as error:
            log.warning("analysis.query_failed rule=%r why=%s", rule, error.message)
        finally:
            self._values[key] = (at, value)
            del self._asking[key]


DEFAULT_URL: Final = "http://127.0.0.1:9090"


def is_judged(swap: Swap) -> bool:
    """Its candidate answers clients, or gets copies: in a pause as well. In a soak only by rules: nobody asked for
    more."""
    if swap.delivery is None or swap.source is None:
        return False
    if swap.phase is Phase.SOAKING:
        return bool(swap.delivery.rules) and not _has_failed(swap)
    under_way = swap.phase is Phase.PROGRESSING or (swap.phase is Phase.PAUSED and not _has_failed(swap))
    return under_way and swap.stage_at is not None and stage_of(swap) is not None


def _has_failed(swap: Swap) -> bool:
    return swap.finding is not None and swap.finding.outcome is Outcome.FAIL


def evidence_of(swap: Swap, stats: Mapping[str, Any], at: float, values: Mapping[str, float | None]) -> Evidence | None:
    """What a gate's `stats` say of the swap's two revisions. None: its table is not the stage's. Raises ValueError."""
    windows, stage = stats.get("windows"), stage_of(swap)
    assert swap.delivery is not None
    assert swap.source is not None
    if not isinstance(windows, Mapping):
        raise ValueError("the gate tells no windows")
    measured = windows.get("revisions")
    before = windows.get("before")
    if not isinstance(measured, Mapping) or not isinstance(before, Mapping | None):
        raise ValueError("the gate's windows are none")
    shadow = stats.get("shadow")
    elapsed_s = at - (swap.stage_at if stage is not None and swap.stage_at is not None else at)
    return Evidence(
        candidate=_window(measured, swap.target.number),
        stable=_window(measured, swap.source.number),
        shadow=Shadow.from_json(shadow) if isinstance(shadow, Mapping) else None,
        before=_window(before.get("revisions", {}), swap.source.number) if before is not None else None,
        values=values,
        elapsed_s=elapsed_s if stage is not None else float(windows.get("since", 0.0)),
        last_look=stage is not None and swap.phase is not Phase.PAUSED and elapsed_s >= stage.at_most_s,
        min_requests=swap.delivery.min_requests,
    )


def _window(revisions: Mapping[str, Any], revision: int) -> Window:
    found = revisions.get(str(revision))
    return Window.from_json(found) if found is not None else Window()
