"""The daemon's end against a real process at the other, which behaves or misbehaves as told."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.process_waiting import DEADLINE_S, await_until
from support.worker_client import spawner

from swapd.core.config import ExpectConfig, ProbeConfig, RequestConfig
from swapd.core.errors import BAD_REQUEST, LOAD_FAILED, TIMEOUT, VERSION_MISMATCH, WORKER_EXITED, SwapdError
from swapd.host import listeners, probes
from swapd.host.processes import ProcessIdentity
from swapd.host.worker_channel import WorkerChannel
from swapd.wire import worker as wire

SERVER = Path(__file__).parents[1] / "support" / "process_channel_server.py"


class Peer:
    """A server process of its own, and channels to it."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "control.sock")
        self.process: subprocess.Popen[bytes] | None = None
        self.channels: list[WorkerChannel] = []

    def start(self, **hello) -> None:
        self.process = subprocess.Popen([sys.executable, str(SERVER), self.path, json.dumps(hello)])

    def alive(self) -> bool:
        return self.process is None or self.process.poll() is None

    async def connect(self, deadline_s: float = DEADLINE_S, worker_id: str = "chat-1"):
        channel, hello = await WorkerChannel.connect(
            self.path, worker_id=worker_id, deadline_s=deadline_s, alive=self.alive
        )
        self.channels.append(channel)
        return channel, hello

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        if self.process is not None:
            self.process.kill()
            self.process.wait()


def with_peer(directory: Path, test) -> None:
    async def run():
        peer = Peer(directory)
        try:
            await asyncio.wait_for(test(peer), 2 * DEADLINE_S)
        finally:
            peer.close()

    asyncio.run(run())


async def fails(awaitable) -> SwapdError:
    with pytest.raises(SwapdError) as caught:
        await awaitable
    return caught.value


# --- connecting --------------------------------------------------------------------------------------------


def test_connect_waits_until_the_worker_has_bound_its_socket(tmp_path):
    async def test(peer):
        connecting = asyncio.ensure_future(peer.connect())
        await asyncio.sleep(0.02)
        assert not connecting.done()
        peer.start()
        channel, hello = await connecting
        assert hello["nonce"] == "0a"
        assert hello["got"] == {"protocol": wire.PROTOCOL, "min_protocol": wire.MIN_PROTOCOL, "worker_id": "chat-1"}
        assert channel.peer.pid == peer.process.pid
        assert channel.peer.uid == os.getuid()

    with_peer(tmp_path, test)


def test_a_stale_socket_file_is_waited_over(tmp_path):
    async def test(peer):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
            stale.bind(peer.path)
            stale.listen()
        connecting = asyncio.ensure_future(peer.connect())
        await asyncio.sleep(0.02)
        peer.start()
        _, hello = await connecting
        assert hello["worker_id"] == "chat-1"

    with_peer(tmp_path, test)


def test_connect_ends_when_the_worker_has_died(tmp_path):
    async def test(peer):
        peer.alive = lambda: False
        error = await fails(peer.connect())
        assert error.code == WORKER_EXITED
        assert "chat-1 ended before it answered" in error.message

    with_peer(tmp_path, test)


def test_connect_ends_at_its_deadline_and_says_what_was_missing(tmp_path):
    async def test(peer):
        error = await fails(peer.connect(deadline_s=0.05))
        assert error.code == TIMEOUT
        assert "within 0.05 s" in error.message
        assert "No such file" in error.message

    with_peer(tmp_path, test)


def test_a_worker_that_accepts_but_says_nothing_runs_into_the_deadline(tmp_path):
    async def test(peer):
        peer.start(silent=True)
        await await_until(lambda: os.path.exists(peer.path))
        error = await fails(peer.connect(deadline_s=0.2))
        assert error.code == TIMEOUT
        assert "does not say hello" in error.message

    with_peer(tmp_path, test)


@pytest.mark.parametrize("hooks", [[["park"]], "park", 7, [None], {"park": True}])
def test_hooks_that_are_no_names_break_the_protocol(tmp_path, hooks):
    async def test(peer):
        peer.start(hooks=hooks)
        error = await fails(peer.connect())
        assert error.code == WORKER_EXITED
        assert "the hooks in its hello are not a list of names" in error.message

    with_peer(tmp_path, test)


@pytest.mark.parametrize(("oldest", "newest"), [(7, 9), (0, 0)])
def test_no_common_protocol_version_is_a_clear_refusal(tmp_path, oldest, newest):
    async def test(peer):
        peer.start(protocol=newest, min_protocol=oldest)
        error = await fails(peer.connect())
        assert error.code == VERSION_MISMATCH
        assert f"speaks worker protocol {oldest} to {newest}" in error.message

    with_peer(tmp_path, test)


