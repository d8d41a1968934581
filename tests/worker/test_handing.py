"""Listeners and clients between real workers and gates, ordered over the channel as the daemon does it."""

import http.client
import itertools
import json
import os
import signal
import socket
import threading
from dataclasses import dataclass, field

import pytest
from support.worker_client import DEADLINE_S, Refused, ask, ask_once, blocked_loop, wait_until

from swapd.wire import peer as peer_wire

NAME = "http"


class Service:
    """The daemon's part: a listener that it keeps, epochs, and socket pairs."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.epoch = 0

    def adopt(self, client):
        self.epoch += 1
        fds = (self.listener.fileno(),)
        return client.request("adopt", fds=fds, epoch=self.epoch, listeners=[NAME])

    def begin(self, source, target, deadline_s=10.0):
        """Order a hand-over; the id of the request to the source."""
        self.epoch += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            if target is not None:
                target.request("receive", fds=(theirs.fileno(),), epoch=self.epoch)
            params = {"epoch": self.epoch, "deadline_s": deadline_s}
            return source.send("hand_over", params, (ours.fileno(),))

    def hand_over(self, source, target):
        return source.reply(self.begin(source, target))

    def begin_to_us(self, source, deadline_s=10.0):
        """Order a hand-over whose target is the test itself: its end of the pair."""
        self.epoch += 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            source.send("hand_over", {"epoch": self.epoch, "deadline_s": deadline_s}, (ours.fileno(),))
        theirs.settimeout(DEADLINE_S)
        return theirs

    def connect(self, timeout_s=DEADLINE_S):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)

    def ask_once(self, path="/", body=b""):
        connection = self.connect()
        try:
            return ask(connection, path, body)
        finally:
            connection.close()


@pytest.fixture
def service():
    made = Service()
    yield made
    made.listener.close()


def refused(call):
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def state_of(client):
    return client.request("stats")["state"]


def revision_of(answer):
    assert answer[0] == 200, answer
    return int(answer[1]["x-swapd-revision"])


@dataclass
class Load:
    """Clients that ask as fast as they get answers; half of them reconnect each time."""

    service: Service
    errors: list = field(default_factory=list)
    revisions: list = field(default_factory=list)  # one list a client

    def __enter__(self):
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client, args=(number % 2 == 0,)) for number in range(4)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        for thread in self._threads:
            thread.join(DEADLINE_S)

    def _client(self, reconnects):
        seen = []
        self.revisions.append(seen)
        connection = self.service.connect()
        while not self._stop.is_set():
            try:
                seen.append(revision_of(ask(connection, "/x", b"hi")))
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.errors.append(repr(error))
                connection.close()
            if reconnects:
                connection.close()
            self._stop.wait(0.002)
        connection.close()

    def all_reach(self, revision, times=3):
        wait_until(
            lambda: len(self.revisions) == 4 and all(seen[-times:] == [revision] * times for seen in self.revisions),
            f"every client is answered by revision {revision}",
        )


def test_a_worker_that_adopts_a_listener_serves_it(spawn, service):
    client = spawn(revision=5).loaded()
    assert refused(lambda: service.hand_over(client, None)).code == "BAD_REQUEST"
    assert service.adopt(client)["started_at"] > 0
    assert revision_of(service.ask_once()) == 5
    stats = client.request("stats")
    assert (stats["owner"], stats["epoch"], stats["state"]) == (True, service.epoch, "serving")
    assert stats["requests"] >= 1
    assert service.ask_once("/-/swapd/health")[0] == 200


def test_the_owner_is_neither_parked_nor_drained_nor_given_a_second_start(spawn, service):
    client = spawn("engines_app:SyncEngine").loaded()
    service.adopt(client)
    for verb, params in (("park", {}), ("drain", {"deadline_s": 1}), ("load", {})):
        error = refused(lambda verb=verb, params=params: client.request(verb, **params))
        assert (error.code, "possible now: adopt, receive, hand_over" in error.message) == ("BAD_REQUEST", True)
    assert revision_of(service.ask_once()) == 1


def test_clients_move_from_worker_to_worker_and_back_without_an_error(spawn, service):
    old, new = spawn(revision=1).loaded(), spawn(revision=2).loaded()
    service.adopt(old)
    with Load(service) as load:
        load.all_reach(1)
        report = service.hand_over(old, new)
        load.all_reach(2)
        assert (state_of(old), state_of(new)) == ("quiesced", "serving")
        back = service.hand_over(new, old)  # rollback
        load.all_reach(1)
    assert load.errors == []
    for seen in load.revisions:
        changes = [pair for pair in itertools.pairwise(seen) if pair[0] != pair[1]]
        assert changes == [(1, 2), (2, 1)], "each cutover is monotonic"
    assert report["started_at"] >= report["quiesced_at"]
    assert (report["listeners"], report["blocked"], back["listeners"]) == (1, False, 1)
    assert (state_of(old), state_of(new)) == ("serving", "quiesced")


def test_in_place_by_way_of_a_gate(spawn, service):
    """The clients who wait in the gate are answered by the new worker; the old one parks meanwhile."""
    old = spawn("engines_app:SyncEngine", revision=1).loaded()
    gate = spawn(kind="gate", worker_id="w-gate-2", queue_limit=2).greeted()
    service.adopt(old)
    kept = service.connect()
    assert revision_of(ask(kept, "/a")) == 1
    service.hand_over(old, gate)
    assert state_of(gate) == "serving"
    assert old.request("drain", deadline_s=10) == {"finished": 0, "cut": 0, "left": 0}
    old.request("park")
    answers = []
    waiting = [
        threading.Thread(target=lambda: answers.append(revision_of(ask(kept, "/b")))),
        threading.Thread(target=lambda: answers.append(revision_of(service.ask_once("/c")))),
    ]
    for thread in waiting:
        thread.start()
    wait_until(lambda: gate.request("stats")["held"] >= 2, "both are held")
    assert answers == []
    assert service.ask_once("/one-too-many")[0] == 503
    new = spawn(revision=2).loaded()
    report = service.hand_over(gate, new)
    for thread in waiting:
        thread.join(DEADLINE_S)
    assert answers == [2, 2]
    assert (report["listeners"], report["turned_away"]) == (1, 1)
    assert (state_of(gate), state_of(old), state_of(new)) == ("quiesced", "parked", "serving")
    kept.close()


def start_stream(service, chunks):
    """A stream under way: its connection, its answer, and its first line."""
    connection = service.connect()
    connection.request("POST", "/stream", str(chunks).encode())
    answer = connection.getresponse()
    assert answer.readline() == b"chunk 0\n"
    return connection, answer


def test_a_stream_is_finished_by_the_old_worker_and_its_connection_follows(spawn, service):
    old, new = spawn(revision=1).loaded(), spawn(revision=2).loaded()
    service.adopt(old)
    connection, answer = start_stream(service, 12)
    report = service.hand_over(old, new)
    assert report["stragglers"] == 1
    assert old.request("stats")["streams"] == 1
    drained = old.send("drain", {"deadline_s": DEADLINE_S})
    assert answer.read().splitlines()[-1] == b"end"
    assert old.reply(drained) == {"finished": 1, "cut": 0, "left": 0}
    assert revision_of(ask(connection, "/next")) == 2, "on the same connection"
    connection.close()


def test_a_drain_cuts_at_its_deadline_with_an_explicit_error(spawn, service):
    old, new = spawn(revision=1).loaded(), spawn(revision=2).loaded()
    service.adopt(old)
    connection, answer = start_stream(service, 100_000)
    service.hand_over(old, new)
    report = old.request("drain", deadline_s=0.2)
    assert (report["cut"], report["left"]) == (1, 0)
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        answer.read()
    assert old.request("stats")["cut"] == 1
    connection.close()


def test_a_blocked_loop_does_not_stall_the_hand_over(spawn, service):
    """The listener moves at once; the blocked request is answered by the old worker, the rest follows."""
    old_worker = spawn(revision=1)
    old, new = old_worker.loaded(), spawn(revision=2).loaded()
    service.adopt(old)
    kept = service.connect()
    assert revision_of(ask(kept, "/a")) == 1
    with blocked_loop(old_worker, service.ask_once) as blocked_answer:
        report = service.hand_over(old, new)
        assert report["blocked"] is True
        assert revision_of(service.ask_once("/new")) == 2
        assert blocked_answer == [], "the old worker's loop is still blocked"
    assert [revision_of(answer) for answer in blocked_answer] == [1]
    assert revision_of(ask(kept, "/b")) == 2
    assert (state_of(old), state_of(new)) == ("quiesced", "serving")
    kept.close()


def test_a_target_that_does_not_take_hold_leaves_the_source_serving(spawn, service):
    old = spawn(revision=1).loaded()
    service.adopt(old)
    target = service.begin_to_us(old, deadline_s=0.2)
    error = refused(lambda: old.reply(old.last))
    assert error.code == "HAND_OVER_FAILED"
    assert revision_of(service.ask_once()) == 1
    assert state_of(old) == "serving"
    target.close()


def receive_offer(target):
    received = peer_wire.receive(target)
    peer_wire.close_all(received.fds)
    return received.message


def test_a_daemon_that_dies_before_commit_leaves_the_source_serving(spawn, service):
    worker = spawn(revision=1)
    old = worker.loaded()
    service.adopt(old)
    target = service.begin_to_us(old, deadline_s=600)
    assert receive_offer(target).listeners == (NAME,)
    old.close()
    assert isinstance(receive_offer(target), peer_wire.Abort)
    assert revision_of(service.ask_once()) == 1
    again = worker.connect()
    wait_until(lambda: again.hello(worker.id)["state"] == "serving", "the owner as before")
    target.close()


@pytest.mark.parametrize("begun", [False, True])
def test_a_daemon_that_dies_while_the_loop_is_blocked_leaves_the_source_serving(spawn, service, begun):
    """Before anybody has taken up the order, and when the channel's side has."""
    worker = spawn(revision=1)
    old = worker.loaded()
    service.adopt(old)
    watching = worker.greeted()
    with blocked_loop(worker, service.ask_once):
        target = service.begin_to_us(old, deadline_s=600 if not begun else 1.0)
        if begun:
            assert receive_offer(target).listeners == (NAME,)
        old.close()
        wait_until(lambda: state_of(watching) == "handing_over", "the order")
    wait_until(lambda: state_of(watching) == "serving", "the owner as before")
    assert revision_of(service.ask_once()) == 1
    target.close()


