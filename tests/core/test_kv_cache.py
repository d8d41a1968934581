"""The size of a llama-server's KV cache, against what llama-server 11434 logs as the sizes of its buffers."""

from __future__ import annotations

import pytest

from swapd.core.gguf import Attention
from swapd.core.kv_cache import cache_bytes, cache_settings, cache_words

MIB = 1 << 20
SMOLLM2 = Attention(8192, 5760, 5760)  # 135M
GEMMA3 = Attention(32768, 768, 768, 512, 3840, 3840)  # 270M, 15 of whose 18 layers see 512 tokens


@pytest.mark.parametrize(
    ("flags", "smollm2_mib", "gemma3_mib"),
    [
        ("", 180.0, 133.5),
        ("-c 0", 180.0, 133.5),
        ("-c 1000", 22.5, 18.0),
        ("--ctx-size 4096 --cache-type-k q8_0 -ctv q4_0 -fa on", 36.56, 20.11),
        ("-c 4096 -np 2", 90.0, 42.0),
        ("-c 4096 -np 3", 101.25, 58.5),
        ("-c 5000 -np 3 -kvu", 112.5, 45.0),
        ("-c 8192 --swa-full", 180.0, 144.0),
        ("-c 8192 -np 2 -ub 128", 180.0, 46.5),
    ],
)
def test_it_is_what_the_server_says(flags, smollm2_mib, gemma3_mib):
    settings = cache_settings(flags.split(), {})
    assert round(cache_bytes(SMOLLM2, settings) / MIB, 2) == smollm2_mib
    assert round(cache_bytes(GEMMA3, settings) / MIB, 2) == gemma3_mib


def test_the_environment_says_what_no_flag_does():
    environment = {"LLAMA_ARG_CTX_SIZE": "4096", "LLAMA_ARG_CACHE_TYPE_K": "q8_0", "LLAMA_ARG_N_PARALLEL": "2"}
    settings = cache_settings(["-ctk", "f32"], environment)
    assert (settings.context, settings.keys, settings.values, settings.slots) == (4096, "f32", "f16", 2)
    assert cache_settings([], {"LLAMA_ARG_KV_UNIFIED": "1"}).unified


def test_what_is_no_number_or_no_type_is_left_to_the_server():
    settings = cache_settings(["-c", "many", "-ctk", "q99", "-np", "-1"], {"LLAMA_ARG_UBATCH": "9" * 50})
    assert settings == cache_settings([], {})


def test_it_is_told_in_tokens():
    assert cache_words([SMOLLM2], cache_settings([], {})) == "8192 tokens of f16"
    assert cache_words([SMOLLM2], cache_settings(["-c", "4096", "-ctk", "q8_0"], {})) == "4096 tokens of q8_0 and f16"
