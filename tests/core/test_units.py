"""Durations and sizes, read and written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.units import NotAQuantity, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("60s", 60), ("10m", 600), ("2h", 7200), ("1d", 86400), ("0s", 0), ("1.5m", 90), (" 3 s ", 3)],
)
def test_durations_are_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ("60", 'write "60s"'),
        (60, 'write "60s"'),
        (1.5, 'write "1.5s"'),
        ("60sec", 'write "60s"'),
        ("5 minutes", 'write "5m"'),
        ("5M", 'write "5m"'),
        ("3hours", 'write "3h"'),
        ("3us", "the units are ms, s, m, h and d"),
        ("2 months", "the units are ms, s, m, h and d"),
        ("-5s", "expected a duration"),
        ("soon", "expected a duration"),
        ("", "expected a duration"),
        (True, "expected a duration"),
        ([], "expected a duration"),
        ("99999d", "longer than ten years"),
    ],
)
def test_what_is_no_duration_is_told_what_to_write(value, cure):
    with pytest.raises(NotAQuantity) as error:
        parse_duration(value)
    assert cure in str(error.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 * 2**20),
        ("6GiB", 6 * 2**30),
        ("6GB", 6 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("1TiB", 2**40),
        ("20kB", 20_000),
        ("0B", 0),
        ("80 GiB", 80 * 2**30),
    ],
)
def test_sizes_are_bytes_in_both_systems(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("value", "cure"),
    [
        ("6G", 'write "6GiB" (powers of 1024) or "6GB" (powers of 1000)'),
        ("6Gi", 'write "6GiB"'),
        ("6gib", 'write "6GiB"'),
        ("6gb", 'write "6GB"'),
        ("6", 'write "6GiB" or "6MiB"'),
        (6, 'write "6GiB" or "6MiB"'),
        (0, 'write "0B"'),
        (6442450944, 'write "6442450944B"'),
        ("6Gbit", "is not a unit of size"),
        ("lots", "expected a size"),
        ("-1GiB", "expected a size"),
        (False, "expected a size"),
        ({}, "expected a size"),
        ("9999999TiB", "more than an exbibyte"),
    ],
)
def test_what_is_no_size_is_told_what_to_write(value, cure):
    with pytest.raises(NotAQuantity) as error:
        parse_size(value)
    assert cure in str(error.value)


@given(st.integers(0, 3650 * 86_400_000))
def test_a_written_duration_is_read_as_the_same(milliseconds):
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


@given(st.integers(0, 2**60) | st.integers(0, 2**20).map(lambda n: n * 2**30))
def test_a_written_size_is_read_as_the_same(size):
    assert parse_size(format_size(size)) == size


@given(st.text() | st.integers() | st.floats() | st.none() | st.binary() | st.lists(st.text()))
def test_anything_else_is_refused_and_nothing_else_is_raised(value):
    for parse in (parse_duration, parse_size):
        try:
            assert parse(value) >= 0
        except NotAQuantity:
            continue
