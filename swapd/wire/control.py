"""The control protocol: JSON-RPC 2.0 between the daemon and whoever gives it orders.

Duty: bytes to values and back, the table of methods, and what is wrong with a request, as a value. One object a
message; batches and notifications are refused. Every parameter is a scalar, so a hostile message costs one scan
and builds nothing. It knows no socket and no clock, and decides nothing about services.

Source: https://www.jsonrpc.org/specification. docs/control.md describes each method; a test compares the two.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import msgspec

from swapd.core import errors
from swapd.core.errors import Problem
from swapd.core.units import NotAQuantity, parse_duration

PROTOCOL: Final = 1
MIN_PROTOCOL: Final = 1
MAX_REQUEST_BYTES: Final = (
    1 << 20
)  # requests are a few hundred bytes; this leaves room and bounds what a client may queue
MAX_REPLY_BYTES: Final = 32 << 20  # the widest answer, a long history, is far below; a client refuses more
MAX_NAME_CHARS: Final = 128
MAX_TEXT_CHARS: Final = 4096
MAX_COUNT: Final = 2**53  # every JSON reader keeps these whole, and the journal can store them

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
INTERNAL_ERROR: Final = -32603
REFUSED: Final = -32000  # everything that swapd itself refuses: `error.data.code` tells which

# Waiting for a swap ends in one of these: in `Soaking` the new revision serves, which is what was asked for, and what
# is `Paused` goes on only when somebody says so.
PHASES_AT_REST: Final = frozenset({"Soaking", "Succeeded", "Failed", "Canceled", "Paused"})
PHASES_WELL: Final = frozenset({"Soaking", "Succeeded"})

RequestId = str | int | float


class WireError(ValueError):
    """The bytes are no reply or event of this protocol."""


@dataclass(frozen=True, slots=True)
class Request:
    id: RequestId
    method: str
    params: Mapping[str, Any] = field(default_factory=dict)  # checked against the method's table


@dataclass(frozen=True, slots=True)
class Success:
    id: RequestId
    result: Any


@dataclass(frozen=True, slots=True)
class Failure:
    id: RequestId | None  # None: the request was too broken to have one
    rpc_code: int
    problem: Problem


Reply = Success | Failure


class Kind(Enum):
    """What a parameter may be, in the words of the error message."""

    NAME = f"a name of 1 to {MAX_NAME_CHARS} characters"
    TEXT = f"a text of at most {MAX_TEXT_CHARS} characters"
    COUNT = "a whole number, 0 or more"
    FLAG = "true or false"
    DURATION = 'a duration such as "30s" or "2m", or a number of seconds'
    REVISION = "a revision number or a model's name"
    EPOCH = "the epoch of an event: a number or a text"


@dataclass(frozen=True, slots=True)
class Param:
    kind: Kind
    summary: str
    required: bool = False


@dataclass(frozen=True, slots=True)
class Method:
    name: str
    summary: str
    params: Mapping[str, Param] = field(default_factory=dict)
    acts: bool = False  # changes something: may carry request_id and actor


_SERVICE = Param(Kind.NAME, "the service's name", required=True)
_ACTING: Final = {
    "reason": Param(Kind.TEXT, "why, for the history"),
    "actor": Param(Kind.NAME, "who asks, added to the peer's user"),
    "request_id": Param(Kind.NAME, "repeating a request with the same id does not act twice"),
}
_HOW: Final = {
    "strategy": Param(Kind.NAME, "auto, dual, in-place, canary, shadow, guarded, or one of the configuration"),
    "max_outage": Param(Kind.DURATION, "refuse an expected outage longer than this; the service's own limit otherwise"),
}
_HOW_TO: Final = {
    **_HOW,
    "steps": Param(Kind.TEXT, "shares of the requests for a canary, in percent: 5,25,50"),
    "allow_name_mismatch": Param(Kind.FLAG, "also if clients could not name the model in requests as they do now"),
    "allow_breaking": Param(Kind.FLAG, "also if clients would break by what is known of the two models' interfaces"),
}
_TO: Final = {"service": _SERVICE, "to": Param(Kind.NAME, "the model's name", required=True), **_HOW_TO}

METHODS: Final[Mapping[str, Method]] = {
    method.name: method
    for method in (
        Method("hello", "versions, the methods, where the events are, and who you are to the daemon"),
        Method("status", "the daemon and its services", {"service": Param(Kind.NAME, "only this one")}),
        Method("devices", "device memory: total, free, reserved, and by whom"),
        Method("workers", "the worker processes"),
        Method("models", "the models that the configuration knows"),
        Method(
            "plan",
            "what a swap would do, and why, without doing it",
            _TO,
        ),
        Method(
            "swap",
            "replace a service's model; returns the swap's record at once",
            {**_TO, **_ACTING},
            acts=True,
        ),
        Method(
            "rehearse",
            "prove a model beside what serves, on copies of requests, and end before any client notices",
            {**_TO, **_ACTING},
            acts=True,
        ),
        Method(
            "pause",
            "let the swap in progress go no further by itself; what serves goes on",
            {"service": _SERVICE, **_ACTING},
            acts=True,
        ),
        Method(
            "promote",
            "on to the next stage at once, whatever was measured",
            {"service": _SERVICE, "full": Param(Kind.FLAG, "past all stages, or to the end of the soak"), **_ACTING},
            acts=True,
        ),
        Method(
            "rollback",
            "return a service to its previous revision, or to the one named",
            {"service": _SERVICE, "to": Param(Kind.REVISION, "where to; the previous otherwise"), **_HOW, **_ACTING},
            acts=True,
        ),
        Method("restart", "a swap to the same model", {"service": _SERVICE, **_HOW_TO, **_ACTING}, acts=True),
        Method(
            "cancel",
            "end the swap in progress; the old revision serves on",
            {"service": Param(Kind.NAME, "its service"), "id": Param(Kind.COUNT, "or the swap's number"), **_ACTING},
            acts=True,
        ),
        Method(
            "resume",
            "have a paused swap go on, or a service that swapd has paused after it had ended again and again",
            {"service": _SERVICE, **_ACTING},
            acts=True,
        ),
        Method(
            "history",
            "the swaps, newest first",
            {"service": Param(Kind.NAME, "only this one"), "limit": Param(Kind.COUNT, "at most so many; 20 otherwise")},
        ),
        Method("show", "one swap's record", {"id": Param(Kind.COUNT, "the swap's number", required=True)}),
        Method(
            "events_since",
            "the events after (epoch, seq), to fill a gap",
            {
                "epoch": Param(Kind.EPOCH, "the epoch of the last event seen", required=True),
                "seq": Param(Kind.COUNT, "its seq", required=True),
                "limit": Param(Kind.COUNT, "at most so many; 1000 otherwise"),
            },
        ),
        Method(
            "logs",
            "lines that a worker wrote",
            {
                "target": Param(Kind.NAME, "a service (its newest worker) or a worker", required=True),
                "lines": Param(Kind.COUNT, "at most so many; 100 otherwise"),
                "offset": Param(Kind.COUNT, "what comes after this byte of the log, instead of the last lines"),
            },
        ),
        Method(
            "reload",
            "read the configuration again",
            {"dry_run": Param(Kind.FLAG, "only say what would change"), **_ACTING},
            acts=True,
        ),
        Method(
            "stop_workers",
            "stop every worker: no service answers afterwards",
            {"confirm": Param(Kind.FLAG, "must be true", required=True), **_ACTING},
            acts=True,
        ),
    )
}


# --- the daemon's side ---------------------------------------------------------------------------------------


class _Envelope(msgspec.Struct):
    """The outer object only. Raw: what is inside is scanned, not built, until its place in the table is known."""

    jsonrpc: msgspec.Raw = msgspec.Raw()
    id: msgspec.Raw = msgspec.Raw()
    method: msgspec.Raw = msgspec.Raw()
    params: msgspec.Raw = msgspec.Raw()


# UnicodeDecodeError is a ValueError and so is msgspec's DecodeError; deep nesting ends in a RecursionError.
_BROKEN: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_envelope = msgspec.json.Decoder(_Envelope)
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_scalar = msgspec.json.Decoder(str | int | float | bool | None)
_encoder = msgspec.json.Encoder(enc_hook=lambda value: _plain(value))


def decode_request(message: bytes) -> Request | Failure:
    """The request, its parameters checked, or the reply that says what is wrong with it. Never raises."""
    if len(message) > MAX_REQUEST_BYTES:
        return _bad(None, INVALID_REQUEST, f"a request may have {MAX_REQUEST_BYTES} bytes, this one has {len(message)}")
    head = message.lstrip(b" \t\r\n")[:1]
    if head == b"[":
        return _bad(None, INVALID_REQUEST, "batches are not supported: send one JSON object a message")
    try:
        envelope = _envelope.decode(message)
    except _BROKEN as broken:
        if head != b"{":
            return _bad(None, PARSE_ERROR, 'not JSON: expected an object such as {"jsonrpc": "2.0", "id": 1, ...}')
        return _bad(None, PARSE_ERROR, f"not JSON: {broken}")
    request_id = _read(envelope.id)
    if not _is_id(request_id):
        return _bad(None, INVALID_REQUEST, "id: expected a number or a text of at most 128 characters, for the reply")
    if _read(envelope.jsonrpc) != "2.0":
        return _bad(request_id, INVALID_REQUEST, 'jsonrpc: expected "2.0"')
    name = _read(envelope.method)
    if not isinstance(name, str):
        return _bad(request_id, INVALID_REQUEST, 'method: expected a text such as "status"')
    method = METHODS.get(name)
    if method is None:
        message_text = f"there is no method {name!r:.80}{_suggestion(name, METHODS)}"
        problem = Problem(errors.UNKNOWN_METHOD, message_text, {"methods": sorted(METHODS)})
        return Failure(request_id, METHOD_NOT_FOUND, problem)
    params = _decode_params(method, envelope.params)
    if isinstance(params, Problem):
        return Failure(request_id, INVALID_PARAMS, params)
    return Request(request_id, name, params)


def _decode_params(method: Method, raw: msgspec.Raw) -> dict[str, Any] | Problem:
    if bytes(raw) in (b"", b"null"):
        given: dict[str, msgspec.Raw] = {}
    else:
        try:
            given = _object.decode(raw)
        except _BROKEN:
            return _complaint(method, "params", 'expected an object such as {"service": "chat"}')
    params: dict[str, Any] = {}
    for name, raw_value in given.items():
        param = method.params.get(name)
        if param is None:
            hint = _suggestion(name, method.params) or (
                f" (it takes {', '.join(method.params)})" if method.params else " (it takes none)"
            )
            return _complaint(method, f"{name!s:.80}", f"{method.name} has no such parameter{hint}")
        value = _read(raw_value)
        if value is None and bytes(raw_value) == b"null":
            continue  # null is "not given", so that a script may pass its own None on
        checked = _check(param.kind, value)
        if isinstance(checked, Problem):
            return _complaint(method, name, checked.message)
        params[name] = checked
    for name, param in method.params.items():
        if param.required and name not in params:
            return _complaint(method, name, f"{method.name} needs it: {param.summary}")
    if method.name == "cancel" and ("service" in params) == ("id" in params):
        return _complaint(method, "service", "cancel needs either service or id")
    return params


def _check(kind: Kind, value: Any) -> Any:
    """The value as the handler gets it, or a Problem that says what was expected."""
    expected = Problem(errors.BAD_REQUEST, f"expected {kind.value}")
    if kind is Kind.FLAG:
        return value if isinstance(value, bool) else expected
    if isinstance(value, bool):
        return expected
    if kind is Kind.COUNT:
        return value if isinstance(value, int) and 0 <= value <= MAX_COUNT else expected
    if kind is Kind.NAME:
        return value if _is_name(value) else expected
    if kind is Kind.TEXT:
        return value if isinstance(value, str) and len(value) <= MAX_TEXT_CHARS else expected
    if kind in (Kind.REVISION, Kind.EPOCH):
        return value if _is_name(value) or (isinstance(value, int) and value >= 0) else expected
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except NotAQuantity as wrong:
            return Problem(errors.BAD_REQUEST, str(wrong))
    return float(value) if isinstance(value, int | float) and value >= 0 and math.isfinite(value) else expected


def encode_reply(reply: Reply) -> bytes:
    """Raises TypeError or ValueError when the result is no JSON: a bug of whoever made it."""
    if isinstance(reply, Success):
        return _encoder.encode({"jsonrpc": "2.0", "id": reply.id, "result": reply.result})
    problem = reply.problem
    # The code comes last: a detail of that name must not hide it.
    data = {**problem.details, "code": problem.code}
    error = {"code": reply.rpc_code, "message": problem.message, "data": data}
    return _encoder.encode({"jsonrpc": "2.0", "id": reply.id, "error": error})


def failure_of(request_id: RequestId | None, problem: Problem) -> Failure:
    """The reply to a request that was well-formed and is refused, or that met a bug."""
    rpc_code = {errors.INTERNAL: INTERNAL_ERROR, errors.BAD_REQUEST: INVALID_PARAMS}.get(problem.code, REFUSED)
    return Failure(request_id, rpc_code, problem)


def encode_event(event: Mapping[str, Any]) -> bytes:
    return _encoder.encode(event)


# --- the client's side ---------------------------------------------------------------------------------------


def encode_request(request_id: RequestId, method: str, params: Mapping[str, Any]) -> bytes:
    given = {name: value for name, value in params.items() if value is not None}
    return _encoder.encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": given})


def decode_reply(message: bytes) -> Reply:
    """Raises WireError. An error without swapd's own data becomes INTERNAL, so that a caller may always branch."""
    body = _decode_object(message)
    if "result" in body and "error" not in body:
        return Success(body.get("id", ""), body["result"])
    error = body.get("error")
    if not isinstance(error, dict):
        raise WireError("neither a result nor an error")
    data = error.get("data")
    details = dict(data) if isinstance(data, dict) else {}
    code = details.pop("code", None)
    rpc_code = error.get("code")
    problem = Problem(str(code or errors.INTERNAL), str(error.get("message", "no message")), details)
    return Failure(body.get("id"), rpc_code if isinstance(rpc_code, int) else INTERNAL_ERROR, problem)


