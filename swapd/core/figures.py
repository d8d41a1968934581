"""Figures of measurements as people read them: 231 ms, 1.28 times, 0.12 %, 7,804 requests.

Three digits, and more where a figure would look like the one that it is compared with ("200 ms, more than 200 ms").
"""

from __future__ import annotations


def count(number: int) -> str:
    return f"{number:,}"


def plain(value: float, beside: float | None = None) -> str:
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    for digits in (3, 4, 5):
        text = _digits(value, digits)
        if beside is None or beside == value or text != _digits(beside, digits):
            break
    return text


def percent(share: float, beside: float | None = None) -> str:
    return f"{plain(round(share * 100, 6), None if beside is None else round(beside * 100, 6))} %"


def milliseconds(seconds: float, beside: float | None = None) -> str:
    """Milliseconds below a second, else seconds."""
    scale, unit = (1000.0, "ms") if seconds < 1 else (1.0, "s")
    value = round(seconds * scale, 6)
    return f"{plain(value, None if beside is None else round(beside * scale, 6))} {unit}"


def _digits(value: float, digits: int) -> str:
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"
