"""The same bytes through a gate and through HAProxy, to the same kind of engine: where do they read different requests?

What HAProxy refuses and the gate passes on, and every request that the engine sees otherwise, must be an exception that
is listed here with its reason. Being stricter is no difference, if it is for a reason that is listed too.
"""

import re
import select
import socket

import pytest
from support.front_process import FrontProcess, tcp_listener
from support.haproxy import WHY_NOT, started
from support.http_cases import WRITTEN, mutated
from support.raw_upstream import RawUpstream

pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")

QUIET_S = 0.15  # after that long without an answer, nothing more is answered
LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
# Why the gate may refuse what HAProxy passes on: the beginnings of its messages.
STRICTER = re.compile(
    r"The request is not valid HTTP: |The request line is not valid HTTP|The request's lines must end in CRLF|"
    r"The request's body is not valid HTTP: |The request needs one Host field|The request's Host is none|"
    r"The request's target (is neither a path nor an http URL|has a fragment)|This address speaks HTTP/1.1|"
    r"HTTP/1.0 knows no Transfer-Encoding|The only transfer coding understood is chunked|"
    r"The request has more than 256 header fields|The request's head is over 64 KiB|A body of \d+ bytes is too large|"
    r"(CONNECT|TRACE) is for proxies"
)
# What the gate passes on and HAProxy does not, and why that is right.
EXCEPTIONS = {
    "HAProxy's heads end at its buffer's 16 KiB less a reserve; the gate's at 64 KiB": lambda data: len(data) > 14_000,
    "HAProxy refuses an absolute target for another host than Host's; RFC 9112 3.2.2: the target's counts": (
        lambda data: re.search(rb"[A-Z]+ https?://", data, re.IGNORECASE) is not None
    ),
    "HAProxy refuses more than 101 header fields; the gate more than 256": lambda data: data.count(b"\r\n") > 101,
}


class Side:
    def __init__(self, address, upstream):
        self.address = address
        self.upstream = upstream

    def ask(self, data):
        """(the requests that the engine got whole, what the client got)"""
        self.upstream.forget()
        got = b""
        with socket.create_connection(self.address, 5) as sock:
            try:
                sock.sendall(data + LAST)
                while select.select([sock], [], [], QUIET_S)[0]:
                    more = sock.recv(65536)
                    if not more:
                        break
                    got += more
            except OSError:
                pass
        return [(r.method, path_of(r.target), r.body) for r in self.upstream.whole], got


def path_of(target):
    """HAProxy leaves an absolute target as it is."""
    path = re.sub(r"^https?://[^/?]*", "", target, flags=re.IGNORECASE)
    return path if path[:1] in ("/", "*") else "/" + path


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sides")
    engines = [RawUpstream(str(folder / name)) for name in ("gate.sock", "haproxy.sock")]
    gate = FrontProcess(kind="gate")
    with tcp_listener() as listener, started(engines[1], folder) as address:
        gate.request("point", epoch=1, routes=[engines[0].route()])
        gate.adopt(1, main=listener)
        yield Side(listener.getsockname(), engines[0]), Side(address, engines[1])
    gate.close()
    for engine in engines:
        engine.close()


def differences(sides, payloads):
    gate, haproxy = sides
    for data in payloads:
        ours, answer = gate.ask(data)
        if gate.upstream.faults:
            yield "the gate sent what is no request", data, gate.upstream.faults
        theirs, their_answer = haproxy.ask(data)
        if ours == theirs or any(applies(data) for applies in EXCEPTIONS.values()):
            continue
        why = re.search(rb'"message": "([^\n]*?)", "type"', answer)
        stricter = why is not None and ours == theirs[: len(ours)]
        if not stricter or STRICTER.match(why[1].decode()) is None:
            yield data, ours, answer[-300:], theirs, their_answer[-100:]


def test_what_was_written_to_deceive_deceives_neither_or_only_the_other(sides):
    assert list(differences(sides, WRITTEN)) == []


def test_what_was_mutated_does_not_either(sides):
    assert list(differences(sides, mutated(1500))) == []
