from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.core.config import ExpectConfig
from swapd.core.errors import PROBE_FAILED, PROBE_TOO_SLOW, WARMUP_FAILED, SwapdError
from swapd.core.readiness import check_answer, parse_warmup


def check(body: object, *, status: int = 200, elapsed_s: float = 0.1, **expect):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return check_answer(ExpectConfig(**expect), status=status, body=data, elapsed_s=elapsed_s)


ANSWER = {"choices": [{"text": "hi", "index": 0, "a/b": {"c~d": None}}], "ok": True, "": 5}


@pytest.mark.parametrize(
    "pointer", ["", "/choices", "/choices/0", "/choices/0/text", "/choices/0/a~1b/c~0d", "/", "/ok"]
)
def test_a_pointer_that_exists_is_right_whatever_it_points_to(pointer):
    assert check(ANSWER, json_pointer=pointer) is None


@pytest.mark.parametrize(
    ("pointer", "missing"),
    [
        ("/nothing", "/nothing"),
        ("/choices/1", "/choices/1"),
        ("/choices/00", "/choices/00"),
        ("/choices/-", "/choices/-"),
        ("/choices/-1", "/choices/-1"),
        ("/choices/" + "9" * 5000, "/choices/9"),
        ("/choices/0/text/x", "/choices/0/text/x"),
        ("/choices/\u0660", "/choices/\u0660"),
    ],
)
def test_a_pointer_to_nothing_is_named_with_the_part_that_is_missing(pointer, missing):
    problem = check(ANSWER, json_pointer=pointer)
    assert problem.code == PROBE_FAILED
    assert f"nothing at '{missing}" in problem.message


SCORED = {"label": "cat", "score": 0.5, "n": 3, "vector": [1.0, 2.0], "scores": {"cat": 0.9, "dog": 0.1}}


@pytest.mark.parametrize(
    "expect",
    [
        {"json_exact": json.dumps(SCORED)},
        {"json_exact": json.dumps({**SCORED, "n": 3.0})},
        {"text": json.dumps(SCORED)},
        {"close": (("/score", 0.5004), ("/n", 3.0))},
        {"close": (("/vector", (1.0005, 2.001)),)},
        {"close": (("/score", 0.6),), "atol": 0.1},
        {"close": (("/score", 1.0),), "rtol": 0.5},
        {"label": "/label", "label_is": "cat"},
        {"label": "/scores", "label_is": "cat"},
        {"label": "/vector", "label_is": 1},
        {"label": "/n", "label_is": 3},
    ],
)
def test_an_answer_is_right_in_every_way_that_is_asked(expect):
    assert check(SCORED, **expect) is None


@pytest.mark.parametrize(
    ("expect", "words"),
    [
        ({"json_exact": '{"label": "cat"}'}, 'expected {"label": "cat"} at \'/\' of the answer, got'),
        ({"json_exact": json.dumps({**SCORED, "vector": [1.0, 3.0]})}, "expected 3.0 at '/vector/1'"),
        ({"text": json.dumps(SCORED)[:-1]}, "expected the text"),
        ({"text": "no"}, 'expected the text "no", got {"label"'),
        ({"close": (("/score", 0.6),)}, "expected 0.6 at '/score' of the answer, give or take 0.000601, got 0.5"),
        ({"close": (("/label", 0.6),)}, 'got "cat"'),
        ({"close": (("/vector", (1.0, 2.1)),)}, "expected 2.1 at '/vector/1'"),
        ({"close": (("/vector", (1.0,)),)}, "expected [1.0] at '/vector' of the answer, got [1.0, 2.0]"),
        ({"close": (("/gone", 1.0),)}, "nothing at '/gone'"),
        ({"label": "/label", "label_is": "dog"}, 'expected "dog" at \'/label\' of the answer, got "cat"'),
        ({"label": "/scores", "label_is": "dog"}, 'got "cat"'),
        ({"label": "/gone", "label_is": "dog"}, "nothing at '/gone'"),
        ({"json_pointer": "/label", "label": "/label", "label_is": "dog"}, 'got "cat"'),
    ],
)
def test_an_answer_that_is_wrong_in_one_way_says_in_which(expect, words):
    problem = check(SCORED, **expect)
    assert problem.code == PROBE_FAILED
    assert words in problem.message


@pytest.mark.parametrize("body", [b'{"score": NaN}', b'{"score": true}', b'{"score": 1%s}' % (b"0" * 400), b"[]"])
def test_what_is_no_finite_number_is_close_to_none(body):
    assert check(body, close=(("/score", 1.0),), rtol=0.9).code == PROBE_FAILED


