"""Footprints: which source wins, and what a header may say."""

from __future__ import annotations

import json
import struct

from hypothesis import given
from hypothesis import strategies as st

from swapd.core.footprint import (
    BadWeights,
    Learned,
    WeightsSummary,
    estimate,
    follow,
    learn,
    parse_gguf_header,
    parse_safetensors_header,
    safetensors_header_length,
)
from swapd.core.model import DeviceKind, FootprintSource, Forecast

MIB = 1 << 20
GIB = 1 << 30
WEIGHTS = WeightsSummary(10 * GIB, 2)


def header(**tensors) -> bytes:
    return json.dumps(tensors).encode()


def tensor(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def parse(data: bytes, file_bytes: int | None = None, payload: int = 24):
    return parse_safetensors_header(data, 8 + len(data) + payload if file_bytes is None else file_bytes)


def test_declared_beats_learned_beats_estimated_beats_unknown():
    learned = Learned(5 * GIB)
    assert estimate(WEIGHTS, 5 * GIB, learned, DeviceKind.NVML).source is FootprintSource.DECLARED
    assert estimate(WEIGHTS, None, learned, DeviceKind.NVML).source is FootprintSource.LEARNED
    assert estimate(WEIGHTS, None, None, DeviceKind.NVML).source is FootprintSource.ESTIMATED
    assert estimate(None, None, None, DeviceKind.NVML).need_bytes is None


def test_a_declaration_that_was_seen_to_be_too_small_counts_no_more():
    footprint = estimate(WEIGHTS, GIB, Learned(5 * GIB), DeviceKind.NVML)
    assert (footprint.need_bytes, footprint.source) == (5 * GIB, FootprintSource.LEARNED)
    assert footprint.detail == "device_memory = 1.0 GiB, but it has taken 5.0 GiB"


def test_a_declaration_of_nothing_is_a_declaration():
    footprint = estimate(WEIGHTS, 0, None, DeviceKind.NVML)
    assert (footprint.need_bytes, footprint.source) == (0, FootprintSource.DECLARED)


def test_a_learned_peak_gets_a_margin():
    assert estimate(None, None, Learned(1000), DeviceKind.HOST).need_bytes == 1050


def test_an_estimate_is_the_weights_and_an_overhead_by_kind_of_device():
    gpu = estimate(WEIGHTS, None, None, DeviceKind.NVML)
    assert gpu.need_bytes == 11 * GIB + 512 * MIB
    assert gpu.detail == "weights 10.0 GiB in 2 files + overhead 1.5 GiB"
    assert estimate(WEIGHTS, None, None, DeviceKind.HOST).need_bytes == 11 * GIB + 64 * MIB


def test_what_says_nothing_is_unknown_and_not_zero():
    assert estimate(WeightsSummary(0, 0), None, Learned(0), DeviceKind.HOST).need_bytes is None


def test_learning_keeps_the_largest_peak_and_how_right_the_last_plan_was():
    first = learn(None, 100, None, FootprintSource.UNKNOWN)
    assert first == Learned(100, 1)
    assert learn(first, 70, 80, FootprintSource.ESTIMATED) == Learned(
        100, 2, Forecast(80, FootprintSource.ESTIMATED, 70)
    )
    assert learn(first, 130, None, FootprintSource.UNKNOWN) == Learned(130, 2)
    assert learn(first, 0, 80, FootprintSource.ESTIMATED) == first


def test_a_worker_that_grows_teaches_on():
    proved = learn(Learned(100, 1), 70, 80, FootprintSource.LEARNED)
    assert follow(proved, 90, proved=True) == Learned(100, 2, Forecast(80, FootprintSource.LEARNED, 90))
    assert follow(proved, 120, proved=True) == Learned(120, 2, Forecast(80, FootprintSource.LEARNED, 120))
    assert follow(proved, 120, proved=False) == Learned(120, 2, Forecast(80, FootprintSource.LEARNED, 70))


def test_a_run_that_did_not_prove_itself_is_a_floor_and_no_need():
    floor = follow(None, 3 * GIB, proved=False)
    assert floor == Learned(3 * GIB, 0)
    assert follow(None, 0, proved=False) is None
    assert estimate(None, None, floor, DeviceKind.NVML).need_bytes is None
    assert estimate(WEIGHTS, None, floor, DeviceKind.NVML).source is FootprintSource.ESTIMATED
    above = estimate(WEIGHTS, None, Learned(20 * GIB, 0), DeviceKind.NVML)
    assert (above.need_bytes, above.source) == (20 * GIB, FootprintSource.LEARNED)
    assert above.detail.endswith(", but it has taken 20.0 GiB")


def test_a_footprint_says_how_right_the_last_one_was():
    last = Forecast(80, FootprintSource.ESTIMATED, 70)
    for declared, weights in ((5, None), (None, WEIGHTS), (None, None)):
        assert estimate(weights, declared, Learned(70, 1, last), DeviceKind.HOST).last == last


def test_safetensors_sums_tensors_and_names_their_types():
    data = header(__metadata__={"format": "pt"}, a=tensor(), b=tensor("BF16", (4,), (24, 32)))
    assert parse(data, payload=32) == WeightsSummary(32, 1, "2 tensors, BF16 and F32")


def test_a_dtype_of_a_later_version_counts_by_its_offsets():
    assert parse(header(a=tensor("F2_FUTURE", (999,), (0, 24)))) == WeightsSummary(24, 1, "1 tensors, F2_FUTURE")


def test_subbyte_types_are_counted_in_bits():
    assert parse(header(a=tensor("F4", (48,), (0, 24)))).bytes == 24


def test_damaged_safetensors_headers_are_told_and_not_believed():
    for data in (
        b"not json",
        b"[1, 2]",
        b"[" * 100_000,
        header(a="text"),
        header(a=tensor(dtype=7)),
        header(a=tensor(shape=(2, -3))),
        header(a=tensor(shape=(2, 4))),
        header(a=tensor(shape=(1,) * 65)),
        header(a=tensor(offsets=(24, 0))),
        header(a={"dtype": "F32", "shape": [True, 6], "data_offsets": [0, 24]}),
        header(a=tensor(), b=tensor(offsets=(12, 36))),
        header(a=tensor(), b=tensor(offsets=(32, 56))),
    ):
        answer = parse(data, payload=56)
        assert isinstance(answer, BadWeights), data[:60]
        assert "damaged" in answer.why


def test_a_truncated_safetensors_file_is_told():
    data = header(a=tensor())
    assert "truncated" in parse(data, 8 + len(data) + 20).why
    assert "damaged" in parse(data, 8 + len(data) + 30).why


def test_the_safetensors_length_is_bounded():
    assert safetensors_header_length(struct.pack("<Q", 200), 1000) == 200
    assert "truncated" in safetensors_header_length(struct.pack("<Q", 2000), 1000).why
    assert "damaged" in safetensors_header_length(struct.pack("<Q", 1 << 40), 1 << 50).why
    assert isinstance(safetensors_header_length(b"abc", 3), BadWeights)


def gguf(version=3, tensors=2, metadata=5) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, metadata)


