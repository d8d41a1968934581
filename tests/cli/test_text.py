"""Figures as people read them."""

from __future__ import annotations

import datetime as dt

import pytest

from swapd.cli import text

NOON = dt.datetime(2026, 11, 20, 12, 0).timestamp()


@pytest.mark.parametrize(
    ("value", "reads"),
    [
        (None, "?"),
        (0, "0.0 GiB"),
        (20 << 30, "20.0 GiB"),
        (31 * (1 << 30) // 2, "15.5 GiB"),
        (50 << 20, "50 MiB"),
        (788 << 20, "788 MiB"),
        (-(1 << 30), "-1.0 GiB"),
    ],
)
def test_memory_is_in_gib_and_unknown_is_not_zero(value, reads):
    assert text.gib(value) == reads


@pytest.mark.parametrize(
    ("value", "reads"),
    [
        (None, "?"),
        (0.00084, "840 us"),
        (0.0123, "12.3 ms"),
        (0.84, "840 ms"),
        (1.234, "1.2 s"),
        (75, "1 min 15 s"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
        (60, "1 min"),
    ],
)
def test_durations_have_the_unit_that_fits(value, reads):
    assert text.seconds(value) == reads


def test_times_of_today_have_no_date():
    assert text.clock(NOON, NOON + 60) == "12:00"
    assert text.clock(NOON, NOON + 86400) == "2026-11-20 12:00"
    assert text.clock(None, NOON) == "-"


def test_times_say_how_far_away_they_are():
    assert text.when(NOON, NOON + 300) == "12:00 (5 min ago)"
    assert text.when(NOON, NOON - 7200) == "12:00 (in 2 h)"
    assert text.when(NOON, NOON) == "12:00 (1 s ago)"


def test_control_characters_do_not_reach_a_terminal():
    assert text.printable("\x1b[31mred\x07\x9b\ttab") == "?[31mred??\ttab"


def test_columns_are_as_wide_as_their_widest_cell():
    assert text.columns(("A", "LONG"), [("aaa", "b"), ("", "c")]) == ["A    LONG", "aaa  b", "     c"]
