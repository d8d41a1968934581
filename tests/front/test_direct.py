"""A direct front on its own: what it adds to uvicorn, and what it must not change."""

import json
import socket
import struct
import time

import pytest
from support.front_process import HEALTH, FrontError, hand_over, wait_until


@pytest.fixture
def front(spawn, listener):
    started = spawn(7)
    started.adopt(1, main=listener)
    return started


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_every_answer_names_its_revision(front, connect, method):
    status, headers, body = connect().get(method=method)
    assert (status, headers["x-swapd-revision"]) == (200, "7")
    assert headers["server"] == "uvicorn"
    assert headers["date"].endswith("GMT")
    assert body == (b"" if method == "HEAD" else b"7")


def test_health(front, connect, spawn):
    status, headers, body = connect().get(HEALTH)
    assert (status, json.loads(body), headers["x-swapd-revision"]) == (200, {"status": "serving"}, "7")
    assert connect().get(HEALTH, "HEAD")[0] == 200
    client = connect()
    client.send_request("/slow?s=0.3")
    front.wait_stats(in_flight=1)
    hand_over(front, spawn(8), 2)
    assert client.answer()[0] == 200


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NOT HTTP\r\n\r\n" + b"x" * 200_000, 400),
        (b"GET / HTTP/1.1\r\nhost: test\r\nx: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nhost: test\r\nx: " + b"a" * 300_000, 431),
        (b"GET / HTTP/1.1\r\n" + b"".join(b"x-%d: aaaaaaaaaa\r\n" % n for n in range(8000)) + b"\r\n", 431),
    ],
)
def test_what_is_refused_is_told_whole(front, connect, request_bytes, status):
    client = connect()
    client.send(request_bytes)
    got, headers, body = client.answer()
    assert (got, headers["x-swapd-revision"]) == (status, "7")
    assert set(json.loads(body)["error"]) == {"message", "type", "code", "param"}
    assert client.rest() == b""
    front.wait_stats(connections=0)


def test_garbage_behind_a_request_in_flight_does_not_break_into_its_answer(front, connect):
    client = connect()
    client.send(b"GET /slow?s=0.2 HTTP/1.1\r\nhost: test\r\n\r\n")
    front.wait_stats(in_flight=1)
    client.send(b"NOT HTTP\r\n\r\n")
    assert client.answer()[2] == b"7 slow"
    assert client.rest() == b""


def test_idle_connections_time_out(spawn, listener, connect):
    front = spawn(1, keep_alive_s=0.5)
    front.adopt(1, main=listener)
    fresh, used, busy = connect(), connect(), connect()
    used.get()
    busy.send_request("/slow?s=3")
    front.wait_stats(connections=3)
    assert fresh.closed(10)
    assert used.closed(10)
    assert busy.answer()[2] == b"1 slow"


def test_the_keep_alive_timeout_applies_to_connections_that_moved(spawn, listener, connect):
    old, new = spawn(1), spawn(2, keep_alive_s=0.5)
    old.adopt(1, main=listener)
    client = connect()
    client.get()
    hand_over(old, new, 2)
    assert client.closed(10)


def test_a_full_descriptor_table_pauses_accepting_without_spinning(spawn, listener, connect):
    front = spawn(1, nofile=48)
    front.adopt(1, main=listener)
    clients = [connect() for _ in range(80)]
    for client in clients:
        client.send_request("/close")
    wait_until(lambda: front.stats()["requests"] >= 80, "all were answered in turn")
    for client in clients:
        assert client.answer()[2] == b"1 close"


def test_http_1_0_and_connection_close_end_the_connection(front, connect):
    client = connect()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.answer()[2] == b"7"
    assert client.rest() == b""


def test_drain_waits_for_what_is_in_flight(front, connect, spawn):
    client, stream, successor = connect(), connect(), spawn(8)  # which takes its time: before what must not end yet
    client.send_request("/slow?s=1")
    stream.send_request("/stream?n=10&gap=0.1")
    front.wait_stats(in_flight=2)
    hand_over(front, successor, 2)
    assert front.request("drain", deadline_s=10) == {"finished": 2, "cut": 0, "left": 0}
    assert client.answer()[2] == b"7 slow"
    assert stream.answer()[2].endswith(b"[DONE]\n\n")