def test_another_daemon_connection_that_closes_does_not_disturb_a_hand_over(spawn, service):
    worker = spawn(revision=1)
    old = worker.loaded()
    service.adopt(old)
    other = worker.greeted()
    target = service.begin_to_us(old)
    offer = receive_offer(target)
    other.close()
    assert state_of(old) == "handing_over"  # the channel's thread has seen it close by then,
    assert ask_once(worker.http)[0] == 200  # and the loop has done whatever it was told
    peer_wire.send(target, peer_wire.Held(service.epoch, offer.batch))
    assert isinstance(receive_offer(target), peer_wire.Commit)
    target.close()


def test_a_target_proven_dead_after_commit_gives_the_clients_back(spawn, service):
    old = spawn(revision=1).loaded()
    service.adopt(old)
    target = service.begin_to_us(old)
    offer = receive_offer(target)
    peer_wire.send(target, peer_wire.Held(service.epoch, offer.batch))
    assert receive_offer(target) == peer_wire.Commit(service.epoch)
    target.close()
    assert state_of(old) == "handing_over", "after COMMIT it waits for the proof"
    assert old.request("target_dead", epoch=service.epoch) == {"resumed": True}
    assert state_of(old) == "serving"
    assert revision_of(service.ask_once()) == 1
    assert old.request("target_dead", epoch=service.epoch) == {"resumed": True}, "said again"