def test_a_long_text_is_told_from_where_it_differs():
    problem = check(b"x" * 5000 + b"b", text="x" * 5000 + "a")
    assert "from character 4980 on" in problem.message
    assert problem.message.endswith("xb")
    assert len(problem.message) < 300


@pytest.mark.parametrize(
    "labels", [[{"label": "cat", "score": 0.1}, {"label": "dog", "score": 0.2}], {"cat": 1, "dog": 2}]
)
def test_of_scores_the_highest_label_counts(labels):
    assert check(labels, label="", label_is="dog") is None
    assert check(labels, label="", label_is="cat").code == PROBE_FAILED


@pytest.mark.parametrize(
    "expected", [{}, {"ok": True}, {"choices": [{"text": "hi"}]}, {"choices": [{"a/b": {}}]}, {"": 5.0}]
)
def test_an_object_is_contained_key_by_key(expected):
    assert check(ANSWER, json_contains=expected) is None


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"ok": 1}, "expected 1 at '/ok' of the answer, got true"),
        ({"missing": 1}, "expected 1 at '/missing' of the answer, got no such key in"),
        ({"choices": []}, "expected [] at '/choices'"),
        ({"choices": [{"text": "ho"}]}, 'expected "ho" at \'/choices/0/text\' of the answer, got "hi"'),
        ({"choices": {"0": {}}}, "at '/choices' of the answer, got [{"),
        ({"ok": None}, "expected null at '/ok' of the answer, got true"),
    ],
)
def test_a_difference_is_shown_where_it_is(expected, words):
    problem = check(ANSWER, json_contains=expected)
    assert problem.code == PROBE_FAILED
    assert words in problem.message


def test_the_status_is_judged_before_the_body():
    problem = check(b"<html>Bad\x00 Gateway</html>", status=502, json_pointer="/a")
    assert problem.message == "expected status 200, got 502: <html>Bad  Gateway</html>"


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 100_000, b"nan?"])
def test_what_is_not_json_is_said_not_to_be(body):
    problem = check(body, json_pointer="")
    assert problem.message.startswith("expected JSON, got ")
    assert len(problem.message) < 300


def test_a_right_answer_that_came_late_is_too_slow():
    problem = check(ANSWER, within_s=2.0, elapsed_s=2.5)
    assert (problem.code, problem.message) == (
        PROBE_TOO_SLOW,
        "expected an answer within 2 s, got it after 2.5 s",
    )
    assert check(ANSWER, within_s=2.0, elapsed_s=2.0) is None


def test_messages_stay_short_however_long_the_answer():
    long = {"text": "x" * 1_000_000}
    for problem in (
        check(long, status=500),
        check(long, json_pointer="/y"),
        check(long, json_contains={"text": "y" * 1_000_000}),
        check(long, json_contains={"other": 1}),
    ):
        assert len(problem.message) < 700


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), JSON, max_size=4), st.data())
def test_every_part_of_an_answer_is_contained_in_it_and_pointed_to(answer, data):
    assert check(answer, json_contains=answer) is None
    pointer, value = "", answer
    while isinstance(value, dict | list) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
        pointer += "/" + str(key).replace("~", "~0").replace("/", "~1")
        value = value[key]
    assert check(answer, json_pointer=pointer) is None


@given(st.binary(max_size=200), st.sampled_from(["", "/a", "/0"]))
def test_any_bytes_are_judged_without_a_crash(body, pointer):
    check(body, json_pointer=pointer)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nope", "line 2 of warm.jsonl is not a request"),
        ("[1]", "expected a JSON object"),
        ('{"pth": "/"}', "unknown key 'pth'"),
        ('{"json": {}, "body": ""}', "not both"),
        ('{"path": "v1"}', "path: "),
        ('{"path": "/a b"}', "path: "),
        ('{"method": "GET /"}', "method: "),
        ('{"headers": {"a": "b\\nc"}}', "headers"),
        ('{"headers": {"content-length": "5"}}', "headers"),
        ('{"body": {"a": 1}}', "body: "),
    ],
)
def test_a_warmup_line_that_is_wrong_is_named(line, words):
    with pytest.raises(SwapdError) as caught:
        parse_warmup(f'{{"path": "/"}}\n{line}\n'.encode(), "warm.jsonl")
    assert caught.value.code == WARMUP_FAILED
    assert caught.value.details == {"line": 2}
    assert words in caught.value.message