def test_drain_cuts_at_its_deadline_and_says_so(front, connect, spawn):
    slow, upload, stream, big, head = (connect() for _ in range(5))
    slow.send_request("/slow?s=60")
    head.send_request("/slow?s=60", "HEAD")
    upload.send(b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 900000\r\n\r\n" + b"x" * 150_000)
    stream.send_request("/stream?n=1000&gap=0.05")
    big.send_request("/stream?n=1&gap=60", headers="connection: close\r\n")
    front.wait_stats(in_flight=5)
    hand_over(front, spawn(8), 2)
    assert front.request("drain", deadline_s=0.3) == {"finished": 0, "cut": 5, "left": 0}
    for client, method in ((slow, "GET"), (upload, "GET"), (head, "HEAD")):
        status, headers, body = client.answer(method)
        assert (status, headers["x-swapd-revision"]) == (503, "7")
        assert 1 <= int(headers["retry-after"]) <= 60
        assert method == "HEAD" or json.loads(body)["error"]["code"] == "model_replaced"
        assert client.rest() == b""
    for client in (stream, big):
        assert client.head()[0] == 200
        rest = client.rest()
        assert not rest.endswith(b"0\r\n\r\n")  # without the last chunk: nobody may take it for the whole
        event = rest[rest.rindex(b"event: error") :]
        assert json.loads(event.split(b"data: ")[1].split(b"\n\n")[0])["error"]["code"] == "model_replaced"
    assert front.stats()["cut"] == 5
    front.wait_stats(connections=0, in_flight=0)


PIPELINED = b"GET / HTTP/1.1\r\nhost: test\r\n\r\nGET /?id=second HT"  # one and a half
EARLY = b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 3000000\r\n\r\n" + b"x" * 1000  # and its beginning


def begin_what_cannot_move(connect):
    """A pipelined request of which only the parser knows the beginning, and an answer given before its body came."""
    half, early = connect(), connect()
    half.send(PIPELINED)
    assert half.answer()[2] == b"7"
    early.send(EARLY)
    assert early.answer()[2] == b"7 early"
    return half, early


def test_drain_waits_for_requests_of_which_only_this_process_has_the_beginning(front, connect, spawn):
    half, early = begin_what_cannot_move(connect)
    assert hand_over(front, spawn(8), 2)["stragglers"] == 2
    number = front.begin("drain", deadline_s=15)
    half.send(b"TP/1.1\r\nhost: test\r\n\r\n")
    assert half.answer()[2] == b"7"
    with pytest.raises(AssertionError, match="no answer"):
        front.result(number, timeout_s=0.3)
    early.send(b"x" * (3_000_000 - 1000))
    assert front.result(number)["cut"] == 0
    for client in (half, early):  # and then they follow
        assert client.get()[2] == b"8"


def test_drain_cuts_what_cannot_move_with_an_error_and_spoils_no_answer(front, connect, spawn):
    half, early = begin_what_cannot_move(connect)
    hand_over(front, spawn(8), 2)
    number = front.begin("drain", deadline_s=0.3)
    status, headers, body = half.answer()
    assert (status, headers["connection"]) == (503, "close")
    assert json.loads(body)["error"]["code"] == "model_replaced"
    assert half.rest() == b""
    assert early.closed(10)
    early.send(b"x" * 500_000)  # read and discarded: it is told that it is over by the end of file, not by a reset
    half.close()
    early.close()
    assert front.result(number) == {"finished": 0, "cut": 2, "left": 0}


def assert_told_that_it_stops(client, method="GET"):
    status, headers, body = client.answer(method)
    assert (status, headers["connection"], headers["x-swapd-revision"]) == (503, "close", "7")
    assert 1 <= int(headers["retry-after"]) <= 60
    assert method == "HEAD" or json.loads(body)["error"]["code"] == "shutting_down"
    assert client.rest() == b""


def test_a_service_that_stops_finishes_what_is_in_flight_and_refuses_the_rest_at_once(front, connect):
    idle, kept, half, piped, upload, socket_like, fresh, busy, stream = (connect() for _ in range(9))
    for client in (idle, kept):
        client.get()
    half.send(b"GET / HTTP/1.1\r\nho")
    busy.send_request("/slow?s=1.5")
    stream.send_request("/stream?n=20&gap=0.1")
    piped.send(PIPELINED.replace(b"GET /", b"GET /slow?s=1.5", 1))
    front.wait_stats(in_flight=3, connections=9)
    number = front.begin("drain", deadline_s=15, and_close=True)
    wait_until(lambda: connect().get(HEALTH)[0] == 503, "the front stops")
    for client in (kept, fresh, connect()):
        client.send_request()
        assert_told_that_it_stops(client)
    half.send(b"st: test\r\n\r\n")
    assert_told_that_it_stops(half)
    idle.send_request("/", "HEAD")
    assert_told_that_it_stops(idle, "HEAD")
    upload.send(b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5000000\r\n\r\n" + b"x" * 5_000_000)
    assert_told_that_it_stops(upload)
    upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\n"
    socket_like.send_request("/", headers=upgrade)
    assert_told_that_it_stops(socket_like)
    assert number not in front.replies, "all that while requests were in flight"
    piped.send(b"TP/1.1\r\nhost: test\r\n\r\n")
    for client in (busy, piped):
        assert client.answer()[2] == b"7 slow"
    assert_told_that_it_stops(piped)
    assert stream.answer()[2].endswith(b"[DONE]\n\n")
    assert front.result(number)["cut"] == 0


def test_a_drain_of_a_service_that_stops_waits_for_nobody_who_comes_late(front, connect):
    busy = connect()
    busy.send_request("/slow?s=0.5")
    front.wait_stats(in_flight=1)
    number = front.begin("drain", deadline_s=60, and_close=True)

    def one_more_comes():
        """And stays, answered, for as long as it is let."""
        connect().send_request()
        front.stats()
        return number in front.replies

    wait_until(one_more_comes, "the drain is over")
    assert busy.answer()[2] == b"7 slow"
    assert front.result(number)["cut"] == 0


def test_at_the_end_idle_connections_and_the_queue_are_closed_without_a_reset(front, connect, listener):
    idle, new = connect(), connect()
    idle.get()
    front.wait_stats(connections=2)
    front.request("drain", deadline_s=15, and_close=True)
    late = connect()
    late.send(b"GET / HT")
    front.pause()
    queued = connect()
    queued.send_request()
    number = front.begin("stop")
    front.go_on()
    for client in (queued, late):
        assert_told_that_it_stops(client)
    for client in (idle, new):
        assert client.rest() == b""
    front.result(number)
    with pytest.raises(FrontError):
        front.request("hand_over", [front.control.fileno()], epoch=0, deadline_s=1)


def test_drain_and_close_cuts_at_its_deadline_and_says_so(front, connect):
    slow = connect()
    slow.send_request("/slow?s=60")
    front.wait_stats(in_flight=1)
    assert front.request("drain", deadline_s=0.2, and_close=True)["cut"] == 1
    assert_told_that_it_stops(slow)


def test_stats_are_told_while_the_loop_is_blocked(front, connect):
    client = connect()
    client.send_request("/block?s=1")
    stats = wait_until(
        lambda: (stats := front.stats())["loop_blocked_s"] > 0.3 and stats, "the loop is seen to be blocked"
    )
    assert stats["owner"]
    assert stats["in_flight"] == 1
    assert client.answer()[2] == b"7 block"
    wait_until(lambda: front.stats()["loop_blocked_s"] < 0.1, "the loop is back")


def test_pipelined_requests_are_answered_in_order(front, connect):
    client = connect()
    client.send(b"".join(b"GET /slow?s=0.0%d HTTP/1.1\r\nhost: test\r\n\r\n" % (9 - n) for n in range(8)))
    assert [client.answer()[2] for _ in range(8)] == [b"7 slow"] * 8
    assert front.stats()["requests"] == 8


def test_bytes_come_one_by_one(front, connect):
    client = connect()
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc":
        client.send(struct.pack("B", byte))
    assert client.answer()[2].startswith(b"7 3 ")


def test_close_leaves_the_listener_to_its_other_holders(front, connect, listener):
    client = connect()
    client.get()
    began = time.monotonic()
    front.request("stop")
    assert client.closed(10), time.monotonic() - began
    waiting = connect()
    waiting.send(b"hello")
    listener.setblocking(True)
    accepted, _ = listener.accept()
    with accepted:
        assert accepted.recv(100) == b"hello"
