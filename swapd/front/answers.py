"""The answers that a front makes itself, and how a connection is closed after one.

Their body has the OpenAI error shape, so that the clients of model servers show the reason. A close with unread
bytes in the kernel sends RST, which destroys the answer on its way (measured: lost in 50 of 50), so the end is
always: FIN first, then read and discard for a bounded while, then close.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import socket
from collections.abc import Callable, Iterable
from typing import Final

# Why a request gets a 503, and the error's code.
REPLACED: Final = ("The model is being replaced, and the time to finish is over. Try again.", "model_replaced")
FAILING: Final = ("The model fails again and again, and is being restarted. Try again later.", "crash_loop")
STOPPED: Final = ("The service is being stopped. Try again later.", "shutting_down")

MAX_RETRY_AFTER_S: Final = 60
LAST_CALL_S: Final = 0.1  # for the first bytes of a client who connected just before the end
LINGER_S: Final = 2.0  # nginx lingers up to 30 s; ours only has to outlive one round trip
LINGER_BYTES: Final = 64 * 1024 * 1024  # an upload that is refused is sent to its end by most clients before they read
POLL_S: Final = 0.02

REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


def error_body(message: str, kind: str, code: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": kind, "code": code, "param": None}}).encode()


def unavailable_body(message: str, code: str) -> bytes:
    return error_body(message, "service_unavailable", code)


def answer(
    status: int,
    body: bytes,
    headers: Iterable[tuple[bytes, bytes]] = (),
    *,
    retry_after_s: int | None = None,
    keep_alive: bool = False,
    head_only: bool = False,
) -> bytes:
    """A whole HTTP/1.1 response with a JSON body."""
    lines = [f"HTTP/1.1 {status} {REASONS[status]}".encode()]
    lines += [name + b": " + value for name, value in headers]
    lines += [b"content-type: application/json", b"content-length: %d" % len(body)]
    if retry_after_s is not None:
        lines.append(b"retry-after: %d" % max(1, min(retry_after_s, MAX_RETRY_AFTER_S)))
    if not keep_alive:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if head_only else body)


def stream_error(message: str, code: str) -> bytes:
    """The last event of a Server-Sent-Events stream that is cut. The blank line first ends an event cut in half."""
    return b"\n\nevent: error\ndata: " + error_body(message, "service_unavailable", code) + b"\n\n"


class Lingering:
    """Bare descriptors on their way out: answered, FIN sent, read and discarded until the client is done."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._left: dict[int, int] = {}  # bytes still to discard
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._left)

    def say(self, fd: int, data: bytes) -> None:
        """Send the last words on a descriptor, which is ours from here on."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)  # the family matters to addresses only
        try:
            with contextlib.suppress(OSError):
                # A few hundred bytes: they fit, or all is lost.
                sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                sock.shutdown(socket.SHUT_WR)
        finally:
            sock.detach()
        self._left[fd] = LINGER_BYTES
        self._timers[fd] = self._loop.call_later(LINGER_S, self._close, fd)
        self._loop.add_reader(fd, self._readable, fd)

    async def finish(self) -> None:
        """Wait until every client is done: LINGER_S at most after the last words."""
        while self._left:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)

    def close(self) -> None:
        for fd in list(self._left):
            self._close(fd)

    def _readable(self, fd: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
        try:
            size = len(sock.recv(65536, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return
        except OSError:
            size = 0
        finally:
            sock.detach()
        self._left[fd] -= size
        if not size or self._left[fd] <= 0:
            self._close(fd)

    def _close(self, fd: int) -> None:
        if self._left.pop(fd, None) is None:
            return
        self._timers.pop(fd).cancel()
        self._loop.remove_reader(fd)
        os.close(fd)


class LastWords(asyncio.Protocol):
    """Takes a transport's protocol's place for its end: discards what comes, passes everything else on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, before: asyncio.Protocol) -> None:
        self._transport = transport
        self._before = before
        self._left = LINGER_BYTES
        self._timer = loop.call_later(LINGER_S, transport.abort)
        transport.set_protocol(self)
        transport.write_eof()  # after what is still buffered
        transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left <= 0:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._before.pause_writing()

    def resume_writing(self) -> None:
        self._before.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._before.connection_lost(exc)


class HangUpWatch:
    """Notices that a client went away while reading from it is paused: a nested epoll with EPOLLRDHUP alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._on_hang_up: dict[int, Callable[[], None]] = {}

    def add(self, fd: int, on_hang_up: Callable[[], None]) -> None:
        """`on_hang_up` is called once. `discard` must come before the descriptor is closed."""
        if fd in self._on_hang_up:
            return
        if not self._on_hang_up:
            self._loop.add_reader(self._epoll.fileno(), self._readable)
        self._on_hang_up[fd] = on_hang_up
        self._epoll.register(fd, select.EPOLLRDHUP)

    def discard(self, fd: int) -> None:
        if self._on_hang_up.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            if not self._on_hang_up:
                self._loop.remove_reader(self._epoll.fileno())

    def close(self) -> None:
        for fd in list(self._on_hang_up):
            self.discard(fd)
        self._epoll.close()

    def _readable(self) -> None:
        for fd, _ in self._epoll.poll(0):
            on_hang_up = self._on_hang_up.get(fd)
            if on_hang_up is not None:
                self.discard(fd)
                on_hang_up()
