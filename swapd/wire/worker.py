"""Daemon and worker (or gate): one JSON object a SOCK_SEQPACKET message, descriptors beside it (SCM_RIGHTS).

The worker binds and listens on `control.sock` in its own 0700 directory; the daemon connects, and may connect
again after a restart. Three kinds of message, told apart by their keys:

    request  (daemon to worker)  {"id": 7, "verb": "load", "params": {...}}
    reply    (worker to daemon)  {"re": 7, "ok": {...}}  or  {"re": 7, "error": {"code", "message", "details"}}
    event    (worker to daemon)  {"event": "progress", "params": {...}}

The first request on a connection is `hello`. Unknown fields are ignored, so that either side may be newer.
Standard library only: this module also runs in a model's interpreter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from swapd.core.errors import Problem

PROTOCOL: Final = 1
MIN_PROTOCOL: Final = 1
MAX_MESSAGE_BYTES: Final = 128 * 1024  # below the default SO_SNDBUF (208 KiB), which bounds one SEQPACKET message
MAX_FDS: Final = 253  # SCM_MAX_FD in the kernel: 254 gives EINVAL

# Verbs, in the order of a worker's life. docs/worker-protocol.md describes each.
HELLO: Final = "hello"
STAGE: Final = "stage"
LOAD: Final = "load"
PARK: Final = "park"
WAKE: Final = "wake"
ADOPT: Final = "adopt"
RECEIVE: Final = "receive"
HAND_OVER: Final = "hand_over"
SUCCESSOR: Final = "successor"
SOURCE_DEAD: Final = "source_dead"
TARGET_DEAD: Final = "target_dead"
POINT: Final = "point"
LEND: Final = "lend"
ACCESS_LOG: Final = "access_log"
DRAIN: Final = "drain"
STATS: Final = "stats"
STOP: Final = "stop"

# Capabilities, told by `hello`: what an older worker has not.
PAGE_CACHE: Final = "page_cache"  # `stage` with files brings them into the page cache

# Events.
PROGRESS: Final = "progress"
NEEDS_SUCCESSOR: Final = "needs_successor"


class WireError(ValueError):
    """The bytes are not a message of this protocol. The connection that sent them is closed."""


@dataclass(frozen=True, slots=True)
class Request:
    id: int
    verb: str
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    re: int
    ok: Mapping[str, Any] | None = None
    error: Problem | None = None


@dataclass(frozen=True, slots=True)
class WorkerEvent:
    name: str
    params: Mapping[str, Any] = field(default_factory=dict)


Message = Request | Reply | WorkerEvent


def encode(message: Message) -> bytes:
    """The message as one datagram. Raises WireError when it would not fit in one."""
    body: dict[str, Any]
    if isinstance(message, Request):
        body = {"id": message.id, "verb": message.verb, "params": dict(message.params)}
    elif isinstance(message, WorkerEvent):
        body = {"event": message.name, "params": dict(message.params)}
    elif message.error is not None:
        problem = message.error
        body = {
            "re": message.re,
            "error": {"code": problem.code, "message": problem.message, "details": dict(problem.details)},
        }
    else:
        body = {"re": message.re, "ok": dict(message.ok or {})}
    data = json.dumps(body, separators=(",", ":"), default=str).encode()
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return data


def decode(data: bytes) -> Message:
    """The message in one datagram. Raises WireError on anything that is not one."""
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from None
    if not isinstance(body, dict):
        raise WireError("not a JSON object")
    if "verb" in body:
        return Request(_integer(body, "id"), _text(body, "verb"), _mapping(body, "params"))
    if "event" in body:
        return WorkerEvent(_text(body, "event"), _mapping(body, "params"))
    if "re" in body:
        if "error" in body:
            told = _mapping(body, "error")
            problem = Problem(_text(told, "code"), _text(told, "message"), _mapping(told, "details"))
            return Reply(_integer(body, "re"), error=problem)
        return Reply(_integer(body, "re"), ok=_mapping(body, "ok"))
    raise WireError("neither a request, a reply nor an event")


def _integer(body: Mapping[str, Any], key: str) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise WireError(f"{key}: expected an integer")
    return value


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise WireError(f"{key}: expected a string")
    return value


def _mapping(body: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = body.get(key, {})
    if not isinstance(value, dict):
        raise WireError(f"{key}: expected an object")
    return value
