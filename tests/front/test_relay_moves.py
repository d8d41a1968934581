"""Requests under load while tables change and fronts hand over: a gate to a gate, a direct front to a gate and back."""

import asyncio
import contextlib
import itertools
import threading

import pytest
from support.front_load import Load
from support.front_process import begin_hand_over, hand_over, wait_until
from support.raw_upstream import OK

CLIENTS = 32


def route(front):
    return {"worker": f"chat-{front.revision}", "revision": front.revision, "address": f"unix:{front.private}"}


def answered_since(load, count, front):
    """Wait until the clients have had that many answers more by one revision."""
    before = len(load.answers)

    def enough():
        return sum(revision == front.revision for _, _, revision in load.answers[before:]) >= count

    wait_until(enough, f"answers by {front.revision}")


@pytest.fixture
def engines(spawn):
    return spawn(1), spawn(2)


def test_nobody_is_lost_by_tables_and_holds(spawn, listener, engines):
    gate = spawn(kind="gate")
    epochs = itertools.count(1)

    def point(*routes, hold=False):
        return gate.request("point", epoch=next(epochs), routes=list(routes), hold=hold)

    point(route(engines[0]))
    gate.adopt(1, main=listener)
    load = Load(listener.getsockname())

    def during():
        for turn in range(12):
            new = engines[turn % 2]
            old = engines[1 - turn % 2]
            point(hold=True)
            assert gate.request("drain", deadline_s=10, upstream=f"chat-{old.revision}")["cut"] == 0
            gate.wait_stats(held=CLIENTS)
            assert point(route(new))["turned_away"] == 0
            answered_since(load, 50, new)
            if turn % 3 == 2:  # without a hold: the new one answers from the first request on
                point(route(old))
                answered_since(load, 50, old)

    asyncio.run(load.run(CLIENTS, during))
    assert load.errors == []
    gate.wait_stats(in_flight=0, held=0, connections=0)


def test_nobody_is_lost_between_gates(spawn, listener, engines):
    gates = [spawn(kind="gate") for _ in range(3)]
    for gate in gates:
        gate.request("point", epoch=1, routes=[route(engines[0]), route(engines[1])])
    gates[0].adopt(1, main=listener)
    load = Load(listener.getsockname())

    def during():
        for epoch, (old, new) in enumerate(itertools.pairwise(itertools.islice(itertools.cycle(gates), 13)), 2):
            hand_over(old, new, epoch)
            assert old.request("drain", deadline_s=10)["cut"] == 0
            answered_since(load, 30, engines[0])

    asyncio.run(load.run(CLIENTS, during))
    assert load.errors == []
    for gate in gates:
        gate.wait_stats(in_flight=0, connections=0, stragglers=0)


def test_nobody_is_lost_on_the_way_into_a_gate_and_out_of_it(spawn, listener, engines):
    gate = spawn(kind="gate")
    engines[0].adopt(1, main=listener)
    load = Load(listener.getsockname())

    def during():
        epochs = itertools.count(2)
        for turn in range(4):
            owner, new = engines[turn % 2], engines[1 - turn % 2]
            gate.request("point", epoch=turn * 2 + 1, routes=[route(owner)])
            hand_over(owner, gate, next(epochs))
            answered_since(load, 50, owner)
            gate.request("point", epoch=turn * 2 + 2, routes=[route(new)])
            answered_since(load, 50, new)
            hand_over(gate, new, next(epochs))
            assert gate.request("drain", deadline_s=10)["cut"] == 0
            answered_since(load, 50, new)

    asyncio.run(load.run(CLIENTS, during))
    assert load.errors == []
    gate.wait_stats(in_flight=0, connections=0, stragglers=0)


def test_what_is_in_flight_ends_where_it_began(spawn, relaying, engine, connect):
    """Streams, uploads and WebSockets stay with the gate that is going; the next requests follow to the new one."""
    upstream, release = engine(), threading.Event()
    old, new = relaying(upstream), spawn(kind="gate")
    new.request("point", epoch=1, routes=[upstream.route("chat-2", 2)])

    def stream(sock):
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
        release.wait(20)
        sock.sendall(b"1\r\nb\r\n0\r\n\r\n")

    def echo(sock):
        sock.sendall(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        with contextlib.suppress(OSError):
            while data := sock.recv(1000):
                sock.sendall(data)
        return False

    upstream.answer = lambda request: {"/stream": stream, "/ws": echo}.get(request.target, OK)
    streaming, uploading, tunnel, idle, partial = (connect() for _ in range(5))
    assert idle.get()[1]["x-swapd-revision"] == "1"
    streaming.send_request("/stream")
    streaming.head()
    uploading.send(b"POST /up HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nab")
    tunnel.send_request("/ws", headers="Connection: Upgrade\r\nUpgrade: websocket\r\n")
    assert tunnel.head()[0] == 101
    partial.send(b"GET / HT")
    old.wait_stats(in_flight=2, upgraded=1, connections=5)
    number = begin_hand_over(old, new, 2)
    report = old.result(number)
    assert (report["moved"], report["stragglers"]) == (2, 2)
    tunnel.send(b"still here")
    assert tunnel.take(10) == b"still here"
    uploading.send(b"cd")
    assert uploading.answer()[1]["x-swapd-revision"] == "1"
    release.set()
    assert b"".join(streaming.chunks()) == b"ab"
    partial.send(b"TP/1.1\r\nhost: a\r\n\r\n")
    assert partial.answer()[1]["x-swapd-revision"] == "2"
    for client in (streaming, uploading, idle, partial):
        assert client.get()[1]["x-swapd-revision"] == "2"
    assert old.request("drain", deadline_s=0.1)["cut"] == 1
    assert tunnel.rest() == b""
    old.wait_stats(connections=0)


def test_two_thousand_wait_and_are_answered(spawn, listener, engines, connect):
    gate = spawn(kind="gate")
    gate.adopt(1, main=listener)
    clients = [connect(timeout_s=60.0) for _ in range(2000)]
    for number, client in enumerate(clients):
        client.send_request(f"/?id={number}")
    gate.wait_stats(held=2000, timeout_s=60.0)
    for client in clients[::10]:
        client.close()
    gate.wait_stats(held=1800, timeout_s=60.0)
    report = gate.request("point", epoch=1, routes=[route(engines[0])])
    assert (report["held"], report["turned_away"]) == (1800, 0)
    for number, client in enumerate(clients):
        if number % 10:
            assert client.answer()[2] == b"1"
    gate.wait_stats(held=0, in_flight=0, requests=1800)


def test_a_request_that_is_held_while_it_is_being_sent_is_sent_once(relaying, engine, connect):
    """A hold comes between a request and the connection that is being made for it."""
    upstream = engine()
    gate = relaying(upstream)

    def answer_and_close(sock):
        sock.sendall(OK)
        return False

    upstream.answer = lambda request: answer_and_close
    clients = [connect() for _ in range(16)]

    def ask(number):
        for turn in range(60):
            assert clients[number].get(f"/{number}-{turn}", "POST")[0] == 200

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    for epoch in itertools.count(2):
        hold = epoch % 2 == 0
        gate.request("point", epoch=epoch, routes=[] if hold else [upstream.route()], hold=hold)
        if not hold and not any(thread.is_alive() for thread in threads):
            break
    assert sorted(upstream.lines) == sorted(f"POST /{number}-{turn}" for number in range(16) for turn in range(60))
