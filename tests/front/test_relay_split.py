"""A gate with two revisions: percents by request, sessions, and fallback, with real processes and sockets."""

import json
from collections import Counter

import pytest
from support.front_process import FrontError, hand_over, wait_until
from support.raw_upstream import OK

SESSION = {"session_key": "header:x-session"}
IN_BODY = {"session_key": "json:/user"}


@pytest.fixture
def stall_s():
    return 60.0


@pytest.fixture
def splitting(spawn, listener, engine, stall_s):
    """A gate before two engines, of revisions 41 and 42; `point(percent)` gives the second its share."""

    class Splitting:
        def __init__(self):
            self.stable, self.candidate = engine(), engine()
            self.gate = spawn(kind="gate", stall_s=stall_s)
            self.epoch = 0
            self.match = []
            self.point(0)
            self.gate.adopt(1, main=listener)

        def params(self, percent, **more):
            self.epoch += 1
            stable = self.stable.route("chat-1", 41, weight=100 - percent)
            candidate = self.candidate.route("chat-2", 42, weight=percent, match=self.match)
            return {"epoch": self.epoch, "routes": [stable, candidate], "split": True, **more}

        def point(self, percent, **more):
            self.gate.request("point", **self.params(percent, **more))

        def split(self):
            return self.gate.stats()["split"]

    return Splitting()


def revision(client, **request):
    status, headers, _ = client.get(**request)
    assert status == 200
    return int(headers["x-swapd-revision"])


def post(client, user, **more):
    return revision(client, method="POST", body=json.dumps({"user": user}).encode(), **more)


def test_each_revision_gets_its_percent_of_the_requests_over_many_connections(splitting, connect):
    splitting.point(5)
    clients = [connect() for _ in range(10)]
    got = Counter(revision(client) for _ in range(10) for client in clients)
    assert got == {41: 95, 42: 5}
    weights = splitting.split()["weights"]
    assert weights["42"] == {"worker": "chat-2", "set": 5.0, "actual": 5.0, "requests": 5}
    assert weights["41"]["actual"] == 95.0
    splitting.point(50)
    assert splitting.split()["weights"]["42"]["actual"] is None
    assert Counter(revision(client) for client in clients) == {41: 5, 42: 5}


def test_a_header_or_a_cookie_is_before_the_percent(splitting, connect):
    splitting.match = [
        {"kind": "header", "name": "X-Canary", "value": "always"},
        {"kind": "cookie", "name": "canary", "value": "1"},
    ]
    splitting.point(0)
    client = connect()
    assert revision(client, headers="x-canary: always\r\n") == 42
    assert revision(client, headers="cookie: a=b; canary=1\r\n") == 42
    assert revision(client, headers="x-canary: never\r\n") == 41
    assert splitting.split()["how"]["match"] == 2


def test_sessions_stay_from_canary_to_cutover(splitting, connect):
    splitting.point(50, **SESSION)
    client = connect()
    users = [f"user-{n}" for n in range(40)]
    first = {user: revision(client, headers=f"x-session: {user}\r\n") for user in users}
    assert set(first.values()) == {41, 42}
    splitting.point(75, **SESSION)
    grown = {user: revision(client, headers=f"x-session: {user}\r\n") for user in users}
    assert all(grown[user] == 42 for user in users if first[user] == 42)
    splitting.point(100, **SESSION, keep_sessions_s=600)
    kept = {user: revision(client, headers=f"x-session: {user}\r\n") for user in users}
    assert kept == grown
    assert revision(client, headers="x-session: somebody-new\r\n") == 42
    assert splitting.split()["how"]["session"] == 40
    splitting.point(100, **SESSION)
    assert {revision(client, headers=f"x-session: {user}\r\n") for user in users} == {42}


def test_a_cookie_and_a_field_of_the_body_are_keys_as_well(splitting, connect):
    client = connect()
    splitting.point(50, session_key="cookie:sid")
    by_cookie = [{revision(client, headers=f"cookie: x=1; sid=u{n}\r\n") for _ in range(3)} for n in range(20)]
    assert all(len(seen) == 1 for seen in by_cookie)
    assert set.union(*by_cookie) == {41, 42}
    splitting.point(50, **IN_BODY)
    by_body = [{post(client, f"u{n}") for _ in range(3)} for n in range(20)]
    assert all(len(seen) == 1 for seen in by_body)
    assert set.union(*by_body) == {41, 42}
    assert splitting.split()["how"]["key"] == 60


def test_a_request_without_a_key_goes_by_count(splitting, connect):
    client = connect()
    splitting.point(50, **IN_BODY)
    assert Counter(revision(client) for _ in range(10)) == {41: 5, 42: 5}
    big = {"user": "u1", "text": "x" * 70_000}
    data = json.dumps(big).encode()
    assert Counter(revision(client, method="POST", body=data) for _ in range(10)) == {41: 5, 42: 5}
    assert {post(client, "u1") for _ in range(5)} in ({41}, {42})
    assert splitting.split()["how"] == {"match": 0, "session": 0, "key": 5, "count": 20, "fallback": 0}


HEAD = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 60000\r\n\r\n"
BODY = b'{"user": "somebody", "text": "' + b"x" * 59_968 + b'"}'


