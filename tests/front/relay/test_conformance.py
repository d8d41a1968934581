"""Requests through a real gate to a scripted engine: RFC 9112 and 9110, case by case.

Of every refused request the engine must see nothing, the client an error and the end of the connection; whatever
stands behind it is never taken for a request.
"""

import contextlib
import json

import pytest
from support.front_process import HEALTH
from support.http_cases import ACCEPTED, BAD_CHUNKS, CHUNKED, GET, POST, REFUSED

NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


def refused(client, status, head=False):
    """An error of ours, whole, and the end."""
    got, headers, body = client.answer("HEAD" if head else "GET")
    if status is not None:
        assert got == status
    assert 400 <= got < 600
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    if not head:
        assert set(json.loads(body)["error"]) == {"message", "type", "code", "param"}
    assert client.rest() == b""


def fence(connect):
    """A request of somebody else: whatever the gate had to send before is there once it is answered."""
    assert connect().get("/fence")[0] == 200


def send(client, data):
    with contextlib.suppress(OSError):  # the gate may have answered and closed before all was sent
        client.send(data)


@pytest.mark.parametrize(("data", "status"), REFUSED.values(), ids=REFUSED.keys())
def test_a_request_that_could_be_read_in_two_ways_is_refused(connect, upstream, data, status):
    client = connect()
    send(client, data + NEXT)
    refused(client, status)
    fence(connect)
    assert upstream.lines == ["GET /fence"]


