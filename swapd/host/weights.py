"""How much the weight files of a model hold, from their headers: a few kilobytes are read of many gigabytes.

Sole duty: the reading. What a header means is `core.footprint`'s; which files are a model's is the caller's.
Regular files only, opened without blocking: a FIFO in a model's directory must not stop the daemon.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from swapd.core.errors import LOAD_FAILED, SwapdError
from swapd.core.footprint import (
    BadWeights,
    WeightsSummary,
    parse_gguf_header,
    parse_safetensors_header,
    safetensors_header_length,
)
from swapd.core.gguf import HEADER_BYTES, MAX_METADATA_BYTES, Attention, More, NotUnderstood, parse_attention
from swapd.core.sizes import human_bytes

# Formats without a header that tells: their size is near enough what they become in memory. (A compressed .npz
# and a pickled optimiser state are not, in either direction; such a model declares its memory or is learned.)
PLAIN_SUFFIXES: Final = frozenset(
    {".bin", ".pt", ".pth", ".onnx", ".npz", ".npy", ".h5", ".keras", ".tflite", ".joblib", ".pkl", ".ckpt"}
)
WEIGHT_SUFFIXES: Final = PLAIN_SUFFIXES | {".safetensors", ".gguf"}
# Copies of the same weights for older loaders, which transformers passes over where a .safetensors lies beside them.
_SHADOWED_PREFIXES: Final = ("pytorch_model", "tf_model", "flax_model")
# llama.cpp is given one part of a model and takes them all.
_GGUF_PART: Final = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf", re.ASCII)
_MAX_GGUF_PARTS: Final = 1000
_FIRST_READ_BYTES: Final = 1 << 20
_INDEX_SUFFIX: Final = ".safetensors.index.json"
_MAX_INDEX_BYTES: Final = 64 << 20  # the largest published ones are a few MB


def summarize(paths: Iterable[Path | str]) -> WeightsSummary | None:
    """Sum the weights in `paths`; an index stands for its shards, and each file counts once however it is named.

    None when no path is a weight file. Raises SwapdError(LOAD_FAILED) naming a file that is missing, damaged or
    truncated: loading it would fail later and with fewer words. Blocks on the disk: call it from a thread.
    """
    summaries: list[WeightsSummary] = []
    seen: set[tuple[int, int]] = set()
    for path in _weights([Path(p) for p in paths]):
        with _open(path) as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            summary = _read_header(path, file, status.st_size)
        if isinstance(summary, BadWeights):
            raise SwapdError(LOAD_FAILED, f"Weights {path}: {summary.why}.", {"file": str(path)})
        summaries.append(summary)
    if not summaries:
        return None
    details = [s.detail for s in summaries if s.detail]
    return WeightsSummary(
        bytes=sum(s.bytes for s in summaries),
        files=len(summaries),
        detail=details[0] if len(details) == 1 else "",
        attentions=tuple(attention for s in summaries for attention in s.attentions),
        not_understood=next((s.not_understood for s in summaries if s.not_understood), ""),
    )


def largest_first(paths: Iterable[Path | str]) -> list[Path]:
    """The weight files among `paths`, indexes resolved. Raises SwapdError(LOAD_FAILED) naming a damaged index."""
    sizes: dict[Path, int] = {}
    for path in _weights([Path(p) for p in paths]):
        with contextlib.suppress(OSError):
            sizes[path] = path.stat().st_size
    return sorted(sizes, key=lambda path: (-sizes[path], path))


def _read_header(path: Path, file: IO[bytes], file_bytes: int) -> WeightsSummary | BadWeights:
    suffix = path.suffix.lower()
    try:
        if suffix == ".safetensors":
            length = safetensors_header_length(file.read(8), file_bytes)
            if isinstance(length, BadWeights):
                return length
            return parse_safetensors_header(file.read(length), file_bytes)
        if suffix == ".gguf":
            return _read_gguf(file, file_bytes)
    except OSError as error:
        raise _unreadable(path, error) from error
    return WeightsSummary(file_bytes, 1) if file_bytes else BadWeights("it is empty")


def _read_gguf(file: IO[bytes], file_bytes: int) -> WeightsSummary | BadWeights:
    """As much of the metadata as there are: those of a model with a large vocabulary go on for megabytes."""
    data = file.read(HEADER_BYTES)
    summary = parse_gguf_header(data, file_bytes)
    if isinstance(summary, BadWeights):
        return summary
    attention: Attention | More | NotUnderstood | None = More()
    while isinstance(attention, More) and len(data) < MAX_METADATA_BYTES:
        more = file.read(min(max(_FIRST_READ_BYTES, 3 * len(data)), MAX_METADATA_BYTES - len(data)))
        if not more:
            return BadWeights("it ends within its metadata: it is truncated")
        data += more
        attention = parse_attention(data)
    if isinstance(attention, More):
        attention = NotUnderstood(f"its metadata are longer than {human_bytes(MAX_METADATA_BYTES)}")
    if isinstance(attention, NotUnderstood):
        return replace(summary, not_understood=attention.why)
    return summary if attention is None else replace(summary, attentions=(attention,))


def _weights(paths: Sequence[Path]) -> list[Path]:
    """The weight files among `paths`, indexes resolved."""
    found: list[Path] = []
    for path in paths:
        if path.name.endswith(_INDEX_SUFFIX):
            found.extend(_shards(path))
        elif (part := _GGUF_PART.fullmatch(path.name)) is not None and int(part[2]) <= _MAX_GGUF_PARTS:
            found.extend(path.with_name(f"{part[1]}-{n:05d}-of-{part[2]}.gguf") for n in range(1, int(part[2]) + 1))
        elif path.suffix.lower() in WEIGHT_SUFFIXES:
            found.append(path)
    with_safetensors = {path.parent for path in found if path.suffix.lower() == ".safetensors"}
    return [p for p in found if p.parent not in with_safetensors or not p.name.startswith(_SHADOWED_PREFIXES)]


def _shards(index: Path) -> list[Path]:
    """The files that an index names, which lie beside it."""
    with _open(index) as file:
        data = file.read(_MAX_INDEX_BYTES + 1)
    try:
        if len(data) > _MAX_INDEX_BYTES:
            raise ValueError
        names = sorted(set(json.loads(data)["weight_map"].values()))
        if not all(name == Path(name).name for name in names):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        text = f"Weights {index}: it is not an index of safetensors shards (no `weight_map` of file names)."
        raise SwapdError(LOAD_FAILED, text, {"file": str(index)}) from None
    return [index.with_name(name) for name in names]


def _open(path: Path) -> IO[bytes]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise _unreadable(path, error) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise SwapdError(LOAD_FAILED, f"Weights {path}: it is not a regular file.", {"file": str(path)})
    return os.fdopen(fd, "rb")


def _unreadable(path: Path, error: OSError) -> SwapdError:
    why = "it does not exist" if error.errno == errno.ENOENT else (error.strerror or str(error)).lower()
    return SwapdError(LOAD_FAILED, f"Weights {path}: {why}.", {"file": str(path)})
