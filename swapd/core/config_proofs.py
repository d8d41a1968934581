"""What the configuration says of a candidate's proof: shares, rules, keys of sessions, whose answers are compared."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from itertools import pairwise
from typing import Any, Final, TypeVar

from swapd.core.config_readers import Reader, Wrong, choice, items, shown, size, text
from swapd.core.delivery import Ends, Then
from swapd.core.rules import NotARule, Rule, parse_rule
from swapd.core.units import format_size

E = TypeVar("E", bound=Enum)

_FIELD: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}", re.ASCII)  # a token: RFC 9110 5.6.2
_MAX_VALUE: Final = 256
MAX_BODY_BYTES: Final = 4 * 1024 * 1024  # the most that a gate keeps of one request, and of its answer


def percent(low: float = 0.0) -> Reader:
    """A number, or "20%"; more than `low`, and 100 at the most."""

    def read(value: object, base: str) -> float:
        word = value.strip().removesuffix("%") if isinstance(value, str) else value
        try:
            if isinstance(word, bool) or not isinstance(word, int | float | str):
                raise ValueError
            number = float(word)
        except ValueError:
            raise Wrong(f'{shown(value)} is no share: write one such as "5%"') from None
        if not low < number <= 100:
            raise Wrong(f'{shown(value)} is out of range: write more than {low:g} and at most "100%"')
        return number

    return read


def percents(value: object, base: str) -> tuple[float, ...]:
    """Steps, each of more than the one before."""
    steps: tuple[float, ...] = items(value, base, percent(), "shares such as 5, 25, 50")
    if any(after <= before for before, after in pairwise(steps)):
        raise Wrong("must grow from one step to the next: write them like 5, 25, 50")
    return steps


def rules(value: object, base: str) -> tuple[Rule, ...]:
    def read(each: object, base: str) -> Rule:
        try:
            return parse_rule(each)
        except NotARule as error:
            raise Wrong(str(error)) from None

    return items(value, base, read, 'one rule or more, such as "error_rate < 1%"')


def session_key(value: object, base: str) -> str:
    word = text(value, base)
    kind, _, name = word.partition(":")
    if kind == "json" and name.startswith("/") and len(name) <= _MAX_VALUE:
        return word
    if kind in ("header", "cookie") and _FIELD.fullmatch(name):
        return f"{kind}:{name.lower() if kind == 'header' else name}"
    raise Wrong(f'{shown(word)} names no part of a request: write "header:x-user", "cookie:sid" or "json:/user"')


def match(value: object, base: str) -> tuple[str, str, str]:
    """header:NAME=VALUE or cookie:NAME=VALUE."""
    word = text(value, base)
    kind, _, rest = word.partition(":")
    name, equals, wanted = rest.partition("=")
    usable = bool(wanted) and len(wanted) <= _MAX_VALUE and wanted.isascii() and wanted.isprintable()
    if kind not in ("header", "cookie") or not _FIELD.fullmatch(name) or not equals or not usable:
        raise Wrong(f'{shown(word)} fits no request: write "header:x-canary=always" or "cookie:canary=1"')
    return kind, name.lower() if kind == "header" else name, wanted


def pointers(value: object, base: str) -> tuple[str, ...]:
    return items(value, base, pointer, 'JSON pointers such as "/id"')


def pointer(value: object, base: str) -> str:
    word = text(value, base)
    if not word.startswith("/"):
        raise Wrong(f'{shown(word)} is no JSON pointer: write one such as "/{word}"')
    return word


def methods(value: object, base: str) -> tuple[str, ...]:
    return items(value, base, choice("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"), "methods")


def path_starts(value: object, base: str) -> tuple[str, ...]:
    return items(value, base, pointer, 'the beginnings of paths, such as "/v1/"')


def one_of(kind: type[E]) -> Callable[[object, str], E]:
    read = choice(*(str(each.value) for each in kind))
    return lambda value, base: kind(read(value, base))


def body_size(value: object, base: str) -> int:
    number: int = size(1)(value, base)
    if number > MAX_BODY_BYTES:
        raise Wrong(f'{shown(value)} is too large: write at most "{format_size(MAX_BODY_BYTES)}"')
    return number


ends: Final = one_of(Ends)
then: Final = one_of(Then)


def show_match(value: Any) -> object:
    return None if value is None else f"{value[0]}:{value[1]}={value[2]}"


def show_rules(value: Any) -> object:
    return [rule.to_config() for rule in value]
