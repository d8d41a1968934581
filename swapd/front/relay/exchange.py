"""One request of a client and its answer, between the client's connection and an engine's.

Until a byte of the answer has come, what the client sent is kept (up to KEPT_BYTES), for two reasons: the request can
be sent a second time where that is safe, and it can be put back to wait, unread, when there is no engine to send it
to. Safe means (RFC 9110 9.2.2) that its method is idempotent, or that the engine cannot have begun with it: no
connection was made, or the engine let go of its Unix socket with a part of the request unread in it, which the kernel
tells by ECONNRESET.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from swapd.front.answers import stream_error
from swapd.front.relay.bodies import BadBody, body_of, chunk, last_chunk
from swapd.front.relay.heads import AnswerHead, BadHead, RequestHead, build_answer, build_request

if TYPE_CHECKING:
    from swapd.front.relay.client import ClientConnection
    from swapd.front.relay.relay import Relay
    from swapd.front.relay.upstream import Upstream, UpstreamConnection

KEPT_BYTES: Final = 64 * 1024
MAX_ID_BYTES: Final = 200
UPSTREAM_DIED: Final = ("The model server ended before it answered. Try again.", "upstream_died")
UPSTREAM_BROKE: Final = ("The model server's answer is no valid HTTP.", "upstream_bad_answer")
CUT_OFF: Final = ("The model server ended in the middle of its answer.", "upstream_died")


class Exchange:
    __slots__ = (
        *("_body", "_chunked", "_close", "_kept", "_kept_bytes", "_stream", "answered", "began_at", "client"),
        *("connection", "head", "relay", "request_id", "sent", "tried", "unreachable", "upstream"),
    )

    def __init__(self, relay: Relay, client: ClientConnection, raw: bytes, head: RequestHead, tried: bool) -> None:
        self.relay = relay
        self.client = client
        self.head = head
        self.tried = tried  # an engine has died with it: it is not sent a third time
        self.unreachable: tuple[str, ...] = ()  # engines that did not take it
        self.upstream: Upstream | None = None
        self.connection: UpstreamConnection | None = None
        self.began_at = relay.now
        self.answered = False  # the client has the answer's head
        self.sent = False  # the engine has the whole request
        self.request_id = _request_id(relay, head)
        self._body = body_of(head.length)
        self._kept: list[bytes] | None = [raw]
        self._kept_bytes = 0
        self._chunked = False
        self._close = False
        self._stream = False

    # --- the request -------------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """On its way to an engine: it can no longer be put back unread."""
        return self.connection is not None

    @property
    def whole(self) -> bool:
        """The client has sent all of it."""
        return self._body.done

    @property
    def streaming(self) -> bool:
        return self.answered

    def begin(self, connection: UpstreamConnection) -> None:
        self.connection = connection
        connection.begin(self, build_request(self.head, self.client.via))
        self.sent = self._body.done
        if not self.sent:
            self.client.pump()

    def feed(self, data: bytes) -> bytes:
        """More of the request's body; what lies beyond it. Raises BadHead when it is no body."""
        try:
            pieces, rest = self._body.feed(data)
        except BadBody as error:
            raise BadHead(400, "bad_request", f"The request's body is not valid HTTP: {error}.") from None
        self._keep(data[: len(data) - len(rest)] if rest else data)
        assert self.connection is not None
        write = self.connection.transport.write
        if self.head.length >= 0:
            for piece in pieces:
                write(piece)
        elif pieces:
            write(chunk(pieces[0] if len(pieces) == 1 else b"".join(pieces)))
        if self._body.done:
            if self.head.length < 0:
                write(last_chunk(self._body.trailers))
            self.sent = True
        return rest

    def _keep(self, data: bytes) -> None:
        if self._kept is None:
            return
        self._kept_bytes += len(data)
        if self._kept_bytes > KEPT_BYTES:
            self._kept = None
        else:
            self._kept.append(data)

    def unread(self) -> bytes:
        """All that was read of the request, to be read again."""
        assert self._kept is not None
        return b"".join(self._kept)

    def upstream_full(self, full: bool) -> None:
        if full:
            self.client.pause(BY_UPSTREAM)
        else:
            self.client.resume(BY_UPSTREAM)

    # --- the answer --------------------------------------------------------------------------------------------

    def interim(self, head: AnswerHead) -> None:
        """1xx: for clients that know of it (RFC 9110 15.2)."""
        if not self.head.http_1_0:
            self.client.transport.write(build_answer(head, (), chunked=False, close=False))

    def answer(self, head: AnswerHead) -> None:
        self.answered = True
        self._kept = None
        close = not self.head.keep_alive or not self.sent  # a body that is not wanted any more is read by nobody
        if head.length < 0:
            if self.head.http_1_0:
                close = True
            else:
                self._chunked = True
        self._close = close
        extra = [self._revision_field()]
        if not any(name == b"x-request-id" for name, _ in head.headers):
            extra.append((b"x-request-id", self.request_id))
        if self.head.http_1_0 and not close:
            extra.append((b"connection", b"keep-alive"))
        self.client.transport.write(build_answer(head, extra, chunked=self._chunked, close=close))
        self._stream = any(n == b"content-type" and v[:17].lower() == b"text/event-stream" for n, v in head.headers)

    def _revision_field(self) -> tuple[bytes, bytes]:
        assert self.upstream is not None
        return b"x-swapd-revision", b"%d" % self.upstream.route.revision

    def answer_data(self, pieces: list[bytes]) -> None:
        write = self.client.transport.write
        if self._chunked:
            write(chunk(pieces[0] if len(pieces) == 1 else b"".join(pieces)))
        else:
            for piece in pieces:
                write(piece)

    def answer_end(self, trailers: list[tuple[bytes, bytes]]) -> None:
        if self._chunked:
            self.client.transport.write(last_chunk(trailers))
        self.connection = None
        self.relay.ended(self)
        self.client.exchange_done(close=self._close)

    def upgraded(self, connection: UpstreamConnection, head: AnswerHead, rest: bytes) -> None:
        self.client.transport.write(build_answer(head, [self._revision_field()], chunked=False, close=False))
        self.relay.tunnel(self, connection, rest)

    # --- what goes wrong ---------------------------------------------------------------------------------------

    def upstream_lost(self, connection: UpstreamConnection, error: Exception | None) -> None:
        """The engine's connection ended before its answer did."""
        self.connection = None
        if self.answered:
            self._cut_off(*CUT_OFF)
        elif self._may_be_sent_again(connection, error):
            self.again(self.unread())
        else:
            self.refuse(502, *UPSTREAM_DIED)

    def _may_be_sent_again(self, connection: UpstreamConnection, error: Exception | None) -> bool:
        if self.tried or self._kept is None or connection.began:
            return False
        unread = isinstance(error, (ConnectionResetError, BrokenPipeError))
        local = connection.upstream.route.address.startswith("unix:")
        return self.head.idempotent or (unread and local)

    def again(self, read: bytes) -> None:
        """Send it once more, to whoever is there; nobody: it waits."""
        self.tried = True
        head_bytes = len(self._kept[0]) if self._kept else 0
        self._kept, self._kept_bytes = [read[:head_bytes]], 0
        self._body = body_of(self.head.length)
        self.sent = False
        self.client.put_back(read[head_bytes:])
        self.relay.left(self)
        self.relay.begin(self)

    def bad_answer(self, why: str) -> None:
        self.connection = None
        self.relay.log_bad_answer(self, why)
        if self.answered:
            self._cut_off(*CUT_OFF)
        else:
            self.refuse(502, *UPSTREAM_BROKE)

    def refuse(self, status: int, message: str, code: str) -> None:
        """Our own answer in place of the engine's; the connection ends with it."""
        self._let_go()
        self.relay.ended(self)
        self.client.refuse(status, message, code)

    def cut(self, message: str, code: str) -> None:
        """The time to finish is over."""
        if self.answered:
            self._cut_off(message, code)
        else:
            self.refuse(503, message, code)

    def _cut_off(self, message: str, code: str) -> None:
        """In the middle of an answer: an event stream is told so in its language; of another, the missing end tells."""
        self._let_go()
        self.relay.ended(self)
        if not self._stream or not self._chunked:
            self.client.abort()
            return
        self.client.transport.write(chunk(stream_error(message, code)) + last_chunk([]))
        self.client.end()

    def client_gone(self) -> None:
        self._let_go()
        self.relay.ended(self)

    def _let_go(self) -> None:
        """Of an engine that works on something nobody waits for: it sees its client gone."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()


# Why reading from a client is paused.
BY_UPSTREAM: Final = 1  # the engine does not take more of the request's body yet
BY_CONNECT: Final = 2  # nobody has the request yet
BY_AHEAD: Final = 4  # it has sent too much of the requests to come


def _request_id(relay: Relay, head: RequestHead) -> bytes:
    """The client's own, or one of ours, which the engine is then told as well."""
    for name, value in head.headers:
        if name == b"x-request-id" and 0 < len(value) <= MAX_ID_BYTES:
            return value
    made = relay.next_id()
    head.headers = [*((n, v) for n, v in head.headers if n != b"x-request-id"), (b"x-request-id", made)]
    return made


async def connect(exchange: Exchange, upstream: Upstream) -> None:
    """A new connection for an exchange that is waiting for one."""
    try:
        connection = await upstream.connect()
    except (OSError, asyncio.TimeoutError):
        exchange.relay.unreachable(exchange, upstream)
        return
    exchange.relay.connected(exchange, upstream, connection)