@pytest.mark.parametrize("body", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
@pytest.mark.parametrize("glued", [True, False], ids=["glued", "apart"])
def test_a_bad_chunk_ends_the_connection_and_what_stands_behind_it_is_no_request(connect, upstream, body, glued):
    client = connect()
    if glued:
        send(client, CHUNKED + body + NEXT)
    else:
        send(client, CHUNKED)
        upstream.wait_requests(1)
        send(client, body + NEXT)
    refused(client, 400)
    fence(connect)
    assert upstream.lines == ["GET /fence"]


def answered(client, upstream, line, body=b""):
    assert client.answer()[0] == 200
    request = upstream.whole[-1]
    assert (request.line, request.body) == (line, body)
    return request


@pytest.mark.parametrize(("data", "line", "body"), ACCEPTED.values(), ids=ACCEPTED.keys())
@pytest.mark.parametrize("how", ["whole", "bytes"])
def test_a_valid_request_arrives_as_one_message_and_the_connection_stays(connect, upstream, data, line, body, how):
    client = connect()
    if how == "whole" or len(data) > 5000:
        client.send(data + GET.replace(b" / ", b" /next ") + b"\r\n")
    else:
        for at in range(len(data)):
            client.send(data[at : at + 1])
        client.send(GET.replace(b" / ", b" /next ") + b"\r\n")
    assert client.answer()[0] == 200
    assert client.answer()[0] == 200
    assert [request.line for request in upstream.whole][1:] == ["GET /next"]
    assert upstream.whole[0].body == body
    assert line is None or upstream.whole[0].line == line


def test_every_split_of_two_requests_in_two_gives_the_same(connect, upstream):
    data = CHUNKED + b"5;x\r\nabcde\r\n0\r\nX-Sum: 1\r\n\r\n" + POST + b"Content-Length: 3\r\n\r\nxyz"
    client = connect()
    for at in range(1, len(data)):
        upstream.forget()
        client.send(data[:at])
        client.send(data[at:])
        assert [client.answer()[0], client.answer()[0]] == [200, 200]
        assert [(r.body, r.trailers) for r in upstream.whole] == [(b"abcde", [("x-sum", "1")]), (b"xyz", [])]


# --- fields ------------------------------------------------------------------------------------------------------


def test_fields_of_one_hop_stay_here_and_the_way_is_told(connect, upstream):
    client = connect()
    fields = "Connection: keep-alive, X-Mine\r\nKeep-Alive: timeout=5\r\nProxy-Connection: close\r\nTE: trailers\r\n"
    fields += (
        "X-Mine: 1\r\nX-Theirs: 2\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\nX-Forwarded-For: 1.2.3.4\r\nVia: 1.0 edge\r\n"
    )
    status, headers, _ = client.get("/", headers=fields + "X-Request-Id: seven\r\n")
    assert (status, headers["x-request-id"], headers["x-swapd-revision"]) == (200, "seven", "1")
    names = [name for name, _ in upstream.whole[0].headers]
    assert not {"connection", "keep-alive", "proxy-connection", "te", "x-mine", "upgrade"} & set(names)
    assert dict(upstream.whole[0].headers)["x-theirs"] == "2"
    assert upstream.whole[0].values("x-forwarded-for") == ["127.0.0.1"]
    assert upstream.whole[0].values("via") == ["1.0 edge, 1.1 swapd"]
    assert upstream.whole[0].values("x-request-id") == ["seven"]


def test_a_request_without_an_id_gets_one_that_both_sides_see(connect, upstream):
    first, second = (connect().get("/")[1]["x-request-id"] for _ in range(2))
    assert first != second
    assert [request.values("x-request-id") for request in upstream.whole] == [[first], [second]]


def test_trailers_go_on_but_not_those_that_frame_or_authorise(connect, upstream):
    client = connect()
    client.send(CHUNKED + b"1\r\nx\r\n0\r\nX-Sum: 7\r\nContent-Length: 9\r\nAuthorization: b\r\nHost: c\r\n\r\n")
    answered(client, upstream, "POST /", b"x")
    assert upstream.whole[0].trailers == [("x-sum", "7")]


# --- persistence -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "fields", "stays"),
    [
        ("GET / HTTP/1.1", "", True),
        ("GET / HTTP/1.1", "Connection: close\r\n", False),
        ("GET / HTTP/1.1", "Connection: x, CLOSE\r\n", False),
        ("GET / HTTP/1.1", "Connection: x\r\nConnection: close\r\n", False),
        ("GET / HTTP/1.0", "", False),
        ("GET / HTTP/1.0", "Connection: Keep-Alive\r\n", True),
        ("GET / HTTP/1.0", "Connection: keep-alive, close\r\n", False),
    ],
)
def test_who_asks_for_the_end_gets_it(connect, upstream, first, fields, stays):
    client = connect()
    client.send(f"{first}\r\nHost: a\r\n{fields}\r\n".encode() + NEXT.replace(b"smuggled", b"next"))
    status, headers, body = client.answer()
    assert (status, body) == (200, b"ok")
    if stays:
        assert client.answer()[0] == 200
        assert headers.get("connection") == ("keep-alive" if "1.0" in first else None)
    else:
        assert headers["connection"] == "close"
        assert client.rest() == b""
    fence(connect)
    assert upstream.lines == ["GET /", *(["GET /next"] if stays else []), "GET /fence"]


def test_pipelined_requests_are_answered_in_order_one_at_a_time(connect, upstream):
    upstream.answer = lambda request: (
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b"
        % (
            len(request.target),
            request.target.encode(),
        )
    )
    client = connect()
    client.send(b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(200)))
    assert [client.answer()[2] for _ in range(200)] == [b"/%d" % number for number in range(200)]
    assert len({request.connection for request in upstream.whole}) == 1, "one connection, kept alive"


def test_health_is_answered_here_also_between_others(connect, upstream):
    client = connect()
    client.send(
        GET + b"\r\n" + f"GET {HEALTH} HTTP/1.1\r\nHost: a\r\n\r\nHEAD {HEALTH} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    )
    assert client.answer()[2] == b"ok"
    assert json.loads(client.answer()[2]) == {"status": "serving"}
    assert client.answer("HEAD")[0] == 200
    assert upstream.lines == ["GET /"]


def test_a_head_or_a_body_that_stops_coming_is_told_so(connect, upstream):
    head, body, silent = connect(), connect(), connect()
    head.send(b"GET / HT")
    body.send(POST + b"Content-Length: 5\r\n\r\nab")
    upstream.wait_requests(1)
    refused(head, 408)
    refused(body, 408)
    assert not silent.closed(), "an idle connection is no request"
