"""The channel's thread against real sockets: who may speak, what is refused, and that nothing leaks.

A recording handler stands in for the verbs.
"""

import json
import os
import resource
import socket
import tempfile
import threading
from pathlib import Path

import pytest
from support.worker_client import Client, Refused, wait_until

from swapd.core.errors import BAD_REQUEST, INTERNAL, VERSION_MISMATCH, Problem
from swapd.wire import worker as wire
from swapd.worker.channel import (
    MAX_LINKS,
    MAX_OUTBOX,
    MAX_PENDING_REQUESTS,
    Channel,
    encode_error,
    hello_problem,
)
from swapd.worker.sockets import allowed_uids, bind_control


class Recorder:
    """Answers by verb: `ok` at once, `never` not at all, `take` keeps the descriptors, `bug` raises."""

    def __init__(self):
        self.channel = None
        self.kept = []
        self.pending = []
        self.lost_links = 0

    def hello(self):
        return {"worker_id": "w-1"}

    def greeted(self, link):
        pass

    def request(self, link, request, fds):
        if request.verb == "take":
            self.kept += fds.take_sockets()
        elif request.verb == "never":
            self.pending.append((link, request.id))
            return
        elif request.verb == "bug":
            raise KeyError("bug")
        elif request.verb == "event":
            self.channel.broadcast(wire.WorkerEvent("progress", {"done": 1}))
        self.channel.reply(link, request.id, {"fds": len(self.kept)})

    def lost(self, link):
        self.lost_links += 1


class Served:
    def __init__(self, allowed):
        self.dir = Path(tempfile.mkdtemp(prefix="ch-", dir="/tmp"))
        self.path = self.dir / "control.sock"
        self.handler = Recorder()
        self.channel = Channel(bind_control(str(self.path), MAX_LINKS), "w-1", allowed, self.handler)
        self.handler.channel = self.channel
        self.clients = []
        self.channel.start()

    def connect(self):
        client = Client(self.path)
        self.clients.append(client)
        return client

    def greeted(self):
        client = self.connect()
        client.hello("w-1")
        return client

    def close(self):
        for client in self.clients:
            client.close()
        self.channel.close()
        for sock in self.handler.kept:
            sock.close()
        self.path.unlink()
        self.dir.rmdir()


@pytest.fixture
def served():
    made = Served(allowed_uids(os.geteuid()))
    yield made
    made.close()


def refused(call):
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def open_descriptors():
    return set(os.listdir("/proc/self/fd"))


def test_hello_comes_first(served):
    client = served.connect()
    error = refused(lambda: client.request("load"))
    assert (error.code, error.message) == (BAD_REQUEST, "load: say hello first")
    assert client.hello("w-1") == {"worker_id": "w-1"}
    assert client.request("ok") == {"fds": 0}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"worker_id": "w-2"}, BAD_REQUEST, "this is worker w-1, not w-2"),
        ({"protocol": "1"}, BAD_REQUEST, "protocol must be an integer"),
        ({"min_protocol": None}, BAD_REQUEST, "min_protocol must be an integer"),
        ({"protocol": 9, "min_protocol": 9}, VERSION_MISMATCH, "the daemon speaks protocol 9 to 9"),
        ({"protocol": 0, "min_protocol": 0}, VERSION_MISMATCH, "the daemon speaks protocol 0 to 0"),
    ],
)
def test_a_hello_that_does_not_fit_is_refused_and_does_not_count(served, change, code, words):
    client = served.connect()
    hello = {"protocol": 1, "min_protocol": 1, "worker_id": "w-1", **change}
    error = refused(lambda: client.request("hello", **hello))
    assert (error.code, words in error.message) == (code, True)
    assert refused(lambda: client.request("ok")).code == BAD_REQUEST
    assert hello_problem(hello, "w-1").code == code


def test_a_newer_daemon_that_still_speaks_ours_is_welcome(served):
    assert served.connect().hello("w-1", protocol=9, capabilities=["x"]) == {"worker_id": "w-1"}


def test_only_root_the_daemon_and_ourselves_may_speak():
    assert allowed_uids(1234) == {0, 1234, os.geteuid()}
    stranger = Served(allowed={os.geteuid() + 1})
    try:
        assert stranger.connect().at_end()
    finally:
        stranger.close()


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b"\x00\xff", b'{"id":1,"verb":[]}', b'{"re":1,"ok":{}}', b'{"event":"x"}', b"[" * 100000]
)
def test_what_is_not_a_request_ends_that_connection_only(served, data):
    other, client = served.greeted(), served.greeted()
    client.send_raw(data)
    assert client.at_end()
    assert other.request("ok") == {"fds": 0}


def test_an_oversized_message_ends_that_connection_only(served):
    other, client = served.greeted(), served.greeted()
    client.send_raw(b'{"id":1,"verb":"ok"}' + b" " * wire.MAX_MESSAGE_BYTES)
    assert client.at_end()
    assert other.request("ok") == {"fds": 0}


def test_a_message_of_exactly_the_limit_is_read(served):
    body = b'{"id":1,"verb":"ok"}'
    client = served.greeted()
    client.send_raw(body + b" " * (wire.MAX_MESSAGE_BYTES - len(body)))
    assert client.reply(1) == {"fds": 0}


def test_requests_overlap(served):
    client = served.greeted()
    waiting = client.send("never")
    assert client.request("ok") == {"fds": 0}
    link, number = served.handler.pending.pop()
    threading.Thread(target=served.channel.reply, args=(link, number, {"late": True})).start()
    assert client.reply(waiting) == {"late": True}


