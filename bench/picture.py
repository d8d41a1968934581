"""Small SVG pictures by hand: latency over time with the swaps marked, and bars with their goals.

Duty: numbers in, an SVG file out. No plotting library: a picture has to open on any machine, and be looked at.
Colours: one a series, chosen to differ also for the colour-blind (Okabe and Ito); text is never coloured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LETTER = 6.3  # about the width of one, at the size of labels
INK, FAINT, LOST = "#222222", "#d9d9d9", "#c00000"
BAND = 0.07  # how much of the ink: a colour with an alpha in it (#00000012) is solid black to some renderers
FONT = 'font-family="Helvetica, Arial, sans-serif"'


@dataclass(frozen=True, slots=True)
class Series:
    """Points (seconds since the picture's start, latency in seconds) of one model."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Mark:
    """A swap: from its command to its end, with what to write above it."""

    begin_s: float
    end_s: float
    label: str
    detail: str = ""


class Svg:
    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._parts: list[str] = []

    def text(self, x: float, y: float, text: str, size: int = 12, anchor: str = "start", more: str = "") -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
        self._parts.append(f'<text {place} fill="{INK}" {FONT} {more}>{escape(text)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = FAINT, width: float = 1) -> None:
        ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self._parts.append(f'<line {ends} stroke="{colour}" stroke-width="{width}"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{max(height, 0.5):.1f}"'
        fill = f'fill="{colour}"' + (f' fill-opacity="{opacity:g}"' if opacity < 1 else "")
        self._parts.append(f"<rect {place} {fill}/>")

    def dots(self, cells: Sequence[tuple[int, int]], colour: str) -> None:
        path = "".join(f"M{x} {y}h2" for x, y in cells)
        self._parts.append(f'<path d="{path}" stroke="{colour}" stroke-width="2" stroke-opacity="0.55" fill="none"/>')

    def crosses(self, places: Sequence[tuple[float, float]], colour: str) -> None:
        """Large, and rimmed in white: not one of them may be overlooked."""
        path = "".join(f"M{x - 6:.1f} {y - 6:.1f}l12 12m0 -12l-12 12" for x, y in places)
        for stroke, width in (("#ffffff", 6), (colour, 3)):
            self._parts.append(f'<path d="{path}" stroke="{stroke}" stroke-width="{width}" fill="none"/>')

    def store(self, path: Path) -> None:
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<rect width="100%" height="100%" fill="white"/>\n'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + "\n".join(self._parts) + "\n</svg>\n")


def duration(seconds: float) -> str:
    """Short, for an axis or a table: 250 us, 3.2 ms, 1.5 s."""
    if math.isnan(seconds):
        return "-"
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s"


def latency_over_time(
    path: Path,
    title: str,
    note: str,
    series: Sequence[Series],
    marks: Sequence[Mark],
    lost: Sequence[tuple[float, float]] = (),
) -> None:
    """Each answered request as a dot, at the time it began, and each lost one as a cross; latency is logarithmic."""
    left, right, top, bottom, width, height = 70, 20, 118, 62, 1200, 520
    svg = Svg(width, height)
    everything = [point for one in series for point in one.points]
    if not everything:
        raise ValueError("nothing was answered: there is no picture to draw")
    everything += lost
    end = max(max(at for at, _ in everything), *(mark.end_s for mark in marks), 1.0)
    low = 10 ** math.floor(math.log10(max(min(latency for _, latency in everything), 1e-5)))
    high = 10 ** math.ceil(math.log10(max(latency for _, latency in everything) * 1.05))

    def x(at: float) -> float:
        return left + (width - left - right) * at / end

    def y(latency: float) -> float:
        share = math.log(max(latency, low) / low) / math.log(high / low)
        return height - bottom - (height - top - bottom) * share

    svg.text(left, 24, title, 17, more='font-weight="bold"')
    svg.text(left, 43, note, 12)
    for n, mark in enumerate(marks):
        svg.box(x(mark.begin_s), top, x(mark.end_s) - x(mark.begin_s), height - top - bottom, INK, BAND)
        svg.line(x(mark.begin_s), top, x(mark.begin_s), height - bottom, "#888888")
        svg.line(x(mark.end_s), top - 4, x(mark.end_s), height - bottom, INK, 1.5)
        if mark.label:
            row = 66 + 24 * (n % 2)
            place = min(x(mark.begin_s), width - right - LETTER * max(len(mark.label), len(mark.detail)))
            svg.text(place, row, mark.label, 12, more='font-weight="bold"')
            svg.text(place, row + 12, mark.detail, 11)
    level = low
    while level <= high * 1.001:
        svg.line(left, y(level), width - right, y(level))
        svg.text(left - 8, y(level) + 4, duration(level), 11, "end")
        level *= 10
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if end / s <= 14)
    for tick in range(0, int(end) + 1, step):
        svg.line(x(tick), height - bottom, x(tick), height - bottom + 5, INK)
        svg.text(x(tick), height - bottom + 18, f"{tick} s", 11, "middle")
    svg.line(left, height - bottom, width - right, height - bottom, INK)
    for n, one in enumerate(series):
        colour = COLOURS[n % len(COLOURS)]
        svg.dots(sorted({(round(x(at)), round(y(latency))) for at, latency in one.points}), colour)
        svg.box(left + 260 * n, height - 24, 12, 12, colour)
        svg.text(left + 260 * n + 18, height - 14, f"{one.name}: {len(one.points):,} answers", 12)
    if lost:
        svg.crosses([(x(at), y(latency)) for at, latency in lost], LOST)
        svg.crosses([(left + 260 * len(series) + 6, height - 18)], LOST)
        svg.text(left + 260 * len(series) + 18, height - 14, f"lost: {len(lost):,}", 12)
    svg.store(path)


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    text: str
    goal: float | None = None


def bars(path: Path, title: str, note: str, rows: Sequence[Bar]) -> None:
    """Horizontal bars from zero; a goal is a black tick."""
    left, right, top, row_height, width = 290, 150, 70, 30, 900
    svg = Svg(width, top + row_height * len(rows) + 20)
    top_value = max(max(row.value, row.goal or 0.0) for row in rows) or 1.0
    svg.text(20, 26, title, 17, more='font-weight="bold"')
    svg.text(20, 46, note, 12)
    for n, row in enumerate(rows):
        y = top + row_height * n
        scale = (width - left - right) / top_value
        svg.text(left - 10, y + 16, row.label, 12, "end")
        svg.box(left, y + 3, row.value * scale, row_height - 12, COLOURS[0])
        if row.goal is not None:
            svg.line(left + row.goal * scale, y - 1, left + row.goal * scale, y + row_height - 5, INK, 2)
        svg.text(left + max(row.value, row.goal or 0.0) * scale + 8, y + 16, row.text, 12)
    svg.store(path)
