"""Secrets of the configuration, masked in what comes from outside: a model's exceptions, its log, its answers.

Duty: which values are secrets, and a text without them, however it spells them. Pure. May not know: where texts come
from or go to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Final
from urllib.parse import quote

from swapd.core import config_notify
from swapd.core.config import Config, ModelConfig
from swapd.core.errors import Problem
from swapd.core.events import Event, OpDone, OpFailed, WorkerExited, WorkerHung

MASK: Final = "***"
SHORTEST: Final = 6  # characters: a shorter value ("1", "true") is in every other line, and hides nothing
CUT: Final = "…"  # stands for the rest of a text that was too long
# As a word of a variable's name. Not TOKENS: MAX_TOKENS is a count.
_SECRET_NAME: Final = re.compile(
    r"(?<![a-z])(KEYS?|TOKEN|SECRETS?|PASSWORDS?|PASSWD|CREDENTIALS?)(?![a-z])", re.IGNORECASE
)


def secrets_of(config: Config) -> set[str]:
    """Those of all its models, and of those whom events are told to."""
    of_models = {secret for model in config.models.values() for secret in secrets_of_model(model)}
    of_commands = {secret for notify in config.notify.values() for secret in _in_command(notify.command)}
    return of_models.union(of_commands, config_notify.secrets_of(config))


def secrets_of_model(model: ModelConfig) -> set[str]:
    """Every value of an `env_file`; of `env` and of a command's options those whose names say so."""
    named = {value for name, value in model.env.items() if _SECRET_NAME.search(name)}
    return {*model.env_file_values.values(), *named, *_in_command(model.command)}


def _in_command(command: Sequence[str]) -> Iterator[str]:
    """`--api-key VALUE` and `--api-key=VALUE`."""
    for word, following in zip_longest(command, command[1:], fillvalue=""):
        option, equals, value = word.partition("=")
        if option.startswith("-") and _SECRET_NAME.search(option):
            yield value if equals else following


class Redactor:
    """Texts with each of `values` replaced by `***`."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values = frozenset(values)
        spelled = {text for value in self._values for text in _spellings(value) if len(text) >= SHORTEST}
        self._spelled = sorted(spelled, key=len, reverse=True)  # one value may be the beginning of another

    def also(self, values: Iterable[str]) -> Redactor:
        return Redactor(self._values.union(values))

    def text(self, text: str) -> str:
        for spelled in self._spelled:
            text = text.replace(spelled, MASK)
        *heads, last = text.split(CUT)
        return CUT.join([*map(self._without_begun, heads), last])

    def problem(self, problem: Problem) -> Problem:
        return replace(problem, message=self.text(problem.message), details=self.value(problem.details))

    def value(self, value: Any) -> Any:
        """Texts anywhere in a JSON value; keys stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {name: self.value(content) for name, content in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(content) for content in value]
        return value

    def event(self, event: Event) -> Event:
        """The event without secrets in what a worker has said: why it failed, its last lines, its interface."""
        if isinstance(event, OpFailed | WorkerExited | WorkerHung):
            lines = tuple(map(self.text, event.log_tail))
            return replace(event, problem=self.problem(event.problem), log_tail=lines)
        if isinstance(event, OpDone) and "differences" in event.result:
            return replace(event, result=self.value(event.result))
        return event

    def _without_begun(self, head: str) -> str:
        """Of a value that the cut has shortened, its beginning is at the end of `head`."""
        begun = (
            length
            for spelled in self._spelled
            for length in range(SHORTEST, len(spelled))
            if head.endswith(spelled[:length])
        )
        longest = max(begun, default=0)
        return head[: len(head) - longest] + MASK if longest else head


def _spellings(value: str) -> Iterator[str]:
    """Texts are masked line by line. A value may be quoted in them (repr, JSON, a URL), or its spaces made one."""
    for line in map(str.strip, value.splitlines()):
        yield line
        yield " ".join(line.split())
        yield repr(line)[1:-1]
        yield json.dumps(line)[1:-1]
        yield quote(line, safe="")
