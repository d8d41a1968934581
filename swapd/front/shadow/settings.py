"""A table's `shadow`: who gets copies of which requests, and how their answers are compared. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from swapd.core.agreement import read_comparison
from swapd.core.shadow_samples import read_redaction

MAX_BODY: Final = 4 * 1024 * 1024
MAX_CONCURRENCY: Final = 16
MAX_KEEP: Final = 1000
_DEFAULTS: Final[Mapping[str, Any]] = {
    **{"share": 0.1, "methods": ["GET", "POST"], "paths": [], "max_body": 256 * 1024, "concurrency": 2},
    **{"deadline_s": 30.0, "noise": 0.1, "keep": 50, "redact": [], "compare": {}, "uid": None, "reuse": True},
}
# RFC 9110 9.2.1: what a client may ask for without answering for it.
SAFE: Final = frozenset((b"GET", b"HEAD", b"OPTIONS"))


@dataclass(frozen=True, slots=True)
class Shadow:
    worker: str
    revision: int
    address: str  # unix:/path or host:port, private to the candidate
    uid: int | None  # of the user that a Unix socket's other end must be of
    reuse: bool  # its connections may carry one request after the other
    share: float  # of the requests, 0 to 1
    methods: tuple[bytes, ...]
    paths: tuple[bytes, ...]  # they begin with one of these; (): all
    max_body: int  # bytes of a request's and of an answer's: larger ones are not copied
    concurrency: int  # copies that the candidate works on at once
    deadline_s: float  # for one answer
    noise: float  # of the copies, the share that is sent to the stable once more
    keep: int  # samples of disagreements
    params: Mapping[str, Any]  # all of it, as it was told: for the shadow's process

    def wants(self, method: bytes, target: bytes) -> bool:
        return method in self.methods and (not self.paths or target.startswith(self.paths))


def read_shadow(params: object) -> Shadow:
    """From the parameters of the verb `point`. Raises ValueError naming what is wrong."""
    if not isinstance(params, dict):
        raise ValueError("shadow must be an object")
    told = {**_DEFAULTS, **params}
    worker, revision, address = told.get("worker"), told.get("revision"), told.get("address")
    if not isinstance(worker, str) or not worker:
        raise ValueError("shadow: worker must be an id")
    if not isinstance(address, str) or not (address.startswith("unix:/") or address.rpartition(":")[2].isdecimal()):
        raise ValueError(f"shadow: {address!r} is neither unix:/path nor host:port")
    if told["uid"] is not None:
        _number(told, "uid", 0, 2**32)
    if not isinstance(told["reuse"], bool) or not isinstance(told["compare"], dict):
        raise ValueError("shadow: reuse must be true or false, and compare an object")
    read_comparison(told["compare"])
    read_redaction(told["redact"])
    return Shadow(
        worker,
        int(_number({"revision": revision}, "revision", 0, 2**63)),
        address,
        told["uid"],
        told["reuse"],
        float(_number(told, "share", 0.0, 1.0)),
        _texts(told, "methods"),
        _texts(told, "paths"),
        int(_number(told, "max_body", 0, MAX_BODY)),
        int(_number(told, "concurrency", 1, MAX_CONCURRENCY)),
        float(_number(told, "deadline_s", 0.001, 3600.0)),
        float(_number(told, "noise", 0.0, 1.0)),
        int(_number(told, "keep", 0, MAX_KEEP)),
        told,
    )


def _number(told: Mapping[str, Any], name: str, least: float, most: float) -> float:
    value = told[name]
    kinds = int if isinstance(least, int) else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"shadow: {name} must be a number from {least:g} to {most:g}")
    return value


def _texts(told: Mapping[str, Any], name: str) -> tuple[bytes, ...]:
    value = told[name]
    if not isinstance(value, list) or not all(isinstance(each, str) and each.isascii() for each in value):
        raise ValueError(f"shadow: {name} must be a list of texts")
    return tuple(each.encode() for each in value)
