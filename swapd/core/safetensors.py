"""The tensors of safetensors files, and where each comes to lie in memory. Pure; standard library only: it also runs in
a model's interpreter.

Format: https://huggingface.co/docs/safetensors/index#format. A header is checked by `core.footprint`, as it is before a
swap is planned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from swapd.core.footprint import BadWeights, parse_safetensors_header

ALIGNMENT: Final = 512  # what CUDA's own allocations begin at; kernels read unaligned tensors slowly, or not at all


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of one file."""

    name: str
    dtype: str  # as the format calls it: "BF16"
    shape: tuple[int, ...]
    begin: int  # offset in the file
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor, the number of its file, and where in memory it begins."""

    tensor: Tensor
    file: int
    at: int


def read_tensors(header: bytes, file_bytes: int) -> tuple[Tensor, ...] | BadWeights:
    """The tensors of a header (the JSON after the length), in the order of the file."""
    summary = parse_safetensors_header(header, file_bytes)
    if isinstance(summary, BadWeights):
        return summary
    start = 8 + len(header)
    tensors = []
    for name, entry in json.loads(header).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            tensors.append(Tensor(name, entry["dtype"], tuple(entry["shape"]), start + begin, end - begin))
    return tuple(sorted(tensors, key=lambda tensor: (tensor.begin, tensor.size_bytes)))


def lay_out(files: Sequence[Sequence[Tensor]]) -> tuple[tuple[Placed, ...], int] | BadWeights:
    """Every tensor of `files`, one after the other and each aligned; and how many bytes that takes."""
    placed: list[Placed] = []
    seen: dict[str, int] = {}
    at = 0
    for number, tensors in enumerate(files):
        for tensor in tensors:
            if seen.setdefault(tensor.name, number) != number:
                return BadWeights(f"its tensor {tensor.name[:80]!r} is in another of the files as well")
            placed.append(Placed(tensor, number, at))
            at += -(-tensor.size_bytes // ALIGNMENT) * ALIGNMENT
    return tuple(placed), at
