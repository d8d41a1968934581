"""What an application sends, turned into bytes: uvicorn's response cycle with its `send` written anew.

The same checks and the same bytes as uvicorn 0.54 (BSD-3-Clause, Encode OSS Ltd. and Marcelo Trylesinski), with
three differences: the headers that every answer carries are rendered once a second instead of once an answer, a head
whose length is announced waits for its first body (one system call instead of two; the ASGI specification wants it
so), and it is remembered whether this is an event stream, so that a cut can be told in its language.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    RequestResponseCycle,
)

_invalid_name = HEADER_RE.search
_invalid_value = HEADER_VALUE_RE.search
_uvicorn_send = RequestResponseCycle.send


class DefaultHeaders(list[tuple[bytes, bytes]]):
    """The headers of every answer, and the same as bytes."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(headers)
        self.rendered = b"".join(name + b": " + value + b"\r\n" for name, value in self)


class Cycle(RequestResponseCycle):
    """A `RequestResponseCycle` becomes one by a change of its class, right after the parser has made it."""

    default_headers: DefaultHeaders
    is_event_stream = False
    unsent = b""  # the head, while it waits for its body

    async def send(self, message: Any) -> None:
        flow = self.flow
        if flow.write_paused and not self.disconnected:
            await flow.drain()
        if self.disconnected:
            return
        if not self.response_started:
            if self.access_log:  # somebody listens to uvicorn's access log: let uvicorn write it
                await _uvicorn_send(self, message)
            else:
                self._send_start(message)
        elif not self.response_complete:
            self._send_body(message)
        else:
            kind = message["type"]
            raise RuntimeError(f"Unexpected ASGI message '{kind}' sent, after response already completed.")

    def _send_start(self, message: Any) -> None:
        if message["type"] != "http.response.start":
            kind = message["type"]
            raise RuntimeError(f"Expected ASGI message 'http.response.start', but got '{kind}'.")
        self.response_started = True
        self.waiting_for_100_continue = False
        status = message["status"]
        content = [STATUS_LINE[status], self.default_headers.rendered]
        said_close = False
        for name, value in message.get("headers", ()):
            if _invalid_name(name):
                raise RuntimeError("Invalid HTTP header name.")
            if _invalid_value(value):
                raise RuntimeError("Invalid HTTP header value.")
            name = name.lower()
            if name == b"content-length" and self.chunked_encoding is None:
                self.expected_content_length = int(value.decode())
                self.chunked_encoding = False
            elif name == b"transfer-encoding" and value.lower() == b"chunked":
                self.expected_content_length = 0
                self.chunked_encoding = True
            elif name == b"connection":
                if b"close" in [token.lower().strip() for token in value.split(b",")]:
                    self.keep_alive = False
                    said_close = True
            elif name == b"content-type" and value[:17].lower() == b"text/event-stream":
                self.is_event_stream = True
            content += (name, b": ", value, b"\r\n")
        if not self.keep_alive and not said_close:
            content.append(b"connection: close\r\n")
        if self.chunked_encoding is None and self.scope["method"] != "HEAD" and status not in (204, 304):
            self.chunked_encoding = True
            content.append(b"transfer-encoding: chunked\r\n")
        content.append(b"\r\n")
        if self.chunked_encoding:
            self.transport.write(b"".join(content))
        else:
            self.unsent = b"".join(content)

    def _send_body(self, message: Any) -> None:
        if message["type"] != "http.response.body":
            kind = message["type"]
            raise RuntimeError(f"Expected ASGI message 'http.response.body', but got '{kind}'.")
        body = message.get("body", b"")
        more_body = message.get("more_body", False)
        content = self.unsent
        self.unsent = b""
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            if body:
                content += b"%x\r\n%b\r\n" % (len(body), body)
            if not more_body:
                content += b"0\r\n\r\n"
        else:
            if len(body) > self.expected_content_length:
                raise RuntimeError("Response content longer than Content-Length")
            self.expected_content_length -= len(body)
            content = content + body if content else body
        if content:
            self.transport.write(content)
        if not more_body:
            if self.expected_content_length != 0:
                raise RuntimeError("Response content shorter than Content-Length")
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()
