"""Where tensors lie in their file, and where they will lie in memory."""

import json
import struct

from hypothesis import given
from hypothesis import strategies as st

from swapd.core.footprint import BadWeights
from swapd.core.safetensors import ALIGNMENT, Tensor, lay_out, read_tensors

FILES = st.lists(st.lists(st.integers(0, 5000), max_size=8), max_size=4)


def header(**tensors):
    return json.dumps(tensors).encode()


def test_tensors_are_told_with_their_place_in_the_file():
    text = header(
        b={"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]},
        a={"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]},
        __metadata__={"format": "pt"},
    )
    begin = 8 + len(text)
    assert read_tensors(text, begin + 32) == (
        Tensor("a", "BF16", (4,), begin, 8),
        Tensor("b", "F32", (2, 3), begin + 8, 24),
    )


def test_a_damaged_header_is_told_and_not_laid_out():
    text = header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 800]})
    assert "described wrongly" in read_tensors(text, 8 + len(text) + 800).why


def test_one_name_in_two_files_is_refused():
    tensor = Tensor("w", "U8", (1,), 0, 1)
    found = lay_out([[tensor], [tensor]])
    assert isinstance(found, BadWeights)
    assert "'w'" in found.why


@given(FILES)
def test_tensors_are_aligned_and_never_overlap(files):
    given_files = [[Tensor(f"{f}.{n}", "U8", (size,), 0, size) for n, size in enumerate(sizes)]
                   for f, sizes in enumerate(files)]  # fmt: skip
    placed, total = lay_out(given_files)
    assert [p.tensor for p in placed] == [tensor for tensors in given_files for tensor in tensors]
    end = 0
    for each in placed:
        assert each.at % ALIGNMENT == 0
        assert each.at >= end
        end = each.at + each.tensor.size_bytes
    assert end <= total < end + ALIGNMENT


@given(st.binary(max_size=300))
def test_no_header_makes_it_fail_otherwise(data):
    found = read_tensors(data, 8 + len(data) + 64)
    assert isinstance(found, (BadWeights, tuple))


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=5))
def test_what_is_accepted_fits_the_file(spans):
    entries = {
        str(n): {"dtype": "U8", "shape": [max(0, e - b)], "data_offsets": [b, e]} for n, (b, e) in enumerate(spans)
    }
    text = header(**entries)
    size = 8 + len(text) + max([0, *(e for _, e in spans)])
    found = read_tensors(text, size)
    if not isinstance(found, BadWeights):
        assert all(8 + len(text) <= t.begin and t.begin + t.size_bytes <= size for t in found)


def test_the_length_before_the_header_counts_as_part_of_the_file():
    text = header(a={"dtype": "U8", "shape": [3], "data_offsets": [0, 3]})
    file = struct.pack("<Q", len(text)) + text + b"xyz"
    [tensor] = read_tensors(text, len(file))
    assert file[tensor.begin : tensor.begin + tensor.size_bytes] == b"xyz"
