"""Whether two answers to one request agree: a candidate's and the stable's, or two of the stable's own. Pure.

Standard library only: it runs in a process of the gate's. The answers are anybody's, so every way through here is
bounded, and none raises: what cannot be compared is an outcome as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Final

from swapd.core.json_values import MISSING, Path, Pointers, read_json, read_pointer, value_at

WAYS: Final = ("exact", "json", "number", "label", "text")
NUMBER_RTOL: Final = 1e-3  # of `number`, unless told
TEXT_THRESHOLD: Final = 0.8  # of `text`, unless told
MAX_NODES: Final = 200_000  # values that are looked at in one answer
MAX_DEPTH: Final = 100
MAX_DIFFERENCES: Final = 32  # one more ends the search
AROUND: Final = 40  # characters shown before the place where two texts part
FINISH: Final = ("choices", "0", "finish_reason")  # of OpenAI-style servers


@dataclass(frozen=True, slots=True)
class Comparison:
    """How: `exact` byte by byte; `json` by value; `number` the numbers of JSON alone; `label` the top one of a
    classifier; `text` by its beginning and its length."""

    how: str = "json"
    ignore: Pointers = Pointers(())  # noqa: RUF009 (never changed)
    pointer: Path = ()  # to what is compared; (): all of it
    rtol: float = 0.0
    atol: float = 0.0
    threshold: float = TEXT_THRESHOLD  # of `text`: the least share, of both figures


@dataclass(frozen=True, slots=True)
class Answer:
    """Of a server, decoded."""

    status: int
    body: bytes
    event_stream: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    path: Path
    stable: Any  # MISSING: it is not there
    candidate: Any


@dataclass(frozen=True, slots=True)
class Outcome:
    """`agreed`: None where there is nothing to compare. `score`: 0 to 1, how near. `why`: for people, unless it
    agreed."""

    agreed: bool | None
    score: float = 0.0
    why: str = ""
    differences: tuple[Difference, ...] = ()


_SAME: Final = Outcome(True, 1.0)
_TOO_LARGE: Final = Outcome(None, 0.0, f"more than {MAX_NODES} values, or more than {MAX_DEPTH} deep")


def read_comparison(params: Mapping[str, Any]) -> Comparison:
    """From a table's `compare`. Raises ValueError naming what is wrong."""
    how = params.get("how", "json")
    if how not in WAYS:
        raise ValueError(f"compare: how must be one of {', '.join(WAYS)}")
    ignore, pointer = params.get("ignore", []), params.get("pointer", "")
    if not isinstance(ignore, list) or not all(isinstance(path, str) for path in [*ignore, pointer]):
        raise ValueError("compare: pointer must be a JSON pointer, and ignore a list of such")
    figures = [
        params.get("rtol", NUMBER_RTOL if how == "number" else 0.0),
        params.get("atol", 0.0),
        params.get("threshold", TEXT_THRESHOLD),
    ]
    if not all(isinstance(each, int | float) and not isinstance(each, bool) and 0 <= each < 1e9 for each in figures):
        raise ValueError("compare: rtol, atol and threshold must be numbers, 0 or more")
    paths = tuple(map(read_pointer, ignore))
    return Comparison(how, Pointers(paths), read_pointer(pointer), *map(float, figures))


def above_noise(compared: int, agreed: int, noise_compared: int, noise_agreed: int) -> float | None:
    """The share that agrees, where what the stable does not agree with itself about is nobody's fault. None: nothing
    was compared. No replay: no noise is assumed."""
    if not compared:
        return None
    noise = 1.0 - noise_agreed / noise_compared if noise_compared else 0.0
    return 1.0 - max(0.0, (1.0 - agreed / compared) - noise)


def compare(comparison: Comparison, stable: Answer, candidate: Answer) -> Outcome:
    if stable.status != candidate.status:
        return Outcome(False, 0.0, f"it answered {candidate.status}, the stable {stable.status}")
    if stable.body == candidate.body:
        return _SAME
    if comparison.how == "exact":
        return _bytes(stable.body, candidate.body)
    if comparison.how == "text":
        return _texts(comparison, stable, candidate)
    try:
        ours = _values(stable)
    except ValueError:
        return Outcome(None, 0.0, "the stable's answer is no JSON")
    try:
        theirs = _values(candidate)
    except ValueError:
        return Outcome(False, 0.0, "its answer is no JSON, the stable's is")
    if comparison.pointer:
        ours, theirs = value_at(ours, comparison.pointer), value_at(theirs, comparison.pointer)
        if ours is MISSING:
            return Outcome(None, 0.0, "the stable's answer has nothing at the pointer")
    if comparison.how == "label":
        return _labels(comparison.pointer, ours, theirs)
    return _json(comparison, ours, theirs)


def _bytes(ours: bytes, theirs: bytes) -> Outcome:
    at = _common(ours, theirs)
    return Outcome(False, at / max(len(ours), len(theirs)), f"the bodies differ from byte {at}")


