"""Weight files on disk: headers only, each file once, damage named."""

from __future__ import annotations

import json
import os
import struct

import pytest
from support.gguf_bytes import gguf, language_model

from swapd.core.errors import LOAD_FAILED, SwapdError
from swapd.core.gguf import Attention
from swapd.host.weights import summarize


def write_safetensors(path, payload=400):
    header = json.dumps({"w": {"dtype": "F32", "shape": [payload // 4], "data_offsets": [0, payload]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(payload))
    return path


def write_gguf(path, size=5000):
    path.write_bytes((b"GGUF" + struct.pack("<IQQ", 3, 2, 5)).ljust(size, b"\0"))
    return path


def fails(path, *words):
    with pytest.raises(SwapdError) as caught:
        summarize([path])
    assert caught.value.code == LOAD_FAILED
    for word in (str(path), *words):
        assert word in caught.value.message
    return caught.value


def test_safetensors_count_by_their_tensors(tmp_path):
    summary = summarize([write_safetensors(tmp_path / "model.safetensors")])
    assert (summary.bytes, summary.files, summary.detail) == (400, 1, "1 tensors, F32")


def test_only_the_header_of_a_large_file_is_read(tmp_path):
    """A sparse file of a terabyte: reading its tensors would take minutes."""
    path = write_safetensors(tmp_path / "model.safetensors", payload=0)
    header = json.dumps({"w": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    try:
        os.truncate(path, 8 + len(header) + (1 << 40))
    except OSError:
        pytest.skip("the file system has no sparse files of this size")
    assert summarize([path]).bytes == 1 << 40


def test_an_index_stands_for_its_shards(tmp_path):
    for number in (1, 2):
        write_safetensors(tmp_path / f"model-{number}.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}))
    summary = summarize([index])
    assert (summary.bytes, summary.files) == (800, 2)
    everything = summarize([index, *tmp_path.glob("*.safetensors")])
    assert everything == summary


def test_a_missing_shard_is_named(tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors"}}))
    with pytest.raises(SwapdError) as caught:
        summarize([index])
    assert str(tmp_path / "model-1.safetensors") in caught.value.message
    assert "does not exist" in caught.value.message


@pytest.mark.parametrize(
    "text", ["not json", "[]", "{}", '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": {"a": 7}}']
)
def test_a_bad_index_is_named(tmp_path, text):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    fails(index, "not an index")


def test_gguf_counts_by_its_size(tmp_path):
    assert summarize([write_gguf(tmp_path / "a.gguf")]).bytes == 5000


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".onnx", ".npz", ".h5", ".tflite"])
def test_other_weights_count_by_their_size(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(bytes(123))
    assert summarize([path]).bytes == 123


def test_one_file_by_several_names_counts_once(tmp_path):
    path = write_gguf(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").symlink_to(path)
    os.link(path, tmp_path / "c.gguf")
    assert summarize([path, tmp_path / "b.gguf", tmp_path / "c.gguf", path]).files == 1


def test_copies_for_older_loaders_are_passed_over(tmp_path):
    kept = write_safetensors(tmp_path / "model.safetensors")
    old = tmp_path / "pytorch_model.bin"
    old.write_bytes(bytes(400))
    assert summarize([old, kept]).bytes == 400
    assert summarize([old]).bytes == 400


def test_what_is_no_weight_file_does_not_count(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert summarize([tmp_path / "config.json"]) is None
    assert summarize([]) is None


def test_a_truncated_download_is_named(tmp_path):
    path = write_safetensors(tmp_path / "model.safetensors")
    os.truncate(path, path.stat().st_size - 100)
    fails(path, "truncated")


def test_a_damaged_header_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"<!DOCTYPE html><html>Not found</html>")
    fails(path, "damaged")
    path = tmp_path / "model.gguf"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    fails(path, "not a GGUF file")


def test_missing_empty_and_irregular_files_are_named(tmp_path):
    fails(tmp_path / "none.gguf", "does not exist")
    empty = tmp_path / "empty.pt"
    empty.touch()
    fails(empty, "empty")
    directory = tmp_path / "directory.bin"
    directory.mkdir()
    fails(directory, "not a regular file")
    fifo = tmp_path / "fifo.bin"
    os.mkfifo(fifo)
    fails(fifo, "not a regular file")


def test_the_attention_of_a_gguf_file_is_read_over_its_vocabulary(tmp_path):
    metadata = {"tokenizer.ggml.merges": ["token"] * 300_000, **language_model()}  # 3.9 MB of it come first
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(metadata).ljust(5 << 20, b"\0"))
    summary = summarize([path, write_safetensors(tmp_path / "other.safetensors")])
    assert summary.attentions == (Attention(8192, 768, 768),)
    assert summary.bytes == (5 << 20) + 400


def test_metadata_that_are_not_understood_are_told_and_the_file_counts(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(language_model(context_length=None)))
    summary = summarize([path])
    assert (summary.attentions, summary.not_understood) == ((), "its context_length is missing")


def test_metadata_that_never_end_are_not_read_to_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("swapd.host.weights.MAX_METADATA_BYTES", 1 << 20)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf({"tokenizer.ggml.merges": ["token"] * 300_000, **language_model()}))
    assert "longer than 1 MiB" in summarize([path]).not_understood


def test_a_gguf_file_that_ends_in_its_metadata_is_truncated(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(language_model())[:-5])
    fails(path, "within its metadata", "truncated")


def test_one_part_of_a_gguf_model_stands_for_all(tmp_path):
    parts = [tmp_path / f"model-{number:05d}-of-00002.gguf" for number in (1, 2)]
    parts[0].write_bytes(gguf(language_model()))
    with pytest.raises(SwapdError, match=f"{parts[1]}: it does not exist"):
        summarize(parts[:1])
    parts[1].write_bytes(gguf({"split.no": 1}).ljust(1000, b"\0"))
    for given in ([parts[0]], parts):
        summary = summarize(given)
        assert (summary.files, len(summary.attentions)) == (2, 1)
        assert summary.bytes == sum(part.stat().st_size for part in parts)
