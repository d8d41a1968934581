"""The worker protocol's bytes: round trips, bounds, and what is not a message."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.errors import Problem
from swapd.wire.worker import (
    MAX_MESSAGE_BYTES,
    Reply,
    Request,
    WireError,
    WorkerEvent,
    decode,
    encode,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
params = st.dictionaries(st.text(), values, max_size=4)
ids = st.integers(0, 2**53)


@given(
    st.builds(Request, ids, st.text(), params)
    | st.builds(WorkerEvent, st.text(), params)
    | st.builds(lambda re, ok: Reply(re, ok=ok), ids, params)
    | st.builds(
        lambda re, code, message, details: Reply(re, error=Problem(code, message, details)),
        ids,
        st.text(),
        st.text(),
        params,
    )
)
def test_what_is_encoded_comes_back(message):
    assert decode(encode(message)) == message


@given(st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_a_message_or_a_wire_error(data):
    with contextlib.suppress(WireError):
        decode(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"7",
        b'{"verb":"load"}',
        b'{"id":"7","verb":"load"}',
        b'{"id":true,"verb":"load"}',
        b'{"id":7,"verb":7}',
        b'{"id":7,"verb":"load","params":[]}',
        b'{"re":7,"ok":[]}',
        b'{"re":7,"error":{"code":"X"}}',
        b'{"re":"x","ok":{}}',
        b'{"event":7}',
        b"[" * 100_000,
    ],
)
def test_what_is_not_a_message_is_refused(data):
    with pytest.raises(WireError):
        decode(data)


def test_unknown_fields_are_ignored():
    assert decode(b'{"id":1,"verb":"load","params":{"new":1},"newer":2}') == Request(1, "load", {"new": 1})
    assert decode(b'{"re":1}') == Reply(1, ok={})


def test_a_message_has_a_limit_in_both_directions():
    too_long = "x" * MAX_MESSAGE_BYTES
    with pytest.raises(WireError, match="over the limit"):
        encode(Request(1, "load", {"x": too_long}))
    with pytest.raises(WireError, match="over the limit"):
        decode(b'{"id":1,"verb":"load","params":{"x":"' + too_long.encode() + b'"}}')
