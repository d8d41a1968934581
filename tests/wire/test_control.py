"""The control protocol: what is accepted, and what a wrong message is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swapd.core import errors
from swapd.core.errors import Problem
from swapd.wire import control
from swapd.wire.control import Failure, Request, Success


def message(**changes: Any) -> bytes:
    body: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": "swap", "params": {"service": "chat", "to": "b"}}
    body.update(changes)
    return json.dumps({key: value for key, value in body.items() if value is not ...}).encode()


def failure(raw: bytes) -> Failure:
    found = control.decode_request(raw)
    assert isinstance(found, Failure)
    return found


def test_a_request_comes_out_with_its_parameters():
    found = control.decode_request(message())
    assert found == Request(7, "swap", {"service": "chat", "to": "b"})


def test_missing_params_are_no_params():
    assert control.decode_request(message(method="status", params=...)) == Request(7, "status", {})
    assert control.decode_request(message(method="status", params=None)) == Request(7, "status", {})


def test_null_is_not_given():
    found = control.decode_request(message(method="status", params={"service": None}))
    assert found == Request(7, "status", {})


@pytest.mark.parametrize(("given", "seconds"), [("2m", 120.0), ("500ms", 0.5), (90, 90.0), (0, 0.0), ("0s", 0.0)])
def test_durations_reach_the_handler_in_seconds(given, seconds):
    found = control.decode_request(message(params={"service": "chat", "to": "b", "max_outage": given}))
    assert isinstance(found, Request)
    assert found.params["max_outage"] == seconds


@pytest.mark.parametrize(
    ("raw", "rpc_code", "says"),
    [
        (b"", control.PARSE_ERROR, "not JSON"),
        (b"swap chat b", control.PARSE_ERROR, "not JSON"),
        (b'{"jsonrpc": "2.0", "id": 7', control.PARSE_ERROR, "not JSON"),
        (b"\xff\xfe", control.PARSE_ERROR, "not JSON"),
        (b"7", control.PARSE_ERROR, "expected an object"),
        (
            b'{"jsonrpc": "2.0", "id": 1, "method": "status", "params": ' + b"[" * 100_000,
            control.PARSE_ERROR,
            "not JSON",
        ),
        (b" [" + message() + b"]", control.INVALID_REQUEST, "batches"),
        (b"{}", control.INVALID_REQUEST, "id"),
        (message(id=...), control.INVALID_REQUEST, "id"),
        (message(id=None), control.INVALID_REQUEST, "id"),
        (message(id=True), control.INVALID_REQUEST, "id"),
        (message(id=[1]), control.INVALID_REQUEST, "id"),
        (message(id="x" * 200), control.INVALID_REQUEST, "id"),
        (message(jsonrpc="1.0"), control.INVALID_REQUEST, "jsonrpc"),
        (message(jsonrpc=...), control.INVALID_REQUEST, "jsonrpc"),
        (message(method=...), control.INVALID_REQUEST, "method"),
        (message(method=["swap"]), control.INVALID_REQUEST, "method"),
        (b"{" + b" " * control.MAX_REQUEST_BYTES + b"}", control.INVALID_REQUEST, "bytes"),
    ],
)
def test_what_is_no_request_is_told_so(raw, rpc_code, says):
    found = failure(raw)
    assert (found.rpc_code, found.problem.code) == (rpc_code, errors.BAD_REQUEST)
    assert says in found.problem.message


def test_an_unknown_method_is_told_what_it_may_have_meant():
    found = failure(message(method="sawp"))
    assert (found.rpc_code, found.problem.code) == (control.METHOD_NOT_FOUND, errors.UNKNOWN_METHOD)
    assert "did you mean 'swap'" in found.problem.message
    assert found.id == 7


@pytest.mark.parametrize(
    ("method", "params", "parameter", "says"),
    [
        ("swap", {"service": "chat"}, "to", "swap needs it"),
        ("swap", {"service": "chat", "to": "b", "stratgy": "dual"}, "stratgy", "did you mean 'strategy'"),
        ("swap", {"service": 7, "to": "b"}, "service", "expected a name"),
        ("swap", {"service": "", "to": "b"}, "service", "expected a name"),
        ("swap", {"service": "ch\nat", "to": "b"}, "service", "expected a name"),
        ("swap", {"service": "c" * 129, "to": "b"}, "service", "expected a name"),
        ("swap", {"service": ["chat"], "to": "b"}, "service", "expected a name"),
        ("swap", {"service": "chat", "to": "b", "max_outage": "2 fortnights"}, "max_outage", "unit"),
        ("swap", {"service": "chat", "to": "b", "max_outage": -1}, "max_outage", "expected a duration"),
        ("swap", {"service": "chat", "to": "b", "max_outage": True}, "max_outage", "expected a duration"),
        ("swap", {"service": "chat", "to": "b", "max_outage": {"s": 2}}, "max_outage", "expected a duration"),
        ("swap", ["chat", "b"], "params", "expected an object"),
        ("show", {"id": "42"}, "id", "expected a whole number"),
        ("show", {"id": -1}, "id", "expected a whole number"),
        ("history", {"limit": 10**30}, "limit", "expected a whole number"),
        ("show", {"id": True}, "id", "expected a whole number"),
        ("show", {"id": 1.5}, "id", "expected a whole number"),
        ("reload", {"dry_run": 1}, "dry_run", "expected true or false"),
        ("hello", {"x": 1}, "x", "it takes none"),
        ("status", {"bogus": 1}, "bogus", "it takes service"),
        ("cancel", {}, "service", "either service or id"),
        ("cancel", {"service": "chat", "id": 42}, "service", "either service or id"),
    ],
)
def test_a_wrong_parameter_is_named(method, params, parameter, says):
    found = failure(message(method=method, params=params))
    assert (found.rpc_code, found.problem.code) == (control.INVALID_PARAMS, errors.BAD_REQUEST)
    assert found.problem.message.startswith(f"{parameter}: ")
    assert says in found.problem.message
    assert found.problem.details["parameter"] == parameter


@pytest.mark.parametrize("to", [41, "a"])
def test_a_rollback_names_a_revision_or_a_model(to):
    assert isinstance(control.decode_request(message(method="rollback", params={"service": "chat", "to": to})), Request)


def test_every_acting_method_may_be_repeated_and_signed():
    for method in control.METHODS.values():
        assert ("request_id" in method.params) == method.acts, method.name
        assert ("actor" in method.params) == method.acts, method.name


# Deliberately near to being right: random bytes alone stop at the first brace.
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
_methods = st.sampled_from(sorted(control.METHODS)) | _values
_params = st.dictionaries(
    st.sampled_from(["service", "to", "id", "seq", "epoch", "max_outage"]) | st.text(max_size=5), _values
)
_near = st.fixed_dictionaries(
    {}, optional={"jsonrpc": st.just("2.0") | _values, "id": _values, "method": _methods, "params": _params | _values}
).map(lambda body: json.dumps(body).encode(errors="surrogatepass"))


@given(st.binary(max_size=200) | _near)
@example(b'{"jsonrpc":"2.0","id":"\\ud800","method":"status"}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"\\ud800"}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"\\ud800":1}}')
@example(b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"status"}')
@example(b'{"jsonrpc":"2.0","id":"\xff","method":"status"}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"\xff"}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"\xff":1}}')
@example(b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"service":"\xff"}}')
@example(b'{"jsonrpc":"2.0","id":1e999,"method":"status"}')
def test_any_bytes_become_a_request_or_a_reply_that_can_be_sent(raw):
    found = control.decode_request(raw)
    if isinstance(found, Failure):
        body = json.loads(control.encode_reply(found))
        assert body["error"]["data"]["code"] in (errors.BAD_REQUEST, errors.UNKNOWN_METHOD)
    else:
        assert set(found.params) <= set(control.METHODS[found.method].params)
        assert all(isinstance(value, str | int | float | bool) for value in found.params.values())
        json.loads(control.encode_reply(Success(found.id, found.params)))


def test_a_refusal_arrives_as_it_was_sent():
    problem = Problem(errors.VRAM_INSUFFICIENT, "2.5 GiB short", {"short_bytes": 5 << 29})
    reply = control.failure_of(7, problem)
    assert reply.rpc_code == control.REFUSED
    assert control.decode_reply(control.encode_reply(reply)) == reply


def test_a_detail_cannot_hide_the_code():
    reply = control.failure_of(7, Problem(errors.PROBE_FAILED, "wrong answer", {"code": 500}))
    found = control.decode_reply(control.encode_reply(reply))
    assert isinstance(found, Failure)
    assert found.problem.code == errors.PROBE_FAILED


def test_a_result_arrives_as_it_was_sent():
    assert control.decode_reply(control.encode_reply(Success("x", {"a": [1, None]}))) == Success("x", {"a": [1, None]})


def test_a_result_that_is_no_json_is_the_makers_bug():
    with pytest.raises(TypeError):
        control.encode_reply(Success(1, {"socket": object()}))


def test_an_error_of_another_server_has_a_code_too():
    found = control.decode_reply(b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"boom"}}')
    assert found == Failure(1, -32603, Problem(errors.INTERNAL, "boom"))


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"error": 7}', b"\xff", b"[" * 100_000])
def test_what_is_no_reply_is_refused(raw):
    with pytest.raises(control.WireError):
        control.decode_reply(raw)
    with pytest.raises(control.WireError):
        control.decode_event(raw)


def test_a_client_leaves_out_what_is_not_given():
    raw = control.encode_request(7, "swap", {"service": "chat", "to": "b", "strategy": None})
    assert control.decode_request(raw) == Request(7, "swap", {"service": "chat", "to": "b"})