def test_a_newer_worker_that_still_speaks_ours_is_fine(tmp_path):
    async def test(peer):
        peer.start(protocol=wire.PROTOCOL + 5, news="ignored")
        _, hello = await peer.connect()
        assert hello["protocol"] == wire.PROTOCOL + 5

    with_peer(tmp_path, test)


def test_another_worker_on_the_socket_is_not_taken_for_ours(tmp_path):
    async def test(peer):
        peer.start(worker_id="chat-9")
        error = await fails(peer.connect())
        assert error.code == WORKER_EXITED
        assert "'chat-9' answers on its socket" in error.message

    with_peer(tmp_path, test)


def test_a_path_that_cannot_be_an_address_is_no_endless_retry(tmp_path):
    async def test(peer):
        peer.path = "/tmp/" + "x" * 200
        error = await fails(peer.connect())
        assert "too long" in error.message

    with_peer(tmp_path, test)


# --- requests ----------------------------------------------------------------------------------------------


def test_replies_find_their_requests_in_any_order(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        held = [asyncio.ensure_future(channel.request("hold", deadline_s=DEADLINE_S)) for _ in range(5)]
        assert await channel.request("echo", {"n": 1}, deadline_s=DEADLINE_S) == {"n": 1}
        assert not any(request.done() for request in held)
        await channel.request("release", deadline_s=DEADLINE_S)
        numbers = [reply["released"] for reply in await asyncio.gather(*held)]
        assert numbers == sorted(numbers)

    with_peer(tmp_path, test)


def test_descriptors_travel_with_a_request_and_stay_the_callers(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        ours, theirs = os.pipe()
        try:
            assert await channel.request("write", fds=[theirs, theirs], deadline_s=DEADLINE_S) == {"fds": 2}
            assert os.read(ours, 100) == b"through the worker" * 2
            os.fstat(theirs)
            many = await channel.request("write", fds=[theirs] * wire.MAX_FDS, deadline_s=DEADLINE_S)
            assert many == {"fds": wire.MAX_FDS}
        finally:
            os.close(ours)
            os.close(theirs)

    with_peer(tmp_path, test)


def test_the_workers_own_error_arrives_as_it_was(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        error = await fails(channel.request("fail", deadline_s=DEADLINE_S))
        assert (error.code, error.message, error.details) == (
            LOAD_FAILED,
            "no weights at /srv/a",
            {"path": "/srv/a"},
        )

    with_peer(tmp_path, test)


def test_a_request_past_its_deadline_names_the_verb_and_its_late_reply_is_dropped(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        error = await fails(channel.request("hold", deadline_s=0.05))
        assert error.code == TIMEOUT
        assert error.message == "chat-1 did not answer 'hold' within 0.05 s"
        await channel.request("release", deadline_s=DEADLINE_S)  # the late reply comes before this one's
        assert await channel.request("echo", {"n": 2}, deadline_s=DEADLINE_S) == {"n": 2}
        assert not channel.closed.is_set()

    with_peer(tmp_path, test)


def test_a_cancelled_request_leaves_the_channel_whole(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        held = asyncio.ensure_future(channel.request("hold", deadline_s=DEADLINE_S))
        await channel.request("echo", deadline_s=DEADLINE_S)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        await channel.request("release", deadline_s=DEADLINE_S)

    with_peer(tmp_path, test)


@pytest.mark.parametrize(
    ("params", "fds", "words"),
    [({"x": "y" * wire.MAX_MESSAGE_BYTES}, 0, "over the limit"), ({}, wire.MAX_FDS + 1, "254 descriptors")],
)
def test_what_cannot_be_sent_is_refused_and_harms_nothing(tmp_path, params, fds, words):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        error = await fails(channel.request("echo", params, fds=[0] * fds, deadline_s=DEADLINE_S))
        assert error.code == BAD_REQUEST
        assert words in error.message
        assert await channel.request("echo", {"n": 3}, deadline_s=DEADLINE_S) == {"n": 3}

    with_peer(tmp_path, test)


def test_a_descriptor_that_is_closed_fails_its_request_alone(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        error = await fails(channel.request("write", fds=[1_000_000], deadline_s=DEADLINE_S))
        assert error.code == BAD_REQUEST
        assert await channel.request("echo", {"n": 4}, deadline_s=DEADLINE_S) == {"n": 4}

    with_peer(tmp_path, test)


def test_a_worker_that_does_not_read_delays_requests_only_to_their_deadline(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        await channel.request("deaf", deadline_s=DEADLINE_S)
        text = "y" * 60_000
        errors = await asyncio.gather(
            *(fails(channel.request("echo", {"x": text}, deadline_s=0.2)) for _ in range(300)),
        )
        assert {error.code for error in errors} == {TIMEOUT}
        assert "not even sent" in errors[-1].message
        assert not channel.closed.is_set()

    with_peer(tmp_path, test)


def test_requests_that_wait_for_room_are_sent_in_order_once_there_is_some(tmp_path):
    async def test(peer):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        channel = WorkerChannel(ours, "chat-1")
        peer.channels.append(channel)
        text = "y" * 60_000
        sending = [
            asyncio.ensure_future(channel.request("echo", {"n": n, "x": text}, deadline_s=DEADLINE_S))
            for n in range(50)
        ]
        await asyncio.sleep(0)
        seen = []

        def read():
            for _ in range(50):
                request = wire.decode(theirs.recv(wire.MAX_MESSAGE_BYTES))
                seen.append(request.params["n"])
                theirs.send(wire.encode(wire.Reply(request.id, {"n": request.params["n"]})))

        reader = threading.Thread(target=read)
        reader.start()
        assert [reply["n"] for reply in await asyncio.gather(*sending)] == list(range(50))
        reader.join()
        assert seen == list(range(50))
        theirs.close()

    with_peer(tmp_path, test)


def test_what_was_not_sent_by_its_deadline_is_never_sent(tmp_path):
    """By then its descriptors are closed, and their numbers may mean something else."""

    async def test(peer):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        channel = WorkerChannel(ours, "chat-1")
        peer.channels.append(channel)
        text = "y" * 60_000
        sending = [fails(channel.request("echo", {"n": n, "x": text}, deadline_s=0.1)) for n in range(50)]
        unsent = [index for index, error in enumerate(await asyncio.gather(*sending)) if "not even" in error.message]
        assert unsent
        last = asyncio.ensure_future(channel.request("last", deadline_s=DEADLINE_S))
        seen = []
        while True:
            request = wire.decode(await asyncio.to_thread(theirs.recv, wire.MAX_MESSAGE_BYTES))
            if request.verb == "last":
                theirs.send(wire.encode(wire.Reply(request.id, {})))
                break
            seen.append(request.params["n"])
        await last
        assert not set(seen) & set(unsent)
        theirs.close()

    with_peer(tmp_path, test)


# --- events and the end ------------------------------------------------------------------------------------


def test_events_arrive_in_order_and_before_the_reply_that_follows_them(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        seen = []
        channel.on_event = lambda name, params: seen.append((name, params["done"]))
        await channel.request("progress", deadline_s=DEADLINE_S)
        assert seen == [("progress", 0), ("progress", 1), ("progress", 2)]

    with_peer(tmp_path, test)


def test_events_that_come_with_the_hello_wait_for_the_handler(tmp_path):
    async def test(peer):
        peer.start(missed=["needs_successor", "progress"])
        channel, _ = await peer.connect()
        await channel.request("echo", deadline_s=DEADLINE_S)
        seen = []
        channel.on_event = lambda name, params: seen.append(name)
        assert seen == ["needs_successor", "progress"]

    with_peer(tmp_path, test)


def test_a_flood_of_events_does_not_hold_the_loop(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        turns = []
        seen = []
        channel.on_event = lambda name, params: seen.append(params)
        flood = asyncio.ensure_future(channel.request("flood", {"count": 5000}, deadline_s=DEADLINE_S))
        while not flood.done():
            turns.append(len(seen))
            await asyncio.sleep(0)
        await flood
        assert len(seen) == 5000
        assert max(after - before for before, after in itertools.pairwise(turns)) <= 16

    with_peer(tmp_path, test)


def test_an_event_handler_that_fails_does_not_end_the_channel(tmp_path, caplog):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        channel.on_event = lambda name, params: 1 / 0
        await channel.request("progress", deadline_s=DEADLINE_S)
        assert await channel.request("echo", {"n": 5}, deadline_s=DEADLINE_S) == {"n": 5}

    with_peer(tmp_path, test)
    assert "event_failed worker=chat-1 event=progress" in caplog.text


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("exit", "the worker closed it"),
        ("garbage", "the worker broke the protocol: not JSON"),
        ("oversize", "the worker broke the protocol: a message is over the limit"),
        ("request", "the worker broke the protocol: a worker does not send requests"),
        ("wrong_id", "which was never sent"),
    ],
)
def test_whatever_ends_the_channel_fails_all_that_is_pending_and_says_why(tmp_path, verb, words):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        held = asyncio.ensure_future(fails(channel.request("hold", deadline_s=DEADLINE_S)))
        error = await fails(channel.request(verb, deadline_s=DEADLINE_S))
        assert error.code == (await held).code == WORKER_EXITED
        assert words in error.message
        assert words in channel.closed_because
        await asyncio.wait_for(channel.closed.wait(), DEADLINE_S)
        assert (await fails(channel.request("echo", deadline_s=DEADLINE_S))).code == WORKER_EXITED

    with_peer(tmp_path, test)


def test_the_last_reply_of_a_dying_worker_is_not_lost(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        last = asyncio.ensure_future(channel.request("reply_and_exit", deadline_s=DEADLINE_S))
        await asyncio.sleep(0)  # sent
        peer.process.wait()
        # Sending now finds the other end gone, with the reply still unread on this one.
        error = await fails(channel.request("echo", deadline_s=DEADLINE_S))
        assert await last == {"last": True}
        assert error.code == WORKER_EXITED

    with_peer(tmp_path, test)


def test_nor_is_it_when_the_worker_died_with_a_request_unread(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        last = asyncio.ensure_future(channel.request("reply_and_exit", deadline_s=DEADLINE_S))
        unread = asyncio.ensure_future(fails(channel.request("echo", deadline_s=DEADLINE_S)))
        await asyncio.sleep(0)  # both sent: the kernel answers the second with ECONNRESET
        assert await last == {"last": True}
        assert (await unread).code == WORKER_EXITED

    with_peer(tmp_path, test)


def test_closing_from_our_side_fails_what_is_pending(tmp_path):
    async def test(peer):
        peer.start()
        channel, _ = await peer.connect()
        held = asyncio.ensure_future(fails(channel.request("hold", deadline_s=DEADLINE_S)))
        await channel.request("echo", deadline_s=DEADLINE_S)
        channel.close()
        channel.close()
        assert "the daemon closed the channel" in (await held).message

    with_peer(tmp_path, test)


def test_a_second_daemon_may_connect_after_the_first_is_gone(tmp_path):
    async def test(peer):
        peer.start()
        first, _ = await peer.connect()
        first.close()
        second, _ = await peer.connect()
        assert await second.request("echo", {"n": 6}, deadline_s=DEADLINE_S) == {"n": 6}

    with_peer(tmp_path, test)


def test_it_works_on_uvloop_too(tmp_path):
    uvloop = pytest.importorskip("uvloop")

    async def test():
        peer = Peer(tmp_path)
        try:
            peer.start()
            channel, _ = await peer.connect()
            assert await channel.request("echo", {"n": 7}, deadline_s=DEADLINE_S) == {"n": 7}
            assert (await fails(channel.request("exit", deadline_s=DEADLINE_S))).code == WORKER_EXITED
        finally:
            peer.close()

    loop = uvloop.new_event_loop()
    with contextlib.closing(loop):
        loop.run_until_complete(test())


def test_a_real_worker_is_started_loaded_probed_and_stopped(tmp_path):
    """The daemon's way through a worker's life, with the parts that it uses."""

    async def test():
        with spawner() as spawn:
            worker = spawn()
            channel, hello = await WorkerChannel.connect(
                str(worker.control),
                worker_id=worker.id,
                deadline_s=DEADLINE_S,
                alive=lambda: worker.process.poll() is None,
            )
            try:
                assert hello["pid"] == channel.peer.pid == worker.process.pid
                assert (hello["nonce"], hello["kind"]) == ("n0", "asgi")
                assert hello["start_time"] == ProcessIdentity.of(worker.process.pid).start_time
                await channel.request("load", deadline_s=DEADLINE_S)
                ready = await probes.wait_ready(f"unix:{worker.http}", "/health", deadline_s=DEADLINE_S)
                assert ready.status == 200
                probe = ProbeConfig(request=RequestConfig(path="/"), expect=ExpectConfig(within_s=DEADLINE_S), repeat=3)
                assert (await probes.run_probes(f"unix:{worker.http}", [probe])).answers == 3
                with closing(listeners.bind("127.0.0.1:0")) as listener:
                    params = {"epoch": 1, "listeners": ["127.0.0.1:0"]}
                    adopted = await channel.request("adopt", params, fds=[listener.fileno()], deadline_s=DEADLINE_S)
                    assert adopted["started_at"] <= time.monotonic()
                    reader, writer = await asyncio.open_connection(*listener.getsockname())
                    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    assert b"x-swapd-revision: 1" in (await asyncio.wait_for(reader.read(), DEADLINE_S)).lower()
                    writer.close()
                assert (await channel.request("stats", deadline_s=DEADLINE_S))["owner"] is True
                await channel.request("stop", deadline_s=DEADLINE_S)
                await asyncio.wait_for(channel.closed.wait(), DEADLINE_S)
                assert await asyncio.to_thread(worker.wait) == 0
            finally:
                channel.close()

    asyncio.run(asyncio.wait_for(test(), 2 * DEADLINE_S))
