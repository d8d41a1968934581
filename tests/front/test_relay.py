"""A gate's relay in its own process: bytes pass through without being gathered, and each side's pace is the other's."""

import contextlib
import select
import threading

import psutil
import pytest
from support.front_process import wait_until
from support.raw_upstream import OK

MIB = 1 << 20
POST = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"


class Memory:
    """The most that a process has had, beyond what it had."""

    def __init__(self, pid):
        self.process = psutil.Process(pid)
        self.before = self.process.memory_info().rss
        self.most = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.ended.wait(0.02):
            self.look()

    def look(self):
        self.most = max(self.most, self.process.memory_info().rss - self.before)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()
        self.look()


def push(sock, data):
    """Send it over and over, until nothing goes any more for a while; the number of bytes that went."""
    sock.setblocking(False)
    sent = 0
    while select.select([], [sock], [], 0.3)[1] and sent < 200 * MIB:
        with contextlib.suppress(BlockingIOError):
            at = sent % len(data)
            sent += sock.send(data[at:] if at else data)
    sock.setblocking(True)
    return sent


def test_large_bodies_pass_both_ways_in_little_memory(relaying, engine, connect):
    size, piece = 200 * MIB, b"x" * MIB
    upstream = engine()
    gate = relaying(upstream)

    def swallow_and_stream(sock):
        left = size - len(upstream.requests[-1].early)
        while left:
            left -= len(sock.recv(MIB))
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(200):
            sock.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        sock.sendall(b"0\r\n\r\n")
        return False

    upstream.on_head = lambda request: swallow_and_stream
    client = connect()
    with Memory(gate.pid) as memory:
        client.send(POST % size)
        for _ in range(200):
            client.send(piece)
        assert client.head()[0] == 200
        assert sum(map(len, client.chunks())) == size
    assert memory.most < 20 * MIB