def _common(one: bytes | str, other: bytes | str) -> int:
    """The length of the common beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


# --- JSON ----------------------------------------------------------------------------------------------------


def _values(answer: Answer) -> Any:
    """What the body says; of an event stream the list of what its events say. Raises ValueError."""
    if not answer.event_stream:
        return read_json(answer.body)
    return [read_json(event) for event in events_of(answer.body)]


def events_of(body: bytes) -> Iterator[bytes]:
    """The data of a stream's events, without OpenAI's last word (WHATWG HTML 9.2.6)."""
    lines: list[bytes] = []
    for line in [*body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"), b""]:
        if line[:5] == b"data:":
            lines.append(line[5:].removeprefix(b" "))
        elif not line and lines:
            data = b"\n".join(lines)
            lines = []
            if data != b"[DONE]":
                yield data


def _json(comparison: Comparison, ours: Any, theirs: Any) -> Outcome:
    """By value, from the outside in. Numbers within the tolerance are equal, 1 and 1.0 too, true and 1 are not."""
    numbers_only = comparison.how == "number"
    found: list[Difference] = []
    leaves = nodes = 0
    todo: list[tuple[Path, Any, Any]] = [(comparison.pointer, ours, theirs)]
    while todo and len(found) <= MAX_DIFFERENCES:
        path, one, other = todo.pop()
        nodes += 1
        if nodes > MAX_NODES or len(path) > MAX_DEPTH:
            return _TOO_LARGE
        if comparison.ignore.have(path):
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            names = [*one, *(name for name in other if name not in one)]
            todo += [((*path, name), one.get(name, MISSING), other.get(name, MISSING)) for name in reversed(names)]
        elif isinstance(one, list) and isinstance(other, list):
            longest = max(len(one), len(other))
            if longest > MAX_NODES:
                return _TOO_LARGE
            pairs = zip_longest(one, other, fillvalue=MISSING)
            todo += [((*path, str(at)), *pair) for at, pair in enumerate(pairs)][::-1]
        else:
            leaves += 1
            if not _same_leaf(comparison, one, other, numbers_only):
                found.append(Difference(path, one, other))
    if not found:
        return _SAME
    why = f"{len(found)} values differ" if len(found) > 1 else "one value differs"
    if len(found) > MAX_DIFFERENCES:
        return Outcome(False, 0.0, f"more than {MAX_DIFFERENCES} values differ", tuple(found[:-1]))
    return Outcome(False, 1.0 - len(found) / max(leaves, 1), why, tuple(found))


def _same_leaf(comparison: Comparison, one: Any, other: Any, numbers_only: bool) -> bool:
    if _is_number(one) and _is_number(other):
        return _close(one, other, comparison.rtol, comparison.atol)
    if numbers_only and type(one) is type(other) and not isinstance(one, dict | list):
        return True
    return type(one) is type(other) and bool(one == other)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _close(stable: float, candidate: float, rtol: float, atol: float) -> bool:
    if stable == candidate or (stable != stable and candidate != candidate):  # NaN
        return True
    try:
        return abs(stable - candidate) <= atol + rtol * abs(stable) and math.isfinite(stable)
    except OverflowError:  # an integer beyond any float
        return False


# --- labels --------------------------------------------------------------------------------------------------


def _labels(pointer: Path, ours: Any, theirs: Any) -> Outcome:
    one, other = label_of(ours), label_of(theirs)
    if one is None:
        return Outcome(None, 0.0, "the stable's answer has no label")
    if one == other and isinstance(one, bool) is isinstance(other, bool):
        return _SAME
    shown = MISSING if other is None else other
    why = "its answer has no label" if other is None else "the labels differ"
    return Outcome(False, 0.0, why, (Difference(pointer, one, shown),))


def label_of(value: Any) -> Any:
    """The top one of: a label; {label: score}; {"label": …}; [{"label": …, "score": …}, …]; a list of scores, whose
    place counts; and of a batch of one of these. None: it is none of them."""
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list | dict):
        value = value[0]
    if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, dict):
        named = value.get("label")
        if isinstance(named, str | int):
            return named
        return _top(value.items())
    if isinstance(value, list) and value:
        if all(isinstance(each, dict) for each in value):
            scored = [(each.get("label"), each.get("score", 0)) for each in value]
            return _top((label, score) for label, score in scored if isinstance(label, str | int))
        return _top(enumerate(value))
    return None


def _top(scores: Any) -> Any:
    """The first of the highest; None where one is no finite number."""
    best, highest = None, -math.inf
    for label, score in scores:
        if not _is_number(score) or score != score or score in (math.inf, -math.inf):
            return None
        if best is None or score > highest:
            best, highest = label, score
    return best


# --- texts ---------------------------------------------------------------------------------------------------


def _texts(comparison: Comparison, stable: Answer, candidate: Answer) -> Outcome:
    (ours, our_end), (theirs, their_end) = _text(comparison, stable), _text(comparison, candidate)
    if ours is None:
        return Outcome(None, 0.0, "the stable's answer has no text at the pointer")
    if theirs is None:
        return Outcome(False, 0.0, "its answer has no text at the pointer")
    longest = max(len(ours), len(theirs))
    at = _common(ours, theirs)
    score = at / longest if longest else 1.0
    length_ratio = min(len(ours), len(theirs)) / longest if longest else 1.0
    if our_end is not None and their_end is not None and our_end != their_end:
        shown = Difference(FINISH, our_end, their_end)
        return Outcome(False, score, "it finished for another reason", (shown,))
    if min(score, length_ratio) >= comparison.threshold:
        return Outcome(True, score)
    begin = max(0, at - AROUND)
    why = f"the texts part after {at} characters of {longest}"
    return Outcome(False, score, why, (Difference(comparison.pointer, ours[begin:], theirs[begin:]),))


def _text(comparison: Comparison, answer: Answer) -> tuple[str | None, str | None]:
    """The text, of an event stream put together, and why it ended."""
    if not comparison.pointer:
        return answer.body.decode(errors="replace"), None
    try:
        values = _values(answer)
    except ValueError:
        return None, None
    if not answer.event_stream:
        values = [values]
    said = [value_at(value, comparison.pointer) for value in values]
    texts = [text for text in said if isinstance(text, str)]
    ends = [end for value in values if isinstance(end := value_at(value, FINISH), str)]
    return "".join(texts) if texts else None, ends[-1] if ends else None
