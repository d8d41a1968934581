"""The gate: clients wait unread, health is answered, waits have limits, and all goes on to the next owner."""

import json
import select
import socket

import pytest
from support.front_process import HEALTH, hand_over, wait_until


@pytest.fixture
def gate(spawn, listener):
    front = spawn(kind="gate", hold_timeout_s=30.0)
    front.adopt(1, main=listener)
    return front


def test_held_requests_are_answered_by_the_next_model(spawn, listener, connect):
    old, gate, new = spawn(1), spawn(kind="gate"), spawn(2)
    old.adopt(1, main=listener)
    idle, busy, partial, stream = (connect() for _ in range(4))
    idle.get()
    busy.send_request("/slow?s=0.3")
    stream.send_request("/stream?n=10&gap=0.02")
    partial.send(b"GET / HT")
    old.wait_stats(in_flight=2, connections=4, idle=1)
    assert hand_over(old, gate, 2)["stragglers"] == 2
    assert old.result(old.begin("drain", deadline_s=10)) == {"finished": 2, "cut": 0, "left": 0}
    assert busy.answer()[2] == b"1 slow"
    assert stream.answer()[2].endswith(b"[DONE]\n\n")
    fresh = connect()
    body = b"y" * 300_000
    for client in (idle, busy, stream):
        client.send_request("/echo", "POST", body=body[:1000])
    fresh.send(b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 300000\r\n\r\n" + body)
    gate.wait_stats(held=5, connections=5)  # the partial head moved as bytes, and counts as come
    report = hand_over(gate, new, 3)
    assert (report["moved"], report["stragglers"]) == (5, 0)
    assert fresh.answer()[2].startswith(b"2 300000 ")
    for client in (idle, busy, stream):
        assert client.answer()[2].startswith(b"2 1000 ")
    partial.send(b"TP/1.1\r\nhost: test\r\n\r\n")
    assert partial.answer()[2] == b"2"
    old.wait_stats(connections=0)
    gate.wait_stats(connections=0)


def test_health_is_answered_while_requests_wait(gate, connect):
    waiting, checker = connect(), connect()
    waiting.send_request()
    gate.wait_stats(held=1)
    for _ in range(3):
        status, _, body = checker.get(HEALTH)
        assert (status, json.loads(body)) == (200, {"status": "holding"})
    assert checker.get(HEALTH + "?from=lb")[0] == 200
    assert gate.wait_stats(held=1)["idle"] == 1


def test_health_is_good_only_for_as_long_as_waiting_may_help(spawn, listener, connect):
    gate, second = spawn(kind="gate", hold_timeout_s=1.0), spawn(kind="gate")
    gate.adopt(1, main=listener)
    checker = connect()
    assert checker.get(HEALTH)[0] == 200
    _, headers, body = wait_until(lambda: (seen := checker.get(HEALTH))[0] == 503 and seen, "no hope any more")
    assert json.loads(body) == {"status": "unavailable"}
    assert 1 <= int(headers["retry-after"]) <= 60
    hand_over(gate, second, 2)
    assert checker.get(HEALTH)[0] == 200  # a new hold, on the same connection


def test_health_in_pieces_and_pipelined(gate, connect, spawn):
    client = connect()
    request = f"GET {HEALTH} HTTP/1.1\r\nhost: test\r\n\r\n".encode()
    for piece in (request[:2], request[2:30], request[30:]):
        client.send(piece)
        gate.wait_stats(connections=1)
    assert client.answer()[0] == 200
    client.send(request * 2 + b"GET / HTTP/1.1\r\nhost: test\r\n\r\n")
    assert [client.answer()[0] for _ in range(2)] == [200, 200]
    gate.wait_stats(held=1)
    new = spawn(2)
    hand_over(gate, new, 2)
    assert client.answer()[2] == b"2"


@pytest.mark.parametrize("path", [HEALTH + "x", "/", HEALTH[:-1]])
def test_what_only_resembles_health_waits(gate, connect, path):
    client = connect()
    client.send_request(path)
    gate.wait_stats(held=1)
    assert not select.select([client.sock], [], [], 0.1)[0]


def assert_turned_away(status, headers, body, code):
    assert status == 503
    assert 1 <= int(headers["retry-after"]) <= 60
    assert headers["connection"] == "close"
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert error["code"] == code


def test_a_wait_that_is_too_long_ends_with_a_503_that_arrives_whole(spawn, listener, connect):
    gate = spawn(kind="gate", hold_timeout_s=0.3)
    gate.adopt(1, main=listener)
    idle, short, long, head = (connect() for _ in range(4))
    short.send_request()
    head.send_request(method="HEAD")
    size = 500_000  # far more than the gate ever reads: without lingering, the reset would destroy the answer
    long.send(f"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: {size}\r\n\r\n".encode() + b"x" * 200_000)
    gate.wait_stats(cut=3)
    long.send(b"x" * (size - 200_000))  # a client that sends first and reads then must not be reset on its way
    for client in (short, long):
        assert_turned_away(*client.answer(), "hold_timeout")
        assert client.rest() == b""
    assert head.answer("HEAD")[0] == 503
    assert head.rest() == b""
    assert not idle.closed(0.2)  # its patience counts from its first byte, and it has sent none
    gate.wait_stats(held=0, connections=1)
    idle.send_request()
    assert_turned_away(*idle.answer(), "hold_timeout")


def test_one_request_too_many_is_turned_away_at_once(spawn, listener, connect):
    gate, new = spawn(kind="gate", queue_limit=2), spawn(2)
    gate.adopt(1, main=listener)
    first, second, third = connect(), connect(), connect()
    first.send_request()
    second.send_request()
    gate.wait_stats(held=2)
    third.send_request()
    assert_turned_away(*third.answer(), "queue_full")
    assert connect().get(HEALTH)[0] == 200
    assert hand_over(gate, new, 2)["turned_away"] == 1
    assert (first.answer()[2], second.answer()[2]) == (b"2", b"2")
    assert hand_over(new, gate, 3)["turned_away"] == 0
    assert hand_over(gate, spawn(4), 4)["turned_away"] == 0  # the one before was told of at its own hand-over


def test_idle_connections_time_out_while_others_are_relayed_or_held(relaying, engine, connect):
    gate = relaying(engine(), keep_alive_s=2.0)
    fresh, used = connect(), connect()
    used.get()
    gate.wait_stats(connections=2, idle=2)
    assert fresh.closed(10)
    assert used.closed(10)
    gate.request("point", epoch=2, hold=True)
    idle, checker, waiting = connect(), connect(), connect()
    checker.get(HEALTH)
    waiting.send_request()
    assert idle.closed(10)
    assert checker.closed(10)
    assert gate.wait_stats(connections=1)["held"] == 1


def test_a_gate_that_is_told_that_waiting_is_in_vain_turns_everybody_away_until_a_model_is_back(
    relaying, engine, connect
):
    answering = engine()
    gate = relaying(answering)
    known, checker = connect(), connect()
    known.get()
    gate.request("point", epoch=2, hold=True)
    waiting = connect()
    waiting.send_request()
    gate.wait_stats(held=1)
    gate.request("point", epoch=3, hold=False)
    assert_turned_away(*waiting.answer(), "crash_loop")
    known.send_request()
    assert_turned_away(*known.answer(), "crash_loop")
    status, headers, body = checker.get(HEALTH)
    assert (status, json.loads(body)) == (503, {"status": "unavailable"})
    assert 1 <= int(headers["retry-after"]) <= 60
    in_pieces = connect()
    in_pieces.send(f"GET {HEALTH}".encode()[:9])
    gate.wait_stats(connections=2)
    in_pieces.send(f"GET {HEALTH} HTTP/1.1\r\nhost: test\r\n\r\n".encode()[9:])
    assert json.loads(in_pieces.answer()[2]) == {"status": "unavailable"}
    gate.request("point", epoch=4, hold=True)
    later = connect()
    later.send_request()
    gate.wait_stats(held=1)
    gate.request("point", epoch=5, hold=False, routes=[answering.route()])
    assert later.answer()[0] == 200
    assert checker.get(HEALTH)[0] == 200


@pytest.mark.parametrize("how", ["reset", "close"])
def test_clients_that_hang_up_are_let_go_and_never_reach_a_model(gate, spawn, connect, how):
    leaving, staying = connect(), connect()
    leaving.send_request("/?id=left")
    staying.send_request("/?id=stayed")
    gate.wait_stats(held=2)
    getattr(leaving, how)()
    gate.wait_stats(held=1, connections=1)
    new = spawn(2)
    hand_over(gate, new, 2)
    assert staying.answer()[2] == b"2"
    assert json.loads(staying.get("/seen")[2]) == ["stayed"]


def test_unix_clients_are_held_too(spawn, connect, tmp_path):
    path = str(tmp_path / "public.sock")
    gate, new = spawn(kind="gate"), spawn(2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(2)  # refuses when full: the gate has to accept at once
        listener.setblocking(False)
        gate.adopt(1, main=listener)
        clients = []
        for number in range(20):
            clients.append(connect(path))
            clients[-1].send_request()
            gate.wait_stats(connections=number + 1)
        hand_over(gate, new, 2)
        assert {client.answer()[2] for client in clients} == {b"2"}


def test_a_gate_short_of_descriptors_leaves_the_rest_in_the_queue(spawn, listener, connect):
    gate, new = spawn(kind="gate", nofile=100), spawn(2)
    gate.adopt(1, main=listener)
    clients = [connect() for _ in range(150)]
    for client in clients:
        client.send_request()
    wait_until(lambda: 30 <= gate.stats()["held"] < 100, "the gate is full")
    hand_over(gate, new, 2)
    assert {client.answer()[2] for client in clients} == {b"2"}


def test_a_gate_gives_to_a_gate_and_takes_back_when_that_fails(gate, spawn, connect):
    client = connect()
    client.send_request()
    gate.wait_stats(held=1)
    second = spawn(kind="gate")
    hand_over(gate, second, 2)
    second.wait_stats(held=1)
    third = spawn(3, nofile=1024)
    third.pause()
    with pytest.raises(AssertionError):
        hand_over_to_paused(second, third)
    third.go_on()
    assert connect().get(HEALTH)[0] == 200
    new = spawn(4)
    hand_over(second, new, 4)
    assert client.answer()[2] == b"4"


def hand_over_to_paused(source, target):
    """Its loop cannot even be armed: the daemon gives up before it has asked the source."""
    target.request("receive", timeout_s=0.3, epoch=3)


def test_a_stopping_gate_tells_those_who_wait_and_those_who_come(gate, connect):
    waiting, idle, silent = connect(), connect(), connect()
    idle.get(HEALTH)
    waiting.send_request()
    gate.wait_stats(held=1, connections=3)
    assert gate.request("drain", deadline_s=15, and_close=True)["cut"] == 1
    assert_turned_away(*waiting.answer(), "shutting_down")
    fresh, health = connect(), connect()
    fresh.send_request()
    health.send_request(HEALTH)
    idle.send_request()
    for client in (fresh, health, idle):
        assert_turned_away(*client.answer(), "shutting_down")
        assert client.rest() == b""
    gate.pause()
    queued = connect()
    queued.send_request()
    number = gate.begin("stop")
    gate.go_on()
    assert_turned_away(*queued.answer(), "shutting_down")
    assert silent.rest() == b""
    gate.result(number)
