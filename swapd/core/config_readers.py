"""What one value of the configuration may be, and what to write instead of one that cannot be used.

Duty: `reader(value, base)` returns the value or raises `Wrong` with one or more faults, each saying what is
expected and what to write. `base` is the directory that relative paths start from. May not know: which key it
reads (`config_keys`), or what other keys say (`config_checks`). A fault never shows a value that may be a secret.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any, Final

from swapd.core.units import NotAQuantity, format_duration, format_size, parse_duration, parse_size

Reader = Callable[[object, str], Any]

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)  # also a directory, a unit and a topic name
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_OURS: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_MAX_NAME_BYTES: Final = 255  # NAME_MAX and PATH_MAX of Linux, the latter less its closing NUL
_MAX_PATH_BYTES: Final = 4095


class Wrong(ValueError):
    """A value that cannot be used. `faults` are (where below the key, what is right)."""

    def __init__(self, message: str = "", faults: list[tuple[str, str]] | None = None) -> None:
        super().__init__(message)
        self.faults = faults or [("", message)]


def kind_of(value: object) -> str:
    """What TOML calls it."""
    if isinstance(value, bool):
        return "a boolean"
    for kind, name in ((str, "a string"), (int, "an integer"), (float, "a number"), (Mapping, "a table")):
        if isinstance(value, kind):
            return name
    return "a list" if isinstance(value, list | tuple) else "a date or time"


def shown(value: object) -> str:
    """The value as one would write it, shortened."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def printable(message: str) -> str:
    """One line for a terminal or a log, whatever stood in the file."""
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in message)


def suggest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`did you mean "hold_timeout"?`, or what there is to choose from."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f'did you mean "{close[0]}"?'
    return "known here: " + ", ".join(known) if known else "there are none"


def text(value: object, base: str) -> str:
    if not isinstance(value, str):
        cure = f': write "{value}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
        raise Wrong(f"expected a string, not {kind_of(value)}{cure}")
    if not value.strip():
        raise Wrong("is empty: write a value, or leave the key out")
    if "\0" in value:
        raise Wrong("contains a NUL character: take it out")
    return value


def flag(value: object, base: str) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"{kind_of(value)} is not a boolean: write true or false")
    return value


