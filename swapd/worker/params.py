"""The parameters of a request, checked: wrong ones are BAD_REQUEST with the parameter's name, never a bug."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from swapd.core.errors import BAD_REQUEST, SwapdError

MAX_DEADLINE_S: Final = 7 * 86400.0  # a drain in a dual swap lasts until the soak ends


def epoch(params: Mapping[str, Any]) -> int:
    value = params.get("epoch")
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise SwapdError(BAD_REQUEST, "epoch must be an integer, 0 or more")
    return value


def deadline_s(params: Mapping[str, Any]) -> float:
    value = params.get("deadline_s")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise SwapdError(BAD_REQUEST, "deadline_s must be a number of seconds, 0 or more")
    return min(float(value), MAX_DEADLINE_S)


def paths(params: Mapping[str, Any], key: str) -> list[str] | None:
    value = params.get(key)
    if value is not None and not (isinstance(value, list) and all(isinstance(path, str) for path in value)):
        raise SwapdError(BAD_REQUEST, f"{key} must be a list of paths")
    return value


def name(params: Mapping[str, Any], key: str) -> str | None:
    value = params.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise SwapdError(BAD_REQUEST, f"{key} must be a name")
    return value


def flag(params: Mapping[str, Any], name: str) -> bool:
    value = params.get(name, False)
    if not isinstance(value, bool):
        raise SwapdError(BAD_REQUEST, f"{name} must be true or false")
    return value


def listener_names(params: Mapping[str, Any], count: int) -> list[str]:
    value = params.get("listeners")
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise SwapdError(BAD_REQUEST, "listeners must be a list of names")
    if len(set(value)) != len(value):
        raise SwapdError(BAD_REQUEST, "listeners: a name occurs twice")
    if len(value) != count:
        raise SwapdError(BAD_REQUEST, f"{len(value)} listeners are named, but {count} descriptors came along")
    return value


def descriptors(verb: str, expected: int, count: int) -> None:
    if count != expected:
        raise SwapdError(BAD_REQUEST, f"{verb} takes {expected} descriptor(s), {count} came along")
