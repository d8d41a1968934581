"""Comparators: what agrees, what does not, what cannot be said; and nothing that a server sends makes them fail."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.agreement import (
    MAX_DEPTH,
    MAX_DIFFERENCES,
    MAX_NODES,
    Answer,
    above_noise,
    compare,
    events_of,
    label_of,
    read_comparison,
)

HOWS = ("exact", "json", "number", "label", "text")
SPECIAL = [math.nan, math.inf, -math.inf]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(SPECIAL) | st.text(max_size=8)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(max_size=4), v, max_size=4))
OPENAI = {"ignore": ["/id", "/created", "/choices/*/id"]}


def judged(params, stable, candidate, statuses=(200, 200), event_stream=False):
    bodies = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in (stable, candidate)]
    answers = [Answer(status, body, event_stream) for status, body in zip(statuses, bodies, strict=True)]
    return compare(read_comparison(params), *answers)


def agreed(params, stable, candidate, **more):
    return judged(params, stable, candidate, **more).agreed


def paths(outcome):
    return ["/".join(difference.path) for difference in outcome.differences]


def test_exact_is_byte_by_byte():
    assert agreed({"how": "exact"}, b"abc", b"abc") is True
    outcome = judged({"how": "exact"}, b"abcdef", b"abcXef")
    assert (outcome.agreed, outcome.score) == (False, 0.5)
    assert "byte 3" in outcome.why


@pytest.mark.parametrize("how", HOWS)
def test_another_status_is_a_disagreement(how):
    outcome = judged({"how": how}, b"1", b"1", statuses=(200, 404))
    assert outcome.agreed is False
    assert outcome.why == "it answered 404, the stable 200"


def test_json_is_equal_by_value_in_any_order_and_writing():
    assert agreed({}, b'{"a": 1, "b": [1.0, "\\u00e9"]}', '{"b":[1,"é"],"a":1.0}'.encode())
    assert agreed({}, [1, 2], [2, 1]) is False
    assert agreed({}, {"a": 1}, {"a": True}) is False
    assert agreed({}, {"a": None}, {}) is False
    assert agreed({}, b"[NaN]", b"[ NaN]") is True


def test_ignored_paths_do_not_count_whether_there_or_not():
    stable = {"id": 1, "created": 5, "choices": [{"id": "x", "text": "a"}, {"id": "y", "text": "b"}]}
    candidate = {"id": 2, "choices": [{"id": "z", "text": "a"}, {"text": "b"}], "created": {"at": 7}}
    assert agreed(OPENAI, stable, candidate) is True
    candidate["choices"][1]["text"] = "c"
    outcome = judged(OPENAI, stable, candidate)
    assert paths(outcome) == ["choices/1/text"]
    assert 0.5 <= outcome.score < 1


def test_numbers_within_the_tolerance_are_equal():
    tolerant = {"rtol": 0.01, "atol": 0.001}
    assert agreed(tolerant, {"score": 100, "text": "a"}, {"score": 100.9, "text": "a"}) is True
    assert agreed(tolerant, {"score": 100}, {"score": 101.1}) is False
    assert agreed(tolerant, {"score": 0.0}, {"score": 0.0009}) is True
    assert agreed(tolerant, {"score": 1, "text": "a"}, {"score": 1, "text": "b"}) is False
    assert agreed(tolerant, b"[Infinity]", b"[1e999 ]") is True
    assert agreed(tolerant, b"[Infinity]", b"[0]") is False
    assert agreed(tolerant, b"[NaN]", b"[0]") is False


def test_number_looks_at_numbers_alone_and_at_the_shape():
    assert agreed({"how": "number"}, {"e": [0.1, 0.2], "id": "a"}, {"e": [0.10001, 0.2], "id": "b"}) is True
    assert agreed({"how": "number"}, {"e": [0.1, 0.2]}, {"e": [0.1]}) is False
    assert agreed({"how": "number"}, {"e": [0.1]}, {"e": ["0.1"]}) is False
    assert agreed({"how": "number", "pointer": "/e", "rtol": 0.5}, {"e": [1], "t": 1}, {"e": [1.4], "t": 9}) is True


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("cat", "cat"),
        ({"cat": 0.7, "dog": 0.3}, "cat"),
        ({"label": "dog", "score": 0.9}, "dog"),
        ([{"label": "cat", "score": 0.2}, {"label": "dog", "score": 0.8}], "dog"),
        ([[{"label": "cat", "score": 0.9}, {"label": "dog", "score": 0.1}]], "cat"),
        ([0.1, 0.7, 0.2], 1),
        ([0.5, math.nan], None),
        ([], None),
        ({}, None),
        (None, None),
        ({"cat": "much"}, None),
        ([{"label": "cat"}, {"label": "dog"}], "cat"),
    ],
)
def test_the_top_label(value, label):
    assert label_of(value) == label


def test_labels_agree_whatever_their_scores():
    params = {"how": "label", "pointer": "/out"}
    assert agreed(params, {"out": {"cat": 0.9, "dog": 0.1}}, {"out": {"cat": 0.6, "dog": 0.4}}) is True
    outcome = judged(params, {"out": {"cat": 0.9, "dog": 0.1}}, {"out": {"cat": 0.4, "dog": 0.6}})
    assert (outcome.agreed, outcome.differences[0].candidate) == (False, "dog")
    assert agreed(params, {"out": []}, {"out": "cat"}) is None
    assert agreed(params, {"out": "cat"}, {"out": []}) is False
    assert agreed(params, {"out": 1}, {"out": True}) is False


def completion(text, finish="stop"):
    return {"choices": [{"text": text, "finish_reason": finish}]}


def test_texts_agree_by_their_beginning_and_their_length():
    params = {"how": "text", "pointer": "/choices/0/text", "threshold": 0.7}
    assert agreed(params, completion("abcdefghij"), completion("abcdefghiX")) is True
    assert agreed(params, completion("abcdefghij"), completion("abcdeXXXXX")) is False
    assert agreed(params, completion("abcdefghij"), completion("abcde")) is False
    assert agreed(params, completion("abcd"), completion("abcd", "length")) is False
    assert agreed(params, completion(""), completion("", "stop")) is True
    assert agreed(params, {"error": 1}, completion("a")) is None
    assert agreed(params, completion("a"), {"error": 1}) is False
    outcome = judged(params, completion("a" * 100 + "b"), completion("a" * 50))
    assert outcome.score == pytest.approx(50 / 101)
    assert outcome.differences[0].stable == "a" * 90 + "b"  # around the place where they part
    assert agreed({"how": "text"}, b"plain text", b"plain texT") is True


def stream(*texts, done=True):
    events = [b"data: " + json.dumps({"choices": [{"delta": {"content": text}}]}).encode() for text in texts]
    return b"\r\n\r\n".join([*events, b"data: [DONE]" if done else b": bye", b""])


def test_streams_are_compared_by_what_they_say_put_together():
    params = {"how": "text", "pointer": "/choices/0/delta/content", "threshold": 1.0}
    assert agreed(params, stream("a", "bc", "d"), stream("ab", "cd", done=False), event_stream=True) is True
    assert agreed(params, stream("a", "bc"), stream("ab"), event_stream=True) is False
    assert agreed({}, stream("a", "b"), stream("a", "b", done=False), event_stream=True) is True
    assert list(events_of(b"data: 1\ndata:2\n\n: none\n\ndata: [DONE]\n\ndata: 3")) == [b"1\n2", b"3"]


@pytest.mark.parametrize("how", ["json", "number", "label"])
def test_a_broken_schema_is_the_candidates_fault_alone(how):
    assert agreed({"how": how}, b"1", b"<html>") is False
    assert agreed({"how": how}, b"<html>", b"1") is None
    assert agreed({"how": how, "pointer": "/a"}, {"b": 1}, {"a": 1}) is None
    assert agreed({"how": how, "pointer": "/a"}, {"a": 1}, {"b": 1}) is False


DEEP = b"[" * 50_000 + b"]" * 50_000
HUGE = [
    DEEP,
    b"[" * 100_000,
    b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
    b"[" + b"9" * 1_000_000 + b"]",
    b"[" + b"1," * MAX_NODES * 2 + b"1]",
    b"[" * (MAX_DEPTH + 5) + b"1" + b"]" * (MAX_DEPTH + 5),
    b"\xff\xfe\x00",
    b"\x00" * 1000,
    b'"\\ud800"',
    b"",
    b"-" * 100_000,
    b"1e" + b"9" * 100_000,
]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("body", HUGE, ids=range(len(HUGE)))
def test_nothing_is_too_much(how, body):
    for params in ({"how": how}, {"how": how, "pointer": "/0/0"}):
        for event_stream in (False, True):
            judged(params, body, body + b" ", event_stream=event_stream)
            judged(params, body, b'{"a": 1}', event_stream=event_stream)
            judged(params, b'{"a": 1}', body, event_stream=event_stream)


def test_the_search_for_differences_ends():
    outcome = judged({}, list(range(5000)), list(range(1, 5001)))
    assert outcome.agreed is False
    assert len(outcome.differences) == MAX_DIFFERENCES


@pytest.mark.parametrize("how", HOWS)
@given(value=VALUES)
def test_whatever_is_said_again_agrees(how, value):
    body = json.dumps(value).encode()
    assert agreed({"how": how}, body, body) is True
    spaced = judged({"how": how}, body, b" " + body + b" ")
    if how in ("json", "number"):
        assert spaced.agreed is True
    if how == "label":
        assert spaced.agreed in (True, None)


@given(one=VALUES, other=VALUES, how=st.sampled_from(HOWS), pointer=st.sampled_from(["", "/0", "/a/0"]))
def test_any_two_values_have_an_outcome(one, other, how, pointer):
    params = {"how": how, "pointer": pointer, "ignore": ["/a", "/*/b"]}
    outcome = judged(params, one, other)
    assert 0.0 <= outcome.score <= 1.0
    assert (outcome.why == "") is (outcome.agreed is True)
    assert outcome.agreed is not None or how != "exact"


@given(value=VALUES.filter(lambda v: isinstance(v, dict)), name=st.text(max_size=3), added=LEAVES)
def test_a_field_more_is_a_disagreement_unless_ignored(value, name, added):
    changed = {**{k: v for k, v in value.items() if k != name}, name: [added, "new"]}
    if name in value and value[name] == changed[name]:
        return
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    assert agreed({}, value, changed) is False
    assert agreed({"ignore": [pointer]}, value, changed) is True


@given(body=st.binary(max_size=200), other=st.binary(max_size=200), how=st.sampled_from(HOWS), stream=st.booleans())
def test_any_bytes_have_an_outcome(body, other, how, stream):
    judged({"how": how}, body, other, event_stream=stream)
    judged({"how": how, "pointer": "/a"}, body, other, event_stream=stream)


@pytest.mark.parametrize(
    "params",
    [
        {"how": "guess"},
        {"ignore": "/a"},
        {"ignore": ["a"]},
        {"pointer": "a"},
        {"pointer": 1},
        {"rtol": -1},
        {"atol": math.nan},
        {"threshold": True},
        {"rtol": "1"},
    ],
)
def test_a_bad_setting_is_told(params):
    with pytest.raises(ValueError, match=r"compare|pointer"):
        read_comparison(params)


def test_what_the_stable_does_not_agree_with_itself_about_is_nobodys_fault():
    assert above_noise(0, 0, 10, 10) is None
    assert above_noise(100, 97, 0, 0) == pytest.approx(0.97)
    assert above_noise(100, 68, 10, 7) == pytest.approx(0.98)
    assert above_noise(100, 90, 10, 5) == 1.0