def integer(low: int, high: int) -> Reader:
    def read(value: object, base: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            digits = isinstance(value, str) and value.strip().isascii() and value.strip().isdigit()
            cure = f": write {str(value).strip()} without quotes" if digits else ""
            raise Wrong(f"expected an integer from {low} to {high}, not {kind_of(value)}{cure}")
        if not low <= value <= high:
            raise Wrong(f"{value} is out of range: write a number from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Reader:
    def read(value: object, base: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Wrong(f"expected a number from {low:g} to {high:g}, not {kind_of(value)}")
        if not low <= value <= high:
            raise Wrong(f"{value} is out of range: write a number from {low:g} to {high:g}")
        return float(value)

    return read


def duration(low_s: float = 0.0, high_s: float = math.inf) -> Reader:
    def read(value: object, base: str) -> float:
        try:
            seconds = parse_duration(value)
        except NotAQuantity as error:
            raise Wrong(str(error)) from None
        if seconds < low_s:
            raise Wrong(f'{shown(value)} is too short: write at least "{format_duration(low_s)}"')
        if seconds > high_s:
            raise Wrong(f'{shown(value)} is too long: write at most "{format_duration(high_s)}"')
        return seconds

    return read


def size(low_bytes: int = 0) -> Reader:
    def read(value: object, base: str) -> int:
        try:
            number = parse_size(value)
        except NotAQuantity as error:
            raise Wrong(str(error)) from None
        if number < low_bytes:
            raise Wrong(f'{shown(value)} is too small: write at least "{format_size(low_bytes)}"')
        return number

    return read


def choice(*allowed: str) -> Reader:
    def read(value: object, base: str) -> str:
        names = ", ".join(f'"{name}"' for name in allowed)
        if not isinstance(value, str):
            raise Wrong(f"expected one of {names}, not {kind_of(value)}")
        if value not in allowed:
            close = get_close_matches(value.lower().replace("_", "-"), allowed, n=1, cutoff=0.6)
            cure = f'did you mean "{close[0]}"?' if close else f"write one of {names}"
            raise Wrong(f"{shown(value)} is not known: {cure}")
        return value

    return read


def path(value: object, base: str) -> str:
    """An absolute path, or one relative to the directory of the configuration file."""
    word = text(value, base)
    if word.startswith("~"):
        raise Wrong(f"{shown(word)}: ~ is not expanded here, since a daemon has no home: write the whole path")
    whole = PurePosixPath(base, word)
    longest = max(map(_length, whole.parts), default=0)
    if longest > _MAX_NAME_BYTES:
        raise Wrong(f"has a name of {longest} bytes, and {_MAX_NAME_BYTES} are possible: shorten it")
    if _length(str(whole)) > _MAX_PATH_BYTES:
        raise Wrong(f"has {_length(str(whole))} bytes, and {_MAX_PATH_BYTES} are possible: shorten it")
    return str(whole)


def _length(name: str) -> int:
    return len(name.encode("utf-8", "replace"))


def switch_or_path(value: object, base: str) -> bool | str:
    """Off, on, or where to."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise Wrong(f"{kind_of(value)} is neither: write true, false, or the path of a file")
    return path(value, base)


def absolute_path(value: object, base: str) -> str:
    word = path(value, base)
    if not word.startswith("/"):
        raise Wrong(f"{shown(word)} is relative: write the whole path, from /")
    return word


def interpreter(value: object, base: str) -> str:
    if "/" not in text(value, base):
        raise Wrong(f'{shown(value)} is not a path: write one such as "/srv/venv/bin/python"')
    return path(value, base)


def items(value: object, base: str, read: Reader, what: str) -> tuple[Any, ...]:
    """A list, or one value for a list of one."""
    if not isinstance(value, list | tuple):
        return (read(value, base),)
    if not value:
        raise Wrong(f"is an empty list: write {what}, or leave the key out")
    result, faults = [], []
    for index, item in enumerate(value):
        try:
            result.append(read(item, base))
        except Wrong as wrong:
            faults += [(f"[{index}]{at}", message) for at, message in wrong.faults]
    if faults:
        raise Wrong(faults=faults)
    return tuple(result)


def paths(value: object, base: str) -> tuple[str, ...]:
    return items(value, base, path, "one path or more")


def command(value: object, base: str) -> tuple[str, ...]:
    if isinstance(value, str):
        raise Wrong('expected a list, since no shell reads it: write ["llama-server", "-m", "/srv/a.gguf"]')
    return items(value, base, text, "the program and its arguments")


def served_names(value: object, base: str) -> tuple[str, ...]:
    """Names for the "model" of a request. Commas and spaces separate them on the servers' own command lines."""
    names: tuple[str, ...] = items(value, base, served_name, 'the names that clients write as "model"')
    if len(set(names)) < len(names):
        raise Wrong("has a name twice: write each once")
    return names


def served_name(value: object, base: str) -> str:
    name = text(value, base)
    if not all(char.isprintable() and char not in ", " for char in name) or name.startswith("-"):
        raise Wrong(f'{shown(name)} is not a model\'s name: write one like "chat", without spaces and commas')
    return name


def app(value: object, base: str) -> str:
    """module:attribute"""
    word = text(value, base)
    module, colon, attribute = word.partition(":")
    if word.endswith(".py"):
        module = PurePosixPath(word).with_suffix("").name
        raise Wrong(f'{shown(word)} is a file: write "{module}:app", and its directory as "directory"')
    if not colon:
        raise Wrong(f'{shown(word)} names no attribute: write "{word}:app", where app is the ASGI app or Engine')
    if attribute.endswith("()"):
        raise Wrong(f'{shown(word)} is a call: write "{word[:-2]}" when that is an Engine class, or make an app of it')
    if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
        raise Wrong(f'{shown(word)} is not "module:attribute": write it like "my_model:app"')
    return word


def device_names(value: object, base: str) -> tuple[str, ...] | None:
    """None for "auto"."""
    if value == "auto":
        return None
    names: tuple[str, ...] = items(value, base, text, 'the devices\' names, or "auto"')
    if len(set(names)) < len(names):
        raise Wrong("names a device twice: write each once")
    return names


def environment(value: object, base: str) -> dict[str, str]:
    """Names to values, integers as their digits. Faults never show a value."""
    faults: list[tuple[str, str]] = []
    pairs: dict[str, str] = {}
    for name, content in table(value).items():
        problem = None
        if isinstance(content, bool) or not isinstance(content, str | int):
            cure = ', so write "true" or "1"' if isinstance(content, bool) else ": put it in quotes"
            problem = f"expected a string or an integer, not {kind_of(content)}{cure}"
        problem = variable_fault(name, content if isinstance(content, str) else "") or problem
        if problem:
            faults.append(("." + quoted(name), problem))
        else:
            pairs[name] = str(content)
    if faults:
        raise Wrong(faults=faults)
    return pairs


def variable_fault(name: str, content: str) -> str | None:
    """What is wrong with one environment variable of a model, from `env` or `env_file`; None when nothing is."""
    if not _VARIABLE.fullmatch(name):
        return "is not a variable's name: use letters, digits and _"
    if name.startswith("SWAPD_") or name in _OURS:
        return "is set by swapd itself: leave it out"
    if name == "CUDA_VISIBLE_DEVICES" and content:
        return 'is set by swapd from the device it chose: write devices = ["gpu0"] in the service instead'
    return "contains a NUL character: take it out" if "\0" in content else None


def table(value: object) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise Wrong(f"expected a table, not {kind_of(value)}")
    return {str(name): content for name, content in value.items()}


def quoted(name: str) -> str:
    """A key as TOML wants it written."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name, re.ASCII) else json.dumps(name, ensure_ascii=False)
