"""What a model will need on its device, before it is loaded: declared > learned > estimated > unknown.

Pure: the bytes of weights' headers come in as arguments, and what they say is checked, because a wrong header
would otherwise become a wrong promise. Formats: safetensors
(https://huggingface.co/docs/safetensors/index#format) and GGUF
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Final

from swapd.core.gguf import Attention
from swapd.core.model import DeviceKind, Footprint, FootprintSource, Forecast
from swapd.core.sizes import human_bytes

MIB: Final = 1 << 20

# The format's own reader refuses longer headers (MAX_HEADER_SIZE in safetensors/src/tensor.rs).
SAFETENSORS_MAX_HEADER_BYTES: Final = 100_000_000
# Bits per element, as safetensors 0.6 writes them; a dtype of a later version is counted by its offsets alone.
_SAFETENSORS_BITS: Final = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_GGUF_VERSIONS: Final = (2, 3)  # 1 had 32-bit counts and has not been written since 2023
# llama.cpp's biggest models have a few thousand of either; far more is a corrupt file.
_GGUF_MAX_COUNT: Final = 10_000_000

# On top of the weights. A CUDA context takes 256-400 MiB with lazy loading (InvokeAI#9413, pytorch#107667), more
# with library handles and workspaces; the tenth is for activations, buffers and the allocator's rounding. A KV
# cache is not covered: it is counted where a server's settings tell its size; other models declare their memory, or it
# is learned.
_NVML_OVERHEAD_BYTES: Final = 512 * MIB
# A Python process with an ASGI app and numpy holds 50-60 MiB anonymous before it has loaded anything.
_HOST_OVERHEAD_BYTES: Final = 64 * MIB
_OVERHEAD_PERCENT: Final = 10
# A learned peak is of the load that was seen, and the next one may come in larger batches.
_LEARNED_MARGIN_PERCENT: Final = 5


@dataclass(frozen=True, slots=True)
class WeightsSummary:
    """What a model's weight files hold."""

    bytes: int
    files: int
    detail: str = ""  # e.g. "291 tensors, BF16 and F32"
    attentions: tuple[Attention, ...] = ()  # of the language models among GGUF files
    not_understood: str = ""  # why one that there may be is not among them


@dataclass(frozen=True, slots=True)
class Learned:
    """What runs of one (content, settings digest, device type) were seen to take.

    `runs` have proved themselves; where none has, the peak is of loads that failed or were ended: a floor, no need.
    """

    peak_bytes: int
    runs: int = 1
    last: Forecast | None = None  # of the run that proved itself last


@dataclass(frozen=True, slots=True)
class BadWeights:
    """Why a header cannot be right. A value: the caller knows the file's name."""

    why: str


def estimate(
    weights: WeightsSummary | None,
    declared_bytes: int | None,
    learned: Learned | None,
    device_kind: DeviceKind,
    *,
    said: str = "",
    cache_bytes: int = 0,
    cache_words: str = "",
    gpus: int = 1,
) -> Footprint:
    """The footprint on one device, from the best that is known. A declaration or an estimate that was seen to be too
    small is not.

    `said` is the declaration in words; `cache_bytes` are known to come on top of the weights, `cache_words` say for
    what, or why they are not known.
    A model that spans several `gpus` needs its part of both on each; what is declared and learned is of one already.
    """
    known = _said_or_learned(declared_bytes, said, learned)
    known = known or _estimated(weights, device_kind, cache_bytes, cache_words, gpus)
    if learned is None:
        return known
    if known.need_bytes is not None and learned.peak_bytes > known.need_bytes:
        seen = f"{known.detail}, but it has taken {human_bytes(learned.peak_bytes)}"
        declared = known.source is FootprintSource.DECLARED
        known = Footprint(learned.peak_bytes, FootprintSource.LEARNED, seen, beyond_declared=declared)
    return replace(known, last=learned.last)


