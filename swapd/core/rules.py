"""Rules that a candidate has to keep, as people write them: `p95 <= 1.2 x stable` to a value and back.

Duty: what a rule says, and for what is none, what would be one. What is refused is what no number of requests could
prove (`error_rate <= 0%`), or what an equal model breaks half of the time (`error_rate <= 1 x stable`).
May not know: what was measured (`verdict`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import Final

from swapd.core.units import NotAQuantity, parse_duration


class NotARule(ValueError):
    """The text says what is expected and, where it can be guessed, what to write."""


class Metric(Enum):
    ERROR_RATE = "error_rate"
    LATENCY = "latency"  # pNN: until the end of the answer
    FIRST_BYTE = "ttfb"  # ttfb_pNN
    TOKENS_PER_S = "tokens_per_s"
    AGREEMENT = "agreement"
    CONSECUTIVE_ERRORS = "consecutive_errors"
    QUERY = "query"  # a Prometheus query's value


@dataclass(frozen=True, slots=True)
class Rule:
    """`bound` is a share (error_rate, agreement), seconds, tokens a second, a count or a query's value; where it is
    `relative`, a factor of the stable's."""

    metric: Metric
    text: str
    bound: float
    below: bool  # what is measured must be below the bound
    relative: bool = False
    inclusive: bool = False
    quantile: float = 0.5  # of latencies
    query: str = ""
    url: str = ""

    @property
    def name(self) -> str:
        """What it measures: "p95", "error_rate"."""
        if self.metric is Metric.LATENCY:
            return f"p{self.quantile * 100:g}"
        return f"ttfb_p{self.quantile * 100:g}" if self.metric is Metric.FIRST_BYTE else self.metric.value

    @property
    def sign(self) -> str:
        return ("<" if self.below else ">") + ("=" if self.inclusive else "")

    def holds(self, value: float) -> bool:
        if self.inclusive and value == self.bound:
            return True
        return value < self.bound if self.below else value > self.bound

    def to_config(self) -> str | dict[str, str]:
        """As `parse_rule` reads it."""
        if self.metric is not Metric.QUERY:
            return self.text
        url = {"url": self.url} if self.url else {}
        return {"query": self.query, **url, "is": f"{self.sign} {self.bound:.15g}"}


_LATENCIES: Final = ("p50", "p90", "p95", "p99")
_NAMES: Final = (
    "error_rate", *_LATENCIES, *(f"ttfb_{name}" for name in _LATENCIES), "agreement", "tokens_per_s",
    "consecutive_errors",
)  # fmt: skip
_EXAMPLES: Final = '"error_rate < 1%", "p95 < 200ms", "p95 <= 1.2 x stable" or "agreement >= 98%"'
_RULE: Final = re.compile(r"([A-Za-z_0-9]+)\s*(<=|>=|=<|=>|==|=|<|>|≤|≥)\s*(\S.*)")
_FACTOR: Final = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*[x*\u00d7]?\s*stable", re.IGNORECASE | re.ASCII)
_NUMBER: Final = re.compile(r"([+-]?(?:\d{1,15}(?:\.\d{0,9})?|\.\d{1,9})(?:[eE][+-]?\d{1,2})?)\s*(%?)", re.ASCII)
_COMPARISON: Final = re.compile(r"(<=|>=|<|>)\s*(\S+)")
_MUST_BE_LARGE: Final = (Metric.AGREEMENT, Metric.TOKENS_PER_S)
_PLAIN: Final = {"≤": "<=", "≥": ">=", "=<": "<=", "=>": ">=", "==": "=", "=": "="}


def parse_rule(value: object) -> Rule:
    """A rule from a configuration: a text, or a table with `query`, `is` and perhaps `url`. Raises NotARule."""
    if isinstance(value, Mapping):
        return _query(value)
    if not isinstance(value, str):
        raise NotARule(f"expected a rule such as {_EXAMPLES}")
    value = " ".join("".join(char if char.isprintable() else " " for char in value).split())
    match = _RULE.fullmatch(value)
    if match is None:
        raise NotARule(f"{_shown(value)} is not a rule: write one such as {_EXAMPLES}")
    name, sign, bound = match.group(1).lower(), _PLAIN.get(match.group(2), match.group(2)), match.group(3)
    metric, quantile = _metric(name)
    below = metric not in _MUST_BE_LARGE
    if (sign == "=") or sign.startswith("<") is not below:
        wanted = "<" if below else ">="
        raise NotARule(f'{_shown(value)}: {name} is bounded from {_side(below)}: write "{name} {wanted} {bound}"')
    number, relative = _bound(name, metric, sign, bound)
    return Rule(metric, f"{name} {sign} {bound}", number, below, relative, inclusive="=" in sign, quantile=quantile)