def test_too_many_requests_without_a_reply_are_refused(served):
    client = served.greeted()
    for _ in range(MAX_PENDING_REQUESTS):
        client.send("never")
    assert "wait for their reply" in refused(lambda: client.request("ok")).message


def test_a_bug_in_a_verb_is_told_and_harms_nothing(served):
    client = served.greeted()
    error = refused(lambda: client.request("bug"))
    assert error.code == INTERNAL
    assert "KeyError" in error.message
    assert client.request("ok") == {"fds": 0}


def test_descriptors_arrive_and_those_nobody_takes_are_closed(served):
    client = served.greeted()
    ours, theirs = socket.socketpair()
    before = open_descriptors()
    for verb in ("ok", "bug"):
        number = client.send(verb, fds=(theirs.fileno(), theirs.fileno()))
        try:
            client.reply(number)
        except Refused:
            assert verb == "bug"
    client.send_raw(b"{", (theirs.fileno(),))
    assert client.at_end()
    wait_until(lambda: len(open_descriptors()) < len(before), "the leftovers are closed")
    client = served.greeted()
    assert client.request("take", fds=(theirs.fileno(),)) == {"fds": 1}
    theirs.close()
    ours.send(b"x")
    assert served.handler.kept[0].recv(1) == b"x"
    ours.close()


def test_a_descriptor_that_is_no_socket_is_refused_and_closed(served):
    client = served.greeted()
    reading, writing = os.pipe()
    error = refused(lambda: client.request("take", fds=(writing,)))
    assert (error.code, "not a socket" in error.message) == (BAD_REQUEST, True)
    os.close(writing)
    assert os.read(reading, 1) == b""  # end of file: ours was the last copy
    os.close(reading)


def test_descriptors_that_did_not_arrive_are_reported_not_used(served):
    """MSG_CTRUNC, here because the process is out of descriptors."""
    client = served.greeted()
    ours, theirs = socket.socketpair()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 2, hard))
    try:
        error = refused(lambda: client.request("take", fds=(theirs.fileno(),) * 100))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (error.code, "LimitNOFILE" in error.message) == (INTERNAL, True)
    assert served.handler.kept == []
    assert client.request("ok") == {"fds": 0}
    ours.close()
    theirs.close()


def test_out_of_descriptors_the_channel_waits_and_then_accepts(served, caplog):
    first = served.greeted()
    waiting = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (waiting.fileno(), hard))
    try:
        waiting.connect(str(served.path))
        wait_until(lambda: "worker.accept_failed" in caplog.text, "the channel notices")
        for _ in range(100):
            assert first.request("ok") == {"fds": 0}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    waiting.settimeout(20)
    waiting.send(json.dumps({"id": 1, "verb": "ok"}).encode())
    assert b"say hello first" in waiting.recv(4096)
    waiting.close()
    assert caplog.text.count("worker.accept_failed") < 20, "it waits, it does not spin"
    assert "worker.channel_bug" not in caplog.text


def test_every_connection_is_served_and_the_newest_always_gets_in(served):
    clients = [served.greeted() for _ in range(MAX_LINKS)]
    assert all(client.request("ok") == {"fds": 0} for client in clients)
    newest = served.greeted()
    assert clients[0].at_end()
    assert newest.request("ok") == {"fds": 0}
    assert clients[1].request("ok") == {"fds": 0}


def test_events_reach_every_helloed_connection(served):
    silent, first, second = served.connect(), served.greeted(), served.greeted()
    first.request("event")
    wait_until(lambda: second.receive(), "the event")
    assert first.request("ok") == {"fds": 0}
    assert [event["event"] for event in first.events] == ["progress"]
    silent.hello("w-1")
    assert silent.events == []


def test_a_lost_connection_is_told_and_late_replies_go_nowhere(served):
    client = served.greeted()
    client.send("never")
    wait_until(lambda: served.handler.pending, "the request")
    client.close()
    wait_until(lambda: served.handler.lost_links == 1, "the loss")
    link, number = served.handler.pending[0]
    served.channel.reply(link, number, {})
    assert served.greeted().request("ok") == {"fds": 0}


def test_a_peer_that_does_not_read_is_given_up_and_others_are_not(served):
    slow, quick = served.greeted(), served.greeted()
    padding = "x" * 60_000
    for _ in range(MAX_OUTBOX + 20):
        served.channel.broadcast(wire.WorkerEvent("progress", {"padding": padding}))
        assert quick.receive()["event"] == "progress"
    wait_until(lambda: served.handler.lost_links == 1, "the slow one is dropped")
    assert quick.request("ok") == {"fds": 0}
    slow.close()


def test_progress_is_dropped_rather_than_a_slow_peer(served):
    slow = served.greeted()
    event = wire.WorkerEvent("progress", {"padding": "x" * 60_000})
    for _ in range(MAX_OUTBOX + 20):
        served.channel.broadcast(event, may_be_lost=True)
    assert slow.request("ok") == {"fds": 0}
    assert 0 < len(slow.events) < MAX_OUTBOX


def test_a_reply_too_long_for_one_message_is_cut():
    data = encode_error(7, Problem("X", "m" * 1_000_000, {"tail": "t" * 1_000_000}))
    assert wire.decode(data).error.message == "m" * 8000


def test_close_sends_what_is_waiting_first(served):
    client = served.greeted()
    client.send("never")
    wait_until(lambda: served.handler.pending, "the request")
    link, number = served.handler.pending[0]
    served.channel.reply(link, number, {"last": True})
    served.channel.close()
    assert client.reply(number) == {"last": True}
    assert client.at_end()