def _said_or_learned(declared_bytes: int | None, said: str, learned: Learned | None) -> Footprint | None:
    if declared_bytes is not None:
        detail = said or f"device_memory = {human_bytes(declared_bytes)}"
        return Footprint(declared_bytes, FootprintSource.DECLARED, detail)
    if learned is None or not learned.runs or learned.peak_bytes <= 0:
        return None
    need = learned.peak_bytes + _percent(learned.peak_bytes, _LEARNED_MARGIN_PERCENT)
    runs = "1 run" if learned.runs == 1 else f"{learned.runs} runs"
    peak = f"peak of {runs} {human_bytes(learned.peak_bytes)} + {_LEARNED_MARGIN_PERCENT} %"
    return Footprint(need, FootprintSource.LEARNED, peak)


def _estimated(
    weights: WeightsSummary | None, device_kind: DeviceKind, cache_bytes: int, cache_words: str, gpus: int
) -> Footprint:
    if weights is None or weights.bytes <= 0:
        return Footprint(None, FootprintSource.UNKNOWN, "no device_memory, no earlier run and no weight files known")
    base = _NVML_OVERHEAD_BYTES if device_kind is DeviceKind.NVML else _HOST_OVERHEAD_BYTES
    part, cache_bytes = -(-weights.bytes // gpus), -(-cache_bytes // gpus)
    overhead = base + _percent(part, _OVERHEAD_PERCENT)
    files = "1 file" if weights.files == 1 else f"{weights.files} files"
    among = f" among {gpus} GPUs" if gpus > 1 else ""
    detail = f"weights {human_bytes(weights.bytes)} in {files}{among} + overhead {human_bytes(overhead)}"
    detail += f" + KV cache {human_bytes(cache_bytes)}" if cache_bytes else ""
    detail += f" ({cache_words})" if cache_words else ""
    return Footprint(part + overhead + cache_bytes, FootprintSource.ESTIMATED, detail)


def learn(
    before: Learned | None, seen_bytes: int, planned_bytes: int | None, source: FootprintSource
) -> Learned | None:
    """What is known after one more run has proved itself, for which so much was planned. The largest peak counts: a
    quiet run teaches nothing about a busy one."""
    if seen_bytes <= 0:
        return before
    last = None if planned_bytes is None else Forecast(planned_bytes, source, seen_bytes)
    if before is None:
        return Learned(seen_bytes, last=last)
    return Learned(max(before.peak_bytes, seen_bytes), before.runs + 1, last)


def follow(before: Learned | None, seen_bytes: int, *, proved: bool) -> Learned | None:
    """What is known once a worker is seen to hold so much. `proved`: its run is the one that was learned last."""
    if before is None:
        return Learned(seen_bytes, runs=0) if seen_bytes > 0 else None
    last = before.last
    if proved and last is not None:
        last = replace(last, seen_bytes=max(last.seen_bytes, seen_bytes))
    return replace(before, peak_bytes=max(before.peak_bytes, seen_bytes), last=last)


# --- safetensors -------------------------------------------------------------------------------------------


def safetensors_header_length(first_8_bytes: bytes, file_bytes: int) -> int | BadWeights:
    """How many bytes of JSON follow the first eight."""
    if len(first_8_bytes) < 8:
        return BadWeights("it is shorter than the 8 bytes that every safetensors file begins with")
    (length,) = struct.unpack("<Q", first_8_bytes[:8])
    if length > SAFETENSORS_MAX_HEADER_BYTES:
        return BadWeights(f"its header would be {human_bytes(length)}: not a safetensors file, or damaged")
    if length < 2 or 8 + length > file_bytes:
        return BadWeights(f"its header should be {length} bytes and the file has {file_bytes}: it is truncated")
    return int(length)


def parse_safetensors_header(header: bytes, file_bytes: int) -> WeightsSummary | BadWeights:
    """Sum the tensors of a header (the JSON after the length), against the size of the whole file."""
    try:
        tensors = json.loads(header)
    except (ValueError, RecursionError):
        return BadWeights("its header is not JSON: it is damaged")
    if not isinstance(tensors, dict):
        return BadWeights("its header is not a JSON object: it is damaged")
    spans: list[tuple[int, int]] = []
    dtypes: set[str] = set()
    for name, tensor in tensors.items():
        if name == "__metadata__":
            continue
        span = _tensor_span(name, tensor)
        if isinstance(span, BadWeights):
            return span
        spans.append(span)
        dtypes.add(str(tensor["dtype"]))
    end = 0
    for begin, stop in sorted(spans):
        if begin != end:  # the format allows neither holes nor overlaps
            return BadWeights(f"its tensors overlap or leave a hole at byte {min(begin, end)}: it is damaged")
        end = stop
    if 8 + len(header) + end != file_bytes:
        size = f"its tensors need {8 + len(header) + end} bytes and the file has {file_bytes}"
        return BadWeights(f"{size}: it is {'truncated' if 8 + len(header) + end > file_bytes else 'damaged'}")
    return WeightsSummary(end, 1, f"{len(spans)} tensors, {' and '.join(sorted(dtypes)) or 'none'}")


def _tensor_span(name: str, tensor: Any) -> tuple[int, int] | BadWeights:
    damaged = BadWeights(f"its tensor {name[:80]!r} is described wrongly: it is damaged")
    if not isinstance(tensor, dict) or not isinstance(tensor.get("dtype"), str):
        return damaged
    shape, offsets = _sizes(tensor.get("shape")), _sizes(tensor.get("data_offsets"))
    if shape is None or offsets is None or len(offsets) != 2:
        return damaged
    begin, stop = offsets
    bits = _SAFETENSORS_BITS.get(tensor["dtype"])
    if stop < begin or (bits is not None and prod(shape) * bits != (stop - begin) * 8):
        return damaged
    return begin, stop


def _sizes(value: Any) -> list[int] | None:
    """A short list of 63-bit sizes. (Frameworks stop at 64 dimensions, and a product of millions takes minutes.)"""
    if not isinstance(value, list) or len(value) > 64:
        return None
    return value if all(type(item) is int and 0 <= item < 1 << 63 for item in value) else None


# --- GGUF --------------------------------------------------------------------------------------------------


def parse_gguf_header(first_24_bytes: bytes, file_bytes: int) -> WeightsSummary | BadWeights:
    """The fixed part of the header; the need is the file's size.

    Tensor infos would give a figure smaller by the metadata, a few MB of vocabulary, at the price of knowing every
    quantisation's block size; llama.cpp itself maps the whole file.
    """
    if first_24_bytes[:4] != b"GGUF":
        return BadWeights("it does not begin with GGUF: not a GGUF file, or damaged")
    if len(first_24_bytes) < 24 or file_bytes < 24:
        return BadWeights("it ends within its header: it is truncated")
    version, tensors, metadata = struct.unpack("<IQQ", first_24_bytes[4:24])
    if version not in _GGUF_VERSIONS:
        big_endian = version & 0xFFFF == 0
        why = "it is big-endian" if big_endian else f"its version is {version}"
        return BadWeights(f"{why}: swapd reads little-endian GGUF 2 and 3")
    if tensors > _GGUF_MAX_COUNT or metadata > _GGUF_MAX_COUNT:
        return BadWeights(f"it claims {tensors} tensors and {metadata} metadata entries: it is damaged")
    # A tensor info takes at the least 8 for its name's length, 4 for the count of dimensions, 4 type and 8 offset.
    if file_bytes < 24 + tensors * 24:
        return BadWeights(f"it claims {tensors} tensors and has {file_bytes} bytes: it is truncated")
    return WeightsSummary(file_bytes, 1, f"{tensors} tensors, GGUF {version}")


def _percent(size_bytes: int, percent: int) -> int:
    return -(-size_bytes * percent // 100)
