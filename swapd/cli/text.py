"""Figures as people read them in a terminal. Pure: the time of now is an argument, and unknown is said, never 0."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

from swapd.core.model import RETURN, TO_COME
from swapd.core.sizes import human_bytes

UNKNOWN = "?"
NONE = "-"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: object) -> str:
    """Without control characters: what a worker writes must not steer the operator's terminal."""
    return _CONTROL.sub("?", str(text))


def gib(size_bytes: Any) -> str:
    """20.0 GiB; below one in MiB, as in plans."""
    if not isinstance(size_bytes, int | float):
        return UNKNOWN
    if 0 < abs(size_bytes) < 1 << 30:
        return human_bytes(int(size_bytes))
    return f"{size_bytes / (1 << 30):.1f} GiB"


def is_kept(holder: Mapping[str, Any]) -> bool:
    """A promise that no worker holds: for the return of a service, or a load that is to come."""
    return str(holder["id"]).startswith((RETURN, TO_COME))


def kept_words(holder: Mapping[str, Any]) -> str:
    """320 MiB kept for the return of chat, until its swap or soak ends"""
    ends = ", until its swap or soak ends" if str(holder["id"]).startswith(RETURN) else ""
    return f"{gib(holder['reserved_bytes'])} kept for the {printable(holder['id'])}{ends}"


def count(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def seconds(value: Any) -> str:
    """840 us, 12.3 ms, 1.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    if not isinstance(value, int | float):
        return UNKNOWN
    if value < 0.001:
        return f"{value * 1e6:.0f} us"
    if value < 1:
        return f"{value * 1000:.{1 if value < 0.1 else 0}f} ms"
    if value < 60:
        return f"{value:.1f} s"
    whole = round(value)
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {small_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def milliseconds(value: Any) -> str:
    return seconds(value / 1000) if isinstance(value, int | float) else UNKNOWN


def clock(at_s: Any, now_s: float) -> str:
    """14:32 of today, else with its date. A text is taken to be a time already."""
    if not isinstance(at_s, int | float):
        return NONE if at_s is None else printable(at_s)
    at, now = dt.datetime.fromtimestamp(at_s), dt.datetime.fromtimestamp(now_s)
    return at.strftime("%H:%M" if at.date() == now.date() else "%Y-%m-%d %H:%M")


def when(at_s: Any, now_s: float) -> str:
    """14:32 (5 min ago)."""
    if not isinstance(at_s, int | float):
        return clock(at_s, now_s)
    away = seconds(max(1.0, float(round(abs(now_s - at_s))))).replace(".0 s", " s")
    return f"{clock(at_s, now_s)} ({away} ago)" if at_s <= now_s else f"{clock(at_s, now_s)} (in {away})"


def revision(value: Mapping[str, Any] | None) -> str:
    """b #42, or b where the revision has no number yet."""
    if not value:
        return NONE
    number = value.get("revision")
    return printable(value.get("model") or "") + (f" #{number}" if number is not None else "")


def devices(worker: Mapping[str, Any]) -> str:
    """Where it stands. A daemon of before tells one device only."""
    return ", ".join(map(printable, worker.get("devices") or filter(None, [worker["device"]]))) or NONE


def on_each(worker: Mapping[str, Any], size_bytes: Any) -> str:
    """Memory that a worker has on each of its devices."""
    if not worker["device"]:
        return NONE
    return gib(size_bytes) + (" each" if len(worker.get("devices", ())) > 1 and size_bytes is not None else "")


def problem(value: Any) -> str:
    """A problem's sentence and code; a plain text as it is."""
    if isinstance(value, Mapping):
        return printable(f"{value.get('message')} ({value.get('code')})")
    return printable(value)


def pairs(values: Mapping[str, Any]) -> str:
    """step=load status=done; what is null is left out."""
    return " ".join(f"{key}={_plain(value)}" for key, value in values.items() if value not in (None, ""))


def _plain(value: Any) -> str:
    text = printable(value)
    return f'"{text}"' if " " in text else text


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns, for a pipe: two spaces between, none at the end."""
    table = [list(header), *[list(row) for row in rows]]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