def decode_event(message: bytes) -> dict[str, Any]:
    """Raises WireError."""
    event = _decode_object(message)
    if not isinstance(event.get("seq"), int) or "epoch" not in event:
        raise WireError("an event without epoch and seq")
    return event


def _decode_object(message: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(message)
    except _BROKEN as broken:
        raise WireError(f"not JSON: {broken}") from None
    if not isinstance(body, dict):
        raise WireError("not a JSON object")
    return body


# --- small parts ---------------------------------------------------------------------------------------------


def _read(raw: msgspec.Raw) -> Any:
    """A scalar, or None for everything else: absent, null, an array, an object, a lone surrogate."""
    try:
        return _scalar.decode(raw)
    except _BROKEN:
        return None


def _is_id(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= MAX_NAME_CHARS
    return isinstance(value, int | float) and not isinstance(value, bool)


_NAME = re.compile(r"[^\x00-\x1f\x7f]+")  # no control characters: names are logged and printed


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME_CHARS and _NAME.fullmatch(value) is not None


def _bad(request_id: RequestId | None, rpc_code: int, message: str) -> Failure:
    return Failure(request_id, rpc_code, Problem(errors.BAD_REQUEST, message))


def _complaint(method: Method, parameter: str, message: str) -> Problem:
    return Problem(errors.BAD_REQUEST, f"{parameter}: {message}", {"method": method.name, "parameter": parameter})


def _suggestion(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name[:64], list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]!r}?" if close else ""


def _plain(value: object) -> Any:
    """What msgspec does not encode by itself."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, frozenset | set):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} is no JSON")
