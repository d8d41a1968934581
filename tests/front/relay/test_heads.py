"""Heads between two connections: what is refused, what is dropped, what is added. RFC 9110, RFC 9112."""

import pytest

from swapd.front.relay.heads import BadAnswer, BadHead, Via, build_answer, build_request, parse_answer, parse_request

HERE = Via("192.0.2.7", trusted=False)


def request(*lines, first="POST /v1/x?q=1 HTTP/1.1", host="a.example"):
    fields = [first, *([f"Host: {host}"] if host else []), *lines]
    return parse_request("\r\n".join(fields).encode("latin-1") + b"\r\n\r\n")


def sent(*lines, via=HERE, **options):
    """What the engine gets: its first line, and its fields as a list of pairs."""
    text = build_request(request(*lines, **options), via).decode("latin-1")
    assert text.endswith("\r\n\r\n")
    first, *fields = text[:-4].split("\r\n")
    return first, [tuple(field.split(": ", 1)) for field in fields]


def answered(*lines, first="HTTP/1.1 200 OK", method=b"GET"):
    return parse_answer("\r\n".join([first, *lines]).encode("latin-1") + b"\r\n\r\n", method)


# --- refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["Content-Length: 5", "Content-Length: 6"], 400),
        (["Content-Length: 5", "Content-Length: 5"], 400),
        (["Content-Length: 5, 5"], 400),
        (["Content-Length: +5"], 400),
        (["Content-Length: 0x5"], 400),
        (["Content-Length: 99999999999999999999999"], 400),
        (["Content-Length: 9223372036854775807"], 413),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], 400),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], 400),
        (["Transfer-Encoding: gzip, chunked"], 501),
        (["Transfer-Encoding: chunked, gzip"], 400),
        (["Transfer-Encoding: xchunked"], 400),
        (["Transfer-Encoding: \x0bchunked"], 400),
        (["Transfer-Encoding : chunked"], 400),
        (["X: a", " folded"], 400),
        (["X: a\rb"], 400),
        (["X: a\nb: c"], 400),
        (["X: a\x00b"], 400),
        ([": no name"], 400),
        (["No colon"], 400),
        (["Host: b.example"], 400),
        (["X: y"] * 300, 431),
    ],
)
def test_what_two_servers_could_read_differently_is_refused(lines, status):
    with pytest.raises(BadHead) as caught:
        request(*lines)
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("first", "status"),
    [
        ("GET  / HTTP/1.1", 400),
        ("GET /  HTTP/1.1", 400),
        ("GET / HTTP/1.2", 400),
        ("GET / HTTP/2.0", 505),
        ("GET /", 505),
        ("GET /a b HTTP/1.1", 400),
        ("GET /\x01 HTTP/1.1", 400),
        ("get / HTTP/1.1", 400),
        ("NOSUCH / HTTP/1.1", 400),
        ("CONNECT a.example:443 HTTP/1.1", 501),
        ("GET ftp://a.example/ HTTP/1.1", 400),
        ("GET http://user@a.example/ HTTP/1.1", 400),
    ],
)
def test_request_lines_that_are_none_are_refused(first, status):
    with pytest.raises(BadHead) as caught:
        request(first=first)
    assert caught.value.status == status


def test_http_1_0_has_no_transfer_coding_and_needs_no_host():
    with pytest.raises(BadHead):
        request("Transfer-Encoding: chunked", first="POST / HTTP/1.0")
    assert request(first="GET / HTTP/1.0", host="").keep_alive is False
    assert request("Connection: keep-alive", first="GET / HTTP/1.0").keep_alive is True
    with pytest.raises(BadHead, match="Host"):
        request(host="")


# --- to the engine -------------------------------------------------------------------------------------------


def test_host_stays_and_the_way_is_told():
    first, fields = sent("Accept: */*", "Content-Length: 5")
    assert first == "POST /v1/x?q=1 HTTP/1.1"
    assert fields == [
        ("host", "a.example"),
        ("accept", "*/*"),
        ("content-length", "5"),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-forwarded-proto", "http"),
        ("forwarded", "for=192.0.2.7;proto=http"),
        ("via", "1.1 swapd"),
    ]


def test_what_a_client_says_of_its_way_counts_only_where_it_is_trusted():
    said = ["X-Forwarded-For: 198.51.100.1", "X-Forwarded-Proto: https", "Forwarded: for=198.51.100.1", "Via: 1.1 edge"]
    _, fields = sent(*said)
    assert dict(fields)["x-forwarded-for"] == "192.0.2.7"
    assert dict(fields)["x-forwarded-proto"] == "http"
    _, fields = sent(*said, via=Via("2001:db8::1", trusted=True))
    assert dict(fields)["x-forwarded-for"] == "198.51.100.1, 2001:db8::1"
    assert dict(fields)["x-forwarded-proto"] == "https"
    assert dict(fields)["forwarded"] == 'for=198.51.100.1, for="[2001:db8::1]";proto=http'
    assert dict(fields)["via"] == "1.1 edge, 1.1 swapd"
    assert dict(sent(via=Via("", trusted=False))[1])["x-forwarded-for"] == "unknown"


