"""JSON that a stranger wrote: read within bounds, looked into by pointer, walked without recursion. Pure.

A pointer is RFC 6901's, and `*` in it stands for any one key or index. Values may be as deep as the parser lets them
be, so nothing here or above may recurse over one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

MAX_DIGITS: Final = 400  # a longer integer is read as a float: int() of a megabyte of digits takes minutes
MISSING: Final = object()

Path = tuple[str, ...]


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= MAX_DIGITS else float(text)


_DECODER: Final = json.JSONDecoder(parse_int=_integer)


def read_json(data: bytes) -> Any:
    """As Python's servers write it, so with NaN and Infinity. Raises ValueError for anything else, and for one that is
    nested too deeply."""
    try:
        return _DECODER.decode(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_pointer(text: str) -> Path:
    """Raises ValueError."""
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is no JSON pointer: it must begin with /")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:])


def write_pointer(path: Sequence[str]) -> str:
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)


def value_at(value: Any, pointer: Path) -> Any:
    """MISSING where there is none. `*` is no wildcard here."""
    for part in pointer:
        if isinstance(value, dict):
            value = value.get(part, MISSING)
        elif isinstance(value, list) and part.isdecimal() and len(part) <= 9 and int(part) < len(value):
            value = value[int(part)]
        else:
            return MISSING
    return value


class Pointers:
    """Several pointers, to be asked whether a path is one of them."""

    __slots__ = ("_by_length",)

    def __init__(self, pointers: Sequence[Path]) -> None:
        self._by_length: dict[int, list[Path]] = {}
        for pointer in pointers:
            self._by_length.setdefault(len(pointer), []).append(pointer)

    def __bool__(self) -> bool:
        return bool(self._by_length)

    def have(self, path: Path) -> bool:
        pointers = self._by_length.get(len(path))
        if pointers is None:
            return False
        return any(all(p in ("*", k) for p, k in zip(pointer, path, strict=True)) for pointer in pointers)

    def cover(self, path: Path) -> bool:
        """It is one of them, or lies below one."""
        return any(self.have(path[:length]) for length in self._by_length if length <= len(path))
