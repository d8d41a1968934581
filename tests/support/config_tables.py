"""A small right configuration, and ways to make it wrong."""

from __future__ import annotations

import copy
import sys

from swapd.core.config import Config, ConfigProblem
from swapd.core.config_parse import parse_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "/etc/swapd/swapd.toml"
SMALL = {
    "models": {"a": {"app": "my_model:app"}},
    "services": {"chat": {"listen": "127.0.0.1:8000", "model": "a"}},
}


def parsed(tables) -> Config:
    result = parse_config(tables, file=FILE)
    assert isinstance(result, Config), [str(problem) for problem in result]
    return result


def parsed_toml(text: str) -> Config:
    return parsed(tomllib.loads(text))


def problems_of(tables) -> list[ConfigProblem]:
    result = parse_config(tables, file=FILE)
    return [] if isinstance(result, Config) else result


def changed(*changes: tuple[tuple[str | int, ...], object]) -> dict:
    """The small configuration with values put at paths; None takes the key out."""
    tables = copy.deepcopy(SMALL)
    for path, value in changes:
        place = tables
        for step in path[:-1]:
            place = place.setdefault(step, {})
        if value is None:
            del place[path[-1]]
        else:
            place[path[-1]] = value
    return tables