def test_a_target_whose_source_died_before_it_sent_anything_is_given_the_listeners_by_the_daemon(spawn, service):
    worker = spawn(revision=2)
    new = worker.loaded()

    def standing():
        told = new.hello(worker.id)
        return told["state"], told["owner"], bool(told["listeners"])

    service.epoch += 1
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    new.request("receive", fds=(theirs.fileno(),), epoch=service.epoch)
    theirs.close()
    ours.close()
    report = new.request("source_dead", epoch=service.epoch)
    assert report == {"started": True, "listeners": [], "connections": 0}
    assert standing() == ("serving", True, False)
    service.adopt(new)
    assert standing() == ("serving", True, True)
    assert revision_of(service.ask_once()) == 2


def test_a_source_proven_dead_lets_the_target_start(spawn, service):
    new = spawn(revision=2).loaded()
    service.epoch += 1
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    new.request("receive", fds=(theirs.fileno(),), epoch=service.epoch)
    theirs.close()
    peer_wire.send(ours, peer_wire.Offer(service.epoch, 0, (NAME,)), [service.listener.fileno()])
    ours.settimeout(DEADLINE_S)
    assert peer_wire.receive(ours).message == peer_wire.Held(service.epoch, 0)
    ours.close()  # the source dies
    report = new.request("source_dead", epoch=service.epoch)
    assert report == {"started": True, "listeners": [NAME], "connections": 0}
    assert revision_of(service.ask_once()) == 2
    assert state_of(new) == "serving"
    assert new.request("source_dead", epoch=service.epoch)["started"] is True, "said again"


