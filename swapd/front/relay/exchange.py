"""One request of a client and its answer, between the client's connection and an engine's.

Until the client gets something of the answer, what it sent is kept (up to KEPT_BYTES), for two reasons: the request can
be sent a second time where that is safe, and it can be put back to wait, unread, when there is no engine to send it
to. So that an engine which ends between an answer's head and its body does no harm, a head that announces a body of
known length waits for the body's first bytes (of another it goes on at once: the next bytes may be long in coming).
Safe means (RFC 9110 9.2.2) that the method is idempotent, or that the engine cannot have begun with it: no
connection was made, or the engine let go of its Unix socket with the request unread in it. The kernel tells by
ECONNRESET that something was unread; that nothing was read follows only for a request that went there in one piece,
small enough to be read at once: many servers begin when they have the head, and read the body later.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING, Final

from swapd.front.answers import stream_error
from swapd.front.relay.bodies import BadBody, body_of, chunk, last_chunk
from swapd.front.relay.heads import AnswerHead, BadHead, RequestHead, build_answer, build_request

if TYPE_CHECKING:
    from swapd.front.relay.client import ClientConnection
    from swapd.front.relay.measure import Samples
    from swapd.front.relay.relay import Relay
    from swapd.front.relay.split import Choice
    from swapd.front.relay.upstream import Upstream, UpstreamConnection
    from swapd.front.shadow.tee import Copy

log = logging.getLogger("swapd.relay")

KEPT_BYTES: Final = 64 * 1024
READ_AT_ONCE_BYTES: Final = 4096  # the smallest buffer that servers read with (Go, cpp-httplib; Python's has 8 KiB)
MAX_ID_BYTES: Final = 200
# Why reading from a client is paused.
BY_UPSTREAM: Final = 1  # the engine does not take more of the request's body yet
BY_CONNECT: Final = 2  # nobody has the request yet
BY_AHEAD: Final = 4  # it has sent too much of the requests to come
UPSTREAM_DIED: Final = ("The model server ended before it answered. Try again.", "upstream_died")
UPSTREAM_BROKE: Final = ("The model server's answer is no valid HTTP.", "upstream_bad_answer")
FAILED: Final = ("The request could not be passed on: a bug in swapd, told in the gate's log.", "internal")
CUT_OFF: Final = ("The model server ended in the middle of its answer.", "upstream_died")


class Exchange:
    __slots__ = (
        *("_answer_head", "_body", "_chunked", "_close", "_kept", "_kept_bytes", "_stream", "answered"),
        *("awaits_body", "began_at", "body_bytes", "came_at", "choice", "client", "connection", "copy"),
        *("error", "events", "first_at", "fresh", "head", "in_one", "relay", "samples", "sent", "sent_at"),
        *("status", "tried", "unreachable", "upstream", "waits_since"),
    )

    # Set when an engine is chosen: where it is measured, and since when.
    samples: Samples
    sent_at: float

    def __init__(self, relay: Relay, client: ClientConnection, raw: bytes, head: RequestHead) -> None:
        self.relay = relay
        self.client = client
        self.head = head
        self.tried = client.tried  # an engine has died with it: it is not sent a third time
        self.fresh = self.tried  # to be sent on a new connection only
        self.waits_since = client.waits_since
        self.unreachable: tuple[str, ...] = ()  # engines that did not take it
        self.awaits_body = False  # its session's key is in there
        self.choice: Choice | None = None  # where there are percents
        self.upstream: Upstream | None = None
        self.connection: UpstreamConnection | None = None
        self.copy: Copy | None = None  # for a shadow
        self.began_at = relay.now
        self.first_at = 0.0  # the first byte of the answer's body, or its end
        self.status = 0
        self.came_at = 0.0  # its first byte, or its head; for the access log only
        self.error: str | None = None  # why it did not end well; for the access log
        self.body_bytes = 0  # of the answer
        self.events = 0  # of an event stream
        self.answered = False  # the client has the answer's head
        self.sent = False  # the engine has the whole request
        self.in_one = False  # it got it in one piece, which it reads as a whole or not at all
        if relay.access_log is not None:
            self.came_at = self.waits_since or monotonic()
        if not 0 < len(head.request_id) <= MAX_ID_BYTES:
            head.request_id = relay.next_id()
        self._body = body_of(head.length)
        self._kept: list[bytes] | None = [raw]
        self._kept_bytes = 0
        self._answer_head: AnswerHead | None = None  # it waits for the first bytes of its body
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

    def begin(self, connection: UpstreamConnection) -> None:
        """Send what there is of it."""
        self.connection = connection
        if self.choice is not None:
            self.relay.chooser.begins(self.choice, self.relay.now)
        if self.relay.tee is not None:
            self.copy = self.relay.tee.begin(self.head, self.client.via, connection.upstream.route)
        out = build_request(self.head, self.client.via)
        self.sent = self._body.done
        if not self.sent:
            try:
                out += self._pass_on()
            except BadHead as error:
                self.refuse(error.status, str(error), error.code)
                return
        self.in_one = self.sent and len(out) <= READ_AT_ONCE_BYTES
        connection.begin(self, out)

    def more(self) -> None:
        """More of the request's body has come. Raises BadHead when it is none."""
        assert self.connection is not None
        out = self._pass_on()
        if out:
            self.connection.transport.write(out)

    def _pass_on(self) -> bytes:
        """What the client has sent of the body, framed for the engine. What lies beyond it stays with the client."""
        data = self.client.take()
        try:
            pieces, rest = self._body.feed(data)
        except BadBody as error:
            raise BadHead(400, "bad_request", f"The request's body is not valid HTTP: {error}.") from None
        if rest:
            self.client.put_back(rest)
        self.client.read_on()
        self._keep(data[: len(data) - len(rest)] if rest else data)
        self.sent = self._body.done
        if self.copy is not None:
            self.copy.asked(pieces)
        out = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self.head.length >= 0:
            return out
        return (chunk(out) if out else b"") + (last_chunk(self._body.trailers) if self.sent else b"")

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
        """1xx: for clients that know of it (RFC 9110 15.2). The engine has begun, and must not be asked twice."""
        self._kept = None
        if not self.head.http_1_0:
            self.client.transport.write(build_answer(head, b"", chunked=False, close=False))

    def answer(self, head: AnswerHead | None, pieces: list[bytes]) -> None:
        """More of it: the head, unless it has come before, and pieces of the body."""
        if self.copy is not None:
            self.copy.answered(head, pieces)
        if head is not None:
            self.status = head.status
            if head.length > 0 and not pieces:
                self._answer_head = head
                return
        if pieces and not self.first_at:
            self.first_at = monotonic()
        first = self._begin_answer(head)
        out = first + self._framed(pieces)
        if out:
            self.client.transport.write(out)

    def answer_end(self, head: AnswerHead | None, pieces: list[bytes], trailers: list[tuple[bytes, bytes]]) -> None:
        if self.copy is not None:
            self.copy.answered(head, pieces)
            self.copy.end(sent=self.sent)
            self.copy = None
        now = monotonic()
        if head is not None:
            self.status = head.status
        whole, self.first_at = not self.first_at, self.first_at or now
        first = self._begin_answer(head)
        last = last_chunk(trailers) if self._chunked else b""
        out = first + self._framed(pieces) + last
        self.connection = None  # its engine's next exchange is not slowed down by this one's client
        if out:
            self.client.transport.write(out)
        if whole and 200 <= self.status < 300:
            self.samples.queue.append(now - self.sent_at)
        else:
            self.samples.answered(self, now)
        self.relay.ended(self)
        self.client.exchange_done(close=self._close)

    def _framed(self, pieces: list[bytes]) -> bytes:
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.body_bytes += len(data)
        if not self._chunked:
            return data
        if self._stream:
            self.events += data.count(b"data:")
        return chunk(data)

    def _begin_answer(self, head: AnswerHead | None) -> bytes:
        """The head for the client, when it is its time: `head` has come now, or one is waiting."""
        head = head or self._answer_head
        if head is None:
            return b""
        self._answer_head = None
        self.answered = True
        self._kept = None
        close = not self.head.keep_alive or not self.sent  # a body that is not wanted any more is read by nobody
        if head.length < 0:
            self._stream = head.event_stream
            self._chunked = not self.head.http_1_0
            close = close or self.head.http_1_0
        self._close = close
        assert self.upstream is not None
        extra = self.upstream.revision_line + b"x-request-id: " + (head.request_id or self.head.request_id) + b"\r\n"
        if self.head.http_1_0 and not close:
            extra += b"connection: keep-alive\r\n"
        return build_answer(head, extra, chunked=self._chunked, close=close)

    def upgraded(self, connection: UpstreamConnection, head: AnswerHead, rest: bytes) -> None:
        assert self.upstream is not None
        self.status = head.status
        self.first_at = now = monotonic()
        self.samples.answered(self, now)
        self.client.transport.write(build_answer(head, self.upstream.revision_line, chunked=False, close=False))
        self.relay.tunnel(self, connection, rest)

    # --- what goes wrong ---------------------------------------------------------------------------------------

    def upstream_lost(self, connection: UpstreamConnection, error: Exception | None) -> None:
        """The engine's connection ended before its answer did."""
        self.connection = None
        if connection.reused and not connection.began:
            connection.upstream.be_careful()
        if self.answered:
            self.relay.tell(self, "upstream_died", f"in the middle of its answer: {error or 'closed'}")
            self.samples.failed(self.status)
            self._cut_off(*CUT_OFF)
        elif self._kept is None:
            self._died(error)
        elif self.in_one and not connection.began and _left_unread(connection, error):
            if not connection.reused:  # nor will the next one be taken there
                self.unreachable += (connection.upstream.route.worker,)
                self.samples.failed()
            self._again()
        elif self.head.idempotent and not self.tried:
            self.tried = True
            if connection.began or not connection.reused:  # no close that crossed the request
                self.samples.failed()
            self.relay.died(self, connection.upstream)
            self._again()
        else:
            self._died(error)

    def _died(self, error: Exception | None) -> None:
        self.relay.tell(self, "upstream_died", f"before it answered: {error or 'closed'}")
        self.samples.failed()
        self.refuse(502, *UPSTREAM_DIED)

    def _again(self) -> None:
        """Send it once more, to whoever is there; nobody: it waits. Not on a connection that was idle: when an engine
        dies its pooled ones are all dead, and not all of them known to be."""
        self._no_copy()
        self.fresh = True
        read = self.unread()
        assert self._kept is not None
        head_bytes = len(self._kept[0])
        self._kept, self._kept_bytes = [read[:head_bytes]], 0
        self._body = body_of(self.head.length)
        self._answer_head = None
        self.status, self.first_at = 0, 0.0
        self.sent = False
        self.client.put_back(read[head_bytes:])
        self.relay.left(self)
        self.relay.begin(self)

    def bad_answer(self, why: str) -> None:
        self.connection = None
        self.relay.tell(self, "bad_answer", why)
        self.samples.failed(self.status)
        if self.answered:
            self._cut_off(*CUT_OFF)
        else:
            self.refuse(502, *UPSTREAM_BROKE)

    def refuse(self, status: int, message: str, code: str) -> None:
        """Our own answer in place of the engine's, unless that has begun; the connection ends with it."""
        if self.answered:
            self._cut_off(message, code)
            return
        self._let_go()
        self.status, self.error = status, code
        self.relay.ended(self)
        self.client.refuse(status, message, code)

    def cut(self, message: str, code: str) -> None:
        """The time to finish is over."""
        self.refuse(503, message, code)

    def _cut_off(self, message: str, code: str) -> None:
        """In the middle of an answer: an event stream is told so in its language; of another, the missing end tells."""
        self._let_go()
        self.error = code
        self.relay.ended(self)
        if not self._stream or not self._chunked:
            self.client.abort(reset=self.head.http_1_0)
            return
        self.client.transport.write(chunk(stream_error(message, code)) + last_chunk([]))
        self.client.end()

    def client_gone(self) -> None:
        if self.sent and not self.first_at:
            self.samples.given_up(monotonic() - self.sent_at)
        self._let_go()
        self.error = "client_gone"
        self.relay.ended(self)

    def _let_go(self) -> None:
        """Of an engine that works on something nobody waits for: it sees its client gone."""
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.abort()
        self._no_copy()

    def _no_copy(self) -> None:
        """What the stable has not answered is no measure for another."""
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.give_up("stable_failed")


def _left_unread(connection: UpstreamConnection, error: Exception | None) -> bool:
    """The engine ended with a part of the request, or all of it, unread in its Unix socket."""
    local = connection.upstream.route.address.startswith("unix:")
    return local and isinstance(error, (ConnectionResetError, BrokenPipeError))


async def connect(exchange: Exchange, upstream: Upstream) -> None:
    """A new connection for an exchange that is waiting for one."""
    try:
        connection = await upstream.connect()
    except OSError:
        exchange.relay.unreachable(exchange, upstream)
        return
    except Exception:  # a bug of ours: its client must not wait for ever
        log.exception("relay.bug connecting to %s", upstream.route.address)
        exchange.refuse(502, *FAILED)
        return
    exchange.relay.connected(exchange, upstream, connection)
