"""Answers of a scripted engine through a real gate to its clients, upgrades among them: RFC 9112, 9110.

Clients are read by h11, strictly: what the gate makes of an engine's answer must be one whole answer, or visibly none.
"""

import json
import select
import socket
import threading
import time

import h11
import pytest
from support.front_process import wait_until
from support.raw_upstream import OK

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKS = b"5\r\nabcde\r\n0\r\n\r\n"


def read(client, request=GET):
    """Send a request; (status, headers, body, trailers, whether the connection stays, interim statuses), as h11 reads
    it. Raises h11.RemoteProtocolError when the answer is truncated."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)
    method, target, version = request.split(b"\r\n")[0].split(b" ")
    fields = [(b"Host", b"a")]
    parser.send(h11.Request(method=method, target=target, headers=fields, http_version=version[5:]))
    parser.send(h11.EndOfMessage())
    client.send(request)
    interim, body, head = [], b"", None
    while True:
        event = parser.next_event()
        if event is h11.NEED_DATA:
            parser.receive_data(client.sock.recv(65536))
        elif isinstance(event, h11.InformationalResponse):
            interim.append(event.status_code)
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            headers = {k.decode(): v.decode() for k, v in head.headers}
            stays = parser.their_state is h11.DONE
            assert parser.trailing_data[0] == b"", "more than one answer"
            return head.status_code, headers, body, list(event.headers), stays, interim
        else:
            raise AssertionError(event)


def close_after(data):
    """An answer that ends with the connection."""

    def say(sock):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return False

    return lambda request: say


WHOLE = {
    "cl": (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
    "cl-0": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "no-reason": (b"HTTP/1.1 200 \r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
    "reason-left-out": (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
    "obs-text-in-reason": (b"HTTP/1.1 200 \xe9\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"abcde"),
    "chunked-extension": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nabcde\r\n0\r\n\r\n",
        b"abcde",
    ),
    "chunked-empty": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
    "hop-by-hop": (b"HTTP/1.1 200 OK\r\nConnection: X-A\r\nX-A: 1\r\nContent-Length: 1\r\n\r\nx", b"x"),
    "404": (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
    "204-with-cl": (b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", b""),
    "304": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n", b""),
    "205": (b"HTTP/1.1 205 Reset Content\r\nContent-Length: 0\r\n\r\n", b""),
    "head-of-60-kib": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX: " + b"y" * 60_000 + b"\r\n\r\nx", b"x"),
    "1.0-kept": (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
}
ENDING = {
    "until-close": (b"HTTP/1.1 200 OK\r\n\r\nabcde", b"abcde"),
    "until-close-1.0": (b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nabcde", b"abcde"),
    "until-close-empty": (b"HTTP/1.1 200 OK\r\n\r\n", b""),
    "cl-close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nabcde", b"abcde"),
    "chunked-close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"abcde"),
    "chunked-1.0": (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"abcde"),
}


@pytest.mark.parametrize(("raw", "body"), WHOLE.values(), ids=WHOLE.keys())
def test_a_whole_answer_arrives_whole_and_both_connections_stay(connect, upstream, raw, body):
    upstream.answer = lambda request: raw
    client = connect()
    for _ in range(2):
        _, headers, got, _, stays, _ = read(client)
        assert (got, stays) == (body, True)
        assert "x-a" not in headers
        assert headers["x-swapd-revision"] == "1"
    assert upstream.whole[0].connection == upstream.whole[1].connection


@pytest.mark.parametrize(("raw", "body"), ENDING.values(), ids=ENDING.keys())
def test_an_engine_that_closes_does_not_close_its_client(connect, upstream, raw, body):
    upstream.answer = close_after(raw)
    client = connect()
    for _ in range(2):
        _, _, got, _, stays, _ = read(client)
        assert (got, stays) == (body, True)
    assert upstream.whole[0].connection != upstream.whole[1].connection


@pytest.mark.parametrize(("raw", "body"), [*WHOLE.values(), *ENDING.values()], ids=[*WHOLE, *ENDING])
def test_an_http_1_0_client_gets_no_chunks(connect, upstream, raw, body):
    upstream.answer = close_after(raw)
    client = connect()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    head, _, got = client.rest().partition(b"\r\n\r\n")
    assert got == body
    assert b"chunked" not in head.lower()
    assert b"connection: close" in head


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_an_answer_in_pieces_is_the_same(connect, upstream, size):
    raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    raw += b"5;x\r\nabcde\r\n3\r\nfgh\r\n0\r\nX-Sum: 1\r\nSet-Cookie: a\r\n\r\n"

    def drip(sock):
        for at in range(0, len(raw), size):
            sock.sendall(raw[at : at + size])
            time.sleep(0.001)

    upstream.answer = lambda request: drip
    _, _, body, trailers, stays, _ = read(connect())
    assert (body, trailers, stays) == (b"abcdefgh", [(b"x-sum", b"1")], True)


@pytest.mark.parametrize(
    ("head", "length"),
    [(b"Content-Length: 5", "5"), (b"Transfer-Encoding: chunked", None), (b"X: y", None), (b"Content-Length: 0", "0")],
)
def test_an_answer_to_head_has_no_body_and_tells_its_length(connect, upstream, head, length):
    upstream.answer = lambda request: b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n"
    client = connect()
    for _ in range(2):
        _, headers, body, _, stays, _ = read(client, GET.replace(b"GET", b"HEAD"))
        assert (headers.get("content-length"), body, stays) == (length, b"", True)
    assert upstream.whole[0].connection == upstream.whole[1].connection


BROKEN = {
    "no-http": b"hello\r\n\r\n",
    "cl-and-te": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "cl-twice": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 4\r\n\r\nabcde",
    "cl-list": b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nabcde",
    "cl-plus": b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nabcde",
    "te-gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabcde",
    "te-gzip-chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "obs-fold": b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "bare-lf": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "bare-lf-inside": b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n",
    "bare-cr": b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
    "nul": b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 0\r\n\r\n",
    "http-2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "status-999": b"HTTP/1.1 999 OK\r\nContent-Length: 0\r\n\r\n",
    "status-20": b"HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
    "101-unasked": b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "head-over-64-kib": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    "half-a-head": b"HTTP/1.1 200 OK\r\nContent-",
    "nothing": b"",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_no_answer_becomes_a_502(connect, upstream, raw):
    upstream.answer = close_after(raw)
    client = connect()
    status, _, body, _, stays, _ = read(
        client, GET.replace(b"GET", b"POST").replace(b"a\r\n\r", b"a\r\nContent-Length: 0\r\n\r")
    )
    assert (status, stays) == (502, False)
    assert json.loads(body)["error"]["code"] in ("upstream_bad_answer", "upstream_died")
    assert client.rest() == b""
    assert len(upstream.requests) == 1


TRUNCATED = {
    "cl": b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nabcde",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
    "chunked-inside": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n50\r\nabcde",
    "chunked-last": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n",
    "chunked-bad": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\nzz\r\n",
    "chunked-lf": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nabcde\n0\n\n",
    "chunked-too-long": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcdef\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("raw", TRUNCATED.values(), ids=TRUNCATED.keys())
def test_a_truncated_answer_looks_truncated(connect, upstream, raw):
    head, _, body = raw.partition(b"\r\n\r\n")
    first = body[:1] if b"Content-Length" in head else b""  # without it the head would wait

    def say(sock):
        sock.sendall(head + b"\r\n\r\n" + first)
        assert passed_on.wait(10)
        sock.sendall(body[len(first) :])
        return False

    passed_on = threading.Event()
    upstream.answer = lambda request: say
    client = connect()
    client.send(GET)
    client.head()
    passed_on.set()
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=256 * 1024)
    parser.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(head + b"\r\n\r\n" + client.rest())
    parser.receive_data(b"")
    with pytest.raises(h11.RemoteProtocolError):
        list(iter(parser.next_event, h11.NEED_DATA))


@pytest.mark.parametrize("said", [b"HTTP/1.1 200 OK\r\nContent-", b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n"])
def test_an_engine_that_ends_before_its_answers_body_costs_a_get_nothing(connect, upstream, said):
    upstream.answer = lambda request: close_after(said)(request) if len(upstream.whole) == 1 else OK
    assert read(connect())[0] == 200
    assert len(upstream.whole) == 2
    upstream.answer = close_after(said)
    status, _, body, *_ = read(connect(), b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_died")
    assert len(upstream.whole) == 3, "a POST that the engine has begun to answer is not sent again"


def test_a_head_that_waited_goes_on_with_its_body(connect, upstream):
    def say(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n")
        assert passed_on.wait(10)
        for piece in (b"o", b"k"):
            sock.sendall(piece)

    passed_on = threading.Event()
    upstream.answer = lambda request: say
    client = connect()
    client.send(GET)
    upstream.wait_requests(1)
    assert not select.select([client.sock], [], [], 0.05)[0], "the head has not waited"
    passed_on.set()
    assert client.answer()[::2] == (200, b"ok")


def test_an_http_1_0_client_is_reset_where_the_end_would_look_like_a_whole_answer(connect, upstream):
    upstream.answer = close_after(TRUNCATED["chunked"])
    client = connect()
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        client.rest()


def test_an_engine_that_resets_an_answer_without_length_is_not_taken_for_done(connect, upstream):
    def say(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nabcde")
        wait_until(lambda: select.select([sock], [], [], 0)[0], "more of the body, which stays unread")
        return False

    upstream.on_head = lambda request: say
    client = connect()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
    assert client.head()[0] == 200
    client.send(b"x" * 50)
    assert client.rest() == b"5\r\nabcde\r\n", "no last chunk"


def test_what_an_engine_says_after_its_answer_is_not_the_next_answer(connect, upstream):
    upstream.answer = lambda request: OK + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison"
    client = connect()
    assert read(client)[2] == b"ok"
    assert read(client)[2] == b"ok"
    upstream.answer = lambda request: b"HTTP/1.1 204 No Content\r\nContent-Length: 6\r\n\r\npoison"
    assert read(client)[0] == 204
    upstream.answer = lambda request: OK
    assert read(client)[2] == b"ok"


# --- interim answers ---------------------------------------------------------------------------------------------

POST_EXPECTING = b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"


def test_100_continue_comes_from_the_engine_before_the_body(connect, upstream):
    upstream.on_head = lambda request: b"HTTP/1.1 100 Continue\r\n\r\n"
    client = connect()
    client.send(POST_EXPECTING)
    assert client.head() == (100, {})
    client.send(b"abcde")
    assert client.answer()[2] == b"ok"
    assert (upstream.whole[0].body, upstream.whole[0].values("expect")) == (b"abcde", ["100-continue"])
    upstream.on_head = lambda request: None
    assert read(client)[2] == b"ok"


def test_an_engine_may_refuse_instead_of_100_and_no_request_is_made_of_the_body(connect, upstream):
    upstream.on_head = lambda request: b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno"
    client = connect()
    client.send(POST_EXPECTING)
    status, headers, body = client.answer()
    assert (status, headers["connection"], body) == (417, "close", b"no")
    assert client.rest() == b""


def test_early_hints_and_several_interim_answers_go_on(connect, upstream):
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    upstream.answer = lambda request: b"HTTP/1.1 102 Processing\r\n\r\n" + hints + hints + OK
    client = connect()
    assert read(client)[5] == [102, 103, 103]
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    assert client.rest().startswith(b"HTTP/1.1 200 ")


def test_an_early_answer_arrives_though_the_body_is_not_wanted(connect, upstream):
    """The engine closes with the body unread: what it said before must survive its reset."""
    body = b"x" * 1_000_000
    for how in ("close", "stay"):

        def say(sock, how=how):
            sock.sendall(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 2\r\n\r\nno")
            return how == "stay"

        for _ in range(10):
            upstream.on_head = lambda request, say=say: say
            client = connect()
            client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            status, _, got = client.answer()
            assert (status, got) == (413, b"no")


# --- upgrades ----------------------------------------------------------------------------------------------------

UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: x\r\n\r\n"
SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: y\r\n\r\n"
)


def test_an_upgrade_becomes_a_tunnel_with_the_bytes_glued_to_both_heads(connect, upstream, gate):
    seen = []

    def switch(sock):
        sock.sendall(SWITCHED + b"hello from the engine")
        while data := sock.recv(65536):
            seen.append(data)
            sock.sendall(data)
        sock.sendall(b"bye")
        return False

    upstream.on_head = lambda request: switch
    client = connect()
    client.send(UPGRADE + b"GET /early HTTP/1.1\r\n\r\n")
    status, headers = client.head()
    assert (status, headers["connection"], headers["upgrade"]) == (101, "Upgrade", "websocket")
    assert headers["sec-websocket-accept"] == "y"
    expected = b"hello from the engine" + b"GET /early HTTP/1.1\r\n\r\n"
    assert client.take(len(expected)) == expected
    gate.wait_stats(upgraded=1, in_flight=0)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b"bye", "a half-close is passed on"
    request = upstream.requests[0]
    assert (request.values("upgrade"), request.values("connection")) == (["WebSocket"], ["Upgrade"])
    assert len(upstream.requests) == 1


def test_an_upgrade_that_is_refused_leaves_an_ordinary_connection(connect, upstream):
    client = connect()
    client.send(UPGRADE + GET)
    assert [client.answer()[2], client.answer()[2]] == [b"ok", b"ok"]
    assert upstream.lines == ["GET /ws", "GET /"]


def test_no_tunnel_is_opened_for_other_protocols(connect, upstream):
    """Behind h2c, requests would be hidden that nobody has checked."""
    client = connect()
    client.send(UPGRADE.replace(b"WebSocket", b"h2c") + GET)
    assert [client.answer()[2], client.answer()[2]] == [b"ok", b"ok"]
    assert not {"upgrade", "connection"} & {name for name, _ in upstream.whole[0].headers}
