"""How far a gate trusts an engine: whose socket it is, how its connections are used, when a drain is given up."""

import os
import threading

from support.front_process import wait_until
from support.raw_upstream import OK


def point(gate, epoch, *routes):
    return gate.request("point", epoch=epoch, routes=list(routes), hold=False)


def test_a_socket_of_another_user_gets_no_request(relaying, engine, connect):
    upstream = engine()
    gate = relaying(upstream)
    point(gate, 2, upstream.route(uid=os.getuid() + 1))
    client = connect()
    client.send_request("/", "POST", body=b"secret")
    gate.wait_stats(held=1)
    wait_until(lambda: upstream.connections > 1, "the gate has looked")
    assert upstream.requests == []
    point(gate, 3, upstream.route(uid=os.getuid()))
    assert client.answer()[2] == b"ok"


def test_an_engine_whose_connections_are_not_to_be_reused_gets_one_for_each_request(relaying, engine, connect):
    upstream = engine()
    gate = relaying(upstream)
    client = connect()
    client.get()
    client.get()
    assert upstream.connections == 1
    point(gate, 2, upstream.route(reuse=False))
    before = upstream.connections
    for _ in range(3):
        client.get()
    assert upstream.connections >= before + 2, "at most the first went by a connection of before"


def test_once_a_kept_connection_was_closed_under_a_post_posts_get_new_ones(relaying, engine, connect):
    upstream = engine()
    relaying(upstream)
    client = connect()
    client.get()
    upstream.answer = lambda request: None if request.connection == 1 else OK
    client.send_request("/", "POST", body=b"x")
    assert client.answer()[0] == 502, "it was read and not answered"
    other = connect()
    for number in range(2, 5):
        assert other.get("/", "POST", body=b"x")[0] == 200
        assert upstream.connections == number


def test_a_drain_is_given_up_when_the_gate_is_pointed_back(relaying, engine, connect):
    one, two = engine(), engine()
    gate, go_on = relaying(one), threading.Event()

    def late(sock):
        assert go_on.wait(20)
        sock.sendall(OK)

    one.answer = lambda request: late
    client = connect()
    client.send_request()
    one.wait_requests(1)
    point(gate, 2, two.route("chat-2", 2))
    draining = gate.begin("drain", deadline_s=60, upstream="chat-1")
    point(gate, 3, one.route("chat-1", 1))
    assert gate.result(draining)["cut"] == 0
    go_on.set()
    assert client.answer()[2] == b"ok"