def test_gguf_counts_by_its_size():
    assert parse_gguf_header(gguf(), 5000) == WeightsSummary(5000, 1, "2 tensors, GGUF 3")


def test_damaged_gguf_is_told():
    assert "not a GGUF" in parse_gguf_header(b"PK\x03\x04" + bytes(20), 5000).why
    assert "truncated" in parse_gguf_header(gguf()[:10], 10).why
    assert "truncated" in parse_gguf_header(gguf(tensors=1000), 5000).why
    assert "damaged" in parse_gguf_header(gguf(tensors=1 << 60), 5000).why
    assert "version is 9" in parse_gguf_header(gguf(version=9), 5000).why
    assert "big-endian" in parse_gguf_header(b"GGUF" + struct.pack(">IQQ", 3, 2, 5), 5000).why


@given(st.binary(max_size=200), st.integers(0, 1 << 63))
def test_no_bytes_make_a_parser_raise(data, file_bytes):
    for answer in (
        safetensors_header_length(data, file_bytes),
        parse_safetensors_header(data, file_bytes),
        parse_gguf_header(data, file_bytes),
        parse_gguf_header(b"GGUF" + data, file_bytes),
    ):
        assert isinstance(answer, int | WeightsSummary | BadWeights)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries({"dtype": json_values, "shape": json_values, "data_offsets": json_values}) | json_values,
    )
)
def test_no_json_makes_the_parser_raise(tensors):
    data = json.dumps(tensors).encode()
    assert isinstance(parse_safetensors_header(data, 8 + len(data)), WeightsSummary | BadWeights)


def test_a_kv_cache_that_is_set_comes_on_top_of_the_weights():
    weights = WeightsSummary(10 * MIB, 1)
    without = estimate(weights, None, None, DeviceKind.NVML)
    found = estimate(weights, None, None, DeviceKind.NVML, cache_bytes=MIB)
    assert found.need_bytes == without.need_bytes + MIB
    assert found.detail == without.detail + " + KV cache 1 MiB"


def test_a_declaration_is_told_in_the_words_that_it_was_made_in():
    assert estimate(None, 9, None, DeviceKind.NVML, said="0.9 of it").detail == "0.9 of it"
    assert (
        estimate(None, 9, Learned(10), DeviceKind.NVML, said="0.9 of it").detail == "0.9 of it, but it has taken 10 B"
    )
