"""Samples of disagreements: short, bounded in number and bytes, JSON whatever was compared, and without secrets."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.agreement import Answer, Difference, Outcome, compare, read_comparison
from swapd.core.json_values import MISSING
from swapd.core.shadow_samples import MAX_SAMPLE, MAX_SAMPLES, Asked, Samples, read_redaction, sample

SECRET = "hunter2hunter2"
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=200)
NAMES = st.text(max_size=200)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=30) | st.dictionaries(NAMES, v, max_size=30), max_leaves=25
)


def told(stable, candidate, redact=(), request=b"", params=None):
    answers = [
        Answer(200, body if isinstance(body, bytes) else json.dumps(body).encode()) for body in (stable, candidate)
    ]
    outcome = compare(read_comparison(params or {}), *answers)
    asked = Asked(1.5, "id-1", "POST", "/v1/x", request)
    return sample(read_redaction(list(redact)), asked, *answers, outcome)


def test_a_sample_says_what_was_asked_and_what_differs():
    one = told({"a": 1, "b": 2}, {"a": 1, "b": 3}, request=b'{"q": "?"}')
    assert one == {
        "at": 1.5,
        "request_id": "id-1",
        "method": "POST",
        "path": "/v1/x",
        "status": [200, 200],
        "why": "one value differs",
        "score": 0.5,
        "differences": [{"path": "/b", "stable": 2, "candidate": 3}],
        "request": {"q": "?"},
        "stable": {"a": 1, "b": 2},
        "candidate": {"a": 1, "b": 3},
    }


@pytest.mark.parametrize("redact", ["/user", "/*/name", "/user/name", "/user/*"])
def test_what_is_to_be_redacted_is_nowhere_in_it(redact):
    said = {"user": {"name": SECRET}, "n": 1}
    one = told(said, {**said, "user": {"name": SECRET + "!"}}, [redact], json.dumps(said).encode())
    assert SECRET not in json.dumps(one)
    path = "/user" if redact == "/user" else "/user/name"
    assert one["differences"] == [{"path": path, "stable": "***", "candidate": "***"}]
    assert one["request"]["n"] == 1


def test_names_below_what_is_redacted_are_not_told():
    one = told({"users": {SECRET: 1}}, {"users": {SECRET: 2}}, ["/users"])
    assert SECRET not in json.dumps(one)
    assert one["differences"][0]["path"] == "/users"


@pytest.mark.parametrize(
    "name", ["password", "api_key", "X-Api-Key", "apiKey", "access_token", "authToken", "Authorization"]
)
def test_what_is_named_like_a_secret_is_masked_without_being_told(name):
    one = told({name: SECRET, "t": 1}, {name: SECRET, "t": 2}, (), json.dumps({"a": [{name: SECRET}]}).encode())
    assert SECRET not in json.dumps(one)


def test_a_count_of_tokens_is_no_secret():
    assert told({"max_tokens": 5}, {"max_tokens": 6})["differences"][0] == {
        "path": "/max_tokens",
        "stable": 5,
        "candidate": 6,
    }


def test_a_body_that_cannot_be_masked_by_path_is_not_shown_then():
    html = f"<p>{SECRET}</p>".encode()
    assert SECRET in json.dumps(told({"a": 1}, html))
    one = told({"a": 1}, html, ["/user"], b"user=" + SECRET.encode())
    assert SECRET not in json.dumps(one)
    assert SECRET not in json.dumps(told(html, b"?" + html, ["/user"], params={"how": "text"}))
    assert SECRET not in json.dumps(told(html, b"?" + html, ["/user"], params={"how": "exact"}))


@given(stable=VALUES, candidate=VALUES, request=VALUES)
def test_a_sample_is_small_json_without_nan(stable, candidate, request):
    one = told(stable, candidate, ["/a"], json.dumps(request).encode())
    written = json.dumps(one, allow_nan=False)
    assert len(written) <= MAX_SAMPLE


def test_missing_infinite_and_endless_values_can_be_shown():
    differences = tuple(
        Difference(("a",), value, MISSING) for value in (math.nan, 10**400, [[[[[[[[1]]]]]]]], {"x": {}})
    )
    outcome = Outcome(False, 0.0, "w" * 9999, differences)
    asked = Asked(0.0, "i" * 9999, "GET", "/" + "p" * 9999, b"\xff" * 9999)
    one = sample(read_redaction([]), asked, Answer(200, b"[" * 99999), None, outcome)
    assert len(json.dumps(one, allow_nan=False)) <= MAX_SAMPLE
    assert one["status"] == [200, None]


def test_the_newest_are_kept_within_both_bounds():
    samples = Samples(3)
    for number in range(10):
        samples.add({"why": str(number)})
    assert [each["n"] for each in samples.to_json()] == [8, 9, 10]
    wide = Samples(1000)
    for number in range(100):
        wide.add({"why": "x" * 1500, "number": number})
    assert len(json.dumps(wide.to_json())) <= MAX_SAMPLES + 2 * 100
    assert wide.to_json()[-1]["number"] == 99
    again = Samples(1000)
    again.restore(wide.to_json())
    again.add({"why": "next"})
    assert again.to_json()[-1]["n"] == 101
    none = Samples(0)
    none.add({"why": "?"})
    assert none.to_json() == []


@pytest.mark.parametrize("paths", ["/a", [1], ["a"], None])
def test_bad_paths_are_told(paths):
    with pytest.raises(ValueError, match=r"redact|pointer"):
        read_redaction(paths)
