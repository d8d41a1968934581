"""Heads of requests and answers: parsed, checked, and built anew for the other side; no byte goes on as it came.

The parser (llhttp, strict) refuses folded lines, bare CR or LF, doubled or odd Content-Length, and Content-Length
beside Transfer-Encoding. What it lets through and two servers could read differently is refused here (RFC 9112 and
RFC 9110, by section below). It gets the head alone: where a message ends is counted by `front.relay.bodies`, so the
boundary to the next one is always known. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import httptools

HEAD_END: Final = b"\r\n\r\n"
MAX_HEADERS: Final = 256
MAX_LENGTH: Final = 2**62
# RFC 9110 7.6.1: of this connection, not of the message. `Connection` names further ones.
HOP_BY_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade")
)
FRAMING: Final = HOP_BY_HOP | {b"content-length"}
WAY: Final = (b"x-forwarded-for", b"x-forwarded-proto", b"forwarded", b"via")  # where a request has come from
_OF_REQUESTS: Final = FRAMING | {b"host", b"x-request-id", *WAY}
_OF_ANSWERS: Final = FRAMING | {b"x-request-id", b"x-swapd-revision"}
_REQUEST_LINE: Final = re.compile(rb"[A-Z-]+ [^ \r\n]+ HTTP/1\.[01]\r\n")
_HOST: Final = re.compile(rb"[^\s/?#@\\,\"<>]+")
_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)([/?].*)?", re.IGNORECASE)
_NO_TOKENS: Final[frozenset[bytes]] = frozenset()

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
    headers: list[Header]  # names in lower case; without those of one hop, and those that follow
    host: bytes
    keep_alive: bool
    length: int  # of the body; -1: chunked
    upgrade: bytes  # the protocol asked for
    request_id: bytes
    way: dict[bytes, bytes]  # what it says of where it came from: WAY

    @property
    def all_headers(self) -> list[Header]:
        return [*self.headers, (b"host", self.host), (b"x-request-id", self.request_id), *self.way.items()]

    @property
    def idempotent(self) -> bool:
        """May be sent twice: RFC 9110 9.2.2."""
        return self.method in (b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE")


@dataclass(slots=True)
class AnswerHead:
    status: int
    reason: bytes
    headers: list[Header]  # names in lower case, without those of one hop
    keep_alive: bool
    length: int  # of the body; -1: chunked, -2: until the connection closes
    upgrade: bytes
    request_id: bytes
    told_length: bytes | None  # of the body that a HEAD or a 304 does not send (RFC 9110 8.6); else None

    @property
    def interim(self) -> bool:
        return 100 <= self.status < 200 and self.status != 101

    @property
    def event_stream(self) -> bool:
        kinds = (value for name, value in self.headers if name == b"content-type")
        return any(kind[:17].lower() == b"text/event-stream" for kind in kinds)


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
    version = parser.get_http_version()
    if _REQUEST_LINE.match(head) is None:
        if version not in ("1.0", "1.1"):
            raise BadHead(505, "http_version", "This address speaks HTTP/1.1.")
        raise BadHead(400, "bad_request", "The request line is not valid HTTP.")
    method, http_1_0 = parser.get_method(), version == "1.0"
    if method in (b"CONNECT", b"TRACE"):
        raise BadHead(501, "not_implemented", f"{method.decode()} is for proxies; this address serves a model.")
    if len(sink.headers) > MAX_HEADERS:
        raise BadHead(431, "head_too_large", f"The request has more than {MAX_HEADERS} header fields.")
    headers, special = _sorted(sink.headers, _OF_REQUESTS)
    tokens = _tokens(special)
    if tokens:
        headers = _without(headers, tokens)
    target, host = _target_and_host(method, sink.target, sink.headers, special, http_1_0)
    return RequestHead(
        method,
        target,
        http_1_0,
        headers,
        host,
        b"close" not in tokens and (not http_1_0 or b"keep-alive" in tokens),
        _request_length(special, http_1_0),
        _upgrade(special) if b"upgrade" in tokens and not http_1_0 else b"",
        special.get(b"x-request-id", b""),
        {name: special[name] for name in WAY if name in special and name not in tokens},
    )


def _upgrade(special: dict[bytes, bytes]) -> bytes:
    """To WebSocket alone: behind h2c requests would be hidden that nobody has checked."""
    wanted = special.get(b"upgrade", b"")
    return wanted if wanted.lower() == b"websocket" else b""


def _sorted(headers: list[Header], special: frozenset[bytes]) -> tuple[list[Header], dict[bytes, bytes]]:
    """What goes on as it is; and the values of special fields, joined by commas where they are several."""
    plain: list[Header] = []
    found: dict[bytes, bytes] = {}
    for header in headers:
        name = header[0]
        if name in special:
            value = header[1].strip()
            found[name] = found[name] + b", " + value if name in found else value
        elif b"_" not in name or name.replace(b"_", b"-") not in special:  # to many servers X_Y is X-Y
            plain.append(header)
    return plain, found


def _tokens(special: dict[bytes, bytes]) -> frozenset[bytes]:
    """What `Connection` says, in lower case."""
    said = special.get(b"connection")
    return _NO_TOKENS if said is None else frozenset(token.strip().lower() for token in said.split(b","))


def _without(headers: list[Header], tokens: frozenset[bytes]) -> list[Header]:
    """Without the fields that `Connection` names."""
    if not tokens - {b"close", b"keep-alive", b"upgrade"}:
        return headers
    return [header for header in headers if header[0] not in tokens]


def _target_and_host(
    method: bytes, target: bytes, headers: list[Header], special: dict[bytes, bytes], http_1_0: bool
) -> tuple[bytes, bytes]:
    """RFC 9112 3.2: one Host, and that of an absolute target before it. No fragment: for some servers it belongs to the
    path, others drop it."""
    host = special.get(b"host")
    if host is None and not http_1_0:
        raise BadHead(400, "bad_request", "The request needs one Host field.")
    if host is not None and b"," in host and sum(name == b"host" for name, _ in headers) > 1:
        raise BadHead(400, "bad_request", "The request needs one Host field.")
    if host and _HOST.fullmatch(host) is None:
        raise BadHead(400, "bad_request", "The request's Host is none.")
    if b"#" in target:
        raise BadHead(400, "bad_request", "The request's target has a fragment.")
    options = method == b"OPTIONS"
    if target[:1] == b"/" or (target == b"*" and options):
        return target, host or b""
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None or _HOST.fullmatch(absolute[1]) is None:
        raise BadHead(400, "bad_request", "The request's target is neither a path nor an http URL.")
    path = absolute[2] or (b"*" if options else b"/")
    if path == b"*":
        return path, absolute[1]
    return path if path[:1] == b"/" else b"/" + path, absolute[1]


def _request_length(special: dict[bytes, bytes], http_1_0: bool) -> int:
    codings = special.get(b"transfer-encoding")
    if codings is not None:
        if http_1_0:  # RFC 9112 6.1: somebody before us may have read it otherwise
            raise BadHead(400, "bad_request", "HTTP/1.0 knows no Transfer-Encoding.")
        if codings.lower() != b"chunked":
            raise BadHead(501, "not_implemented", "The only transfer coding understood is chunked.")
        return -1
    length = int(special.get(b"content-length", b"0"))  # one, in digits: the parser has seen to that
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
    status = parser.get_status_code()
    if not 100 <= status <= 599 or len(sink.headers) > MAX_HEADERS:
        raise BadAnswer(f"status {status} with {len(sink.headers)} header fields")
    headers, special = _sorted(sink.headers, _OF_ANSWERS)
    tokens = _tokens(special)
    if tokens:
        headers = _without(headers, tokens)
    length = _answer_length(special, method, status)
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise BadAnswer(f"its version is HTTP/{version}")
    keep_alive = b"close" not in tokens
    if version == "1.0":  # RFC 9112 6.1: what frames an answer of HTTP/1.0 by chunks may not know what comes after it
        keep_alive = keep_alive and b"keep-alive" in tokens and length != -1
    return AnswerHead(
        status,
        sink.reason,
        headers,
        keep_alive and length != -2,
        length,
        special.get(b"upgrade", b"") if status == 101 else b"",
        special.get(b"x-request-id", b""),
        special.get(b"content-length", b"") if method == b"HEAD" or status == 304 else None,
    )


def _answer_length(special: dict[bytes, bytes], method: bytes, status: int) -> int:
    """RFC 9112 6.3."""
    if method == b"HEAD" or status < 200 or status in (204, 304):
        return 0
    codings = special.get(b"transfer-encoding")
    if codings is not None:
        if codings.lower() != b"chunked":
            raise BadAnswer(f"its transfer coding is {codings[:40]!r}")
        return -1
    length = special.get(b"content-length")
    return -2 if length is None else int(length)


# --- built anew ----------------------------------------------------------------------------------------------


class Via:
    """What a request is told about the way it came: X-Forwarded-For and -Proto, Forwarded (RFC 7239), Via (RFC 9110
    7.6.3).

    `client`: its address; empty: a Unix socket. `trusted`: what stands before us may say where the request came from,
    so its fields are kept, and added to.
    """

    __slots__ = ("_client", "_node", "_plain", "_trusted")

    def __init__(self, client: str, trusted: bool) -> None:
        self._client = client.encode() or b"unknown"
        address = b'"[' + self._client + b']"' if b":" in self._client else self._client
        self._node = b"for=" + address + b";proto=http"
        self._trusted = trusted
        self._plain = self._lines({}, b"")

    def lines(self, said: dict[bytes, bytes]) -> bytes:
        if not said:
            return self._plain
        return self._lines(said if self._trusted else {}, said.get(b"via", b""))

    def _lines(self, said: dict[bytes, bytes], via: bytes) -> bytes:
        fields = (
            (b"x-forwarded-for", _after(said.get(b"x-forwarded-for"), self._client)),
            (b"x-forwarded-proto", said.get(b"x-forwarded-proto") or b"http"),
            (b"forwarded", _after(said.get(b"forwarded"), self._node)),
            (b"via", _after(via, b"1.1 swapd")),
        )
        return b"".join(name + b": " + value + b"\r\n" for name, value in fields)


def _after(said: bytes | None, more: bytes) -> bytes:
    return said + b", " + more if said else more


def build_request(head: RequestHead, via: Via) -> bytes:
    """For the engine: HTTP/1.1, kept alive."""
    lines = [head.method + b" " + head.target + b" HTTP/1.1\r\nhost: " + head.host]
    lines += [name + b": " + value for name, value in head.headers]
    if head.request_id:
        lines.append(b"x-request-id: " + head.request_id)
    if head.length > 0 or (head.length == 0 and head.method in (b"POST", b"PUT", b"PATCH")):
        lines.append(b"content-length: %d" % head.length)
    elif head.length == -1:
        lines.append(b"transfer-encoding: chunked")
    if head.upgrade:
        lines += [b"connection: Upgrade", b"upgrade: " + head.upgrade]
    return b"\r\n".join(lines) + b"\r\n" + via.lines(head.way) + b"\r\n"


def build_answer(head: AnswerHead, extra: bytes, *, chunked: bool, close: bool) -> bytes:
    """For the client. `extra`: whole lines of ours. `chunked`: its body goes on in chunks; `close`: it ends with the
    connection."""
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason)]
    lines += [name + b": " + value for name, value in head.headers]
    if head.told_length is not None:
        if head.told_length:
            lines.append(b"content-length: " + head.told_length)
    elif head.length > 0 or (head.length == 0 and head.status not in (101, 204, 304) and not head.interim):
        lines.append(b"content-length: %d" % head.length)
    elif chunked:
        lines.append(b"transfer-encoding: chunked")
    if head.upgrade:
        lines += [b"connection: Upgrade", b"upgrade: " + head.upgrade]
    elif close:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n" + extra + b"\r\n"
