"""What a GGUF file's metadata say of its attention: as much as the size of its KV cache hangs on.

Pure: the file's first bytes come in as an argument. Bounded by them: no count in the file makes a loop longer than what
is there. What is not understood is said to be, and never guessed. Sources: docs/gguf.md of github.com/ggml-org/ggml;
llama.cpp's src/llama-hparams.cpp on layers that see a window.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

HEADER_BYTES: Final = 24
# Of a vocabulary with its merges, the largest metadata there are, some 15 MB; far more is not read.
MAX_METADATA_BYTES: Final = 64 << 20

_MAX_LAYERS: Final = 10_000
_MAX_WIDTH: Final = 1 << 24  # heads, and elements of one
_MAX_CONTEXT: Final = 1 << 32
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9
# Every how many layers one sees the whole context, where the file tells the window and not the pattern.
_PATTERNS: Final = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2}

Value = int | float | bool | bytes | Sequence[int]


@dataclass(frozen=True, slots=True)
class Attention:
    """Elements of the KV cache for each token, summed over the layers. Without those of `window`: all tokens of the
    context; with it: only so many."""

    context_length: int  # tokens that the model was made for
    keys: int
    values: int
    window: int = 0
    window_keys: int = 0
    window_values: int = 0


@dataclass(frozen=True, slots=True)
class More:
    """The metadata go on after what was read."""


@dataclass(frozen=True, slots=True)
class NotUnderstood:
    why: str


def parse_attention(data: bytes) -> Attention | More | NotUnderstood | None:
    """From the first bytes of a file. None: it has no cache, being an encoder, an adapter or no language model."""
    metadata = _metadata(data)
    return _attention(metadata) if isinstance(metadata, dict) else metadata


# --- the format ------------------------------------------------------------------------------------------------------


def _metadata(data: bytes) -> dict[str, Value] | More | NotUnderstood:
    """The numbers, short texts and short lists of numbers among the metadata."""
    found: dict[str, Value] = {}
    try:
        (count,) = struct.unpack_from("<Q", data, 16)
        at = HEADER_BYTES
        for _ in range(count):
            key, at = _text(data, at)
            (kind,) = struct.unpack_from("<I", data, at)
            value, at = _value(data, at + 4, kind)
            if value is not None:
                found[key.decode("utf-8", "replace")] = value
    except struct.error:
        return More()
    except ValueError as error:
        return NotUnderstood(str(error))
    return found


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    end = at + 8 + length
    if end > len(data):
        raise struct.error
    return data[at + 8 : end], end


def _value(data: bytes, at: int, kind: int) -> tuple[Value | None, int]:
    """None: a value that is passed over."""
    if kind in _SCALARS:
        code = "<" + _SCALARS[kind]
        return struct.unpack_from(code, data, at)[0], at + struct.calcsize(code)
    if kind == _STRING:
        text, at = _text(data, at)
        return (text if len(text) <= 64 else None), at
    if kind == _ARRAY:
        return _array(data, at)
    raise ValueError(f"its metadata have a value of type {kind}")


def _array(data: bytes, at: int) -> tuple[Sequence[int] | None, int]:
    kind, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if kind == _STRING:
        length_of, size = struct.Struct("<Q").unpack_from, len(data)
        for _ in range(count):  # ends at the end of the data: each takes eight bytes at least
            at += 8 + length_of(data, at)[0]
            if at > size:
                raise struct.error
        return None, at
    if kind not in _SCALARS:
        raise ValueError(f"its metadata have a list of type {kind}")
    code = _SCALARS[kind]
    end = at + count * struct.calcsize("<" + code)
    if end > len(data):
        raise struct.error
    if count > _MAX_LAYERS or code in "fd":
        return None, end
    return struct.unpack_from(f"<{count}{code}", data, at), end


# --- what they mean --------------------------------------------------------------------------------------------------


def _attention(metadata: Mapping[str, Value]) -> Attention | NotUnderstood | None:
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, bytes):
        return None
    name = architecture.decode("utf-8", "replace")
    of = {key.removeprefix(f"{name}."): value for key, value in metadata.items() if key.startswith(f"{name}.")}
    if "block_count" not in of or of.get("attention.causal") is False:
        return None
    try:
        layers = _number(of, "block_count", _MAX_LAYERS)
        heads = _per_layer(of, "attention.head_count", layers, None)
        kv_heads = _per_layer(of, "attention.head_count_kv", layers, heads)
        usual = _number(of, "embedding_length", _MAX_WIDTH) // max(1, *heads) if heads else 0
        key = _number(of, "attention.key_length", _MAX_WIDTH, usual)
        value = _number(of, "attention.value_length", _MAX_WIDTH, usual)
        context = _number(of, "context_length", _MAX_CONTEXT)
        window = _number(of, "attention.sliding_window", _MAX_CONTEXT, 0)
        narrow = _windowed(name, of, layers) if window else [False] * layers
    except ValueError as error:
        return NotUnderstood(str(error))
    wide_heads = sum(heads for heads, is_narrow in zip(kv_heads, narrow, strict=True) if not is_narrow)
    narrow_heads = sum(kv_heads) - wide_heads
    if not narrow_heads:
        return Attention(context, wide_heads * key, wide_heads * value)
    return Attention(context, wide_heads * key, wide_heads * value, window, narrow_heads * key, narrow_heads * value)


def _number(of: Mapping[str, Value], name: str, most: int, default: int | None = None) -> int:
    value = of.get(name, default)
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"its {name} is {'missing' if value is None else 'no number that can be'}")
    return value


def _per_layer(of: Mapping[str, Value], name: str, layers: int, default: list[int] | None) -> list[int]:
    """One number for all layers, or one each."""
    if name not in of and default is not None:
        return default
    value = of.get(name)
    each = [value] * layers if type(value) is int else list(value) if isinstance(value, tuple) else []
    if len(each) != layers or not all(type(n) is int and 0 <= n <= _MAX_WIDTH for n in each):
        raise ValueError(f"its {name} does not tell it for {layers} layers")
    return each


def _windowed(name: str, of: Mapping[str, Value], layers: int) -> list[bool]:
    """Which layers see the window only; where that is not known, none: the cache is counted too large then."""
    pattern = of.get("attention.sliding_window_pattern", _PATTERNS.get(name))
    if isinstance(pattern, tuple) and len(pattern) == layers:
        return [bool(each) for each in pattern]
    if type(pattern) is int and pattern > 0:
        return [layer % pattern < pattern - 1 for layer in range(layers)]
    return [False] * layers
