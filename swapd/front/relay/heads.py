"""Heads of requests and answers: parsed, checked, and built anew for the other side; no byte goes on as it came.

The parser (llhttp, strict) refuses folded lines, bare CR or LF, doubled or odd Content-Length, and Content-Length
beside Transfer-Encoding. What it lets through and two servers could read differently is refused here (RFC 9112 and
RFC 9110, by section below). It gets the head alone: where a message ends is counted by `front.relay.bodies`, so the
boundary to the next one is always known. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import httptools

MAX_HEADERS: Final = 256
MAX_LENGTH: Final = 2**62
# RFC 9110 7.6.1: of this connection, not of the message. `Connection` names further ones.
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
_REQUEST_LINE: Final = re.compile(rb"[A-Z-]+ [^ \r\n]+ HTTP/1\.[01]\r\n")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)

Header = tuple[bytes, bytes]


class BadHead(Exception):
    """What a client sent cannot be relayed: answered for it by `status`, and the connection is closed."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class BadAnswer(Exception):
    """What an engine sent is no HTTP answer."""


@dataclass(slots=True)
class RequestHead:
    method: bytes
    target: bytes
    http_1_0: bool
    headers: list[Header]  # names in lower case, without those of one hop
    keep_alive: bool
    length: int  # of the body; -1: chunked
    upgrade: bytes = b""  # the protocol asked for

    @property
    def idempotent(self) -> bool:
        """May be sent twice: RFC 9110 9.2.2."""
        return self.method in (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE")


@dataclass(slots=True)
class AnswerHead:
    status: int
    reason: bytes
    headers: list[Header]  # names in lower case, without those of one hop
    keep_alive: bool
    length: int  # of the body; -1: chunked, -2: until the connection closes
    upgrade: bytes = b""

    @property
    def interim(self) -> bool:
        return 100 <= self.status < 200 and self.status != 101


class _Sink:
    """What the parser calls."""

    __slots__ = ("headers", "reason", "target")

    def __init__(self) -> None:
        self.target = b""
        self.reason = b""
        self.headers: list[Header] = []

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_status(self, status: bytes) -> None:
        self.reason += status

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def parse_request(head: bytes) -> RequestHead:
    """`head` ends with its empty line. Raises BadHead."""
    sink = _Sink()
    parser = httptools.HttpRequestParser(sink)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadHead(400, "bad_request", f"The request is not valid HTTP: {error}.") from None
    if _REQUEST_LINE.match(head) is None:
        if parser.get_http_version() not in ("1.0", "1.1"):
            raise BadHead(505, "http_version", "This address speaks HTTP/1.1.")
        raise BadHead(400, "bad_request", "The request line is not valid HTTP.")
    method, http_1_0 = parser.get_method(), parser.get_http_version() == "1.0"
    if method == b"CONNECT":
        raise BadHead(501, "not_implemented", "CONNECT is for proxies; this address serves a model.")
    if len(sink.headers) > MAX_HEADERS:
        raise BadHead(431, "head_too_large", f"The request has more than {MAX_HEADERS} header fields.")
    tokens = _tokens(sink.headers)
    target, headers = _with_one_host(sink.target, sink.headers, http_1_0)
    keep_alive = b"keep-alive" in tokens if http_1_0 else b"close" not in tokens
    upgrade = _values(sink.headers, b"upgrade") if b"upgrade" in tokens and not http_1_0 else b""
    length = _request_length(sink.headers, http_1_0)
    return RequestHead(method, target, http_1_0, _end_to_end(headers, tokens), keep_alive, length, upgrade)


def _with_one_host(target: bytes, headers: list[Header], http_1_0: bool) -> tuple[bytes, list[Header]]:
    """RFC 9112 3.2: one Host, and that of an absolute target before it."""
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1 or (not hosts and not http_1_0):
        raise BadHead(400, "bad_request", "The request needs one Host field.")
    if target[:1] == b"/" or target == b"*":
        return target, headers
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        raise BadHead(400, "bad_request", "The request's target is neither a path nor an http URL.")
    path = absolute[2] or b"/"
    others = [(name, value) for name, value in headers if name != b"host"]
    return path if path[:1] == b"/" else b"/" + path, [(b"host", absolute[1]), *others]


def _request_length(headers: list[Header], http_1_0: bool) -> int:
    codings = _values(headers, b"transfer-encoding")
    if codings:
        if http_1_0:  # RFC 9112 6.1: somebody before us may have read it otherwise
            raise BadHead(400, "bad_request", "HTTP/1.0 knows no Transfer-Encoding.")
        if codings.lower() != b"chunked":
            raise BadHead(501, "not_implemented", "The only transfer coding understood is chunked.")
        return -1
    length = _declared_length(headers) or 0
    if length > MAX_LENGTH:
        raise BadHead(413, "body_too_large", f"A body of {length} bytes is too large.")
    return length


def parse_answer(head: bytes, method: bytes) -> AnswerHead:
    """`head` ends with its empty line; `method` is that of the request. Raises BadAnswer."""
    sink = _Sink()
    parser = httptools.HttpResponseParser(sink)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadAnswer(f"not valid HTTP: {error}") from None
    status, http_1_0 = parser.get_status_code(), parser.get_http_version() == "1.0"
    if not 100 <= status <= 599 or len(sink.headers) > MAX_HEADERS:
        raise BadAnswer(f"status {status} with {len(sink.headers)} header fields")
    tokens = _tokens(sink.headers)
    length = _answer_length(sink.headers, method, status)
    headers = _end_to_end(sink.headers, tokens)
    if method == b"HEAD" or status == 304:  # then it tells of the body that is not sent: RFC 9110 8.6
        headers += [(name, value) for name, value in sink.headers if name == b"content-length"]
    keep_alive = (b"keep-alive" in tokens if http_1_0 else b"close" not in tokens) and length != -2
    upgrade = _values(sink.headers, b"upgrade") if status == 101 else b""
    return AnswerHead(status, sink.reason, headers, keep_alive, length, upgrade)


def _answer_length(headers: list[Header], method: bytes, status: int) -> int:
    """RFC 9112 6.3."""
    if method == b"HEAD" or status < 200 or status in (204, 304):
        return 0
    codings = _values(headers, b"transfer-encoding")
    if codings:
        if codings.lower() != b"chunked":
            raise BadAnswer(f"its transfer coding is {codings[:40]!r}")
        return -1
    length = _declared_length(headers)
    return -2 if length is None else length


def _declared_length(headers: list[Header]) -> int | None:
    """Of one Content-Length, in digits: the parser has seen to that."""
    return next((int(value) for name, value in headers if name == b"content-length"), None)


def _tokens(headers: list[Header]) -> set[bytes]:
    """What `Connection` says, in lower case."""
    said = _values(headers, b"connection")
    return {token.strip().lower() for token in said.split(b",")} if said else set()


def _values(headers: Iterable[Header], wanted: bytes) -> bytes:
    return b", ".join(value.strip() for name, value in headers if name == wanted)


def _end_to_end(headers: list[Header], tokens: set[bytes]) -> list[Header]:
    """Without what is of one connection only. Framing and Host cannot be named away by `Connection`."""
    named = tokens - {b"close", b"keep-alive", b"host", b"content-length"}
    return [(n, v) for n, v in headers if n not in HOP_BY_HOP and n not in named and n != b"content-length"]


# --- built anew ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Via:
    """What a request is told about the way it came."""

    client: str  # its address; empty: a Unix socket
    trusted: bool  # what stands before us may say where the request came from: its fields are kept, and added to


def build_request(head: RequestHead, via: Via) -> bytes:
    """For the engine: HTTP/1.1, kept alive."""
    lines = [head.method + b" " + head.target + b" HTTP/1.1"]
    lines += [name + b": " + value for name, value in _with_way(head.headers, via)]
    if head.length > 0 or (head.length == 0 and head.method in (b"POST", b"PUT", b"PATCH")):
        lines.append(b"content-length: %d" % head.length)
    elif head.length == -1:
        lines.append(b"transfer-encoding: chunked")
    if head.upgrade:
        lines += [b"connection: Upgrade", b"upgrade: " + head.upgrade]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _with_way(headers: list[Header], via: Via) -> list[Header]:
    """X-Forwarded-For and -Proto, Forwarded (RFC 7239), Via (RFC 9110 7.6.3)."""
    ours = (b"x-forwarded-for", b"x-forwarded-proto", b"forwarded", b"via")
    client = via.client.encode() or b"unknown"
    node = b'"[' + client + b']"' if b":" in client else client
    said = {name: _values(headers, name) for name in ours} if via.trusted else {}
    return [
        *((name, value) for name, value in headers if name not in ours),
        (b"x-forwarded-for", _after(said.get(b"x-forwarded-for"), client)),
        (b"x-forwarded-proto", said.get(b"x-forwarded-proto") or b"http"),
        (b"forwarded", _after(said.get(b"forwarded"), b"for=" + node + b";proto=http")),
        (b"via", _after(_values(headers, b"via"), b"1.1 swapd")),
    ]


def _after(said: bytes | None, more: bytes) -> bytes:
    return said + b", " + more if said else more


def build_answer(head: AnswerHead, extra: Iterable[Header], *, chunked: bool, close: bool) -> bytes:
    """For the client. `chunked`: its body goes on in chunks; `close`: it ends with the connection."""
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason)]
    lines += [name + b": " + value for name, value in head.headers]
    lines += [name + b": " + value for name, value in extra]
    if head.length > 0 or (head.length == 0 and head.status not in (101, 204, 304) and not _has_length(head)):
        lines.append(b"content-length: %d" % head.length)
    elif chunked:
        lines.append(b"transfer-encoding: chunked")
    if head.upgrade:
        lines += [b"connection: Upgrade", b"upgrade: " + head.upgrade]
    elif close:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _has_length(head: AnswerHead) -> bool:
    return any(name == b"content-length" for name, _ in head.headers)
