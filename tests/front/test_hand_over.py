"""What a hand-over does with each kind of connection, between real processes."""

import hashlib
import json
import os
import socket
import struct

import pytest
from support.front_process import HEALTH, Client, hand_over, introduce, wait_until


def test_an_idle_connection_is_answered_by_the_new_owner(pair, connect):
    old, new = pair
    fresh, used = connect(), connect()
    assert used.get()[2] == b"1"
    old.wait_stats(connections=2, idle=2)
    report = hand_over(old, new, 2)
    assert (report["listeners"], report["moved"], report["stragglers"]) == (1, 2, 0)
    assert report["started_at"] >= report["quiesced_at"]
    for client in (fresh, used):
        status, headers, body = client.get()
        assert (status, headers["x-swapd-revision"], body) == (200, "2", b"2")
    assert connect().get()[2] == b"2"
    assert new.stats()["owner"]
    assert not old.stats()["owner"]
    old.wait_stats(connections=0)


def test_a_busy_connection_follows_after_its_answer(pair, connect):
    old, new = pair
    client = connect()
    client.send_request("/slow?s=0.3")
    old.wait_stats(in_flight=1)
    assert hand_over(old, new, 2)["stragglers"] == 1
    assert client.answer()[2] == b"1 slow"
    assert client.get()[2] == b"2"
    old.wait_stats(connections=0, stragglers=0)


def test_a_stream_ends_where_it_began_and_its_connection_follows(pair, connect):
    old, new = pair
    client = connect()
    client.send_request("/stream?n=20&gap=0.02")
    assert client.head()[0] == 200
    hand_over(old, new, 2)
    assert old.stats()["streams"] == 1
    chunks = list(client.chunks())
    assert chunks[-1] == b"data: [DONE]\n\n"
    assert all(chunk.startswith(b"data: 1 ") for chunk in chunks[:-1])
    assert len(chunks) == 21
    assert client.get()[2] == b"2"


def test_a_partial_head_moves_along(pair, connect):
    old, new = pair
    parts = [b"GET /?id=", b"42 HTTP/1.1\r\nho", b"st: test\r\n\r\n"]
    clients = [connect() for _ in range(2)]
    clients[0].send(parts[0])
    clients[1].send(parts[0] + parts[1])
    old.wait_stats(connections=2, idle=0)
    assert hand_over(old, new, 2)["moved"] == 2
    clients[0].send(parts[1] + parts[2])
    clients[1].send(parts[2])
    assert [client.answer()[2] for client in clients] == [b"2", b"2"]
    assert json.loads(clients[0].get("/seen")[2]) == ["42", "42"]
    old.wait_stats(connections=0)


def test_a_partial_head_behind_a_request_in_flight_moves_with_its_connection(pair, connect):
    old, new = pair
    client = connect()
    client.send_request("/slow?s=0.3")
    old.wait_stats(in_flight=1)
    client.send(b"GET / HT")
    hand_over(old, new, 2)
    client.send(b"TP/1.1\r\nhost: test\r\n\r\n")
    assert client.answer()[2] == b"1 slow"
    assert client.answer()[2] == b"2"


def test_pipelined_requests_that_were_parsed_are_answered_where_they_are(pair, connect):
    old, new = pair
    client = connect()
    request = b"GET /slow?s=0.2 HTTP/1.1\r\nhost: test\r\n\r\n"
    client.send(request * 3 + request[:10])  # the last head began within a chunk: it cannot be taken back
    old.wait_stats(in_flight=3)
    hand_over(old, new, 2)
    assert [client.answer()[2] for _ in range(3)] == [b"1 slow"] * 3
    client.send(request[10:])
    assert client.answer()[2] == b"1 slow"
    assert client.get()[2] == b"2"


def test_a_request_sent_after_the_cutover_behind_one_in_flight_is_the_new_owners(pair, connect):
    """`receive()` undoes pause_reading() in bare uvicorn, and the old process would answer it."""
    old, new = pair
    client = connect()
    client.send_request("/slow?s=0.3")
    old.wait_stats(in_flight=1)
    hand_over(old, new, 2)
    assert connect().get()[2] == b"2"
    client.send_request("/")
    assert client.answer()[2] == b"1 slow"
    assert client.answer()[2] == b"2"


