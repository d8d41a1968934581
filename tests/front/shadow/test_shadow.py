"""A gate that copies requests to a candidate: what is copied, how it is compared, what is told of it."""

import gzip
import json
import os
import socket
import threading

import pytest
from support.front_process import FrontError, wait_until
from support.raw_upstream import says

GZIP = "content-encoding: gzip\r\n"


def test_a_copy_is_the_request_with_a_mark(shadowing, connect):
    shadow = shadowing()
    client = connect()
    assert client.get("/v1/x?q=1", "POST", "x-a: b\r\nx-request-id: r-1\r\nexpect: 100-continue\r\n", b"body")[0] == 200
    copied = shadow.candidate.wait_requests(1)
    [asked] = shadow.stable.whole
    assert (copied.method, copied.target, copied.body) == ("POST", "/v1/x?q=1", b"body")
    assert copied.values("x-swapd-shadow") == ["1"]
    assert copied.values("expect") == []
    left_out = ("expect", "x-swapd-shadow")
    assert [h for h in copied.headers if h[0] not in left_out] == [h for h in asked.headers if h[0] not in left_out]
    figures = shadow.wait(copied=1, compared=1, agreed=1, agreement=1.0)
    assert figures["warning"] == "POST: copies of such requests may change things a second time"
    assert (figures["worker"], figures["revision"], figures["epoch"]) == ("chat-2", 2, 1)
    for name in ("latency", "first_byte", "stable_latency", "stable_first_byte"):
        assert sum(figures[name].values()) == 1


