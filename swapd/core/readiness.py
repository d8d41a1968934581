"""Whether an answer of a worker is the right one.

Duty: read the requests of a warm-up file, and judge one answer by what the configuration expects, in words that
show both. May not know: how requests are sent, or how often. JSON pointers are RFC 6901.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
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
    if expect.text is not None and body != expect.text.encode("utf-8", "replace"):
        return _text_differs(expect.text, body)
    if needs_json(expect):
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return Problem(PROBE_FAILED, f"expected JSON, got {shown(body)}", {"got": shown(body)})
        problem = next(_check_json(expect, document, body), None)
        if problem is not None:
            return problem
    if elapsed_s > expect.within_s:
        return Problem(
            PROBE_TOO_SLOW,
            f"expected an answer within {expect.within_s:g} s, got it after {elapsed_s:.3g} s",
            {"expected_s": expect.within_s, "got_s": round(elapsed_s, 6)},
        )
    return None


def needs_json(expect: ExpectConfig) -> bool:
    """Whether the answer must be whole, and JSON."""
    asked = (expect.json_pointer, expect.json_contains, expect.json_exact, expect.label)
    return bool(expect.close) or any(each is not None for each in asked)


def _check_json(expect: ExpectConfig, document: Any, body: bytes) -> Iterator[Problem]:
    pointers = [expect.json_pointer, expect.label, *(pointer for pointer, _ in expect.close)]
    for pointer in pointers:
        if pointer is not None and (problem := _at(pointer, document, body)[1]) is not None:
            yield problem
    if expect.json_contains is not None and (problem := _check_contains(expect.json_contains, document)) is not None:
        yield problem
    if expect.json_exact is not None:
        problem = _check_contains(json.loads(expect.json_exact), document, exact=True)
        if problem is not None:
            yield problem
    for pointer, wanted in expect.close:
        yield from _check_close(expect, pointer, wanted, _at(pointer, document, body)[0])
    if expect.label is not None:
        label = top_label(_at(expect.label, document, body)[0])
        if label != expect.label_is or isinstance(label, bool):
            yield _differs(expect.label, expect.label_is, label)


def _at(pointer: str, document: Any, body: bytes) -> tuple[Any, Problem | None]:
    """What the pointer leads to, or that it leads nowhere."""
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
            text = f"expected the answer to have {pointer!r}, found {where} in {shown(body)}"
            return None, Problem(PROBE_FAILED, text, {"expected": pointer, "got": shown(body)})
        walked += "/" + token
    return value, None


def _check_close(expect: ExpectConfig, at: str, wanted: float | tuple[float, ...], got: Any) -> Iterator[Problem]:
    """|got - wanted| <= atol + rtol * |wanted|, of each number; one that is not finite is close to none."""
    if not isinstance(wanted, tuple):
        wants, gots = [wanted], [got]
    elif isinstance(got, list) and len(got) == len(wanted):
        wants, gots = [*wanted], got
    else:
        yield _differs(at, list(wanted), got)
        return
    for index, (want, number) in enumerate(zip(wants, gots, strict=True)):
        room = expect.atol + expect.rtol * abs(want)
        right = isinstance(number, int | float) and not isinstance(number, bool)
        if not right or not abs(_float(number) - want) <= room:
            where = f"{at}/{index}" if isinstance(wanted, tuple) else at
            text = (
                f"expected {want:.9g} at {where or '/'!r} of the answer, give or take {room:.3g}, got {_json(number)}"
            )
            yield Problem(PROBE_FAILED, text, {"at": where, "expected": _json(want), "got": _json(number)})
            return


def _float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:  # JSON has integers of any length
        return math.inf


def top_label(value: Any) -> Any:
    """The label itself; of {label: score} and [{"label", "score"}, ...] that of the highest score, of [score, ...] its
    index."""
    scores: Mapping[Any, Any] = {}
    if isinstance(value, dict):
        scores = value
    elif isinstance(value, list) and all(isinstance(each, dict) and "label" in each for each in value):
        scores = {str(each["label"]): each.get("score") for each in value}
    elif isinstance(value, list):
        scores = dict(enumerate(value))
    numbers = {name: score for name, score in scores.items() if type(score) in (int, float)}
    return max(numbers, key=lambda name: numbers[name]) if numbers else value


def _text_differs(expected: str, body: bytes) -> Problem:
    """From a little before the first character that differs."""
    got = body.decode(errors="replace")
    same = next((n for n, pair in enumerate(zip(expected, got, strict=False)) if len({*pair}) > 1), None)
    start = max(0, (min(len(expected), len(got)) if same is None else same) - _SHOWN // 10)
    where = f" from character {start} on" if start else ""
    text = f"expected the text {_json(expected[start:])}{where}, got {shown(got[start:].encode())}"
    return Problem(PROBE_FAILED, text, {"expected": _json(expected[start:]), "got": shown(got[start:].encode())})


def _is_index(name: str) -> bool:
    # Short, because int() refuses thousands of digits with a ValueError; and RFC 6901 knows no leading zeros.
    return name.isascii() and name.isdigit() and len(name) < 16 and (name == "0" or name[0] != "0")


def _check_contains(expected: Any, got: Any, where: str = "", *, exact: bool = False) -> Problem | None:
    """`exact`: an object has no other keys either."""
    if isinstance(expected, Mapping):
        if isinstance(got, dict) and not (exact and got.keys() - expected.keys()):
            for key, value in expected.items():
                inner = f"{where}/{key}"
                if key not in got:
                    return _differs(inner, value, got, missing=True)
                if (problem := _check_contains(value, got[key], inner, exact=exact)) is not None:
                    return problem
            return None
    elif isinstance(expected, list | tuple):
        if isinstance(got, list) and len(got) == len(expected):
            for index, value in enumerate(expected):
                if (problem := _check_contains(value, got[index], f"{where}/{index}", exact=exact)) is not None:
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