def _metric(name: str) -> tuple[Metric, float]:
    if re.fullmatch(r"(ttfb_)?p\d+", name) and name not in _NAMES:
        raise NotARule(f'"{name:.40}" is not measured: the percentiles are {", ".join(_LATENCIES)}')
    if name not in _NAMES:
        close = get_close_matches(name, _NAMES, n=1, cutoff=0.6)
        cure = f'did you mean "{close[0]}"?' if close else "known are " + ", ".join(_NAMES)
        raise NotARule(f'"{name:.40}" is not measured: {cure}')
    kind, _, percentile = name.rpartition("p")
    if percentile.isdigit():
        return (Metric.FIRST_BYTE if kind else Metric.LATENCY), int(percentile) / 100
    return Metric(name), 0.5


def _bound(name: str, metric: Metric, sign: str, text: str) -> tuple[float, bool]:
    """(the bound, whether it is a factor of the stable's)."""
    if "stable" in text.lower():
        return _factor(name, metric, sign, text), True
    if metric in (Metric.LATENCY, Metric.FIRST_BYTE):
        try:
            seconds = parse_duration(text)
        except NotAQuantity as error:
            raise NotARule(f'{error}; or a multiple of the stable\'s: "{name} <= 1.2 x stable"') from None
        return _more_than_nothing(name, sign, seconds, "200ms"), False
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise NotARule(f"{_shown(text)} is not a number: write a rule such as {_EXAMPLES}")
    number = float(match.group(1)) / (100.0 if match.group(2) else 1.0)
    if metric in (Metric.ERROR_RATE, Metric.AGREEMENT):
        return _share(name, metric, sign, number, percent=bool(match.group(2))), False
    if match.group(2):
        raise NotARule(f"{name} is no share: write it without %")
    if metric is Metric.CONSECUTIVE_ERRORS and (number != int(number) or number < 1):
        raise NotARule(f'{name} is counted: write "{name} < 5"')
    return _more_than_nothing(name, sign, number, "20"), False


def _share(name: str, metric: Metric, sign: str, number: float, *, percent: bool) -> float:
    if 1 < number <= 100 and not percent:
        raise NotARule(f'{name} is a share of 1: write "{name} {sign} {number:g}%"')
    if not 0 < number < 1:
        proof, example = "nothing ever fails", "< 0.1%"
        if metric is Metric.AGREEMENT:
            proof, example = "all agree", ">= 99.9%"
        raise NotARule(
            f"{name} must have a bound between 0% and 100%, which are not among them: no number of requests proves that"
            f' {proof}; write "{name} {example}"'
        )
    return number


def _factor(name: str, metric: Metric, sign: str, text: str) -> float:
    if metric is Metric.AGREEMENT:
        raise NotARule(f'{name} is with the stable already: write "{name} {sign} 98%"')
    if metric is Metric.CONSECUTIVE_ERRORS:
        raise NotARule(f'{name} is counted, whatever the stable does: write "{name} < 5"')
    match = _FACTOR.fullmatch(text)
    if match is None:
        example = "0.9" if metric is Metric.TOKENS_PER_S else "1.2"
        raise NotARule(f'{_shown(text)} is not a multiple of the stable\'s: write "{name} {sign} {example} x stable"')
    factor = float(match.group(1))
    if metric is Metric.ERROR_RATE and factor < 1.05:
        raise NotARule(
            f"two models that are equal differ by chance, and {factor:g} times the stable's rate cannot be told from"
            f' it: write at least 1.05, such as "{name} {sign} 2 x stable"'
        )
    if not 0.01 <= factor <= 1000:
        raise NotARule(f"{factor:g} times the stable's is out of range: write a factor from 0.01 to 1000")
    return factor


def _query(value: Mapping[object, object]) -> Rule:
    unknown = sorted(str(key) for key in value if key not in ("query", "url", "is"))
    if unknown:
        raise NotARule(f'"{unknown[0]:.40}" is not known: a rule with a query has the keys query, is and url')
    parts: dict[str, str] = {}
    for key, example in (("query", 'query = "sum(rate(errors_total[1m]))"'), ("is", 'is = "< 0.1"')):
        part = value.get(key)
        if not isinstance(part, str) or not part.strip():
            raise NotARule(f"a rule with a query needs `{key}` as a string, such as {example}")
        parts[key] = part.strip()
    url = value.get("url", "")
    if not isinstance(url, str) or not re.fullmatch(r"(https?://[!-~]+)?", url):
        raise NotARule('url is the address of a Prometheus: write one such as "http://127.0.0.1:9090"')
    match = _COMPARISON.fullmatch(parts["is"])
    number = _NUMBER.fullmatch(match.group(2)) if match else None
    if match is None or number is None or number.group(2):
        raise NotARule(f'{_shown(parts["is"])} does not say what the value must be: write one such as is = "< 0.1"')
    sign, bound = match.group(1), float(number.group(1))
    query = parts["query"]
    text = f"{' '.join(query.split())} {sign} {bound:.15g}"
    return Rule(Metric.QUERY, text, bound, sign[0] == "<", inclusive="=" in sign, query=query, url=url)


def _more_than_nothing(name: str, sign: str, number: float, example: str) -> float:
    if not 0 < number < math.inf:
        raise NotARule(f'{name} must have a bound of more than 0: write "{name} {sign} {example}"')
    return number


def _side(below: bool) -> str:
    return "above" if below else "below"


def _shown(value: str) -> str:
    return f'"{value[:60]}"'
