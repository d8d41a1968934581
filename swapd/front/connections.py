"""One HTTP connection of a direct front: uvicorn's, made movable.

What uvicorn's protocol does with a request stays untouched; this adds what it takes to know, at any instant,
whether the connection may change its owner. It may when request and response are complete, the write buffer is
empty, and every byte read past the last boundary is still at hand in raw form. Facts that shape this (all measured,
uvicorn 0.54): megabytes may be unflushed at the end of a response; `receive()` undoes `pause_reading()`; an early
answer leaves its body unread; a per-connection keep-alive timer fires on paused connections (so there is none: the
front sweeps). Bytes that the parser swallowed cannot be taken back, so a request that began within a chunk (a
pipelined one) is answered here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from swapd.front.answers import STOPPED, LastWords, answer, error_body, stream_error, unavailable_body
from swapd.wire.peer import MAX_CARRIED_BYTES, MAX_HEAD_BYTES

if TYPE_CHECKING:
    from swapd.front.direct import DirectFront

# Bound once: these run for every request.
_response_complete = HttpToolsProtocol.on_response_complete
_send = RequestResponseCycle.send


class Group(ServerState):
    """What the connections of a front share. `quiesced` may be set from any thread: nothing new is parsed then.
    `closed`: no request is answered by the model."""

    def __init__(self, front: DirectFront, retry_after_s: int, *, closed: bool = False) -> None:
        super().__init__()
        self.front = front
        self.retry_after_s = retry_after_s
        self.closed = closed
        self.quiesced = False
        self.now = 0.0  # the loop's time, some 100 ms coarse: precise enough for timeouts, and free to read
        self.heard_at: float | None = None  # when an application last sent a part of an answer that is no 5xx

    def running(self, transport: asyncio.Transport | None = None) -> list[RequestResponseCycle]:
        """The requests that applications work on (of one connection), found through their tasks: asked for rarely,
        so that nothing has to be noted for every request."""
        cycles = []
        for task in list(self.tasks):
            frame = getattr(task.get_coro(), "cr_frame", None)
            cycle = frame.f_locals.get("self") if frame is not None else None
            if isinstance(cycle, RequestResponseCycle) and transport in (None, cycle.transport):
                cycles.append(cycle)
        return cycles


class Cycle(RequestResponseCycle):
    """uvicorn's response, and whether it is an event stream: a cut is told in its language.

    uvicorn makes one for every request, see below.
    """

    start: Any = None  # the message that began the response

    def send(self, message: Any) -> Coroutine[Any, Any, None]:
        if not self.response_started:
            self.start = message
        if self.start.get("status", 0) < 500:
            group = self.on_response.__self__.group  # type: ignore[attr-defined] # the connection's method
            group.heard_at = group.now
        return _send(self, message)  # no coroutine around it: this runs for every message

    @property
    def is_event_stream(self) -> bool:
        """Asked for only at a cut, so that no request pays for it."""
        headers = () if self.start is None else self.start.get("headers", ())
        return any(
            name.lower() == b"content-type" and value[:17].lower() == b"text/event-stream" for name, value in headers
        )


# uvicorn looks the class up by this name for every request. Changing `__class__` once it is made would leave uvicorn's
# module alone, but moves the attributes of each cycle into a dict: 5 % fewer requests a second (bench/front).
httptools_impl.RequestResponseCycle = Cycle  # type: ignore[misc]


class GuardedFlow(FlowControl):
    """uvicorn resumes reading in several places; on a frozen connection none of them may."""

    frozen = False

    def resume_reading(self) -> None:
        if self.read_paused and not self.frozen:
            self.read_paused = False
            self._transport.resume_reading()


class HttpConnection(HttpToolsProtocol):
    cycle: RequestResponseCycle
    flow: GuardedFlow

    def __init__(
        self,
        config: Config,
        group: Group,
        app_state: dict[str, Any],
        loop: asyncio.AbstractEventLoop,
        fd: int,
        read: bytes,
    ) -> None:
        super().__init__(config, group, app_state, loop)
        self.group = group
        self.fd = fd
        self.since = group.now  # idle since, or head begun at
        self.began_at = group.now  # of the newest request
        self.gone = False  # closed, or given away
        self.offered = False  # movable, and waiting for its turn or on its way to another front
        self.upgraded = False
        self.ending = False  # last words said
        self.closed = False  # to requests that have not begun
        self._completed: RequestResponseCycle | None = None  # the last one whose request was read whole
        self._partial = False  # a head has begun and not ended
        self._known = True  # every byte of that head is in _head
        self._head = b""  # raw bytes of a head that the parser has seen
        self._unparsed = read  # raw bytes that it has not
        if group.closed:
            self.close_to_new()

    # --- what the front asks -----------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        return self.cycle is not None and not (self.cycle.response_complete or self.ending)

    @property
    def idle(self) -> bool:
        return not (self.busy or self._partial or self._unparsed or self._in_body)

    @property
    def streaming(self) -> bool:
        return self.busy and self.cycle.response_started

    @property
    def _in_body(self) -> bool:
        return self._completed is not self.cycle

    @property
    def answerable_only_here(self) -> bool:
        """The parser holds bytes of a request that cannot be taken back: read on, answer it here."""
        return not (self._known or self.closed) if self._partial else self._in_body

    @property
    def unflushed(self) -> bool:
        return self.transport.get_write_buffer_size() > 0

    @property
    def unfinished(self) -> bool:
        """Something is left to be done here that no other front could do."""
        return self.busy or self.ending or self.answerable_only_here or self.unflushed

    def carried(self) -> bytes:
        return self._head + self._unparsed  # asked only when _known: see answerable_only_here

    def head_overdue(self, before: float) -> bool:
        return self._partial and self.began_at < before

    def freeze(self) -> None:
        """Stop reading, whatever uvicorn wishes."""
        if not self.flow.frozen:
            self.flow.frozen = True
            self.flow.read_paused = True
            self.transport.pause_reading()

    def watch_if_frozen(self) -> None:
        """A paused transport is blind to a reset."""
        if self.flow.frozen:
            self.group.front.hang_ups.add(self.fd, self.transport.close)

    def restore(self) -> None:
        """Read on here: the hand-over did not happen, or this front became the owner again."""
        self.offered = False
        if self.gone or self.ending or self.upgraded or not self.flow.frozen:
            return
        self._thaw()
        self.transport.set_write_buffer_limits()
        self.since = self.group.now
        if self._unparsed:
            data, self._unparsed = self._unparsed, b""
            self.data_received(data)
            if self.gone or self.ending or self.upgraded:
                return
        if not self.pipeline and (not self.busy or len(self.cycle.body) <= HIGH_WATER_LIMIT):
            self.flow.resume_reading()

    def watch_flush(self) -> None:
        """Hear of the very end of the write buffer: with a limit of zero, `resume_writing` means empty."""
        self.transport.set_write_buffer_limits(0)

    def release(self) -> None:
        """Another front has it: close our copy, and nothing but our copy."""
        self.gone = True
        self._thaw_watch()
        self.transport.abort()

    def _thaw(self) -> None:
        self.flow.frozen = False
        self._thaw_watch()

    def _thaw_watch(self) -> None:
        self.group.front.hang_ups.discard(self.fd)

    def join(self, group: Group) -> None:
        """Change the group, while nothing is under way."""
        if self in self.connections:
            self.connections.discard(self)
            group.connections.add(self)
        self.group = self.server_state = group
        self.connections, self.tasks = group.connections, group.tasks

    # --- the transport's calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = GuardedFlow(transport)
        data, self._unparsed = self._unparsed, b""
        if data:
            self.data_received(data)
        if self.group.quiesced or self.flow.read_paused:
            # uvloop starts to read right after this call, whatever was paused in it.
            self.loop.call_soon(self._pause_again)

    def _pause_again(self) -> None:
        if self.gone or self.ending or self.upgraded:
            return
        if self.flow.read_paused:
            self.transport.pause_reading()
        if self.group.quiesced:
            self.group.front.settle(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._thaw_watch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        group = self.group
        quiesced = group.quiesced
        before = self.cycle
        at_boundary = self._completed is before and not self._partial
        if quiesced and (at_boundary or (self._partial and self._known)):
            self._keep(data)
            return
        if (self._partial or len(data) > MAX_HEAD_BYTES) and self._head_too_large(data, at_boundary):
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.refuse(400, "The request is not valid HTTP.", "bad_request")
            return
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._upgrade()
                return
            self._unsupported_upgrade_warning()
        cycle = self.cycle
        if cycle is not before:
            self.began_at = group.now
            self._partial = False
            self._head = b""
        if cycle is None or self.scope is not cycle.scope:
            self._keep_head(data, at_boundary and cycle is before)
        if quiesced:
            group.front.settle(self)

    def resume_writing(self) -> None:
        self.flow.resume_writing()
        if self.group.quiesced and not self.gone:
            self.group.front.settle(self)

    def _keep(self, data: bytes) -> None:
        """Quiesced: these bytes belong to the next owner."""
        self._unparsed += data
        if len(self._unparsed) > MAX_CARRIED_BYTES - MAX_HEAD_BYTES:
            self.freeze()
        self.group.front.settle(self)

    def _keep_head(self, data: bytes, at_boundary: bool) -> None:
        """The chunk ended within a head. Its bytes are known only if it began where a chunk did."""
        if self._partial:
            self._head += data
        elif self.scope is not None:
            self._partial = True
            self._known = at_boundary
            self._head = data if at_boundary else b""  # else from the next chunk on, for its size alone
            self.began_at = self.group.now

    def _head_too_large(self, data: bytes, at_boundary: bool) -> bool:
        """uvicorn and httptools know no limit of their own."""
        if not (at_boundary or self._partial) or len(self._head) + len(data) <= MAX_HEAD_BYTES:
            return False
        if (self._head[-3:] + data).find(b"\r\n\r\n", 0, MAX_HEAD_BYTES - len(self._head[:-3])) >= 0:
            return False
        self.refuse(431, "The request's head is over 64 KiB.", "head_too_large")
        return True

    def _upgrade(self) -> None:
        if self.closed:
            if not self._finish_first():
                self._last_words(self._unavailable(*STOPPED))
            return
        self.upgraded = True
        self._thaw()
        self.handle_websocket_upgrade()

    # --- the parser's and the response's calls -----------------------------------------------------------------

    def on_message_complete(self) -> None:
        cycle = self._completed = self.cycle
        if cycle is not None and cycle.more_body:  # from here on uvicorn's own, without a call in between
            if cycle.response_complete or (self.parser.should_upgrade() and self._should_upgrade()):
                return
            cycle.more_body = False
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        if self.pipeline:
            _response_complete(self)  # starts the next one; arms no timer then
            return
        group = self.group
        group.total_requests += 1
        if self.transport.is_closing():
            return
        self.since = group.now
        if self.flow.read_paused:
            self.flow.resume_reading()
        if group.quiesced:
            group.front.settle(self)

    # --- the end -----------------------------------------------------------------------------------------------

    def refuse(self, status: int, message: str, code: str) -> None:
        """Answer for ourselves and close."""
        if not self._finish_first():
            body = error_body(message, "invalid_request_error", code)
            self._last_words(answer(status, body, self.group.default_headers))

    def _finish_first(self) -> bool:
        """If a response is under way, it is finished instead, and the last one."""
        if self.busy:
            self.pipeline.clear()
            self.freeze()
            self.watch_if_frozen()
            for cycle in self.group.running(self.transport):
                cycle.keep_alive = False
        return self.busy

    def close_to_new(self) -> None:
        """The service is being stopped: a request that begins from here on is told so; one in flight goes on."""
        self.closed = True
        self.app = self._turn_away

    async def _turn_away(self, scope: Any, receive: Any, send: Any) -> None:
        """In the app's place: below uvicorn's response, which would be lost with the close of an unread body."""
        self.cut(send.__self__, *STOPPED)

    def cut(self, cycle: RequestResponseCycle | None, message: str, code: str) -> None:
        """End at a deadline what is under way, with an explicit error in whatever form is still possible."""
        self.pipeline.clear()
        for one in (cycle, self.cycle):
            if one is not None:
                one.disconnected = True
                one.message_event.set()
        self.flow.resume_writing()
        if self.gone or self.ending or self.transport.is_closing():
            return
        words = b""  # where an answer was given early: it arrives, because the rest of the body is read and discarded
        if cycle is not None and cycle.response_started:
            if isinstance(cycle, Cycle) and cycle.is_event_stream:
                event = stream_error(message, code)
                words = b"%x\r\n" % len(event) + event + b"\r\n"
        elif cycle is not None or self._partial:
            head_only = cycle is not None and cycle.scope["method"] == "HEAD"
            words = self._unavailable(message, code, head_only=head_only)
        self._last_words(words)

    def _unavailable(self, message: str, code: str, *, head_only: bool = False) -> bytes:
        group = self.group
        body = unavailable_body(message, code)
        return answer(503, body, group.default_headers, retry_after_s=group.retry_after_s, head_only=head_only)

    def _last_words(self, data: bytes) -> None:
        self.ending = True
        self._thaw()
        if self.transport.is_closing():
            return
        if data:
            self.transport.write(data)
        LastWords(self.loop, self.transport, self)
