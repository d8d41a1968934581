"""Readers for the HTTP requests that swapd makes up: probes, warm-up, ready path.

Duty: a request that can be sent as it stands, with its JSON encoded, and an expectation that can be checked
(RFC 9110 for names, RFC 6901 for JSON pointers). Header values may be tokens: no fault shows one.
"""

from __future__ import annotations

import datetime
import json
import math
import re
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final

from swapd.core.config_readers import Wrong, kind_of, number, quoted, shown, table, text

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)  # RFC 9110: method and field names
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # any token is legal; these get misspelt
_URL_PATH: Final = re.compile(r"/[!-~]*", re.ASCII)
_MAX_DEPTH: Final = 32  # of JSON in a probe


def url_path(value: object, base: str) -> str:
    word = text(value, base)
    if not word.startswith("/"):
        raise Wrong(f'{shown(word)} does not begin with a slash: write "/{word.rpartition("://")[2]}"')
    if not _URL_PATH.fullmatch(word) or "#" in word:
        raise Wrong(f"{shown(word)} has characters that a request line cannot carry: percent-encode them")
    return word


def health_path(value: object, base: str) -> str:
    word = url_path(value, base)
    if "?" in word or word == "/":
        raise Wrong(f'{shown(word)}: write a path of its own without "?", such as "/-/swapd/health"')
    return word


def method(value: object, base: str) -> str:
    word = text(value, base)
    if not _TOKEN.fullmatch(word):
        raise Wrong(f'{shown(word)} is not an HTTP method: write one such as "POST"')
    close = get_close_matches(word.upper(), _METHODS, n=1, cutoff=0.75)
    if close and close[0] != word.upper():
        raise Wrong(f'{shown(word)} is not an HTTP method that is known: did you mean "{close[0]}"?')
    return word.upper()


def headers(value: object, base: str) -> tuple[tuple[str, str], ...]:
    """Names in lower case. Values may be tokens, so none is ever shown."""
    faults: list[tuple[str, str]] = []
    pairs: dict[str, str] = {}
    for name, content in table(value).items():
        if not _TOKEN.fullmatch(name):
            faults.append(("." + quoted(name), "is not a header's name: use letters, digits and -"))
        elif name.lower() in ("host", "content-length", "transfer-encoding", "connection"):
            faults.append(("." + quoted(name), "is set by swapd itself: leave it out"))
        elif isinstance(content, bool) or not isinstance(content, str | int):
            faults.append(("." + quoted(name), f"expected a string, not {kind_of(content)}"))
        elif not str(content).isprintable():
            faults.append(("." + quoted(name), "has a line break or control character: take it out"))
        else:
            pairs[name.lower()] = str(content).strip()
    if faults:
        raise Wrong(faults=faults)
    return tuple(pairs.items())


def body(value: object, base: str) -> bytes:
    if not isinstance(value, str):
        raise Wrong(f'expected a string, not {kind_of(value)}: for JSON write "json" instead of "body"')
    return value.encode("utf-8", "replace")


def json_body(value: object, base: str) -> bytes:
    _check_json(value, "", 0)
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def expected_json(value: object, base: str) -> str | Mapping[str, Any]:
    """A JSON pointer, or an object."""
    if isinstance(value, Mapping):
        _check_json(value, "", 0)
        return dict(value)
    if not isinstance(value, str):
        raise Wrong(f'expected a JSON pointer such as "/choices/0/text", or an object, not {kind_of(value)}')
    return pointer(value, base)


def pointer(value: object, base: str) -> str:
    """RFC 6901. "" is the whole answer."""
    if not isinstance(value, str):
        raise Wrong(f'expected a JSON pointer such as "/choices/0/text", not {kind_of(value)}')
    if value and not value.startswith("/"):
        cure = "/" + value.removeprefix("$").lstrip(".").replace("[", "/").replace("]", "").replace(".", "/")
        raise Wrong(f'{shown(value)} is not a JSON pointer: write "{cure}"')
    if re.search(r"~(?![01])", value):
        raise Wrong(f"{shown(value)}: in a JSON pointer ~ is written ~0, and / within a name ~1")
    return value


def exact_json(value: object, base: str) -> str:
    _check_json(value, "", 0)
    return json.dumps(value)


def exact_text(value: object, base: str) -> str:
    if not isinstance(value, str):
        raise Wrong(f'expected a string, not {kind_of(value)}: for JSON write "exact" instead of "text"')
    return value


def close_numbers(value: object, base: str) -> tuple[tuple[str, float | tuple[float, ...]], ...]:
    """Pointers to a number each, or to a list of numbers."""
    faults: list[tuple[str, str]] = []
    pairs: list[tuple[str, float | tuple[float, ...]]] = []
    for name, content in table(value).items():
        try:
            numbers = [_finite(each, base) for each in (content if isinstance(content, list | tuple) else [content])]
            pairs.append((pointer(name, base), tuple(numbers) if isinstance(content, list | tuple) else numbers[0]))
        except Wrong as wrong:
            faults += [("." + quoted(name) + at, message) for at, message in wrong.faults]
    if faults:
        raise Wrong(faults=faults)
    return tuple(pairs)


_finite: Final = number(-sys.float_info.max, sys.float_info.max)


def label(value: object, base: str) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Wrong(f"expected the label, or its index, not {kind_of(value)}")
    return value


def _check_json(value: object, at: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise Wrong(f"is nested more than {_MAX_DEPTH} deep: make it simpler")
    if isinstance(value, Mapping):
        for name, content in value.items():
            _check_json(content, f"{at}.{quoted(str(name))}", depth + 1)
    elif isinstance(value, list | tuple):
        for index, content in enumerate(value):
            _check_json(content, f"{at}[{index}]", depth + 1)
    elif isinstance(value, datetime.date | datetime.time):
        raise Wrong(faults=[(at, f'JSON has no dates: write "{value.isoformat()}"')])
    elif isinstance(value, float) and not math.isfinite(value):
        raise Wrong(faults=[(at, "JSON has no inf and nan: write a number")])
    elif not isinstance(value, str | int | float | None):
        raise Wrong(faults=[(at, f"JSON has no {type(value).__name__}: write a string")])
