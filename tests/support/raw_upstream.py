"""A scripted engine for the relay: it records every byte that it gets, and answers what the test says.

Requests are read by h11 and checked against the grammar on top of that (h11 forgives bare LF). What is not a whole,
well-formed request ends up in `faults`, which a test must find empty.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from dataclasses import dataclass, field

import h11
from support.front_process import wait_until

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
HEAD = re.compile(
    rb"[A-Z-]+ [\x21-\x7e]+ HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+: ?(?:[\x20-\x7e\x80-\xff\t]*)\r\n)*\r\n"
)


def says(body, head="", status="200 OK"):
    """A scripted answer."""
    body = body if isinstance(body, bytes) else body.encode()
    return f"HTTP/1.1 {status}\r\n{head}content-length: {len(body)}\r\n\r\n".encode() + body


@dataclass
class Request:
    connection: int
    method: str
    target: str
    headers: list[tuple[str, str]]
    raw_head: bytes
    early: bytes  # of the body, as it came with the head
    body: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def values(self, name):
        return [value for key, value in self.headers if key == name]

    @property
    def line(self):
        return f"{self.method} {self.target}"


class RawUpstream:
    """`answer(request)` gives the bytes to send when a request is whole; `None`: close; a callable: it gets the socket
    and goes on as it likes (False: close). `on_head(request)`: the same, before the body is read; None: read on.
    `on_accept(socket)`: before anything is read; False: close."""

    def __init__(self, address):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        if family == socket.AF_INET:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(address)
        self.listener.listen(1024)
        name = self.listener.getsockname()
        self.address = f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"
        self.sockets = set()
        self.connections = 0
        self.forget()
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self):
        """Everything recorded, and the script."""
        self.answer = lambda request: OK
        self.on_head = lambda request: None
        self.on_accept = lambda sock: True
        self.faults = []
        self.forget_requests()

    def forget_requests(self):
        self.requests = []  # those whose head has come
        self.whole = []
        self.cut_short = []  # requests that ended with their connection

    def route(self, worker="chat-1", revision=1, **more):
        return {"worker": worker, "revision": revision, "address": self.address, **more}

    @property
    def lines(self):
        return [request.line for request in self.whole]

    def wait_requests(self, count):
        wait_until(lambda: len(self.requests) >= count, f"{count} requests, have {self.requests}")
        return self.requests[count - 1]

    def refuse(self):
        """Nobody connects any more."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # accept() on its thread would keep it alive
        self.listener.close()

    def close(self):
        self.refuse()
        for sock in list(self.sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    # --- its threads -------------------------------------------------------------------------------------------

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(sock, self.connections), daemon=True).start()

    def _serve(self, sock, number):
        self.sockets.add(sock)
        early = b""
        with sock, contextlib.suppress(OSError):
            if self.on_accept(sock) is False:
                return
            while (early := self._one(sock, number, early)) is not None:
                pass
        self.sockets.discard(sock)

    def _one(self, sock, number, early):
        """Read and answer one request. What has come after it; None: the connection is over."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=256 * 1024)
        raw, request = bytearray(early), None
        if early:
            parser.receive_data(early)
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                if request is not None and not raw_more(sock):
                    self.cut_short.append(request)
                else:
                    self.faults.append((str(error), bytes(raw)))
                return None
            if event is h11.NEED_DATA:
                try:
                    data = sock.recv(262144)
                except OSError:
                    data = b""
                if not data and request is None and not raw:
                    return None
                if not data and request is not None:
                    self.cut_short.append(request)
                    return None
                if request is None:
                    raw += data
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                request = self._read_head(number, bytes(raw), event)
                self.requests.append(request)
                early_answer = self.on_head(request)
                if early_answer is not None and not self._say(sock, early_answer):
                    return None
            elif isinstance(event, h11.Data):
                request.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                request.trailers = [(k.decode(), v.decode()) for k, v in event.headers]
                self.whole.append(request)
                return parser.trailing_data[0] if self._say(sock, self.answer(request)) else None
            else:
                return None

    def _read_head(self, number, raw, event):
        raw_head = raw[: raw.find(b"\r\n\r\n") + 4]
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in event.headers]
        target = event.target.decode("latin-1")
        request = Request(number, event.method.decode(), target, headers, raw_head, raw[len(raw_head) :])
        if HEAD.fullmatch(raw_head) is None or len(request.values("host")) != 1:
            self.faults.append(("no well-formed head", raw_head))
        if len(request.values("content-length")) + len(request.values("transfer-encoding")) > 1:
            self.faults.append(("framed twice", raw_head))
        return request

    def _say(self, sock, answer):
        if answer is None:
            return False
        if callable(answer):
            return answer(sock) is not False
        sock.sendall(answer)
        return True


def raw_more(sock):
    """Whether the peer still has it open."""
    sock.setblocking(False)
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        sock.setblocking(True)


def reset(sock):
    """Close so that the peer sees ECONNRESET."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    sock.close()
    return False
