"""Content codings undone within bounds (RFC 9110 8.4.1). Pure."""

from __future__ import annotations

import zlib

_WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}  # many servers' deflate lacks zlib's frame


class CannotDecode(Exception):
    """By what it says: a coding that the standard library does not know, bytes that are none of it, or too many."""


def decoded(body: bytes, coding: str, limit: int) -> bytes:
    """At most `limit` bytes of content. Raises CannotDecode."""
    coding = coding.strip().lower()
    if coding in ("", "identity") or not body:
        return body
    windows = _WINDOWS.get(coding)
    if windows is None:
        raise CannotDecode(f"it is coded as {coding[:40]}")
    for window in windows:
        decoder = zlib.decompressobj(window)
        try:
            content = decoder.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(content) > limit:
            raise CannotDecode(f"it is more than {limit} bytes when decoded")
        if not decoder.eof:
            raise CannotDecode(f"its {coding} ends early")
        return content
    raise CannotDecode(f"it is no {coding}")
