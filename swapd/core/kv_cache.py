"""How large the KV cache of a llama-server will be: what its command says, over what its GGUF file says.

Pure. Measured against the buffers that llama-server 11434 logs (tests/core/test_kv_cache.py). Source: llama.cpp's
tools/server/README.md, and src/llama-context.cpp and src/llama-kv-cache-iswa.cpp on how cells are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from swapd.core.engine_flags import flag_values, has_flag
from swapd.core.gguf import Attention

_CELLS: Final = 256  # what a number of cells is rounded up to
_AUTO_SLOTS: Final = 4  # which share one cache
# Bytes of so many elements: a block of a quantised type.
_BLOCKS: Final = {
    "f32": (4, 1), "f16": (2, 1), "bf16": (2, 1),
    "q8_0": (34, 32), "q4_0": (18, 32), "q4_1": (20, 32), "iq4_nl": (18, 32), "q5_0": (22, 32), "q5_1": (24, 32),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What a llama-server is told of its cache, by flags or else by its environment; the defaults are its own."""

    context: int = 0  # tokens, of all slots together; 0: what the model was made for
    keys: str = "f16"
    values: str = "f16"
    slots: int = 0  # 0: as many as it likes, with one cache
    unified: bool = False
    whole_windows: bool = False  # a layer that sees a window has cells for the whole context as well
    batch: int = 512
    on_device: bool = True

    @property
    def shared(self) -> bool:
        """Whether the slots share one cache."""
        return self.unified or not self.slots

    @property
    def all_slots(self) -> int:
        return self.slots or _AUTO_SLOTS


def cache_settings(command: Sequence[str], environment: Mapping[str, str]) -> CacheSettings:
    def said(variable: str, *flags: str) -> str:
        values = flag_values(command, *flags)[:1]
        return values[0] if values else environment.get(f"LLAMA_ARG_{variable}", "")

    def number(variable: str, *flags: str) -> int:
        text = said(variable, *flags)
        return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else 0

    def kind(variable: str, *flags: str) -> str:
        text = said(variable, *flags)
        return text if text in _BLOCKS else "f16"

    def is_on(variable: str) -> bool:
        return environment.get(f"LLAMA_ARG_{variable}", "").lower() in ("1", "on", "true", "enabled")

    return CacheSettings(
        context=number("CTX_SIZE", "-c", "--ctx-size"),
        keys=kind("CACHE_TYPE_K", "-ctk", "--cache-type-k"),
        values=kind("CACHE_TYPE_V", "-ctv", "--cache-type-v"),
        slots=number("N_PARALLEL", "-np", "--parallel"),
        unified=has_flag(command, "-kvu", "--kv-unified") or is_on("KV_UNIFIED"),
        whole_windows=has_flag(command, "--swa-full") or is_on("SWA_FULL"),
        batch=number("UBATCH", "-ub", "--ubatch-size") or 512,
        on_device=not has_flag(command, "-nkvo", "--no-kv-offload"),
    )


def cache_bytes(attention: Attention, settings: CacheSettings) -> int:
    """Of one model, on the device where its layers are."""
    context = _round(settings.context or attention.context_length)
    streams = 1 if settings.shared else settings.all_slots
    cells = _round(context // streams)
    windows = attention.window * (settings.all_slots if settings.shared else 1) + settings.batch
    window_cells = cells if settings.whole_windows else _round(min(cells, windows))
    each = (
        _bytes(cells * attention.keys, settings.keys) + _bytes(cells * attention.values, settings.values),
        _bytes(window_cells * attention.window_keys, settings.keys),
        _bytes(window_cells * attention.window_values, settings.values),
    )
    return streams * sum(each)


def cache_words(attentions: Sequence[Attention], settings: CacheSettings) -> str:
    """32768 tokens of q8_0"""
    context = settings.context or max(attention.context_length for attention in attentions)
    types = settings.keys if settings.keys == settings.values else f"{settings.keys} and {settings.values}"
    return f"{context} tokens of {types}"


def _round(cells: int) -> int:
    return -(-cells // _CELLS) * _CELLS


def _bytes(elements: int, kind: str) -> int:
    size, block = _BLOCKS[kind]
    return -(-elements * size // block)
