"""The core's values as JSON, for the journal and for the files beside it.

The dataclasses of `core.model` are the format: fields that are unknown are ignored and fields that are missing have
their default, so that a journal can be read by the next version and, while the schema stays, by the one before.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def dump(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def load(kind: type[T], text: str | bytes) -> T:
    """Raises ValueError saying what in `text` is not as it must be."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a {kind.__name__}: {error}") from None
