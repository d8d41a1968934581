"""Whether an answer of a worker is the right one.

Duty: read the requests of a warm-up file, and judge one answer by what the configuration expects, in words that
show both. May not know: how requests are sent, or how often. JSON pointers are RFC 6901.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from swapd.core import config_requests
from swapd.core.config import ExpectConfig, RequestConfig
from swapd.core.config_readers import Wrong
from swapd.core.errors import PROBE_FAILED, PROBE_TOO_SLOW, WARMUP_FAILED, Problem, SwapdError

_T = TypeVar("_T")
_SHOWN: Final = 200  # characters of an answer in a message: enough to see what it was, and fits a line or two


def check_answer(expect: ExpectConfig, *, status: int, body: bytes, elapsed_s: float) -> Problem | None:
    """What is wrong with an answer: its status, its JSON, then its time. None if it is right."""
    if status != expect.status:
        return Problem(
            PROBE_FAILED,
            f"expected status {expect.status}, got {status}: {shown(body)}",
            {"expected": expect.status, "got": status},
        )
    if expect.json_pointer is not None or expect.json_contains is not None:
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return Problem(PROBE_FAILED, f"expected JSON, got {shown(body)}", {"got": shown(body)})
        if expect.json_pointer is not None:
            problem = _check_pointer(expect.json_pointer, document, body)
        else:
            problem = _check_contains(expect.json_contains or {}, document)
        if problem is not None:
            return problem
    if elapsed_s > expect.within_s:
        return Problem(
            PROBE_TOO_SLOW,
            f"expected an answer within {expect.within_s:g} s, got it after {elapsed_s:.3g} s",
            {"expected_s": expect.within_s, "got_s": round(elapsed_s, 6)},
        )
    return None


def _check_pointer(pointer: str, document: Any, body: bytes) -> Problem | None:
    value = document
    walked = ""
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and _is_index(name) and int(name) < len(value):
            value = value[int(name)]
        else:
            where = f"nothing at {walked + '/' + token!r}"
            return Problem(
                PROBE_FAILED,
                f"expected the answer to have {pointer!r}, found {where} in {shown(body)}",
                {"expected": pointer, "got": shown(body)},
            )
        walked += "/" + token
    return None


def _is_index(name: str) -> bool:
    # Short, because int() refuses thousands of digits with a ValueError; and RFC 6901 knows no leading zeros.
    return name.isascii() and name.isdigit() and len(name) < 16 and (name == "0" or name[0] != "0")


def _check_contains(expected: Any, got: Any, where: str = "") -> Problem | None:
    if isinstance(expected, Mapping):
        if isinstance(got, dict):
            for key, value in expected.items():
                inner = f"{where}/{key}"
                if key not in got:
                    return _differs(inner, value, got, missing=True)
                if (problem := _check_contains(value, got[key], inner)) is not None:
                    return problem
            return None
    elif isinstance(expected, list | tuple):
        if isinstance(got, list) and len(got) == len(expected):
            for index, value in enumerate(expected):
                if (problem := _check_contains(value, got[index], f"{where}/{index}")) is not None:
                    return problem
            return None
    elif expected == got and isinstance(expected, bool) == isinstance(got, bool):  # in Python, True == 1
        return None
    return _differs(where, expected, got)


def _differs(where: str, expected: Any, got: Any, missing: bool = False) -> Problem:
    found = f"no such key in {_json(got)}" if missing else _json(got)
    return Problem(
        PROBE_FAILED,
        f"expected {_json(expected)} at {where or '/'!r} of the answer, got {found}",
        {"at": where, "expected": _json(expected), "got": found},
    )


def _json(value: Any) -> str:
    return _cut(json.dumps(value, ensure_ascii=False, default=str))


def shown(body: bytes) -> str:
    """The beginning of an answer's body, fit for a message."""
    if not body:
        return "an empty body"
    text = body[: _SHOWN * 4].decode(errors="replace")
    return _cut("".join(letter if letter.isprintable() else " " for letter in text).strip())


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def parse_warmup(data: bytes, name: str) -> list[tuple[int, RequestConfig]]:
    """The requests of a warm-up file with their line numbers: JSON lines {method, path, json | body, headers}.

    Empty lines are skipped. The method is POST where there is something to send, else GET. Raises
    SwapdError(WARMUP_FAILED) naming the file and the line.
    """
    requests = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            requests.append((number, _parse_request(json.loads(line))))
        except (ValueError, RecursionError) as error:
            message = f"line {number} of {name} is not a request: {error}"
            raise SwapdError(WARMUP_FAILED, message, {"line": number}) from None
    return requests


def _parse_request(line: object) -> RequestConfig:
    """As a probe's request in the configuration, by the same readers."""
    if not isinstance(line, dict):
        raise ValueError("expected a JSON object")
    if unknown := sorted(line.keys() - {"method", "path", "json", "body", "headers"}):
        raise ValueError(f"unknown key {unknown[0]!r}; there are method, path, json, body and headers")
    if "json" in line and "body" in line:
        raise ValueError('give "json" or "body", not both')
    content: bytes | None = None
    if "json" in line:
        content = _read(line, "json", config_requests.json_body)
    elif "body" in line:
        content = _read(line, "body", config_requests.body)
    headers = _read(line, "headers", config_requests.headers) if "headers" in line else ()
    if "json" in line and "content-type" not in dict(headers):
        headers = (*headers, ("content-type", "application/json"))
    method = "GET" if content is None else "POST"
    return RequestConfig(
        method=_read(line, "method", config_requests.method) if "method" in line else method,
        path=_read(line, "path", config_requests.url_path) if "path" in line else "/",
        headers=headers,
        body=content,
    )


def _read(line: Mapping[str, Any], key: str, reader: Callable[[object, str], _T]) -> _T:
    try:
        return reader(line[key], "")
    except Wrong as wrong:
        where, text = wrong.faults[0]
        raise ValueError(f"{key}{where}: {text}") from None