def test_a_name_that_servers_take_for_one_of_those_goes_no_further():
    fields = sent("X_Forwarded_For: 198.51.100.1", "Transfer_Encoding: chunked", "X_Own: 1")[1]
    assert ("x_own", "1") in fields
    assert not {"x_forwarded_for", "transfer_encoding"} & set(dict(fields))


def test_fields_of_one_hop_and_those_that_connection_names_go_no_further():
    lines = [
        "Connection: close, X-Mine, Host, Content-Length",
        "Keep-Alive: 5",
        "TE: trailers",
        "X-Mine: 1",
        "X-Other: 2",
    ]
    lines += ["Proxy-Connection: keep-alive", "Content-Length: 3", "Trailer: X-Sum"]
    head = request(*lines)
    assert head.keep_alive is False
    names = [name for name, _ in sent(*lines)[1]]
    assert names == ["host", "x-other", "content-length", "x-forwarded-for", "x-forwarded-proto", "forwarded", "via"]


def test_a_body_is_announced_as_it_was():
    assert ("transfer-encoding", "chunked") in sent("Transfer-Encoding: Chunked")[1]
    assert ("content-length", "0") in sent()[1]
    assert "content-length" not in dict(sent(first="GET / HTTP/1.1")[1])


def test_an_absolute_target_is_made_a_path_and_its_host_counts():
    first, fields = sent(first="GET http://b.example:8080/p?q HTTP/1.1")
    assert (first, fields[0]) == ("GET /p?q HTTP/1.1", ("host", "b.example:8080"))
    assert sent(first="GET http://b.example?q HTTP/1.1")[0] == "GET /?q HTTP/1.1"
    assert sent(first="OPTIONS * HTTP/1.1")[0] == "OPTIONS * HTTP/1.1"


def test_an_upgrade_is_passed_on_as_such():
    fields = sent(
        "Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x", first="GET / HTTP/1.1"
    )[1]
    assert {("connection", "Upgrade"), ("upgrade", "websocket")} <= set(fields)
    assert ("sec-websocket-key", "x") in fields
    assert "upgrade" not in dict(sent("Upgrade: websocket", first="GET / HTTP/1.1")[1]), "it was not asked for"
    hidden = sent("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x", first="GET / HTTP/1.1")[1]
    assert not {"upgrade", "connection", "http2-settings"} & set(dict(hidden))


# --- to the client -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "lines", "method", "length"),
    [
        ("HTTP/1.1 200 OK", ["Content-Length: 7"], b"GET", 7),
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], b"GET", -1),
        ("HTTP/1.1 200 OK", [], b"GET", -2),
        ("HTTP/1.0 200 OK", [], b"GET", -2),
        ("HTTP/1.1 200 OK", ["Content-Length: 7"], b"HEAD", 0),
        ("HTTP/1.1 200 OK", ["Transfer-Encoding: chunked"], b"HEAD", 0),
        ("HTTP/1.1 204 No Content", [], b"GET", 0),
        ("HTTP/1.1 304 Not Modified", ["Content-Length: 7"], b"GET", 0),
        ("HTTP/1.1 100 Continue", [], b"POST", 0),
    ],
)
def test_where_an_answer_ends(first, lines, method, length):
    assert answered(*lines, first=first, method=method).length == length


@pytest.mark.parametrize(
    "lines",
    [
        ["Content-Length: 5", "Content-Length: 6"],
        ["Content-Length: 5", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: gzip"],
        ["X: a", " folded"],
        ["X: a\rb"],
    ],
)
def test_an_answer_that_could_be_read_in_two_ways_is_none(lines):
    with pytest.raises(BadAnswer):
        answered(*lines)
    with pytest.raises(BadAnswer):
        answered(first="ICY 200 OK")


def built(head, **options):
    text = build_answer(head, b"x-swapd-revision: 3\r\n", **{"chunked": False, "close": False, **options}).decode()
    assert text.endswith("\r\n\r\n")
    return text[:-4].split("\r\n")


def test_an_answer_is_framed_anew():
    assert built(answered("Content-Length: 7", "Connection: X-A", "X-A: 1", "X-B: 2")) == [
        "HTTP/1.1 200 OK",
        "x-b: 2",
        "content-length: 7",
        "x-swapd-revision: 3",
    ]
    assert built(answered("Transfer-Encoding: chunked"), chunked=True)[-2] == "transfer-encoding: chunked"
    assert built(answered(), close=True)[-2] == "connection: close"
    assert built(answered("Content-Length: 0"))[-2] == "content-length: 0"
    assert "content-length: 7" in built(answered("Content-Length: 7", method=b"HEAD"))
    assert not any("content-length" in line for line in built(answered("Transfer-Encoding: chunked", method=b"HEAD")))
    assert built(answered(first="HTTP/1.1 204 No Content")) == ["HTTP/1.1 204 No Content", "x-swapd-revision: 3"]


def test_switching_protocols_is_passed_on():
    head = answered("Connection: Upgrade", "Upgrade: websocket", first="HTTP/1.1 101 Switching Protocols")
    assert built(head)[-3:-1] == ["connection: Upgrade", "upgrade: websocket"]
    assert head.interim is False
    assert answered(first="HTTP/1.1 103 Early Hints").interim is True
