"""Where a body ends, whatever pieces it comes in: the strict reading of RFC 9112 7.1."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.front.relay.bodies import MAX_LINE_BYTES, BadBody, body_of, chunk, last_chunk


def read(length, pieces):
    """(the body's data, what lies beyond it, the reader)"""
    body = body_of(length)
    data = rest = b""
    for piece in pieces:
        if body.done:
            rest += piece
            continue
        got, rest = body.feed(piece)
        data += b"".join(got)
    return data, rest, body


def cut(data, at):
    edges = [0, *sorted(at), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=6), st.data())
def test_chunks_are_read_the_same_however_they_are_cut(chunks, data):
    trailers = [(b"x-sum", b"7 8")]
    sent = b"".join(map(chunk, chunks)) + last_chunk(trailers) + b"GET /next"
    at = data.draw(st.lists(st.integers(0, len(sent)), max_size=8))
    got, rest, body = read(-1, cut(sent, at))
    assert (got, rest, body.done, body.trailers) == (b"".join(chunks), b"GET /next", True, trailers)


@given(st.binary(max_size=40), st.lists(st.integers(0, 60), max_size=5))
def test_counted_bytes_end_where_they_end(payload, at):
    got, rest, body = read(len(payload), cut(payload + b"GET /next", [min(a, len(payload) + 9) for a in at]))
    assert (got, rest, body.done) == (payload, b"GET /next", True)


def test_a_body_without_an_announced_end_ends_with_the_connection():
    got, rest, body = read(-2, [b"a", b"bc"])
    assert (got, rest, body.done) == (b"abc", b"", False)


@pytest.mark.parametrize(
    "line",
    [b"5 ", b" 5", b"0x5", b"+5", b"-5", b"", b"g", b"1" * 16, b"5;a\x00b", b"5;" + b"a" * MAX_LINE_BYTES, b"5\n"],
)
def test_a_chunk_whose_size_can_be_read_in_two_ways_is_refused(line):
    with pytest.raises(BadBody):
        read(-1, [line + b"\r\nhello\r\n0\r\n\r\n"])


@pytest.mark.parametrize(
    "sent",
    [
        b"5\nhello\n0\n\n",
        b"5\r\nhelloX\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"5\r\nhello\r0\r\n\r\n",
        b"0\r\nbad name: x\r\n\r\n",
        b"0\r\nname : x\r\n\r\n",
        b"0\r\nx: a\r\n b\r\n\r\n",
        b"0\r\nx: \x00\r\n\r\n",
        b"0\r\n" + b"x: y\r\n" * 4000 + b"\r\n",
    ],
)
def test_broken_chunks_and_trailers_are_refused(sent):
    with pytest.raises(BadBody):
        read(-1, [sent])


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_line_that_never_ends_is_refused_before_it_fills_memory(size):
    with pytest.raises(BadBody):
        read(-1, [b"1" * size] * (MAX_LINE_BYTES // size + 2))


def test_extensions_are_dropped_and_trailers_that_frame_or_authorise_too():
    sent = b"5;name=value\r\nhello\r\n0\r\nX-Sum: 1 \r\nContent-Length: 9\r\nSet-Cookie: a\r\nAuthorization: b\r\n\r\n"
    got, _, body = read(-1, [sent])
    assert (got, body.trailers) == (b"hello", [(b"x-sum", b"1")])


@pytest.mark.parametrize(("length", "sent"), [(5, b"hell"), (-1, b"5\r\nhello\r\n"), (-1, b"5\r\nhel"), (-1, b"0\r\n")])
def test_a_body_that_stops_early_is_not_done(length, sent):
    _, _, body = read(length, [sent])
    assert not body.done