def test_an_engine_is_no_faster_than_its_client(relaying, engine, connect):
    upstream = engine()
    gate = relaying(upstream)
    sent = []

    def stream(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        sent.append(push(sock, b"y" * MIB))
        return False

    upstream.answer = lambda request: stream
    client = connect()
    with Memory(gate.pid) as memory:
        client.send_request()
        assert wait_until(lambda: sent, "the engine waits")[0] < 20 * MIB
        client.head()
        assert sum(map(len, client.chunks())) == sent[0]
    assert memory.most < 20 * MIB


def test_a_client_is_no_faster_than_its_engine(relaying, engine, connect):
    upstream, may_read = engine(), threading.Event()
    gate = relaying(upstream)

    def read_late(sock):
        may_read.wait(20)
        left = size - len(upstream.requests[-1].early)
        while left:
            left -= len(sock.recv(MIB))
        sock.sendall(OK)

    size = 1000 * MIB
    upstream.on_head = lambda request: read_late
    client = connect()
    with Memory(gate.pid) as memory:
        client.send(POST % size)
        sent = push(client.sock, b"y" * MIB)
        assert sent < 20 * MIB
        size = sent  # the rest never comes
        may_read.set()
        assert client.answer()[0] == 200
    assert memory.most < 20 * MIB


def settled(count, probe):
    """What `count` gives once it does not change any more while others are served."""
    before = -1
    while (now := count()) != before:
        before = now
        for _ in range(20):
            assert probe().get("/probe")[0] == 200
    return now


@pytest.mark.parametrize(("size", "stays"), [(100_000, False), (MIB, True)])
def test_answers_nobody_reads_are_not_fetched(relaying, engine, connect, size, stays):
    upstream = engine()
    gate = relaying(upstream)
    big = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"x" * size

    def send_big(sock):
        sock.sendall(big)
        return stays

    upstream.answer = lambda request: send_big if request.target == "/big" else OK
    client = connect(rcvbuf=65536)
    with Memory(gate.pid) as memory:
        client.send(b"GET /big HTTP/1.1\r\nhost: a\r\n\r\n" * 500)
        assert settled(lambda: upstream.lines.count("GET /big"), connect) * size < 20 * MIB
    assert memory.most < 20 * MIB
    for _ in range(500):
        assert len(client.answer()[2]) == size


def test_requests_ahead_of_their_turn_are_not_gathered(relaying, engine, connect):
    upstream, may_answer = engine(), threading.Event()
    gate = relaying(upstream)

    def late(sock):
        may_answer.wait(20)
        sock.sendall(OK)

    upstream.answer = lambda request: late if request.target == "/late" else OK
    one, last = b"GET /a HTTP/1.1\r\nhost: a\r\n\r\n", b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n"
    client = connect()
    client.send(last + one * 200 + last)
    with Memory(gate.pid) as memory:
        first = push(client.sock, one * 10_000)
        assert first < 20 * MIB
        may_answer.set()
        for _ in range(202):
            assert client.answer()[0] == 200
        assert push(client.sock, one * 10_000) < 20 * MIB  # nobody reads what is answered to these
    assert memory.most < 20 * MIB


def test_a_body_behind_many_requests_is_read_to_its_end(relaying, engine, connect):
    """Reading stops while much has come ahead of its turn, and has to go on when the turn has come."""
    upstream, may_answer = engine(), threading.Event()
    relaying(upstream)
    upstream.answer = lambda request: lambda sock: may_answer.wait(20) and sock.sendall(OK)
    client = connect()
    body = b"z" * 30 * MIB
    client.send_request("/first")
    data = POST % len(body) + body
    sent = push(client.sock, data)
    assert sent < len(data), "the gate reads no more for now"
    may_answer.set()
    client.send(data[sent:])
    assert [client.answer()[0], client.answer()[0]] == [200, 200]
    assert upstream.whole[1].body == body


@pytest.mark.parametrize("moment", ["unanswered", "streaming", "uploading", "unread"])
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_takes_its_request_along(relaying, engine, connect, moment, how):
    upstream, gone = engine(), threading.Event()
    gate = relaying(upstream)

    def work(sock):
        with contextlib.suppress(OSError):
            if moment in ("streaming", "unread"):
                sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            if moment == "unread":
                push(sock, b"y" * MIB)
            while not select.select([sock], [], [], 0.01)[0]:
                if moment == "streaming":
                    sock.sendall(b"y")
            assert sock.recv(1000) == b""
        gone.set()
        return False

    upstream.on_head = lambda request: work
    client = connect()
    client.send(POST % 5 + b"ab" if moment == "uploading" else b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
    upstream.wait_requests(1)
    if moment == "streaming":
        client.head()
    gate.wait_stats(in_flight=1)
    getattr(client, how)()
    assert gone.wait(10)
    gate.wait_stats(in_flight=0, connections=0)


def test_a_bad_chunk_behind_the_answers_beginning_puts_no_second_head_into_it(relaying, engine, connect):
    upstream = engine()
    gate = relaying(upstream)
    upstream.on_head = lambda request: b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\nabcde"
    client = connect()
    client.send(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
    assert client.head()[0] == 200
    client.send(b"zz\r\n")
    assert client.rest() == b"abcde"
    gate.wait_stats(in_flight=0)


def test_a_head_that_drips_has_an_end(relaying, engine, connect):
    relaying(engine(), stall_s=1.0)
    client = connect()
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\nx: ")
    for _ in range(1000):
        if select.select([client.sock], [], [], 0.05)[0]:
            break
        client.send(b"y")
    assert client.answer()[0] == 408


def test_a_client_that_takes_nothing_of_its_answer_is_let_go(relaying, engine, connect):
    upstream, gone = engine(), threading.Event()
    relaying(upstream, answer_stall_s=1.0)

    def stream(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                sock.sendall(b"y" * MIB)
        gone.set()
        return False

    upstream.answer = lambda request: stream
    deaf, other = connect(), connect()
    deaf.send_request()
    assert gone.wait(20), "the engine works on for nobody"
    upstream.answer = lambda request: OK
    assert other.get()[2] == b"ok"
