"""Whose request it is: the key that a table's sessions go by, found in a request's head or body. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

MAX_BODY_BYTES: Final = 64 * 1024  # that is waited for, and parsed, to find a key in it
KINDS: Final = ("header", "cookie", "json")


@dataclass(frozen=True, slots=True)
class SessionKey:
    """`name`: a header's in lower case, a cookie's, or a JSON pointer (RFC 6901)."""

    kind: str  # of KINDS
    name: bytes

    def reads_body(self, headers: Sequence[tuple[bytes, bytes]], length: int) -> bool:
        """The key is in the body, which is small enough to be waited for. Chunked ones have no length, encoded ones
        cannot be read."""
        return self.kind == "json" and 0 < length <= MAX_BODY_BYTES and not any(h[0] == _ENCODING for h in headers)

    def find(self, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bytes:
        """b"": the request has none. `body`: whole, or nothing."""
        if self.kind == "header":
            return next((value for name, value in headers if name == self.name), b"")
        if self.kind == "cookie":
            return next((value for name, value in cookies(headers) if name == self.name), b"")
        return _in_json(body, self.name.decode()) if body else b""


_ENCODING: Final = b"content-encoding"


def cookies(headers: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    fields = (value for name, value in headers if name == b"cookie")
    pairs = (cookie.strip().partition(b"=") for field in fields for cookie in field.split(b";"))
    return [(name, value) for name, _, value in pairs]


def read_session_key(text: object) -> SessionKey:
    """From "header:NAME", "cookie:NAME" or "json:/POINTER". Raises ValueError."""
    kind, _, name = text.partition(":") if isinstance(text, str) else ("", "", "")
    name = name.strip()
    if kind not in KINDS or not name or (kind == "json" and not name.startswith("/")):
        raise ValueError(f'session_key: {text!r} is neither "header:NAME", "cookie:NAME" nor "json:/POINTER"')
    return SessionKey(kind, (name.lower() if kind == "header" else name).encode())


def _in_json(body: bytes, pointer: str) -> bytes:
    """A string, a number, or true or false, as JSON text."""
    try:
        value: Any = json.loads(body)
    except (ValueError, RecursionError):
        return b""
    for token in pointer[1:].split("/"):
        token = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and token in value:
            value = value[token]
        elif isinstance(value, list) and token.isdecimal() and int(token) < len(value):
            value = value[int(token)]
        else:
            return b""
    return json.dumps(value).encode() if isinstance(value, (str, int, float)) and value != "" else b""


def digest(key: bytes) -> int:
    """64 bits by which a session is known; the same in every gate."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")


def point_of(session: int, revision: int) -> float:
    """Where in [0, 1) a session lies, when a revision gets its share: another place for each, so that it is not always
    the same people who try what is new."""
    mixed = hashlib.blake2b(session.to_bytes(8, "big"), digest_size=8, salt=(revision % 2**64).to_bytes(8, "big"))
    return int.from_bytes(mixed.digest(), "big") / 2.0**64
