"""What a GGUF file says of its attention: read strictly, within what is there, and never guessed."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gguf_bytes import gguf, language_model, string, value

from swapd.core.gguf import Attention, More, NotUnderstood, parse_attention


def attention(architecture="llama", **changes):
    return parse_attention(gguf(language_model(architecture, **changes)))


def test_the_elements_of_a_token_are_heads_times_their_length_over_all_layers():
    assert attention() == Attention(8192, 6 * 128, 6 * 128)
    grouped = attention(attention__head_count_kv=2, attention__key_length=64, attention__value_length=48)
    assert grouped == Attention(8192, 6 * 2 * 64, 6 * 2 * 48)


def test_layers_without_attention_take_no_cache():
    assert attention(attention__head_count_kv=[0, 0, 4, 0, 0, 4]) == Attention(8192, 2 * 128, 2 * 128)


def test_a_layer_that_sees_a_window_is_counted_by_itself():
    gemma = attention("gemma3", attention__sliding_window=512)
    assert gemma == Attention(8192, 128, 128, 512, 5 * 128, 5 * 128)
    told = attention(attention__sliding_window=512, attention__sliding_window_pattern=[True, False] * 3)
    assert told == Attention(8192, 3 * 128, 3 * 128, 512, 3 * 128, 3 * 128)
    assert attention(attention__sliding_window=512) == attention(), "which layers is not known, so none"


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"general.architecture": 7},
        {"general.architecture": "clip", "clip.vision.block_count": 12},
        {"general.architecture": "llama", "general.type": "adapter"},
        language_model("bert", attention__causal=False),
    ],
)
def test_what_is_no_language_model_has_no_cache(metadata):
    assert parse_attention(gguf(metadata)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"context_length": None}, "context_length is missing"),
        ({"attention.head_count": None}, "head_count does not tell it for 6 layers"),
        ({"attention.head_count_kv": [4, 4]}, "head_count_kv does not tell it for 6 layers"),
        ({"attention.head_count_kv": "four"}, "head_count_kv does not tell"),
        ({"block_count": 4_000_000}, "block_count is no number that can be"),
        ({"embedding_length": 1.5}, "embedding_length is no number that can be"),
        ({"attention.key_length": True}, "key_length is no number that can be"),
    ],
)
def test_what_cannot_be_is_not_believed(changes, words):
    answer = attention(**changes)
    assert isinstance(answer, NotUnderstood)
    assert words in answer.why


def test_a_type_of_a_later_version_is_not_understood():
    data = gguf({"general.architecture": "llama", "new": 1})
    for later in (data[:-8] + struct.pack("<II", 13, 1), data[:-8] + struct.pack("<IIQ", 9, 9, 1)):
        assert "of type" in parse_attention(later).why


def test_every_beginning_of_the_metadata_asks_for_more():
    data = gguf(language_model())
    assert all(parse_attention(data[:size]) == More() for size in range(len(data)))
    assert parse_attention(data + b"tensors") == attention()


def test_counts_that_are_too_large_ask_for_more_at_once():
    huge = struct.pack("<Q", (1 << 63) - 1)
    head = b"GGUF" + struct.pack("<IQ", 3, 0)
    texts, numbers = value(["a"])[:8], value([1])[:8]
    for pair in (huge, string("k") + texts + huge, string("k") + numbers + huge, string("k") + value("")[:4] + huge):
        assert parse_attention(head + huge + pair + bytes(100)) == More()


@given(st.binary(max_size=200), st.integers(0, 600), st.integers(0, 40))
def test_damage_anywhere_is_never_an_accident(garbage, at, cut):
    data = gguf(language_model(attention__head_count_kv=[4, 4, 4, 4, 2, 2]))
    answer = parse_attention(data[:at] + garbage + data[at + cut :])
    assert answer is None or isinstance(answer, Attention | More | NotUnderstood)