def test_stragglers_find_a_successor_when_the_target_dies(spawn, service):
    """Also told to a daemon that was away when it happened."""
    old_worker, new_worker = spawn(revision=1), spawn(revision=2)
    old, new = old_worker.loaded(), new_worker.loaded()
    service.adopt(old)
    connection, answer = start_stream(service, 60)
    service.hand_over(old, new)
    old.close()  # the daemon is away
    new_worker.process.kill()
    new_worker.wait()
    newest = spawn(revision=3).loaded()
    service.adopt(newest)
    old = old_worker.greeted()
    event = wait_until(lambda: told(old), "needs_successor")
    assert event["params"]["count"] == 1
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        newest.request("receive", fds=(theirs.fileno(),), epoch=service.epoch)
        old.request("successor", fds=(ours.fileno(),), epoch=service.epoch)
    assert answer.read().splitlines()[-1] == b"end"
    assert revision_of(ask(connection, "/next")) == 3
    connection.close()
    assert not told(old_worker.greeted()), "it has been acted on"


def told(client):
    client.request("stats")
    return next((event for event in client.events if event["event"] == "needs_successor"), None)


def test_sigterm_finishes_what_is_in_flight(spawn, service):
    worker = spawn()
    service.adopt(worker.loaded())
    connection, answer = start_stream(service, 10)
    worker.process.send_signal(signal.SIGTERM)
    assert answer.read().splitlines()[-1] == b"end"
    assert worker.wait() == 0
    connection.close()


def test_drain_and_close_then_stop_ends_an_owner(spawn, service):
    worker = spawn()
    client = worker.loaded()
    service.adopt(client)
    connection, answer = start_stream(service, 5)
    drained = client.send("drain", {"deadline_s": DEADLINE_S, "and_close": True})
    assert state_of(client) == "stopping"
    assert answer.read().splitlines()[-1] == b"end"
    assert client.reply(drained)["cut"] == 0
    client.request("stop")
    assert worker.wait() == 0
    connection.close()


def test_a_worker_killed_by_surprise_leaves_the_listener_to_the_next(spawn, service):
    worker, next_one = spawn(revision=1), spawn(revision=2).loaded()
    service.adopt(worker.loaded())
    worker.process.kill()
    worker.wait()
    waiting = service.connect()
    waiting.connect()  # queues in the kernel
    service.adopt(next_one)
    assert revision_of(ask(waiting, "/")) == 2
    waiting.close()


def test_descriptors_do_not_leak_over_many_hand_overs(spawn, service):
    workers = [spawn(revision=1), spawn(revision=2)]
    clients = [worker.loaded() for worker in workers]
    service.adopt(clients[0])

    def count(worker):
        return len(os.listdir(f"/proc/{worker.process.pid}/fd"))

    for turn in range(4):
        service.hand_over(clients[turn % 2], clients[(turn + 1) % 2])
    wait_until(lambda: clients[1].request("stats")["connections"] == 0, "rest")
    before = [count(worker) for worker in workers]
    for turn in range(20):
        service.hand_over(clients[turn % 2], clients[(turn + 1) % 2])
    wait_until(lambda: [count(worker) for worker in workers] <= before, f"no more descriptors than {before}")
    assert json.dumps(before)
