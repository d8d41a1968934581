"""What a gate has measured of its engines, told as windows: real answers, failures, streams, and clients who leave."""

import threading
import time

import pytest
from support.front_process import wait_until
from support.raw_upstream import OK

from swapd.core.window import Window

FAIL = b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"


def windows(gate):
    told = gate.request("stats", windows=True)["windows"]
    return {revision: Window.from_json(window) for revision, window in told["revisions"].items()}, told


def window(gate, requests, revision="1"):
    """Once it has counted so many."""

    def look():
        found = windows(gate)[0][revision]
        return found if found.requests >= requests else None

    found = wait_until(look, f"{requests} requests in {windows(gate)[1]}")
    assert found.requests == requests
    return found


@pytest.fixture
def one(relaying, engine):
    upstream = engine()
    return relaying(upstream), upstream


def test_windows_are_told_on_demand(one, connect):
    gate, _ = one
    assert "windows" not in gate.stats()
    found, told = windows(gate)
    assert (told["epoch"], told["before"], found["1"].requests) == (1, None, 0)
    assert told["since"] >= 0


def test_answers_by_status_with_their_latency(one, connect):
    gate, upstream = one
    client = connect()

    def late(sock):
        time.sleep(0.2)
        sock.sendall(OK)

    assert client.get()[0] == 200
    upstream.answer = lambda request: late
    assert client.get()[0] == 200
    upstream.answer = lambda request: b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n"
    assert client.get()[0] == 404
    upstream.answer = lambda request: FAIL
    assert client.get()[0] == 503
    found = window(gate, 4)
    assert (found.statuses, found.failed, found.consecutive_failed) == ({"2": 2, "4": 1, "5": 1}, 1, 1)
    assert found.latency.total == found.first_byte.total == 3
    assert found.latency.quantile(1.0) > 0.19


def test_the_time_that_a_request_was_held_is_not_the_engines(one, connect):
    gate, upstream = one
    client = connect()
    gate.request("point", epoch=2, hold=True)
    client.send_request()
    gate.wait_stats(held=1)
    wait_until(lambda: gate.stats()["oldest_in_flight_s"] > 2.0, "it has waited")
    gate.request("point", epoch=3, routes=[upstream.route()])
    assert client.answer()[0] == 200
    assert window(gate, 1).latency.quantile(1.0) < 2.0


def test_an_engine_that_ends_before_or_within_its_answer_has_failed(one, connect):
    gate, upstream = one

    def half(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
        return False

    def said_and_done(sock):
        sock.sendall(b"nonsense\r\n\r\n")
        return False

    for count, answer in enumerate((None, half, said_and_done), 1):
        upstream.answer = lambda request, answer=answer: answer if answer is None else (lambda sock: answer(sock))
        client = connect()
        client.send_request(method="POST", headers="content-length: 0\r\n")
        assert client.rest()
        assert window(gate, count).failed == count
    assert window(gate, 3).statuses == {"2": 1}
    assert window(gate, 3).consecutive_failed == 3


def test_a_connection_that_was_closed_while_idle_is_no_failure(one, connect):
    gate, upstream = one
    client = connect()
    upstream.answer = lambda request: lambda sock: sock.sendall(OK) or False
    for _ in range(5):
        assert client.get()[0] == 200
    assert window(gate, 5).failed == 0


def test_streams_tell_their_first_byte_their_bytes_and_events_a_second(one, connect):
    gate, upstream = one

    def stream(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(5):
            time.sleep(0.05)
            sock.sendall(b"9\r\ndata: a\n\n\r\n")
        sock.sendall(b"0\r\n\r\n")

    upstream.answer = lambda request: stream
    client = connect()
    assert client.get()[0] == 200
    found = window(gate, 1)
    assert found.streamed_bytes == 45
    assert 0.04 < found.first_byte.quantile(1.0) < found.latency.quantile(1.0)
    assert found.latency.quantile(1.0) > 0.24
    assert found.tokens_per_s.total == 1
    assert found.tokens_per_s.quantile(1.0) < 21


def test_who_leaves_before_the_answer_counts_with_the_time_it_waited(one, connect):
    gate, upstream = one
    waiting = threading.Event()
    upstream.answer = lambda request: lambda sock: waiting.wait(20) and False
    client = connect()
    client.send_request()
    upstream.wait_requests(1)
    time.sleep(0.2)
    client.reset()
    found = window(gate, 1)
    waiting.set()
    assert (found.failed, found.statuses) == (0, {})
    assert found.latency.quantile(1.0) > 0.19


def test_who_cannot_be_reached_has_failed_where_somebody_else_could(one, connect, engine):
    gate, upstream = one
    other = engine()
    routes = [upstream.route("chat-1", 1, weight=0), other.route("chat-2", 2, weight=100)]
    gate.request("point", epoch=2, routes=routes, split=True)
    other.refuse()
    client = connect()
    for _ in range(3):
        assert client.get()[0] == 200
    assert window(gate, 3, "2").consecutive_failed == 3
    assert window(gate, 3, "1").failed == 0


def test_while_nobody_can_be_reached_waiting_is_not_failing(one, connect):
    gate, upstream = one
    upstream.refuse()
    client = connect()
    client.send_request()
    gate.wait_stats(held=1)
    wait_until(lambda: gate.stats()["oldest_in_flight_s"] > 0.5, "it has been tried some times")
    assert window(gate, 0).failed == 0


def test_the_table_before_is_told_with_what_it_saw(one, connect, engine):
    gate, _ = one
    client = connect()
    client.get()
    window(gate, 1)
    gate.request("point", epoch=2, routes=[engine().route("chat-2", 2)])
    client.get()
    window(gate, 1, "2")
    _, told = windows(gate)
    assert list(told["revisions"]) == ["2"]
    assert (told["before"]["epoch"], Window.from_json(told["before"]["revisions"]["1"]).requests) == (1, 1)
