"""Readers for `[models.NAME.contract]`: tensors, endpoints, and where a server tells its interface.

Duty: as `config_readers`; spelled so that equal ones compare equal. May not know: what is compared (`core.contract`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from swapd.core.config import TensorConfig
from swapd.core.config_readers import Wrong, flag, items, kind_of, shown, suggest, text
from swapd.core.config_requests import method, url_path
from swapd.core.tensors import type_name

_KEYS: Final = ("name", "type", "shape", "optional")
_V2_NAME: Final = re.compile(r"[A-Za-z0-9._~-]+(/versions/[A-Za-z0-9._~-]+)?", re.ASCII)
_MAX_RANK: Final = 32


def tensors(value: object, base: str) -> tuple[TensorConfig, ...]:
    if value == []:
        return ()
    found: tuple[TensorConfig, ...] = items(value, base, _tensor, "the tensors")
    if len({each.name for each in found}) < len(found):
        raise Wrong("has a name twice: write each once")
    return found


def _tensor(value: object, base: str) -> TensorConfig:
    if not isinstance(value, Mapping):
        raise Wrong(
            f'expected a table such as {{ name = "ids", type = "INT64", shape = [-1, 128] }}, not {kind_of(value)}'
        )
    faults: list[tuple[str, str]] = []
    fields: dict[str, Any] = {}
    for key, content in value.items():
        if key not in _KEYS:
            faults.append((f".{key}", f"unknown key: {suggest(str(key), _KEYS)}"))
            continue
        try:
            fields[key] = {"shape": _shape, "optional": flag}.get(key, text)(content, base)
        except Wrong as wrong:
            faults += [(f".{key}{at}", message) for at, message in wrong.faults]
    if "name" not in value:
        faults.append((".name", 'is missing: write the tensor\'s name, such as name = "ids"'))
    if faults:
        raise Wrong(faults=faults)
    return TensorConfig(**{**fields, "type": type_name(fields.get("type"))})


def _shape(value: object, base: str) -> tuple[int, ...]:
    sizes = value if isinstance(value, list | tuple) else None
    if sizes is None or len(sizes) > _MAX_RANK or not all(type(size) is int and size >= -1 for size in sizes):
        raise Wrong(f"{shown(value)} is not a shape: write the length of each dimension, -1 for any, such as [-1, 128]")
    return tuple(sizes)


def endpoints(value: object, base: str) -> tuple[str, ...]:
    found: tuple[str, ...] = items(value, base, _endpoint, 'what clients ask for, such as "POST /v1/completions"')
    return found


def _endpoint(value: object, base: str) -> str:
    verb, _, path = text(value, base).partition(" ")
    if not path.strip():
        raise Wrong(f'{shown(value)} is not a method and a path: write one such as "POST /v1/completions"')
    return f"{method(verb, base)} {url_path(path.strip(), base)}"


def v2_name(value: object, base: str) -> str:
    word = text(value, base)
    if not _V2_NAME.fullmatch(word):
        raise Wrong(f'{shown(word)} is not a model\'s name: write it as in /v2/models/NAME, such as "bert"')
    return word
