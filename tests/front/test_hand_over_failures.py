"""Hand-overs that go wrong at each point: nobody who connected may be lost, and nobody read by two."""

import json
import os
import select
import signal
import socket
import time

import pytest
from support.front_process import Client, FrontError, begin_hand_over, hand_over, introduce, wait_until

from swapd.wire import peer as wire


class Peer:
    """The other front of a hand-over, played by the test message by message."""

    def __init__(self):
        self.sock, self.theirs = introduce()
        self.sock.setblocking(False)

    def introduce_to(self, front, verb, **params):
        with self.theirs:
            return front.begin(verb, [self.theirs.fileno()], **params)

    def send(self, message, fds=()):
        wire.send(self.sock, message, fds)

    def receive(self, timeout_s=10.0):
        """The next message; None at the end of file. Descriptors are closed, as a target that dies would."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                received = wire.receive(self.sock)
            except BlockingIOError:
                assert select.select([self.sock], [], [], max(0.0, deadline - time.monotonic()))[0], "no message"
                continue
            if received is None:
                return None
            wire.close_all(received.fds)
            return received.message

    def close(self):
        self.sock.close()


@pytest.fixture
def peer():
    played = Peer()
    yield played
    played.close()
    played.theirs.close()


def assert_serves(front, clients, revision):
    assert front.stats()["owner"]
    for client in clients:
        assert client.get()[2] == b"%d" % revision


def failed(source, number):
    with pytest.raises(FrontError) as caught:
        source.result(number)
    assert caught.value.code == "HAND_OVER_FAILED"


def test_the_target_lacks_room_for_the_descriptors(spawn, listener, connect):
    old, new = spawn(1), spawn(2, nofile=60)
    old.adopt(1, main=listener)
    clients = [connect() for _ in range(100)]
    for client in clients[::3]:
        client.get()
    old.wait_stats(connections=100)
    with pytest.raises(FrontError, match="RLIMIT_NOFILE"):
        hand_over(old, new, 2)
    assert_serves(old, clients, 1)
    assert new.stats()["connections"] == 0
    roomy = spawn(3)
    hand_over(old, roomy, 3)
    assert_serves(roomy, clients, 3)


def test_a_straggler_for_which_there_is_no_room_is_kept_and_sent_again(spawn, listener, connect):
    old, new = spawn(1), spawn(2, nofile=60)
    old.adopt(1, main=listener)
    client = connect()
    client.send_request("/slow?s=0.3")
    old.wait_stats(in_flight=1)
    hand_over(old, new, 2)
    fillers = [connect() for _ in range(60)]
    for filler in fillers:
        filler.send_request()
    assert client.answer()[2] == b"1 slow"
    wait_until(lambda: old.stats()["stragglers"] == 1 and new.stats()["connections"] > 20, "the target is full")
    client.send_request()
    for filler in fillers:
        filler.close()
    assert client.answer()[2] == b"2"


def test_the_target_dies_before_it_takes_hold(pair, connect):
    old, new = pair
    clients = [connect() for _ in range(5)]
    clients[0].get()
    with_ours, theirs = introduce()
    with with_ours, theirs:
        new.request("receive", [theirs.fileno()], epoch=2)
        new.pause()
        number = old.begin("hand_over", [with_ours.fileno()], epoch=2, deadline_s=20)
    wait_until(lambda: old.stats()["owner"] and not readable_health(connect), "the source is quiesced")
    clients[1].send_request()
    new.kill()
    failed(old, number)
    assert clients[1].answer()[2] == b"1"
    assert_serves(old, clients, 1)


def readable_health(connect):
    """Whether the service answers at all right now."""
    client = connect(timeout_s=0.3)
    try:
        return client.get()[0] == 200
    except TimeoutError:
        return False


def test_the_target_dies_after_commit(pair, connect, peer, spawn):
    old, _ = pair
    clients = [connect() for _ in range(3)]
    clients[0].get()
    old.wait_stats(connections=3)
    number = peer.introduce_to(old, "hand_over", epoch=2, deadline_s=0.3)
    assert isinstance(peer.receive(), wire.Offer)
    peer.send(wire.Held(2, 0))
    assert peer.receive() == wire.Commit(2)
    clients[1].send_request()
    peer.close()
    assert old.request("target_dead", epoch=1) == {"resumed": False}
    with pytest.raises(AssertionError):  # past its deadline, and without the peer: still no proof of anything
        old.result(number, timeout_s=0.6)
    assert not clients[1].closed()
    assert old.request("target_dead", epoch=2) == {"resumed": True}
    failed(old, number)
    assert clients[1].answer()[2] == b"1"
    assert_serves(old, clients, 1)


def test_messages_of_an_older_epoch_are_void(pair, connect, peer):
    old, _ = pair
    client = connect()
    client.get()
    number = peer.introduce_to(old, "hand_over", epoch=5, deadline_s=0.5)
    assert isinstance(peer.receive(), wire.Offer)
    peer.send(wire.Held(4, 0))
    peer.send(wire.Started(4, 0.0))
    peer.send(wire.Started(5, 0.0))  # before COMMIT: illegal
    assert isinstance(peer.receive(), wire.Abort)
    failed(old, number)
    assert_serves(old, [client], 1)
    with pytest.raises(FrontError):
        old.request("hand_over", [peer.sock.fileno()], epoch=5, deadline_s=1)
    assert_serves(old, [client], 1)


def test_the_source_dies_after_its_offer(spawn, listener, connect, peer):
    new = spawn(2)
    clients = [connect() for _ in range(3)]
    accepted = [listener.accept()[0] for _ in clients]
    new.result(peer.introduce_to(new, "receive", epoch=2))
    fds = [listener.fileno(), *(sock.fileno() for sock in accepted)]
    peer.send(wire.Offer(2, 0, ("main",), (b"", b"", b"GET / HTTP/1.1\r\n")), fds)
    assert peer.receive() == wire.Held(2, 0)
    clients[0].send_request()
    for sock in accepted:
        sock.close()
    peer.close()
    stats = new.stats()
    assert not stats["owner"]
    assert stats["connections"] == 0
    assert not clients[0].closed(0.2)  # held, and not read
    assert new.request("source_dead", epoch=1)["started"] is False
    report = new.request("source_dead", epoch=2)
    assert report == {"started": True, "listeners": ["main"], "connections": 3}
    assert clients[0].answer()[2] == b"2"
    clients[2].send(b"host: test\r\n\r\n")
    assert clients[2].answer()[2] == b"2"
    assert_serves(new, clients, 2)
    assert new.request("source_dead", epoch=2)["started"] is True  # asked again by a restarted daemon


def test_an_aborted_offer_is_let_go_without_a_trace(spawn, listener, connect, peer):
    new = spawn(2)
    client = connect()
    accepted = listener.accept()[0]
    new.result(peer.introduce_to(new, "receive", epoch=2))
    peer.send(wire.Offer(2, 0, ("main",), (b"",)), [listener.fileno(), accepted.fileno()])
    assert peer.receive() == wire.Held(2, 0)
    peer.send(wire.Abort(2, "changed my mind"))
    peer.send(wire.Commit(2))
    assert isinstance(peer.receive(), wire.Abort)  # it will never start that epoch, and says so
    assert not new.stats()["owner"]
    accepted.send(b"still ours")
    assert client.sock.recv(100) == b"still ours"
    accepted.close()
    assert client.closed(5)  # no copy left anywhere


def test_a_later_epoch_takes_the_place_of_one_nobody_decided(spawn, pair, connect, peer):
    old, new = pair
    new.result(peer.introduce_to(new, "receive", epoch=2))
    peer.send(wire.Offer(2, 0, (), ()))
    assert peer.receive() == wire.Held(2, 0)
    hand_over(old, new, 3)
    assert isinstance(peer.receive(), wire.Abort)
    assert connect().get()[2] == b"2"


def test_the_daemons_connection_breaks_before_commit(pair, connect, peer):
    old, _ = pair
    client = connect()
    client.get()
    number = peer.introduce_to(old, "hand_over", epoch=2, deadline_s=20)
    assert isinstance(peer.receive(), wire.Offer)
    client.send_request()
    old.request("abort_hand_over")
    assert isinstance(peer.receive(), wire.Abort)
    failed(old, number)
    assert client.answer()[2] == b"1"
    assert_serves(old, [client, connect()], 1)


def test_garbage_from_the_peer_ends_the_hand_over_not_the_front(pair, connect, peer):
    old, new = pair
    client = connect()
    number = peer.introduce_to(old, "hand_over", epoch=2, deadline_s=20)
    assert isinstance(peer.receive(), wire.Offer)
    peer.sock.send(b"\xff" * 100)
    failed(old, number)
    assert_serves(old, [client], 1)
    hand_over(old, new, 3)
    assert_serves(new, [client], 2)


def test_the_targets_loop_is_blocked(pair, connect):
    old, new = pair
    client = connect()
    client.get()
    ours, theirs = introduce()
    with ours, theirs:
        new.request("receive", [theirs.fileno()], epoch=2)
        new.request("block", seconds=1.5)
        number = old.begin("hand_over", [ours.fileno()], epoch=2, deadline_s=0.3)
    failed(old, number)
    assert_serves(old, [client, connect()], 1)
    hand_over(old, new, 3, deadline_s=10)
    assert_serves(new, [client, connect()], 2)


def test_the_sources_loop_is_blocked(pair, connect):
    """The listeners move at once; connections follow when the loop is back, with what it had read."""
    old, new = pair
    idle, blocker, waiting = connect(), connect(), connect()
    idle.get()
    old.wait_stats(connections=3)
    blocker.send_request("/block?s=1.5")
    wait_until(lambda: old.stats()["loop_blocked_s"] > 0.1, "the loop is blocked")
    began_at = time.monotonic()
    number = begin_hand_over(old, new, 2)
    waiting.send(b"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: 200000\r\n\r\n" + b"x" * 200_000)
    report = old.result(number)
    assert report["blocked"] is True
    assert report["listeners"] == 1
    fresh = connect()
    assert fresh.get()[2] == b"2"
    assert old.stats()["loop_blocked_s"] > 0, time.monotonic() - began_at
    idle.send_request()
    assert blocker.answer()[2] == b"1 block"
    assert idle.answer()[2] == b"2"
    assert waiting.answer()[2].startswith(b"2 200000 ")
    assert_serves(new, [idle, blocker, waiting, fresh], 2)
    old.wait_stats(connections=0, stragglers=0)


def test_a_blocked_source_whose_target_fails_goes_on(pair, connect):
    old, new = pair
    blocker, idle = connect(), connect()
    idle.get()
    blocker.send_request("/block?s=1.2")
    wait_until(lambda: old.stats()["loop_blocked_s"] > 0.1, "the loop is blocked")
    ours, theirs = introduce()
    with ours, theirs:
        new.request("receive", [theirs.fileno()], epoch=2)
        new.pause()
        number = old.begin("hand_over", [ours.fileno()], epoch=2, deadline_s=0.3)
    failed(old, number)
    new.go_on()
    assert blocker.answer()[2] == b"1 block"
    assert_serves(old, [idle, blocker, connect()], 1)
    hand_over(old, new, 3)
    assert_serves(new, [idle, blocker, connect()], 2)


def test_adopting_twice_or_with_an_old_epoch(pair, connect, listener):
    old, new = pair
    assert connect().get()[2] == b"1"
    hand_over(old, new, 5)
    with pytest.raises(FrontError):
        old.request("adopt", [listener.fileno()], epoch=4, listeners=["main"])
    os.kill(new.pid, signal.SIGKILL)
    old.adopt(6, main=listener)
    assert connect().get()[2] == b"1"


def test_a_client_never_sees_both(pair, connect):
    """Two readers of one connection would tear this upload apart (measured with a protocol that has no COMMIT)."""
    old, new = pair
    client = connect()
    client.get()
    body = os.urandom(500_000)
    head = f"POST /echo HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    number = begin_hand_over(old, new, 2)
    client.send(head + body)
    old.result(number)
    revision, size, _ = client.answer()[2].split()
    assert size == b"500000"
    assert revision in (b"1", b"2")
    assert client.get()[2] == b"2"
    assert len(json.loads(client.get("/seen")[2])) <= 2


def test_a_client_may_connect_while_nobody_accepts(spawn, listener):
    """The queue is the kernel's: from the last holder's close alone would it be lost."""
    old, new = spawn(1), spawn(2)
    client = Client(listener.getsockname())
    client.send_request()
    old.adopt(1, main=listener)
    assert client.answer()[2] == b"1"
    hand_over(old, new, 2)
    old.kill()
    assert client.get()[2] == b"2"
    with socket.create_connection(listener.getsockname(), timeout=5):
        pass
    client.close()