def test_a_half_read_body_is_read_to_its_end_here(pair, connect):
    old, new = pair
    body = bytes(range(256)) * 4096
    client = connect()
    client.send(f"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:300_000])
    old.wait_stats(in_flight=1)
    assert hand_over(old, new, 2)["stragglers"] == 1
    client.send(body[300_000:])
    expected = f"{len(body)} {hashlib.sha256(body).hexdigest()}".encode()
    assert client.answer()[2] == b"1 " + expected
    assert client.get("/echo", "POST", body=body)[2] == b"2 " + expected


def test_expect_100_continue_across_a_hand_over(pair, connect):
    old, new = pair
    client = connect()
    client.send(b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
    assert client.answer()[0] == 100
    hand_over(old, new, 2)
    client.send(b"hello")
    assert client.answer()[2].startswith(b"1 5 ")
    client.send(b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n")
    assert client.answer()[0] == 100
    client.send(b"hello")
    assert client.answer()[2].startswith(b"2 5 ")


def test_an_early_answer_keeps_its_unread_body_from_the_next_owner(pair, connect):
    old, new = pair
    client = connect()
    client.send(b"POST /early HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\n" + b"x" * 40)
    assert client.answer()[2] == b"1 early"
    assert hand_over(old, new, 2)["stragglers"] == 1
    client.send(b"GET /smuggled HTTP/1.1\r\nhost: test\r\n\r\n".ljust(60, b"x"))  # body still, whatever it looks like
    old.wait_stats(connections=0)
    assert client.get()[2] == b"2"
    assert json.loads(client.get("/seen")[2]) == ["/"]


def test_a_slow_reader_gets_every_byte_before_its_connection_follows(pair, connect):
    old, new = pair
    size = 4 * 1024 * 1024
    client = connect(rcvbuf=16384)
    client.send_request(f"/big?n={size}")
    old.wait_stats(requests=1, in_flight=0)
    assert hand_over(old, new, 2)["stragglers"] == 1
    assert old.stats()["connections"] == 1
    status, _, body = client.answer()
    assert (status, len(body)) == (200, size)
    assert client.get()[2] == b"2"
    old.wait_stats(connections=0)


def test_a_connection_that_says_close_is_closed_not_moved(pair, connect):
    old, new = pair
    client = connect()
    client.send_request("/slow?s=0.2", headers="connection: close\r\n")
    old.wait_stats(in_flight=1)
    hand_over(old, new, 2)
    assert client.answer()[2] == b"1 slow"
    assert client.rest() == b""
    assert new.stats()["connections"] == 0


def text_frame(text):
    data = text.encode()
    return struct.pack("!BB4s", 0x81, 0x80 | len(data), b"\0\0\0\0") + data


def open_websocket(client):
    client.send(
        b"GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert client.head()[0] == 101


def take_frame(client):
    first, size = client.take(2)
    return first & 15, client.take(size)


def test_a_websocket_stays_where_it_is(pair, connect):
    old, new = pair
    client = connect()
    open_websocket(client)
    old.wait_stats(upgraded=1)
    hand_over(old, new, 2)
    client.send(text_frame("hello"))
    assert take_frame(client) == (1, b"1:hello")
    assert old.stats()["upgraded"] == 1
    number = old.begin("drain", deadline_s=0.1)
    assert old.result(number) == {"finished": 0, "cut": 1, "left": 0}
    opcode, payload = take_frame(client)
    assert (opcode, struct.unpack("!H", payload[:2])[0]) == (8, 1012)


def test_a_client_that_vanishes_while_reading_is_paused_is_noticed(pair, connect):
    old, new = pair
    client = connect()
    client.send_request("/wait-disconnect")
    old.wait_stats(in_flight=1)
    hand_over(old, new, 2)
    client.reset()
    old.wait_stats(in_flight=0, connections=0)


@pytest.mark.parametrize("count", [253, 300, 1000])
def test_many_connections_move_in_batches(pair, connect, count):
    old, new = pair
    clients = [connect() for _ in range(count)]
    for client in clients[::2]:
        client.get()
    old.wait_stats(idle=count)
    assert hand_over(old, new, 2)["moved"] == count
    for client in clients:
        client.send_request()
    assert {client.answer()[2] for client in clients} == {b"2"}
    old.wait_stats(connections=0)


def test_to_and_fro(pair, connect):
    old, new = pair
    clients = [connect() for _ in range(5)]
    for epoch in range(2, 22):
        hand_over(old, new, epoch)
        old, new = new, old
        assert {client.get()[2] for client in clients} == {str(old.revision).encode()}


def test_stragglers_come_home_when_the_old_front_becomes_the_owner_again(pair, connect):
    old, new = pair
    client, stream = connect(), connect()
    client.send_request("/slow?s=0.4")
    stream.send_request("/stream?n=30&gap=0.02")
    old.wait_stats(in_flight=2)
    hand_over(old, new, 2)
    hand_over(new, old, 3)
    assert client.answer()[2] == b"1 slow"
    assert client.get()[2] == b"1"
    assert stream.answer()[2].endswith(b"[DONE]\n\n")
    assert stream.get()[2] == b"1"
    assert new.stats()["connections"] == 0


def test_stragglers_are_forwarded_to_whoever_owns_by_then(pair, connect, spawn):
    old, new = pair
    third = spawn(3)
    client = connect()
    client.send_request("/slow?s=0.4")
    old.wait_stats(in_flight=1)
    hand_over(old, new, 2)
    hand_over(new, third, 3)
    assert client.answer()[2] == b"1 slow"
    assert client.get()[2] == b"3"


def test_stragglers_get_another_way_when_their_first_is_gone(pair, connect, spawn):
    old, new = pair
    third = spawn(3)
    client = connect()
    client.send_request("/slow?s=0.5")
    old.wait_stats(in_flight=1)
    hand_over(old, new, 2)
    hand_over(new, third, 3)
    new.kill()
    assert old.wait_event("needs_successor") == {"epoch": 2, "count": 1}
    ours, theirs = introduce()
    with ours, theirs:
        third.request("receive", [theirs.fileno()], epoch=3)
        old.request("successor", [ours.fileno()], epoch=3)
    assert client.answer()[2] == b"1 slow"
    assert client.get()[2] == b"3"
    third.wait_stats(connections=1)


def test_a_way_for_stragglers_is_asked_for_until_there_is_one(pair, connect, spawn):
    old, new = pair
    third = spawn(3)
    client = connect()
    client.send_request("/slow?s=0.5")
    old.wait_stats(in_flight=1)
    hand_over(old, new, 2)
    hand_over(new, third, 3)
    new.kill()
    for _ in range(2):  # the first time nobody could help
        assert old.wait_event("needs_successor") == {"epoch": 2, "count": 1}
    ours, theirs = introduce()
    with ours, theirs:
        third.request("receive", [theirs.fileno()], epoch=3)
        old.request("successor", [ours.fileno()], epoch=3)
    assert client.answer()[2] == b"1 slow"
    assert client.get()[2] == b"3"


def test_a_unix_listener_moves_too(spawn, connect, tmp_path):
    path = str(tmp_path / "public.sock")
    old, new = spawn(1), spawn(2)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        listener.setblocking(False)
        old.adopt(1, main=listener)
        client = connect(path)
        assert client.get()[2] == b"1"
        hand_over(old, new, 2)
        assert client.get()[2] == b"2"
        assert connect(path).get(HEALTH)[0] == 200


def test_the_private_socket_answers_on_both_sides_throughout(pair, connect):
    old, new = pair
    ours, theirs = Client(old.private), Client(new.private)
    assert (ours.get()[2], theirs.get()[2]) == (b"1", b"2")
    assert new.stats()["connections"] == 0
    hand_over(old, new, 2)
    assert (ours.get()[2], theirs.get()[2]) == (b"1", b"2")
    assert ours.get(HEALTH)[0] == 503
    assert theirs.get(HEALTH)[0] == 200
    ours.close()
    theirs.close()


def test_connections_waiting_in_the_listeners_queue_lose_nothing(pair, connect):
    old, new = pair
    old.pause()
    clients = [connect() for _ in range(50)]
    for client in clients:
        client.send_request()
    old.go_on()
    number = old.begin("stats")
    old.result(number)
    hand_over(old, new, 2)
    assert {client.answer()[2] for client in clients} <= {b"1", b"2"}
    assert {client.get()[2] for client in clients} == {b"2"}


def test_clients_that_gave_up_in_the_queue_never_reach_the_model(pair, connect):
    old, _ = pair
    old.request("block", seconds=0.5)
    for _ in range(10):
        client = connect()
        client.send_request("/?id=gone")
        client.close()
    kept = connect()
    assert kept.get()[2] == b"1"
    assert json.loads(kept.get("/seen")[2]) == ["/"]
    wait_until(lambda: old.stats()["connections"] == 1, "only the kept one is left")


def descriptors(front):
    return len(os.listdir(f"/proc/{front.pid}/fd"))


def test_no_descriptor_is_left_behind(pair, connect):
    old, new = pair
    for epoch, source, target in ((2, old, new), (3, new, old)):
        first = connect()
        first.get()  # the event loop opens some of its own with its first connection
        hand_over(source, target, epoch)
        first.get()
        first.close()
    wait_until(lambda: all(front.stats()["connections"] == 0 for front in pair), "all are gone")
    before = [descriptors(front) for front in pair]
    clients = [connect() for _ in range(20)]
    for epoch in range(4, 14):
        for client in clients[::2]:
            client.get()
        hand_over(old, new, epoch)
        old, new = new, old
    for client in clients:
        client.close()
    wait_until(
        lambda: all(descriptors(front) <= count for front, count in zip(pair, before, strict=True)),
        f"no more descriptors than before: {before}",
    )


def test_drain_waits_for_a_slow_readers_last_byte(pair, connect):
    old, new = pair
    size = 4 * 1024 * 1024
    client = connect(rcvbuf=16384)
    client.send_request(f"/big?n={size}")
    old.wait_stats(requests=1, in_flight=0)
    hand_over(old, new, 2)
    number = old.begin("drain", deadline_s=20)
    assert len(client.answer()[2]) == size
    assert old.result(number)["cut"] == 0
    old.kill()
    assert client.get()[2] == b"2"
