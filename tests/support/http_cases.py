"""Requests as bytes: what must be refused (and by which status), what must pass, what deceives, and mutations."""

from __future__ import annotations

import random

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


BODY = b"0\r\n\r\nGET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
SMUGGLING = [
    first + b"\r\n" + second + b"\r\n\r\n" + BODY
    for lengths in (b"Content-Length: 5", b"Content-Length: 44", b"Content-Length: 0")
    for codings in (
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t:chunked",
        b"Transfer-Encoding:\tchunked",
        b"Transfer-Encoding: Chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: chunked\x0c",
        b"Transfer-Encoding:\r\n chunked",
        b"X: y\r\n Transfer-Encoding: chunked",
        b"X: y\nTransfer-Encoding: chunked",
        b"X: y\rTransfer-Encoding: chunked",
        b"X: y\0\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: identity",
        b"Transfer-Encoding: identity, chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: cow\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: cow",
        b"Transfer_Encoding: chunked",
        b"Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
        b"Connection: Content-Length\r\nX: y",
        b"Content-Length: 7",
        b"Content_Length: 7",
        b"Content-Length : 7",
        b"Content-Length: 7, 7",
        b"Content-Length: +7",
        b"X: y",
    )
    for first, second in ((POST + lengths, codings), (POST + codings, lengths))
]
WRITTEN = [
    *SMUGGLING,
    *(data for data, _ in REFUSED.values()),
    *(data for data, _, _ in ACCEPTED.values()),
    *(CHUNKED + body for body in BAD_CHUNKS.values()),
]
PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b",",
    b":",
    b";",
    b"0",
    b"5",
    b"f",
    b"\x0b",
    b"\x85",
    b"#",
]
PIECES += [
    b"Content-Length: 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: b\r\n",
    b"0\r\n\r\n",
    b"HTTP/1.0",
    b"%00",
]


def mutated(count, seed=7):
    rng = random.Random(seed)
    valid = [data for data, _, _ in ACCEPTED.values() if len(data) < 400]
    any_ = [data for data in WRITTEN if len(data) < 400]
    for _ in range(count):
        data = bytearray(rng.choice(valid if rng.random() < 0.8 else any_))
        for _ in range(rng.randint(1, 3)):
            at, piece = rng.randrange(len(data) + 1), rng.choice(PIECES)
            kind = rng.randrange(4)
            if kind == 0:
                data[at:at] = piece
            elif kind == 1:
                del data[at : at + rng.randint(1, 4)]
            elif kind == 2:
                data[at : at + len(piece)] = piece
            else:
                begin = rng.randrange(len(data) + 1)
                data[at:at] = data[begin : begin + rng.randint(1, 40)]
        yield bytes(data)