def test_a_share_of_requests_is_copied(shadowing, connect):
    shadow = shadowing(share=0.1, noise=0.0, paths=["/v1/"])
    client = connect()
    for number in range(50):
        assert client.get(f"/v1/{number}")[0] == 200
        assert client.get("/other")[0] == 200
        if number % 10 == 5:
            shadow.wait(copied=number // 10 + 1)
    figures = shadow.wait(copied=5, compared=5, agreed=5)
    assert (figures["share"], figures["throttled"], figures["dropped"], figures["warning"]) == (0.1, 0.1, 0, "")
    assert figures["noise"] is None
    assert len(shadow.candidate.whole) == 5
    assert len(shadow.stable.whole) == 100


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n"),
        ("GET", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx"),
        ("GET", b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"),
    ],
)
def test_every_framing_of_an_answer_is_understood(shadowing, connect, method, answer):
    shadow = shadowing(methods=[method])
    shadow.stable.answer = shadow.candidate.answer = lambda request: answer
    client = connect()
    for number in range(1, 4):  # on a kept connection as well
        client.send_request("/", method)
        status, headers = client.head()
        while status == 103:
            status, headers = client.head()
        if method == "GET" and status == 200:
            rest = b"".join(client.chunks()) if "transfer-encoding" in headers else client.take(1)
            assert rest in (b"abc", b"x")
        shadow.wait(agreed=number)


def test_an_answer_until_the_end_of_the_connection_is_one(shadowing, connect):
    shadow = shadowing()

    def until_close(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nabc")
        return False

    shadow.candidate.answer = lambda request: until_close
    shadow.stable.answer = lambda request: says("abc")
    connect().get()
    shadow.wait(agreed=1)


def test_codings_are_undone_and_unknown_ones_are_counted(shadowing, connect):
    shadow = shadowing()
    client = connect()
    shadow.stable.answer = lambda request: says(gzip.compress(b"abc", 1), GZIP)
    shadow.candidate.answer = lambda request: says(gzip.compress(b"abc", 9), GZIP)
    client.get()
    shadow.wait(agreed=1)
    shadow.candidate.answer = lambda request: says("abc")
    client.get()
    shadow.wait(agreed=2)
    shadow.candidate.answer = lambda request: says(gzip.compress(b"\0" * 100_000_000, 9), GZIP)
    client.get()
    figures = shadow.wait(compared=3, agreed=2)
    assert figures["samples"][-1]["why"].startswith("its answer cannot be read: it is more than")
    for coding in ("br", "zstd"):
        shadow.stable.answer = lambda request, coding=coding: says("x", f"content-encoding: {coding}\r\n")
        client.get()
    assert shadow.wait(incomparable=2, compared=3)["incomparable_for"] == {"coding": 2}


def test_disagreements_are_told_without_what_is_redacted(shadowing, connect):
    compare = {"how": "json", "ignore": ["/id"]}
    shadow = shadowing(compare=compare, redact=["/user"])
    shadow.stable.answer = lambda request: says('{"id": 1, "user": "ann@x", "label": "cat"}')
    shadow.candidate.answer = lambda request: says('{"id": 2, "user": "bob@x", "label": "dog"}')
    connect().get("/v1/x?key=hidden-one", "POST", body=b'{"user": "eve@x", "q": 1, "api_key": "hidden-two"}')
    figures = shadow.wait(compared=1, agreed=0, agreement=0.0)
    [sample] = figures["samples"]
    assert sample["differences"] == [
        {"path": "/user", "stable": "***", "candidate": "***"},
        {"path": "/label", "stable": "cat", "candidate": "dog"},
    ]
    assert (sample["path"], sample["method"], sample["request"]["q"]) == ("/v1/x", "POST", 1)
    told = json.dumps(figures)
    assert not [secret for secret in ("ann@x", "bob@x", "eve@x", "hidden-one", "hidden-two") if secret in told]


def test_what_the_stable_does_not_agree_with_itself_about_is_its_noise(shadowing, connect):
    shadow = shadowing(noise=0.5, compare={"how": "json"})
    numbers = iter(range(10**9))
    for engine in (shadow.stable, shadow.candidate):
        engine.answer = lambda request: says(json.dumps({"at": next(numbers), "label": "cat"}))
    client = connect()
    for number in range(8):
        client.get()
        shadow.wait(compared=number + 1)
    figures = wait_until(lambda: (f := shadow.figures)["noise"]["compared"] == 4 and f, "half of them replayed")
    assert figures["noise"]["agreed"] == figures["agreed"] == 0
    assert figures["agreement"] == 1.0
    assert figures["paths"] == [{"path": "/at", "differs": 8, "noise": 4}]
    assert sum(figures["noise"]["latency"].values()) == 4
    replays = [request for request in shadow.stable.whole if request.values("x-swapd-shadow")]
    assert (len(replays), len(shadow.stable.whole)) == (4, 12)


def test_websockets_are_never_copied(shadowing, connect):
    shadow = shadowing()
    shadow.stable.answer = lambda request: (
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    )
    client = connect()
    client.send_request(headers="connection: upgrade\r\nupgrade: websocket\r\n")
    assert client.head()[0] == 101
    shadow.stable.answer = lambda request: says("ok")
    connect().get("/after")
    shadow.wait(compared=1)
    assert shadow.candidate.lines == ["GET /after"]


def test_large_bodies_pass_and_are_not_copied(shadowing, connect):
    shadow = shadowing(max_body=1000)
    client = connect()
    body = b"x" * 200_000
    assert client.get("/", "POST", body=body)[0] == 200
    client.send(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n30d40\r\n" + body + b"\r\n0\r\n\r\n")
    assert client.answer()[0] == 200
    shadow.stable.answer = lambda request: says(body)
    assert client.get()[2] == body
    assert shadow.wait(dropped=3, copied=0)["dropped_for"] == {"large": 3}
    assert shadow.candidate.requests == []


def test_what_the_stable_fails_is_not_copied(shadowing, connect):
    shadow = shadowing()
    shadow.stable.answer = lambda request: says("", status="500 Internal Server Error")
    connect().get()
    shadow.stable.answer = lambda request: None
    assert connect().get("/", "POST", body=b"x")[0] == 502
    assert shadow.wait(dropped=2, copied=0)["dropped_for"] == {"stable_failed": 2}


def test_a_request_that_is_sent_twice_is_copied_once(shadowing, connect):
    shadow = shadowing()
    answers = iter([None, says("ok")])
    shadow.stable.answer = lambda request: next(answers)
    assert connect().get()[0] == 200
    assert shadow.wait(compared=1, agreed=1)["copied"] == 1


def test_the_candidate_has_no_copy_of_what_it_was_asked_itself(shadowing, connect):
    shadow = shadowing()
    routes = [shadow.candidate.route("chat-2", 2)]
    told = {"worker": "chat-2", "revision": 2, "address": shadow.candidate.address, "share": 1.0}
    shadow.gate.request("point", epoch=9, routes=routes, shadow=told)
    connect().get("/own")
    wait_until(lambda: shadow.figures["running"], "the process of the new shadow")
    assert shadow.figures["epoch"] == 9
    connect().get("/own")
    assert shadow.figures.get("copied", 0) == 0
    assert [request.values("x-swapd-shadow") for request in shadow.candidate.whole] == [[], []]


def test_another_users_socket_gets_nothing(shadowing, connect):
    shadow = shadowing(uid=os.geteuid() + 1)
    connect().get()
    assert shadow.wait(failed=1)["failed_for"] == {"unreachable": 1}
    assert "another user" in shadow.figures["samples"][0]["why"]
    assert shadow.candidate.requests == []


def test_the_same_shadow_goes_on_in_the_next_table_and_another_begins_anew(shadowing, connect):
    shadow = shadowing()
    connect().get()
    shadow.wait(agreed=1)
    shadow.point()
    connect().get()
    shadow.wait(agreed=2, epoch=1)
    shadow.point(share=0.9)
    assert shadow.wait(compared=0)["epoch"] == 3
    connect().get()
    shadow.wait(agreed=1)
    shadow.point(shadow=False)
    assert shadow.figures is None


def test_copies_that_slow_the_stable_become_fewer(shadowing, connect):
    """They share a device: while the candidate works the stable takes three times as long."""
    shadow = shadowing(concurrency=1)
    device = threading.Event()

    def candidate(sock):
        device.set()
        threading.Event().wait(0.03)
        device.clear()
        sock.sendall(says("ok"))

    def stable(sock):
        threading.Event().wait(0.012 if device.is_set() else 0.004)
        sock.sendall(says("ok"))

    shadow.candidate.answer = lambda request: candidate
    shadow.stable.answer = lambda request: stable
    client = connect()

    def throttled():
        for _ in range(20):
            assert client.get()[0] == 200
        return shadow.figures["throttled"] <= 0.5

    wait_until(throttled, "fewer copies", 60)
    assert shadow.figures["share"] == 1.0
    shadow.candidate.answer = lambda request: says("ok")

    def recovered():
        for _ in range(20):
            assert client.get()[0] == 200
        return shadow.figures["throttled"] >= 0.7

    wait_until(recovered, "more again", 60)


@pytest.mark.parametrize("wrong", [{"share": 2}, {"address": "nowhere"}, {"compare": {"how": "guess"}}])
def test_a_bad_shadow_is_refused_and_the_table_stays(shadowing, wrong):
    shadow = shadowing()
    with pytest.raises(FrontError):
        shadow.point(**wrong)
    assert shadow.figures["epoch"] == 1


def test_a_gate_of_bytes_has_no_shadow(spawn, engine):
    gate = spawn(kind="gate", tcp=True)
    stable = engine()
    told = {"worker": "chat-2", "revision": 2, "address": stable.address}
    with pytest.raises(FrontError, match="relays bytes"):
        gate.request("point", epoch=1, routes=[stable.route()], shadow=told)


def test_a_candidate_on_tcp(shadowing, connect, engine):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    shadow = shadowing(candidate=engine(address))
    connect().get()
    shadow.wait(agreed=1)
