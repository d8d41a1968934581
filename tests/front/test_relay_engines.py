"""A gate's relay and its engines: who gets a request, what their deaths do, and what is sent a second time."""

import contextlib
import json
import select
import threading
import time

import pytest
from support.front_process import FrontError, wait_until
from support.raw_upstream import OK, reset

EMPTY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"


def point(gate, epoch, *routes, hold=False):
    return gate.request("point", epoch=epoch, routes=list(routes), hold=hold)


def named(text):
    return lambda request: b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text.encode())


def refused(client, status, code):
    """In the OpenAI error shape."""
    got, headers, body = client.answer()
    error = json.loads(body)["error"]
    assert (got, error["code"], set(error)) == (status, code, {"message", "type", "code", "param"})
    assert headers["connection"] == "close"
    assert client.rest() == b""


# --- death before the answer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_what_may_be_done_twice_is_asked_once_more(relaying, engine, connect, method):
    upstream = engine()
    relaying(upstream)
    upstream.answer = lambda request: EMPTY if len(upstream.requests) > 1 else None
    client = connect()
    body = b"abc" if method == "PUT" else b""
    client.send_request("/", method, body=body)
    assert client.head()[0] == 200
    assert [request.body for request in upstream.whole] == [body, body]


def test_never_a_third_time(relaying, engine, connect):
    upstream = engine()
    relaying(upstream)
    upstream.answer = lambda request: None
    client = connect()
    client.send_request()
    refused(client, 502, "upstream_died")
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
@pytest.mark.parametrize("how", ["close", "reset", "100"])
def test_a_post_that_was_read_is_not_sent_again(relaying, engine, connect, address, how):
    upstream = engine(address)
    relaying(upstream)

    def die(sock):
        if how == "100":
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            wait_until(lambda: select.select([sock], [], [], 0)[0], "a part of the body, which stays unread")
        return reset(sock) if how == "reset" else False

    if how == "100":
        upstream.on_head = lambda request: die
    else:
        upstream.answer = lambda request: die
    client = connect()
    client.send(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n" + (b"" if how == "100" else b"abc"))
    if how == "100":
        assert client.head()[0] == 100
        client.send(b"a")
        upstream.wait_requests(1)
    refused(client, 502, "upstream_died")
    assert len(upstream.requests) == 1


def test_a_post_that_lay_unread_in_a_unix_socket_is_sent_again(relaying, engine, connect):
    upstream, seen = engine(), []

    def die_unread(sock):
        seen.append(select.select([sock], [], [], 10))
        return len(seen) > 1

    upstream.on_accept = die_unread
    relaying(upstream)
    assert connect().get("/", "POST", body=b"abc")[2] == b"ok"
    assert [request.body for request in upstream.whole] == [b"abc"]
    assert len(seen) == 2


@pytest.mark.parametrize("parts", ["large", "head first"])
def test_a_post_of_which_only_the_head_may_have_been_read_is_not_sent_again(relaying, engine, connect, parts):
    upstream = engine()
    relaying(upstream)
    heads = []

    def read_head_and_die(sock):
        heads.append(sock.recv(4096))  # as Go and Python do; what a handler does next happens once
        wait_until(lambda: select.select([sock], [], [], 0)[0], "the body, which stays unread")
        return False

    upstream.on_accept = read_head_and_die
    client = connect()
    body = b"x" * (20_000 if parts == "large" else 100)
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    client.send(head + body if parts == "large" else head)
    wait_until(lambda: heads, "the head")
    if parts == "head first":
        client.send(body)
    refused(client, 502, "upstream_died")
    assert len(heads) == 1


def test_a_request_too_large_to_keep_is_not_sent_again(relaying, engine, connect):
    upstream = engine()
    relaying(upstream)
    upstream.answer = lambda request: None
    client = connect()
    client.send_request("/", "PUT", body=b"x" * 100_000)
    refused(client, 502, "upstream_died")
    assert len(upstream.requests) == 1


def test_a_connection_that_the_engine_closes_when_idle_costs_nobody_anything(relaying, engine, connect):
    upstream = engine()
    relaying(upstream)

    def answer_and_close(sock):
        sock.sendall(OK)
        return False

    upstream.answer = lambda request: answer_and_close
    client = connect()
    for _ in range(300):
        assert client.get("/", "POST", body=b"abc")[2] == b"ok"
    assert len(upstream.requests) == 300


# --- death in the middle of an answer ------------------------------------------------------------------------------


def test_a_stream_of_events_that_breaks_says_so_and_ends_whole(relaying, engine, connect):
    upstream, seen = engine(), threading.Event()
    relaying(upstream)

    def die(sock):
        sock.sendall(SSE + b"transfer-encoding: chunked\r\n\r\n8\r\ndata: a\n\r\n3\r\n\nda")
        seen.wait(10)
        return False

    upstream.answer = lambda request: die
    client = connect()
    client.send_request("/", "POST")
    assert client.head()[0] == 200
    rest = client.chunk()
    seen.set()
    rest += b"".join(client.chunks())  # to the last chunk
    assert rest.startswith(b"data: a\n\nda\n\n")
    event, data = rest.partition(b"event: error\n")[2].split(b"data: ")
    assert event == b""
    assert data.endswith(b"\n\n")
    assert json.loads(data)["error"]["code"] == "upstream_died"
    assert client.rest() == b""


@pytest.mark.parametrize("framing", [b"content-length: 500", b"transfer-encoding: chunked"])
def test_another_answer_that_breaks_is_visibly_not_whole(relaying, engine, connect, framing):
    upstream = engine()
    relaying(upstream)

    def die(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n5\r\nabcde\r\n")
        return False

    upstream.answer = lambda request: die
    client = connect()
    client.send_request()
    client.head()
    with pytest.raises(ConnectionError):
        client.take(500)
    assert client.buffer == b"5\r\nabcde\r\n"


# --- the table -----------------------------------------------------------------------------------------------------


def test_a_table_that_is_not_newer_is_refused_and_changes_nothing(relaying, engine, connect):
    one, other = engine(), engine()
    one.answer, other.answer = named("one"), named("other")
    gate = relaying(one)
    point(gate, 5, one.route())
    for epoch in (5, 4):
        with pytest.raises(FrontError, match="not newer"):
            point(gate, epoch, other.route())
    assert connect().get()[2] == b"one"


def test_an_engine_that_is_elsewhere_now_gets_everything_there(relaying, engine, connect):
    one, other = engine(), engine()
    one.answer, other.answer = named("one"), named("other")
    gate = relaying(one)
    client, busy = connect(), connect()
    assert client.get()[2] == b"one"
    release = threading.Event()
    one.answer = lambda request: lambda sock: release.wait(10) and sock.sendall(named("one")(request))
    busy.send_request()
    one.wait_requests(2)
    point(gate, 2, other.route(revision=2))
    status, headers, body = client.get()
    assert (status, headers["x-swapd-revision"], body) == (200, "2", b"other")
    release.set()
    assert busy.answer()[2] == b"one"
    for _ in range(3):
        assert busy.get()[2] == b"other"
    wait_until(lambda: not one.sockets, "its connections are closed")


@pytest.mark.parametrize(("weights", "shares"), [((1, 1), (6, 6)), ((3, 1), (9, 3)), ((1, 0), (12, 0))])
def test_the_one_with_the_least_in_flight_for_its_weight(relaying, engine, connect, weights, shares):
    engines = engine(), engine()
    gate = relaying(*engines)
    release = threading.Event()
    for upstream in engines:
        upstream.answer = lambda request: lambda sock: release.wait(10) and sock.sendall(OK)
    point(gate, 2, *(u.route(f"w{n}", n, weight=w) for n, (u, w) in enumerate(zip(engines, weights, strict=True))))
    clients = [connect() for _ in range(12)]
    for number, client in enumerate(clients, 1):
        client.send_request()
        gate.wait_stats(in_flight=number)
    upstreams = gate.stats()["upstreams"]
    assert tuple(upstreams[f"w{n}"]["in_flight"] for n in range(2)) == shares
    release.set()
    assert {client.answer()[0] for client in clients} == {200}


def test_rules_choose_by_header_cookie_and_host(relaying, engine, connect):
    names = ("plain", "header", "cookie", "host")
    engines = [engine() for _ in names]
    for upstream, name in zip(engines, names, strict=True):
        upstream.answer = named(name)
    rules = [
        [],
        [{"kind": "header", "name": "X-Model", "value": "new"}],
        [{"kind": "cookie", "name": "canary", "value": "yes"}],
        [{"kind": "header", "name": "host", "value": "b.example"}],
    ]
    gate = relaying()
    point(gate, 2, *(u.route(n, 1, match=m) for u, n, m in zip(engines, names, rules, strict=True)))
    client = connect()
    assert client.get()[2] == b"plain"
    assert client.get(headers="x-model: new\r\n")[2] == b"header"
    assert client.get(headers="X-Model: newer\r\n")[2] == b"plain"
    assert client.get(headers="cookie: a=b; canary=yes\r\n")[2] == b"cookie"
    client.send(b"GET / HTTP/1.1\r\nhost: b.example\r\n\r\n")
    assert client.answer()[2] == b"host"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/sleep",
            "/Sleep",
            "//sleep",
            "/sleep/",
            "/sleep?level=1",
            "/%73leep",
            "/./sleep",
            "/x/../sleep",
            "/sleep;a",
        ),
        *(
            "/x%2f..%2fsleep",
            "/%2e/sleep",
            "/sleep%00",
            "/sleep%0A",
            "\\sleep",
            "http://b/sleep",
            "http://b//sleep?x",
            "/sleep#x",
        ),
    ],
)
def test_blocked_paths_are_not_for_clients_however_they_are_written(relaying, engine, connect, path):
    upstream = engine()
    gate = relaying()
    point(gate, 2, upstream.route(blocked=["/sleep"]))
    client = connect()
    client.send(f"POST {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
    assert client.answer()[0] in (400, 404)
    other = connect()
    assert [other.get(free)[0] for free in ("/sleep/x", "/asleep", "/x?/sleep")] == [200, 200, 200]
    assert len(upstream.requests) == 3


# --- nobody is there -----------------------------------------------------------------------------------------------


def test_who_finds_no_engine_waits_for_one_and_not_for_ever(relaying, engine, connect, tmp_path):
    gate = relaying(hold_timeout_s=1.0)
    nowhere = {"worker": "chat-1", "revision": 1, "address": f"unix:{tmp_path}/nowhere.sock"}
    point(gate, 2, nowhere)
    late = connect()
    late.send_request()
    began = time.monotonic()
    refused(late, 503, "hold_timeout")
    assert time.monotonic() - began < 10
    client = connect()
    client.send_request("/", "POST", body=b"abc")
    gate.wait_stats(held=1)
    upstream = engine(str(tmp_path / "nowhere.sock"))
    assert client.answer()[2] == b"ok"
    assert [request.body for request in upstream.whole] == [b"abc"]


def test_an_engine_that_cannot_be_reached_is_left_out(relaying, engine, connect, tmp_path):
    upstream = engine()
    gate = relaying()
    nowhere = {"worker": "chat-1", "revision": 1, "address": f"unix:{tmp_path}/nowhere.sock", "weight": 100}
    point(gate, 2, nowhere, upstream.route("chat-2", 2))
    client = connect()
    for _ in range(5):
        assert client.get("/", "POST", body=b"abc")[1]["x-swapd-revision"] == "2"


def test_a_dead_engines_request_goes_to_the_next_one_that_is_named(relaying, engine, connect):
    first, second = engine(), engine()
    gate = relaying(first)
    first.answer = lambda request: lambda sock: die.wait(10) and False
    die = threading.Event()
    client = connect()
    client.send_request()
    first.wait_requests(1)
    first.refuse()
    die.set()
    gate.wait_stats(held=1)
    point(gate, 2, second.route("chat-2", 2))
    assert client.answer()[1]["x-swapd-revision"] == "2"


# --- drain ---------------------------------------------------------------------------------------------------------


def test_one_engine_is_drained_and_cut_at_the_deadline_while_the_other_goes_on(relaying, engine, connect):
    old, new, release = engine(), engine(), threading.Event()
    gate = relaying(old)

    def stream(sock):
        sock.sendall(SSE + b"\r\ndata: a\n\n")
        with contextlib.suppress(OSError):
            sock.recv(1)
        return False

    def silent(sock):
        with contextlib.suppress(OSError):
            sock.recv(1)
        return False

    def tunnel(sock):
        sock.sendall(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        return silent(sock)

    old.answer = lambda request: {"/stream": stream, "/silent": silent, "/ws": tunnel}[request.target]
    new.answer = lambda request: lambda sock: release.wait(20) and sock.sendall(OK)
    events, waiting, socket_, other = (connect() for _ in range(4))
    events.send_request("/stream")
    waiting.send_request("/silent", "POST")
    socket_.send_request("/ws", headers="Connection: Upgrade\r\nUpgrade: websocket\r\n")
    assert events.head()[0] == 200
    assert socket_.head()[0] == 101
    old.wait_requests(3)
    point(gate, 2, new.route("chat-2", 2))
    other.send_request()
    new.wait_requests(1)
    assert gate.request("drain", deadline_s=0.1, upstream="chat-1") == {"finished": 0, "cut": 3, "left": 0}
    assert b"event: error" in b"".join(events.chunks())
    refused(waiting, 503, "model_replaced")
    assert socket_.rest() == b""
    release.set()
    assert other.answer()[2] == b"ok"
    assert gate.request("drain", deadline_s=5, upstream="chat-2")["cut"] == 0
