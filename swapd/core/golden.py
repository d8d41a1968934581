"""Golden requests: what became of all of them, and whether that fails the candidate. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from swapd.core import errors
from swapd.core.errors import Problem
from swapd.core.model import Golden

KEPT_DIFFERENCES: Final = 10  # in the record
_IN_MESSAGE: Final = 3


def summary(requests: int, elapsed_s: Sequence[float], wrong: Sequence[str]) -> Golden:
    """Of so many that were to be asked: how long those took that were answered rightly, what was wrong with others."""
    taken = sorted(elapsed_s)
    return Golden(
        requests,
        right=len(taken),
        wrong=len(wrong),
        p50_ms=_quantile_ms(taken, 0.5),
        p95_ms=_quantile_ms(taken, 0.95),
        slowest_ms=_quantile_ms(taken, 1.0),
        differences=tuple(wrong[:KEPT_DIFFERENCES]),
    )


def failure(model: str, golden: Golden) -> Problem | None:
    """One wrong answer is one too many: what may differ is said in what is expected."""
    if not golden.wrong:
        return None
    shown = golden.differences[:_IN_MESSAGE]
    more = f"; and {golden.wrong - len(shown)} more" if golden.wrong > len(shown) else ""
    asked = golden.right + golden.wrong
    text = f"{model} has answered {golden.wrong} of {asked} golden requests wrongly: {'; '.join(shown)}{more}"
    return Problem(errors.GOLDEN_FAILED, text, {"golden": asdict(golden)})


def _quantile_ms(taken_s: Sequence[float], quantile: float) -> float | None:
    return round(taken_s[math.ceil(quantile * len(taken_s)) - 1] * 1000, 3) if taken_s else None