def test_a_body_that_is_awaited_holds_up_nobody_else(splitting, connect):
    splitting.point(50, **IN_BODY)
    slow, other = connect(), connect()
    slow.send(HEAD + BODY[:40_000])
    assert {revision(other) for _ in range(4)} == {41, 42}
    assert splitting.gate.stats()["in_flight"] == 0  # it has not begun
    slow.send(BODY[40_000:] + b"GET /next HTTP/1.1\r\nhost: a\r\n\r\n")
    assert [slow.answer()[0] for _ in range(2)] == [200, 200]
    bodies = [r.body for r in splitting.stable.whole + splitting.candidate.whole if r.method == "POST"]
    assert bodies == [BODY]


@pytest.mark.parametrize("stall_s", [2.0])
def test_an_awaited_body_that_never_comes_is_told_so_in_time(splitting, connect):
    splitting.point(50, **IN_BODY)
    client = connect()
    client.send(HEAD + BODY[:1000])
    assert client.answer()[0] == 408
    gone = connect()
    gone.send(HEAD + BODY[:1000])
    gone.reset()
    splitting.gate.wait_stats(connections=0)
    assert splitting.stable.requests + splitting.candidate.requests == []


def test_a_client_that_expects_to_be_asked_for_its_body_is_asked(splitting, connect):
    splitting.point(50, **IN_BODY)
    client = connect()
    client.send(HEAD.replace(b"\r\n\r\n", b"\r\nexpect: 100-continue\r\n\r\n"))
    assert client.head()[0] == 100
    client.send(BODY)
    assert client.answer()[0] == 200
    [request] = splitting.stable.whole + splitting.candidate.whole
    assert request.values("expect") == []  # it has been answered


def test_a_half_read_body_goes_on_through_a_hold_and_a_hand_over(splitting, spawn, connect):
    splitting.point(50, **IN_BODY)
    held, moved = connect(), connect()
    held.send(HEAD + BODY[:30_000])
    moved.send(HEAD + BODY[:30_000])
    splitting.gate.wait_stats(connections=2)
    splitting.epoch += 1
    splitting.gate.request("point", epoch=splitting.epoch, hold=True)
    held.send(BODY[30_000:])
    splitting.gate.wait_stats(held=2)
    splitting.point(50, **IN_BODY)
    assert held.answer()[0] == 200
    second = spawn(kind="gate")
    second.request("point", **splitting.params(50, **IN_BODY))
    hand_over(splitting.gate, second, 2)
    moved.send(BODY[30_000:])
    assert moved.answer()[0] == 200
    assert [r.body for r in splitting.stable.whole + splitting.candidate.whole] == [BODY, BODY]


def test_who_cannot_reach_the_candidate_gets_the_stable_and_the_other_way_round(splitting, connect):
    client = connect()
    splitting.point(50)
    splitting.candidate.refuse()
    assert {revision(client) for _ in range(10)} == {41}
    assert splitting.split()["how"]["fallback"] == 5
    splitting.point(100)
    assert {revision(client) for _ in range(10)} == {41}
    assert splitting.split()["weights"]["42"] == {"worker": "chat-2", "set": 100.0, "actual": 0.0, "requests": 0}


def test_a_candidate_without_a_percent_stands_in_for_nobody(splitting, connect):
    client = connect()
    splitting.stable.refuse()
    client.send_request()
    splitting.gate.wait_stats(held=1)
    splitting.point(5)
    assert client.answer()[1]["x-swapd-revision"] == "42"


def test_a_request_that_the_candidate_died_with_is_repeated_at_the_stable(splitting, connect):
    client = connect()
    splitting.candidate.answer = lambda request: None
    splitting.point(50)
    assert {revision(client) for _ in range(10)} == {41}
    assert len(splitting.candidate.whole) == 5
    splitting.candidate.answer = lambda request: OK


def test_a_request_in_flight_ends_where_it_began(splitting, connect):
    splitting.point(100)
    client = connect()

    def wait_and_say(sock):
        wait_until(lambda: splitting.epoch == 3, "the next table")
        sock.sendall(OK)

    splitting.candidate.answer = lambda request: wait_and_say
    client.send_request()
    splitting.candidate.wait_requests(1)
    splitting.point(0)
    assert client.answer()[1]["x-swapd-revision"] == "42"


def test_a_wrong_split_is_refused_and_changes_nothing(splitting, connect):
    splitting.point(50)
    params = splitting.params(50)
    params["routes"][0]["weight"] = 49
    with pytest.raises(FrontError, match="sum must be 100"):
        splitting.gate.request("point", **params)
    assert splitting.split()["weights"]["42"]["set"] == 50.0


def test_connections_of_a_tcp_service_go_by_percent(spawn, listener, engine, connect):
    stable, candidate = engine(), engine()
    gate = spawn(kind="gate", tcp=True)
    routes = [stable.route("chat-1", 41, weight=75), candidate.route("chat-2", 42, weight=25)]
    gate.request("point", epoch=1, routes=routes, split=True)
    gate.adopt(1, main=listener)
    for _ in range(8):
        client = connect()
        assert client.get()[0] == 200
    assert (len(stable.whole), len(candidate.whole)) == (6, 2)
    assert gate.stats()["split"]["weights"]["42"]["actual"] == 25.0
