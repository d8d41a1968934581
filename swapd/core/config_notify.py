"""[notify.NAME]: where events are told, as values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from swapd.core.config import Config
from swapd.core.config_readers import Wrong, choice, items, quoted, shown, suggest, text
from swapd.core.notices import NAMES

_SECRET_PATH: Final = 16  # characters: a shorter path ("events") is a word, and would be masked wherever it stands


def events(value: object, base: str) -> tuple[str, ...]:
    names: tuple[str, ...] = items(value, base, choice(*NAMES), 'events such as "swap.finished", "swap.paused"')
    return names


def services(value: object, base: str) -> tuple[str, ...]:
    names: tuple[str, ...] = items(value, base, text, "names of services")
    return names


def url(value: object, base: str) -> str:
    word = text(value, base)
    try:
        parts = urlsplit(word)
        right = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        right = False
    if not right or not word.isascii() or any(char <= " " for char in word) or "@" in parts.netloc:
        cure = 'write one such as "http://127.0.0.1:8080/swapd"; a password goes into headers_file'
        raise Wrong(f"{shown(word)} is no address: {cure}")
    return word


def show_url(value: str | None) -> object:
    """Without its path: that of a webhook is a secret mostly."""
    if value is None:
        return None
    parts = urlsplit(value)
    return f"{parts.scheme}://{parts.netloc}/…" if parts.path.strip("/") or parts.query else value


def show_command(value: tuple[str, ...]) -> object:
    """Its arguments may be secrets."""
    return [value[0], *(["…"] if len(value) > 1 else [])] if value else []


def check_notify(config: Config) -> Iterator[tuple[str, str]]:
    for notify in config.notify.values():
        path = f"notify.{quoted(notify.name)}"
        if notify.url is not None and notify.command:
            yield f"{path}.command", 'stands beside "url", and one of them is told: leave the other out'
        elif notify.url is None and not notify.command:
            yield path, 'says not whom to tell: write url = "http://…", or command = ["/path/to/program"]'
        if notify.command and not notify.command[0].startswith("/"):
            yield f"{path}.command[0]", 'must be a whole path: write it like "/usr/local/bin/tell"'
        if notify.headers_file is not None and notify.url is None:
            yield f"{path}.headers_file", 'is for "url" only: leave it out'
        for name in notify.services or ():
            if name not in config.services:
                cure = suggest(name, tuple(config.services))
                yield f"{path}.services", f'there is no service "{name}": {cure}'


def header_fault(name: str, value: str) -> str | None:
    """Why it can be no header of a request; None: it can."""
    token = name and name.isascii() and all(char.isalnum() or char in "!#$%&'*+-.^_`|~" for char in name)
    if not token:
        return "is not Name: value"
    if not value.isascii() or not value.isprintable():
        return f"{name} has characters that a header cannot have"
    if name.lower() in ("host", "content-length", "content-type", "transfer-encoding", "connection"):
        return f"{name} is set by swapd: leave it out"
    return None


def secrets_of(config: Config) -> Iterator[str]:
    """What no log may tell."""
    for notify in config.notify.values():
        yield from _of_headers(notify.headers_file_values)
        if notify.url is not None and show_url(notify.url) != notify.url:
            path = notify.url.partition("://")[2].partition("/")[2]
            yield from (secret for secret in (notify.url, path) if len(secret) >= _SECRET_PATH)


def _of_headers(headers: Mapping[str, str]) -> Iterator[str]:
    for value in headers.values():
        yield value
        yield value.rpartition(" ")[2]  # without "Bearer"
