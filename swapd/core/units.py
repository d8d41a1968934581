"""Durations and sizes as people write them in the configuration, both ways.

Duty: "90s" to 90.0 and back, "6GiB" to bytes and back, and for what is not one of these, what to write instead.
A bare number is refused on purpose: 60 is a minute to one reader and an instant to the next, and "6GB" is 7 %
less than "6GiB", which decides whether two models fit on a device.
"""

from __future__ import annotations

import re
from typing import Final

_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {
    "B": 1,
    "kB": 10**3,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_SIZES_TO_WRITE: Final = ("TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB")  # the first that divides
_QUANTITY: Final = re.compile(r"(\d{1,20})(?:\.(\d{1,9}))?\s?([A-Za-z]*)", re.ASCII)
MAX_DURATION_S: Final = 3650 * 86400.0  # ten years: longer is a slip of the keyboard, and overflows timers
MAX_SIZE_BYTES: Final = 2**60


class NotAQuantity(ValueError):
    """Not a duration or size. The text says what is expected and, where it can be guessed, what to write."""


def parse_duration(value: object) -> float:
    """Seconds. Raises NotAQuantity."""
    expected = 'expected a duration such as "500ms", "60s", "10m" or "2h"'
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise NotAQuantity(expected)
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None:
        raise NotAQuantity(f"{expected}, not {value!r:.40}")
    whole, fraction, unit = match.groups()
    number = float(f"{whole}.{fraction or 0}")
    if not unit:
        raise NotAQuantity(f'{value!r} has no unit: write "{_plain(whole, fraction)}s"')
    if unit not in _SECONDS:
        folded = unit.lower()
        guess = folded[0] if folded.startswith(("sec", "min", "hour", "hr", "day")) else folded
        cure = "the units are ms, s, m, h and d"
        if guess in _SECONDS:
            cure = f'write "{_plain(whole, fraction)}{guess}"'
        raise NotAQuantity(f'"{unit}" is not a unit of time: {cure}')
    seconds = number * _SECONDS[unit]
    if seconds > MAX_DURATION_S:
        raise NotAQuantity(f"{value!r} is longer than ten years")
    return seconds


def parse_size(value: object) -> int:
    """Bytes. Raises NotAQuantity."""
    expected = 'expected a size such as "512MiB", "6GiB" or "6GB"'
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise NotAQuantity(expected)
    match = _QUANTITY.fullmatch(str(value).strip())
    if match is None:
        raise NotAQuantity(f"{expected}, not {value!r:.40}")
    whole, fraction, unit = match.groups()
    plain = _plain(whole, fraction)
    if not unit:
        small = not fraction and int(whole) < 2**20  # more is hardly meant as gibibytes
        cure = f'"{plain}GiB" or "{plain}MiB"' if small and int(whole) else f'"{whole}B"'
        raise NotAQuantity(f"{value!r} has no unit: write {cure}")
    if unit not in _BYTES:
        raise NotAQuantity(_size_cure(unit, plain))
    # In integers: a float of 17 digits times 2**40 would round.
    size = (int(whole + (fraction or "")) * _BYTES[unit]) // 10 ** len(fraction or "")
    if size > MAX_SIZE_BYTES:
        raise NotAQuantity(f"{value!r} is more than an exbibyte")
    return int(size)


def format_duration(seconds: float) -> str:
    """The shortest way to write it that `parse_duration` reads as the same value, to the millisecond."""
    milliseconds = round(seconds * 1000)
    if milliseconds == 0:
        return "0s"
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3f}".rstrip("0") + "s"


def format_size(size_bytes: int) -> str:
    """The largest unit that gives a whole number; `parse_size` reads it as the same value."""
    for unit in _SIZES_TO_WRITE:
        if size_bytes and size_bytes % _BYTES[unit] == 0:
            return f"{size_bytes // _BYTES[unit]}{unit}"
    return f"{size_bytes}B"


def _plain(whole: str, fraction: str | None) -> str:
    return f"{whole}.{fraction}" if fraction else whole


def _size_cure(unit: str, plain: str) -> str:
    for known in _BYTES:
        if known.lower() == unit.lower():
            return f'"{unit}" is not a unit of size: write "{plain}{known}"'
    letter = unit[0].upper()
    if letter in "KMGT" and unit[1:].lower() == "i":
        return f'"{unit}" is not a unit of size: write "{plain}{letter}iB"'
    if letter in "KMGT" and len(unit) == 1:
        binary, decimal = f"{plain}{letter}iB", f"{plain}{letter if letter != 'K' else 'k'}B"
        return f'"{unit}" could be either: write "{binary}" (powers of 1024) or "{decimal}" (powers of 1000)'
    return f'"{unit}" is not a unit of size: the units are B, KiB, MiB, GiB, TiB and kB, MB, GB, TB'
