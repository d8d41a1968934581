"""Percents: exact by count, lasting by session, and in this order: match, session, place of the key, count."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapd.front.relay.routing import Match, Route, Table, read_table
from swapd.front.relay.session import MAX_BODY_BYTES, SessionKey, digest, point_of, read_session_key
from swapd.front.relay.split import Sessions, Split

BY_HEADER = SessionKey("header", b"x-session")
CANARY = (Match("header", b"x-canary", b"always"),)


def table(percent, *, key=None, keep_s=0.0, match=()):
    stable = Route("chat-1", 41, "unix:/a", 100.0 - percent)
    return Table(1, (stable, Route("chat-2", 42, "unix:/b", percent, match)), False, True, key, keep_s)


def split(percent, sessions=None, **more):
    return Split(table(percent, **more), Sessions() if sessions is None else sessions)


def session(name):
    return [(b"x-session", name.encode())]


def chosen(split, headers=(), now=0.0):
    """As the relay does it, where everybody can be reached."""
    choice = split.choose(headers, b"", now)
    split.begins(choice, now)
    return choice.route.revision


@given(st.integers(0, 100), st.integers(0, 300))
def test_of_any_hundred_requests_each_gets_its_percent_exactly(percent, before):
    mixed = split(float(percent))
    for _ in range(before):
        chosen(mixed)
    assert Counter(chosen(mixed) for _ in range(100))[42] == percent


@given(st.floats(0, 100))
def test_a_broken_percent_is_never_a_request_off(percent):
    mixed = split(percent)
    got = 0
    for count in range(1, 400):
        got += chosen(mixed) == 42
        assert abs(got - count * percent / 100) < 1


def test_a_match_is_before_every_percent_and_uses_none_of_it():
    mixed = split(10.0, key=BY_HEADER, match=CANARY)
    canary = [(b"x-canary", b"always"), *session("one")]
    assert {mixed.choose(canary, b"", 0.0).how for _ in range(5)} == {"match"}
    assert {chosen(mixed, canary) for _ in range(50)} == {42}
    assert Counter(chosen(mixed) for _ in range(100)) == {41: 90, 42: 10}


def test_a_growing_percent_takes_no_session_back():
    names = [f"user-{n}" for n in range(2000)]
    on_candidate = set()
    for percent in (1.0, 5.0, 25.0, 50.0, 100.0):
        mixed = split(percent, key=BY_HEADER)
        now = {name for name in names if chosen(mixed, session(name)) == 42}
        assert on_candidate <= now
        assert abs(len(now) / len(names) - percent / 100) < 0.04
        assert now == {name for name in names if chosen(mixed, session(name)) == 42}
        on_candidate = now
    assert on_candidate == set(names)


def test_another_candidate_is_tried_by_others():
    places = [
        (point_of(digest(b"user-%d" % n), 42) < 0.1, point_of(digest(b"user-%d" % n), 43) < 0.1) for n in range(1000)
    ]
    assert 0 < sum(one and two for one, two in places) < 40


def test_at_the_cutover_sessions_of_the_stable_stay_and_new_ones_go_on():
    sessions = Sessions()
    before = split(0.0, sessions, key=BY_HEADER)
    assert {chosen(before, session(f"old-{n}"), now=100.0) for n in range(50)} == {41}
    after = split(100.0, sessions, key=BY_HEADER, keep_s=60.0)
    assert {chosen(after, session(f"old-{n}"), now=120.0) for n in range(40)} == {41}
    assert {chosen(after, session(f"new-{n}"), now=120.0) for n in range(50)} == {42}
    assert {chosen(after) for _ in range(20)} == {42}  # no session: by count
    assert {chosen(after, session(f"old-{n}"), now=170.0) for n in range(40)} == {41}  # each request prolongs it
    assert {chosen(after, session(f"old-{n}"), now=170.0) for n in range(40, 50)} == {42}  # silent for over 60 s
    assert chosen(split(100.0, sessions, key=BY_HEADER), session("old-1"), now=171.0) == 42  # not kept any more
    assert chosen(split(100.0, sessions, key=BY_HEADER, keep_s=60.0), session("old-1"), now=172.0) == 42


def test_beyond_the_bound_the_longest_silent_session_is_forgotten():
    sessions = Sessions(limit=3)
    before = split(0.0, sessions, key=BY_HEADER)
    for name in ("a", "b", "c", "a", "d"):
        chosen(before, session(name))
    after = split(100.0, sessions, key=BY_HEADER, keep_s=60.0)
    assert [after.choose(session(name), b"", 0.0).route.revision for name in "abcd"] == [41, 42, 41, 41]
    assert after.stats()["sessions"] == {"known": 3, "forgotten": 1}


def test_the_stable_stands_in_and_a_candidate_only_if_it_has_a_percent():
    for percent, lost, instead in (
        (5.0, {"chat-2"}, 41),
        (5.0, {"chat-1"}, 42),
        (100.0, {"chat-2"}, 41),
        (0.0, {"chat-1"}, None),
        (50.0, {"chat-1", "chat-2"}, None),
    ):
        mixed = split(percent)
        meant = Route("chat-2" if "chat-2" in lost else "chat-1", 0, "")
        choices = [mixed.reachable(mixed.choose((), b"", 0.0), lost) for _ in range(100)]
        others = {c.route.revision for c in choices if c is not None and c.how == "fallback"}
        assert others == ({instead} if instead is not None else set())
        assert {c.instead_of.worker for c in choices if c is not None and c.how == "fallback"} <= {meant.worker}
        assert (None in choices) == (instead is None)


def test_a_session_that_fell_back_stays_there():
    mixed = split(100.0, key=BY_HEADER, keep_s=60.0)
    mixed.begins(mixed.reachable(mixed.choose(session("a"), b"", 0.0), {"chat-2"}), 0.0)
    assert mixed.choose(session("a"), b"", 1.0).route.revision == 41


def test_set_and_actual_weights_are_told():
    mixed = split(25.0)
    assert mixed.stats()["weights"]["42"] == {"worker": "chat-2", "set": 25.0, "actual": None, "requests": 0}
    for _ in range(8):
        chosen(mixed)
    assert mixed.stats()["weights"]["42"] == {"worker": "chat-2", "set": 25.0, "actual": 25.0, "requests": 2}
    assert mixed.stats()["how"] == {"match": 0, "session": 0, "key": 0, "count": 8, "fallback": 0}


# --- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "headers", "body", "found"),
    [
        ("header:X-Session", [(b"x-other", b"1"), (b"x-session", b"abc")], b"", b"abc"),
        ("header:x-session", [], b"", b""),
        ("cookie:sid", [(b"cookie", b"a=b; sid=one=1; c=d")], b"", b"one=1"),
        ("cookie:sid", [(b"cookie", b"asid=1"), (b"x", b"sid=2")], b"", b""),
        ("json:/user/id", [], b'{"user": {"id": 7}}', b"7"),
        ("json:/user/id", [], b'{"user": {"id": {"a": 1}}}', b""),
        ("json:/messages/1", [], b'{"messages": ["a", "b"]}', b'"b"'),
        ("json:/messages/2", [], b'{"messages": ["a", "b"]}', b""),
        ("json:/a~1b/~0c", [], b'{"a/b": {"~c": "x"}}', b'"x"'),
        ("json:/user", [], b'{"user": ""}', b""),
        ("json:/user", [], b'{"user": null}', b""),
        ("json:/user", [], b"no json", b""),
        ("json:/user", [], b"[" * 60_000, b""),
        ("json:/user", [], b"", b""),
    ],
)
def test_keys_are_found(text, headers, body, found):
    assert read_session_key(text).find(headers, body) == found


def test_a_body_is_read_if_its_length_is_known_and_small_and_it_is_not_encoded():
    key = read_session_key("json:/user")
    assert key.reads_body([], MAX_BODY_BYTES)
    assert not key.reads_body([], MAX_BODY_BYTES + 1)
    assert not key.reads_body([], 0)
    assert not key.reads_body([], -1)
    assert not key.reads_body([(b"content-encoding", b"gzip")], 10)
    assert not BY_HEADER.reads_body([], 10)


# --- the verb's parameters -----------------------------------------------------------------------------------------


def params(*weights, split=True, **more):
    routes = [
        {"worker": f"chat-{n}", "revision": n, "address": f"unix:/{n}", "weight": weight}
        for n, weight in enumerate(weights, 1)
    ]
    return {"epoch": 7, "routes": routes, "split": split, **more}


def test_a_split_is_read():
    got = read_table(params(95, 5, session_key="header:X-Session", keep_sessions_s=900))
    assert (got.split, got.session_key, got.keep_sessions_s) == (True, BY_HEADER, 900.0)
    assert [route.weight for route in got.routes] == [95.0, 5.0]
    assert read_table(params(33.3, 33.3, 33.4)).split


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        (params(95, 4), "sum must be 100, not 99"),
        (params(100), "two routes or more"),
        (params(50, 50, split="yes"), "split must be true or false"),
        (params(50, 50, session_key="x-session"), 'neither "header:NAME"'),
        (params(50, 50, session_key="header:"), 'neither "header:NAME"'),
        (params(50, 50, session_key="json:user"), 'neither "header:NAME"'),
        (params(50, 50, session_key=5), 'neither "header:NAME"'),
        (params(1, 1, split=False, session_key="cookie:a"), "needs split"),
        (params(50, 50, keep_sessions_s=60), "needs a session_key"),
        (params(50, 50, session_key="cookie:a", keep_sessions_s=-1), "keep_sessions_s must be"),
        (params(50, 50, session_key="cookie:a", keep_sessions_s=float("nan")), "keep_sessions_s must be"),
        (params(50, 50, session_key="cookie:a", keep_sessions_s=True), "keep_sessions_s must be"),
        (params(150, -50), "weight must be"),
        (params(float("nan"), 50), "weight must be"),
        (params(50, "50"), "weight must be"),
    ],
)
def test_what_is_wrong_with_a_split_is_named(body, wrong):
    with pytest.raises(ValueError, match=wrong):
        read_table(body)


def test_a_match_that_is_no_list_is_named():
    body = params(50, 50)
    body["routes"][1]["match"] = {"kind": "header"}
    with pytest.raises(ValueError, match="match must be a list"):
        read_table(body)
