"""What workers answer, before the core goes by it: a model's code runs in there, and may say anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from swapd.core.errors import VERSION_MISMATCH, SwapdError
from swapd.core.model import Op


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the core reckons with in the result of an operation. Times are of the monotonic clock, in seconds."""

    hooks: tuple[str, ...] = ()
    turned_away: int = 0
    quiesced_at: float | None = None
    started_at: float | None = None


def checked(op: Op, result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result as it is. Raises SwapdError(VERSION_MISMATCH) for one that the core could make no sense of."""
    try:
        msgspec.convert(dict(result), _Answer)
    except msgspec.ValidationError as error:
        text = f"{op.worker} answered {op.kind.value} in a way that makes no sense: {error}."
        raise SwapdError(VERSION_MISMATCH, text) from None
    return result
