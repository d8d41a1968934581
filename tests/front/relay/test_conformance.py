"""Requests through a real gate to a scripted engine: RFC 9112 and 9110, case by case.

Of every refused request the engine must see nothing, the client an error and the end of the connection; whatever
stands behind it is never taken for a request.
"""

import contextlib
import json

import pytest
from support.front_process import HEALTH

NEXT = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

REFUSED = {
    # RFC 9112 6.3: lengths
    "cl-twice-different": (POST + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
    "cl-twice-same": (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nabcde", 400),
    "cl-list": (POST + b"Content-Length: 5, 5\r\n\r\nabcde", 400),
    "cl-plus": (POST + b"Content-Length: +5\r\n\r\nabcde", 400),
    "cl-minus": (POST + b"Content-Length: -5\r\n\r\nabcde", 400),
    "cl-hex": (POST + b"Content-Length: 0x5\r\n\r\nabcde", 400),
    "cl-space-inside": (POST + b"Content-Length: 5 5\r\n\r\nabcde", 400),
    "cl-underscore": (POST + b"Content-Length: 1_0\r\n\r\nabcde", 400),
    "cl-fraction": (POST + b"Content-Length: 5.0\r\n\r\nabcde", 400),
    "cl-quoted": (POST + b'Content-Length: "5"\r\n\r\nabcde', 400),
    "cl-empty": (POST + b"Content-Length:\r\n\r\n", 400),
    "cl-superscript": (POST + b"Content-Length: \xb2\r\n\r\n", 400),
    "cl-over-64-bits": (POST + b"Content-Length: 18446744073709551621\r\n\r\nabcde", 400),
    "cl-nearly-64-bits": (POST + b"Content-Length: 9223372036854775807\r\n\r\nabcde", 413),
    "cl-then-te": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "te-then-cl": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "te-then-cl-0": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", 400),
    # RFC 9112 6.1: transfer codings
    "te-gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "te-gzip-chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "te-gzip-and-chunked": (POST + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", None),
    "te-chunked-gzip": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n", 400),
    "te-twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "te-list-twice": (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "te-identity": (POST + b"Transfer-Encoding: identity\r\n\r\n", 400),
    "te-identity-cl": (POST + b"Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nabcde", 400),
    "te-empty": (POST + b"Transfer-Encoding:\r\n\r\n", 400),
    "te-comma-first": (POST + b"Transfer-Encoding: ,chunked\r\n\r\n0\r\n\r\n", 501),
    "te-comma-last": (POST + b"Transfer-Encoding: chunked,\r\n\r\n0\r\n\r\n", 400),
    "te-quoted": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 400),
    "te-parameter": (POST + b"Transfer-Encoding: chunked;q=1\r\n\r\n0\r\n\r\n", 400),
    "te-prefix": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "te-suffix": (POST + b"Transfer-Encoding: chunkedx\r\n\r\n0\r\n\r\n", 400),
    "te-vertical-tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "te-form-feed-after": (POST + b"Transfer-Encoding: chunked\x0c\r\n\r\n0\r\n\r\n", 400),
    "te-nul": (POST + b"Transfer-Encoding: chunked\0\r\n\r\n0\r\n\r\n", 400),
    "te-space-before-colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "te-tab-before-colon": (POST + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
    "te-folded-value": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "te-http-1.0": (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    # RFC 9112 2.2 and 5: lines
    "obs-fold": (GET + b"X: a\r\n b\r\n\r\n", 400),
    "obs-fold-tab": (GET + b"X: a\r\n\tb\r\n\r\n", 400),
    "space-before-first-field": (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    "bare-lf-everywhere": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare-lf-after-line": (b"GET / HTTP/1.1\nHost: a\r\n\r\n", 400),
    "bare-lf-in-fields": (GET + b"X: a\nY: b\r\n\r\n", 400),
    "bare-lf-hides-te": (POST + b"X: a\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\nabcde", 400),
    "bare-lf-at-the-end": (b"GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
    "bare-cr-in-value": (GET + b"X: a\rY: b\r\n\r\n", 400),
    "bare-cr-in-name": (GET + b"X\r: a\r\n\r\n", 400),
    "cr-cr-lf": (GET + b"X: a\r\r\n\r\n", 400),
    "nul-in-value": (GET + b"X: a\0b\r\n\r\n", 400),
    "nul-in-name": (GET + b"X\0: a\r\n\r\n", 400),
    "control-in-value": (GET + b"X: a\x01b\r\n\r\n", 400),
    "del-in-value": (GET + b"X: a\x7fb\r\n\r\n", 400),
    "no-colon": (GET + b"X\r\n\r\n", 400),
    "no-name": (GET + b": a\r\n\r\n", 400),
    "space-in-name": (GET + b"X Y: a\r\n\r\n", 400),
    "space-before-colon": (GET + b"X : a\r\n\r\n", 400),
    "parens-in-name": (GET + b"X(a): a\r\n\r\n", 400),
    "obs-text-in-name": (GET + b"X\xe9: a\r\n\r\n", 400),
    "300-fields": (GET + b"X: y\r\n" * 300 + b"\r\n", 431),
    "head-over-64-kib": (GET + b"X: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    # RFC 9112 3: request lines
    "two-spaces": (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "tab-between": (b"GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space-after-version": (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    "space-first": (b" GET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "space-in-target": (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "control-in-target": (b"GET /a\x01 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "nul-in-target": (b"GET /a\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "obs-text-in-target": (b"GET /\xe9 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "fragment-in-target": (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "lower-case-method": (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "unknown-method": (b"NOSUCH / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "connect": (b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "trace": (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
    "relative-target": (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "query-alone": (b"GET ?a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "asterisk-of-get": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "ftp-target": (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "userinfo-in-target": (b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "comma-in-authority": (b"GET http://a,b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "http-1.2": (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
    "http-2.0": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    "http-0.9": (b"GET /\r\n\r\n", 505),
    "http-0.9-in-words": (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
    "http-11": (b"GET / HTTP/11\r\nHost: a\r\n\r\n", 400),
    "http-01.1": (b"GET / HTTP/01.1\r\nHost: a\r\n\r\n", 400),
    "lower-case-version": (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400),
    "other-protocol": (b"GET / ICE/1.0\r\nHost: a\r\n\r\n", 400),
    "http-2-preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0", 505),
    "tls-hello": (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", 400),
    # RFC 9112 3.2: Host
    "no-host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two-hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "two-hosts-alike": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
    "two-empty-hosts": (b"GET / HTTP/1.1\r\nHost:\r\nHost:\r\n\r\n", 400),
    "host-list": (b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", 400),
    "host-path": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
    "host-userinfo": (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
    "host-space": (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
    "absolute-without-host": (b"GET http://a/ HTTP/1.1\r\n\r\n", 400),
}

BAD_CHUNKS = {
    "size-0x": b"0x5\r\nabcde\r\n0\r\n\r\n",
    "size-plus": b"+5\r\nabcde\r\n0\r\n\r\n",
    "size-minus": b"-5\r\nabcde\r\n0\r\n\r\n",
    "size-space-first": b" 5\r\nabcde\r\n0\r\n\r\n",
    "size-space-after": b"5 \r\nabcde\r\n0\r\n\r\n",
    "size-empty": b"\r\nabcde\r\n0\r\n\r\n",
    "size-letters": b"5g\r\nabcde\r\n0\r\n\r\n",
    "size-over-64-bits": b"10000000000000005\r\nabcde\r\n0\r\n\r\n",
    "size-underscore": b"1_0\r\nabcde\r\n0\r\n\r\n",
    "size-lf": b"5\nabcde\r\n0\r\n\r\n",
    "size-cr": b"5\rabcde\r\n0\r\n\r\n",
    "extension-lf": b"5;a\nabcde\r\n0\r\n\r\n",
    "extension-cr": b"5;a\rb\r\nabcde\r\n0\r\n\r\n",
    "extension-nul": b"5;a=\0\r\nabcde\r\n0\r\n\r\n",
    "extension-without-semicolon": b"5 a\r\nabcde\r\n0\r\n\r\n",
    "extension-too-long": b"5;" + b"a" * 300 + b"\r\nabcde\r\n0\r\n\r\n",
    "data-too-long": b"5\r\nabcdef\r\n0\r\n\r\n",
    "data-too-short": b"5\r\nabcd\r\n0\r\n\r\n",
    "data-lf": b"5\r\nabcde\n0\r\n\r\n",
    "data-no-crlf": b"5\r\nabcde0\r\n\r\n",
    "data-two-crlf": b"5\r\nabcde\r\n\r\n0\r\n\r\n",
    "last-lf": b"0\n\n",
    "trailer-lf": b"0\r\nX: a\n\r\n",
    "trailer-no-colon": b"0\r\nX\r\n\r\n",
    "trailer-request": b"0\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n",
    "trailer-space": b"0\r\nX : a\r\n\r\n",
    "trailer-fold": b"0\r\nX: a\r\n b\r\n\r\n",
    "trailer-nul": b"0\r\nX: \0\r\n\r\n",
    "trailers-too-large": b"0\r\n"
    + b"X: "
    + b"y" * 1000
    + b"\r\n" * 1
    + (b"X: " + b"y" * 1000 + b"\r\n") * 20
    + b"\r\n",
}


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


ACCEPTED = {
    "plain": (GET + b"\r\n", "GET /", b""),
    "empty-line-first": (b"\r\n" + GET + b"\r\n", "GET /", b""),
    "two-empty-lines-first": (b"\r\n\r\n" + GET + b"\r\n", "GET /", b""),
    "no-space-after-colon": (b"GET / HTTP/1.1\r\nHost:a\r\nX:y\r\n\r\n", "GET /", b""),
    "spaces-around-value": (b"GET / HTTP/1.1\r\nHost: \t a \t\r\n\r\n", "GET /", b""),
    "empty-value": (GET + b"X:\r\n\r\n", "GET /", b""),
    "obs-text-in-value": (GET + b"X: \xe9\r\n\r\n", "GET /", b""),
    "odd-name": (GET + b"!#$%&'*+-.^_`|~: a\r\n\r\n", "GET /", b""),
    "empty-host": (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET /", b""),
    "host-port": (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET /", b""),
    "absolute": (b"GET http://b:80/p?q HTTP/1.1\r\nHost: a\r\n\r\n", "GET /p?q", b""),
    "absolute-no-path": (b"GET HTTP://b HTTP/1.1\r\nHost: a\r\n\r\n", "GET /", b""),
    "asterisk": (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS *", b""),
    "absolute-options": (b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS *", b""),
    "odd-target": (b"GET //a/../b;c=%00,'(d)?x=[1]&y={2}|^`\\ HTTP/1.1\r\nHost: a\r\n\r\n", None, b""),
    "cl": (POST + b"Content-Length: 5\r\n\r\nabcde", "POST /", b"abcde"),
    "cl-zeros": (POST + b"Content-Length: 00005\r\n\r\nabcde", "POST /", b"abcde"),
    "cl-spaces": (POST + b"Content-Length: \t5 \t\r\n\r\nabcde", "POST /", b"abcde"),
    "cl-0": (POST + b"Content-Length: 0\r\n\r\n", "POST /", b""),
    "cl-of-get": (GET + b"Content-Length: 5\r\n\r\nabcde", "GET /", b"abcde"),
    "cl-named-by-connection": (
        POST + b"Connection: Content-Length\r\nContent-Length: 5\r\n\r\nabcde",
        "POST /",
        b"abcde",
    ),
    "te-named-by-connection": (
        POST + b"Connection: transfer-encoding\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n0\r\n\r\n",
        "POST /",
        b"abcde",
    ),
    "chunked": (CHUNKED + b"5\r\nabcde\r\nA\r\n0123456789\r\n0\r\n\r\n", "POST /", b"abcde0123456789"),
    "chunked-upper-case": (POST + b"TRANSFER-ENCODING: CHUNKED\r\n\r\n5\r\nabcde\r\n0\r\n\r\n", "POST /", b"abcde"),
    "chunked-empty": (CHUNKED + b"0\r\n\r\n", "POST /", b""),
    "chunked-zeros": (CHUNKED + b"0005\r\nabcde\r\n000\r\n\r\n", "POST /", b"abcde"),
    "chunked-extensions": (CHUNKED + b'5;a;b="c;d" ; e\r\nabcde\r\n0;last\r\n\r\n', "POST /", b"abcde"),
    "chunked-data-like-chunks": (CHUNKED + b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n", "POST /", b"\r\n0\r\n\r\n"),
    "delete-with-body": (b"DELETE / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "DELETE /", b"x"),
    "patch": (b"PATCH / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx", "PATCH /", b"x"),
    "put-chunked": (
        b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        "PUT /",
        b"x",
    ),
    "head-of-60-kib": (GET + b"X: " + b"y" * 60_000 + b"\r\n\r\n", "GET /", b""),
    "250-fields": (GET + b"X: y\r\n" * 250 + b"\r\n", "GET /", b""),
    "http-1.0-kept": (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "GET /", b""),
}


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
