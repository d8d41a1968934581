"""Drives front_child.py: spawns fronts, and plays the daemon's part in their hand-overs."""

from __future__ import annotations

import array
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHILD = Path(__file__).with_name("front_child.py")
HEALTH = "/-/swapd/health"


class FrontError(Exception):
    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code


def wait_until(condition, what, timeout_s=15.0):
    """Poll a condition until it holds; its value."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {timeout_s} s: {what}")
        time.sleep(0.005)


class FrontProcess:
    """One front in one process. `begin` sends an order, `result` waits for its answer; `request` does both."""

    def __init__(self, revision=1, kind="direct", **settings):
        self.directory = tempfile.TemporaryDirectory(prefix="swapd-front-")
        self.private = os.path.join(self.directory.name, "http.sock")
        settings |= {"kind": kind, "revision": revision, "private": self.private}
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, str(CHILD), str(theirs.fileno()), json.dumps(settings)]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self.revision = revision
        self.ids = itertools.count(1)
        self.replies = {}
        self.events = []
        self.wait_event("up")

    @property
    def pid(self):
        return self.process.pid

    def begin(self, verb, fds=(), **params):
        number = next(self.ids)
        data = json.dumps({"id": number, "verb": verb, "params": params}).encode()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.control.sendmsg([data], ancillary)
        return number

    def _take_one(self, deadline):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([self.control], [], [], left)[0]:
            raise AssertionError("no answer from the front in time")
        data = self.control.recv(262144)
        if not data:
            raise FrontError("EXITED", "the front's process ended")
        body = json.loads(data)
        if "re" in body:
            self.replies[body["re"]] = body
        else:
            self.events.append(body)

    def result(self, number, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while number not in self.replies:
            self._take_one(deadline)
        body = self.replies.pop(number)
        if "error" in body:
            raise FrontError(body["error"]["code"], body["error"]["message"])
        return body["ok"]

    def wait_event(self, name, timeout_s=20.0):
        deadline = time.monotonic() + timeout_s
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event["params"]
            self._take_one(deadline)

    def request(self, verb, fds=(), timeout_s=20.0, **params):
        return self.result(self.begin(verb, fds, **params), timeout_s)

    def adopt(self, epoch, **listeners):
        fds = [sock.fileno() for sock in listeners.values()]
        return self.request("adopt", fds, epoch=epoch, listeners=list(listeners))

    def stats(self):
        return self.request("stats")

    def wait_stats(self, timeout_s=15.0, **expected):
        def matches():
            stats = self.stats()
            return stats if all(stats[key] == value for key, value in expected.items()) else None

        return wait_until(matches, f"stats {expected}, last {self.stats()}", timeout_s)

    def kill(self):
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def pause(self):
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def close(self):
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGCONT)
        self.kill()
        self.control.close()
        self.directory.cleanup()


def introduce():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def begin_hand_over(source, target, epoch, deadline_s=5.0):
    """Order both sides; the number of the source's pending answer."""
    ours, theirs = introduce()
    with ours, theirs:
        target.request("receive", [theirs.fileno()], epoch=epoch)
        return source.begin("hand_over", [ours.fileno()], epoch=epoch, deadline_s=deadline_s)


def hand_over(source, target, epoch, deadline_s=5.0):
    return source.result(begin_hand_over(source, target, epoch, deadline_s))


def tcp_listener(backlog=4096):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(backlog)
    sock.setblocking(False)
    return sock


class Client:
    """A keep-alive client that takes nothing for granted: every answer is read whole and checked for its framing."""

    def __init__(self, address, timeout_s=15.0, rcvbuf=None):
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        if rcvbuf is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        self.sock.settimeout(timeout_s)
        self.sock.connect(address)
        self.buffer = b""

    def send(self, data):
        self.sock.sendall(data)

    def get(self, path="/", method="GET", headers="", body=b""):
        self.send_request(path, method, headers, body)
        return self.answer(method)

    def send_request(self, path="/", method="GET", headers="", body=b""):
        if body:
            headers += f"content-length: {len(body)}\r\n"
        self.send(f"{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}\r\n".encode() + body)

    def _more(self):
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError(f"closed after {self.buffer[-200:]!r}")
        self.buffer += data

    def head(self):
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        first, *lines = head.decode().split("\r\n")
        headers = {}
        for line in lines:
            name, value = line.split(": ", 1)
            headers[name.lower()] = value
        return int(first.split()[1]), headers

    def answer(self, method="GET"):
        """(status, headers, body), the body read to its last byte."""
        status, headers = self.head()
        if status == 100:
            return status, headers, b""
        if method == "HEAD":
            return status, headers, b""
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunks())
        else:
            body = self.take(int(headers["content-length"]))
        return status, headers, body

    def take(self, size):
        while len(self.buffer) < size:
            self._more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return body

    def chunk(self):
        while b"\r\n" not in self.buffer:
            self._more()
        size, self.buffer = self.buffer.split(b"\r\n", 1)
        body = self.take(int(size, 16) + 2)[:-2]
        return body

    def chunks(self):
        while chunk := self.chunk():
            yield chunk

    def rest(self):
        """Everything up to the end of the connection."""
        data = self.buffer
        while more := self.sock.recv(65536):
            data += more
        return data

    def closed(self, timeout_s=0.0):
        """Whether the other side has closed, with nothing left to read."""
        if not select.select([self.sock], [], [], timeout_s)[0]:
            return False
        return self.sock.recv(1, socket.MSG_PEEK) == b""

    def close(self):
        self.sock.close()

    def reset(self):
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.sock.close()
