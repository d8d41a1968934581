"""A strategy's name to what it means: where the candidate stands, and how it proves itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from swapd.core import errors
from swapd.core.config import Config, ServiceConfig, StrategyConfig
from swapd.core.config_proofs import percents
from swapd.core.config_readers import Wrong, suggest
from swapd.core.delivery import Delivery, Ends, Shadow, Stage, StageKind
from swapd.core.errors import SwapdError
from swapd.core.model import Strategy

PLAIN: Final = (Strategy.AUTO.value, Strategy.DUAL.value, Strategy.IN_PLACE.value)
STAGED: Final = ("canary", "shadow", "guarded")
REHEARSAL: Final = "rehearsal"
BASELINE: Final = Stage(StageKind.BASELINE, 0.0, 10.0, 10.0, Ends.TIME)


def known(config: Config) -> tuple[str, ...]:
    return (*PLAIN, *STAGED, *config.strategies)


def block(config: Config, name: str) -> StrategyConfig:
    """What [strategies.NAME] says, or what a name of our own stands for. Raises BAD_REQUEST."""
    if name in config.strategies:
        return config.strategies[name]
    if name not in (*PLAIN, *STAGED):
        raise SwapdError(errors.BAD_REQUEST, f'There is no strategy "{name}": {suggest(name, known(config))}')
    return StrategyConfig(name=name, kind=name)


def wish(strategy: StrategyConfig) -> Strategy:
    """Where the candidate stands: one that proves itself needs the old model beside it."""
    return Strategy(strategy.kind) if strategy.kind in PLAIN else Strategy.DUAL


def delivery(service: ServiceConfig, strategy: StrategyConfig, *, rehearsal: bool = False) -> Delivery | None:
    """None: its probes are all the proof there is."""
    stages = _stages(strategy)
    if rehearsal:
        stages = tuple(stage for stage in stages if stage.kind is StageKind.SHADOW) or (_shadow(strategy),)
    if not stages and not service.rules and service.session_key is None:
        return None
    if not stages and any(rule.relative for rule in service.rules):
        stages = (BASELINE,)
    return Delivery(
        REHEARSAL if rehearsal else strategy.name,
        stages,
        service.rules,
        strategy.min_requests,
        strategy.on_pass,
        strategy.on_fail,
        strategy.on_inconclusive,
        strategy.match,
        service.session_key,
        strategy.shadow if any(stage.kind is StageKind.SHADOW for stage in stages) else None,
        rehearsal,
    )


def with_steps(strategy: StrategyConfig, steps: str) -> StrategyConfig:
    """As `swap --steps 5,25,100` asks for it: of a strategy without steps it makes a canary. Raises BAD_REQUEST."""
    try:
        shares = percents([word for word in steps.replace("%", "").split(",") if word.strip()], "")
    except Wrong as wrong:
        raise SwapdError(errors.BAD_REQUEST, f"steps: {wrong.faults[0][1]}") from None
    kind = strategy.kind if strategy.kind in ("canary", "guarded") else "canary"
    return replace(strategy, kind=kind, name=strategy.name if kind == strategy.kind else kind, steps=shares)


def _stages(strategy: StrategyConfig) -> tuple[Stage, ...]:
    shadow = (_shadow(strategy),) if strategy.kind in ("shadow", "guarded") else ()
    steps = strategy.steps if strategy.kind in ("canary", "guarded") else ()
    canary = (_canary(strategy, percent) for percent in steps if percent < 100)
    return (*shadow, *canary)


def _canary(strategy: StrategyConfig, percent: float) -> Stage:
    at_most_s = max(strategy.step_time_s, strategy.step_deadline_s)
    return Stage(StageKind.CANARY, percent, strategy.step_time_s, at_most_s, strategy.ends)


def _shadow(strategy: StrategyConfig) -> Stage:
    shadow: Shadow = strategy.shadow
    at_most_s = max(shadow.time_s, strategy.step_deadline_s)
    return Stage(StageKind.SHADOW, shadow.share, shadow.time_s, at_most_s, strategy.ends)
