"""Any bytes at all: heads and bodies are read or refused, nothing else, and what goes on is one message for others."""

import contextlib

import h11
import httptools
from hypothesis import example, given
from hypothesis import strategies as st
from support.http_cases import ACCEPTED, WRITTEN

from swapd.front.relay.bodies import BadBody, body_of, chunk, last_chunk
from swapd.front.relay.heads import BadAnswer, BadHead, Via, build_answer, build_request, parse_answer, parse_request

VIA = Via("192.0.2.7", trusted=True)
PIECES = [
    b"\r",
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\x0b",
    b"\xff",
    b"HTTP/1.0",
    b"HTTP/1.1",
    b"Host: b",
]
PIECES += [
    b"Transfer-Encoding",
    b"Content-Length",
    b"chunked",
    b"5",
    b"0",
    b"f",
    b"Connection",
    b"Upgrade",
    b"GET /",
    b"#",
]


@st.composite
def mutations(draw, seeds):
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        skip = draw(st.integers(0, 8))
        data = data[:at] + draw(st.sampled_from([*PIECES, b""])) + data[at + skip :]
    return data


heads = mutations(seeds=[data for data in WRITTEN if len(data) < 1000])
tails = mutations(
    seeds=[data.partition(b"\r\n\r\n")[2] for data, _, _ in ACCEPTED.values() if b"chunked" in data.lower()]
)


def parsed(data):
    """(the head, what stands behind it), or None."""
    head, end, rest = data.partition(b"\r\n\r\n")
    with contextlib.suppress(BadHead):
        return parse_request(head + end), rest
    return None


def read_by_h11(data):
    """(method, target, body): one message and nothing else, or an assertion."""
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    request, body = parser.next_event(), b""
    while isinstance(event := parser.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage), event
    assert parser.trailing_data[0] == b""
    return request.method, request.target, body


class Sink:
    def __init__(self):
        self.body, self.count = b"", 0

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        self.count += 1


def read_by_llhttp(data):
    sink = Sink()
    parser = httptools.HttpRequestParser(sink)
    with contextlib.suppress(httptools.HttpParserUpgrade):
        parser.feed_data(data)
    assert sink.count == 1
    return parser.get_method(), sink.body


@given(heads, st.binary(max_size=40))
@example(b"GET http://a/ HTTP/1.1\r\nHost: b\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", b"")
def test_what_is_built_for_an_engine_is_one_message_for_every_reader(data, payload):
    read = parsed(data)
    if read is None:
        return
    head, _ = read
    payload = payload[: head.length] if head.length >= 0 else payload
    if len(payload) < head.length:
        payload += b"x" * min(head.length - len(payload), 10_000_000)
    if head.length > len(payload):
        return  # as long as nobody would send it
    body = payload if head.length >= 0 else (chunk(payload) if payload else b"") + last_chunk([])
    built = build_request(head, VIA) + body
    assert read_by_h11(built) == (head.method, head.target, payload)
    if not head.upgrade:
        assert read_by_llhttp(built) == (head.method, payload)
    again = parsed(built)
    assert again is not None
    assert (again[0].target, again[0].host, again[0].length) == (head.target, head.host, head.length)
    assert set(head.headers) <= set(again[0].headers)


@given(
    mutations(
        seeds=[b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX: y\r\n\r\n", b"HTTP/1.0 304 x\r\nConnection: X\r\n\r\n"]
    )
)
def test_an_answers_head_is_read_or_refused_and_built_as_one(data):
    with contextlib.suppress(BadAnswer):
        head = parse_answer(data.partition(b"\r\n\r\n")[0] + b"\r\n\r\n", b"GET")
        built = build_answer(head, b"x-swapd-revision: 1\r\n", chunked=head.length < 0, close=False)
        assert built.count(b"\r\n\r\n") == 1
        assert built.endswith(b"\r\n\r\n")
        again = parse_answer(built, b"GET")
        assert (again.status, again.length) == (head.status, -1 if head.length == -2 else head.length)


def read_all(data, cuts):
    """(body, trailers, rest), or that it is bad."""
    body = body_of(-1)
    out, at = b"", 0
    try:
        for end in [*sorted(cut for cut in cuts if cut < len(data)), len(data)]:
            pieces, rest = body.feed(data[at:end])
            out += b"".join(pieces)
            at = end
            if body.done:
                return out, body.trailers, rest + data[end:]
    except BadBody:
        return "bad"
    return out, body.trailers, None


@given(tails | st.binary(max_size=60), st.lists(st.integers(1, 80), max_size=10))
def test_chunks_are_read_or_refused_the_same_however_they_are_cut(data, cuts):
    assert read_all(data, cuts) == read_all(data, [])
