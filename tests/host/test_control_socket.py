"""The control socket from outside: real ZeroMQ clients, well-behaved and not."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.control_daemon import DEADLINE_S, FakeDaemon, wait_until

from swapd.core import errors
from swapd.core.errors import SwapdError
from swapd.host.control_socket import ControlSocket, Peer, check_endpoint
from swapd.host.control_socket import server as server_module
from swapd.wire import control

POLL_MS = int(DEADLINE_S * 1000)


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, {"status": {"services": []}}) as made:
        yield made


def connect(context: zmq.Context, daemon: FakeDaemon, kind: int = zmq.DEALER, **options: Any) -> zmq.Socket:
    made = context.socket(kind)
    made.setsockopt(zmq.LINGER, 0)
    for name, value in options.items():
        made.setsockopt(getattr(zmq, name), value)
    made.connect(daemon.endpoint)
    return made


def request(method: str = "status", number: Any = 1, /, **params: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()


def receive(client: zmq.Socket) -> dict[str, Any]:
    assert client.poll(POLL_MS), "no answer"
    return json.loads(client.recv_multipart()[-1])


def ask(client: zmq.Socket, method: str = "status", number: Any = 1, /, **params: Any) -> dict[str, Any]:
    client.send(request(method, number, **params))
    return receive(client)


def assert_serves(context: zmq.Context, daemon: FakeDaemon) -> None:
    with connect(context, daemon) as client:
        assert ask(client, "status")["result"] == {"services": []}


# --- requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.DEALER], ids=["REQ", "DEALER"])
def test_any_kind_of_client_is_answered(context, daemon, kind):
    with connect(context, daemon, kind) as client:
        for request_id in (1, "two", 3.5):
            found = ask(client, "status", request_id)
            assert found == {"jsonrpc": "2.0", "id": request_id, "result": {"services": []}}


def test_a_dealer_may_send_a_delimiter_and_gets_it_back(context, daemon):
    with connect(context, daemon) as client:
        client.send_multipart([b"", request()])
        assert client.poll(POLL_MS)
        assert client.recv_multipart()[0] == b""


def test_a_client_behind_a_proxy_is_answered(context, daemon, tmp_path):
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    front.bind(f"ipc://{tmp_path}/proxy.sock")
    back.connect(daemon.endpoint)
    with context.socket(zmq.REQ) as client, front, back:
        client.connect(f"ipc://{tmp_path}/proxy.sock")
        client.send(request())
        assert front.poll(POLL_MS)
        back.send_multipart(front.recv_multipart())
        assert back.poll(POLL_MS)
        front.send_multipart(back.recv_multipart())
        assert "result" in receive(client)


def test_hello_tells_versions_methods_and_who_asks(context, daemon):
    with connect(context, daemon) as client:
        found = ask(client, "hello")["result"]
    assert found["protocol"] == control.PROTOCOL
    assert set(found["methods"]) == set(control.METHODS)
    assert found["events"] == daemon.events_endpoint
    assert found["you"] == {"uid": os.getuid(), "pid": os.getpid(), "user": pwd.getpwuid(os.getuid()).pw_name}
    assert daemon.calls == []


def test_a_refusal_has_its_code_and_figures(context, daemon):
    def refuse(params, peer):
        raise SwapdError(errors.VRAM_INSUFFICIENT, "2.5 GiB short on gpu0", {"short_bytes": 5 << 29})

    daemon.answers["swap"] = refuse
    with connect(context, daemon) as client:
        found = ask(client, "swap", service="chat", to="b")["error"]
    assert found["code"] == control.REFUSED
    assert found["message"] == "2.5 GiB short on gpu0"
    assert found["data"] == {"code": errors.VRAM_INSUFFICIENT, "short_bytes": 5 << 29}


@pytest.mark.parametrize(
    "answer", [lambda params, peer: 1 / 0, object(), "\ud800"], ids=["raises", "no-json", "surrogate"]
)
def test_a_bug_is_told_without_its_traceback(context, daemon, answer, caplog):
    daemon.answers["devices"] = answer
    with connect(context, daemon) as client:
        found = ask(client, "devices")["error"]
    assert (found["code"], found["data"]["code"]) == (control.INTERNAL_ERROR, errors.INTERNAL)
    assert "Traceback" not in json.dumps(found)
    assert "ZeroDivision" not in json.dumps(found)
    assert "Traceback" in caplog.text
    assert_serves(context, daemon)


def test_a_slow_request_does_not_hold_up_another(context, daemon):
    release = asyncio.Event()
    daemon.answers["plan"] = lambda params, peer: release.wait()
    with connect(context, daemon) as client:
        client.send(request("plan", 1, service="chat", to="b"))
        assert ask(client, "status", 2)["id"] == 2
        daemon.loop.call_soon_threadsafe(release.set)
        assert receive(client) == {"jsonrpc": "2.0", "id": 1, "result": True}


def test_a_handler_past_its_deadline_is_given_up(context, tmp_path):
    async def forever(params, peer):
        await asyncio.Event().wait()

    scripted = FakeDaemon(tmp_path, {"plan": forever}, handler_deadline_s=0.05)
    with scripted as daemon, connect(context, daemon) as client:
        assert ask(client, "plan", service="chat", to="b")["error"]["data"]["code"] == errors.TIMEOUT


def test_requests_beyond_the_bound_are_told_to_come_again(context, daemon):
    release = asyncio.Event()
    daemon.answers["plan"] = lambda params, peer: release.wait()
    bound = server_module.MAX_IN_FLIGHT_PER_CLIENT
    with connect(context, daemon) as greedy, connect(context, daemon) as other:
        for number in range(bound + 3):
            greedy.send(request("plan", number, service="chat", to="b"))
        refused = [receive(greedy) for _ in range(3)]
        assert {answer["error"]["data"]["code"] for answer in refused} == {errors.BUSY}
        assert "result" in ask(other, "status")  # one client's greed is its own
        daemon.loop.call_soon_threadsafe(release.set)
        assert sum("result" in receive(greedy) for _ in range(bound)) == bound
        assert "result" in ask(greedy, "status")


# --- repeated requests ---------------------------------------------------------------------------------------


def swaps_once(daemon: FakeDaemon) -> None:
    numbers = iter(range(42, 1000))
    daemon.answers["swap"] = lambda params, peer: {"id": next(numbers)}


def test_a_repeated_request_id_does_not_act_twice(context, daemon):
    swaps_once(daemon)
    with connect(context, daemon) as first, connect(context, daemon) as second:
        assert ask(first, "swap", 1, service="chat", to="b", request_id="r1")["result"] == {"id": 42}
        assert ask(second, "swap", 2, service="chat", to="b", request_id="r1")["result"] == {"id": 42}
        assert ask(second, "swap", 3, service="chat", to="b", request_id="r2")["result"] == {"id": 43}
    assert daemon.count("swap") == 2


def test_a_repeat_while_the_first_is_in_progress_waits_for_it(context, daemon):
    release = asyncio.Event()

    async def slow(params, peer):
        await release.wait()
        return {"id": 42}

    daemon.answers["swap"] = slow
    with connect(context, daemon) as client:
        client.send(request("swap", 1, service="chat", to="b", request_id="r"))
        client.send(request("swap", 2, service="chat", to="b", request_id="r"))
        wait_until(lambda: daemon.count("swap") == 1)
        assert "result" in ask(client, "status", 3)  # both are in, and nothing was answered yet
        daemon.loop.call_soon_threadsafe(release.set)
        assert sorted(receive(client)["id"] for _ in range(2)) == [1, 2]
    assert daemon.count("swap") == 1


def test_a_repeat_after_the_first_ran_out_of_time_finds_its_result(context, tmp_path):
    release = asyncio.Event()

    async def slow(params, peer):
        await release.wait()
        return {"id": 42}

    with FakeDaemon(tmp_path, {"swap": slow}, handler_deadline_s=0.1) as daemon:
        with connect(context, daemon) as client:
            late = ask(client, "swap", service="chat", to="b", request_id="r")
            assert late["error"]["data"]["code"] == errors.TIMEOUT
            daemon.loop.call_soon_threadsafe(release.set)
            assert ask(client, "swap", service="chat", to="b", request_id="r")["result"] == {"id": 42}
        assert daemon.count("swap") == 1


def test_a_repeated_refusal_is_the_same_refusal(context, daemon):
    def refuse(params, peer):
        raise SwapdError(errors.SWAP_IN_PROGRESS, f"#{daemon.count('swap')} is in progress")

    daemon.answers["swap"] = refuse
    with connect(context, daemon) as client:
        first = ask(client, "swap", service="chat", to="b", request_id="r")
        assert ask(client, "swap", service="chat", to="b", request_id="r") == first


def test_a_request_id_used_for_something_else_is_refused(context, daemon):
    swaps_once(daemon)
    with connect(context, daemon) as client:
        ask(client, "swap", service="chat", to="b", request_id="r")
        found = ask(client, "swap", service="chat", to="c", request_id="r")
    assert found["error"]["data"]["code"] == errors.BAD_REQUEST
    assert "request_id" in found["error"]["message"]


def test_remembered_answers_are_bounded(context, daemon, monkeypatch):
    assert daemon.socket is not None
    daemon.socket._repeats._size = 4
    swaps_once(daemon)
    with connect(context, daemon) as client:
        for number in range(10):
            ask(client, "swap", service="chat", to="b", request_id=f"r{number}")
        assert len(daemon.socket._repeats._calls) == 4
        assert ask(client, "swap", service="chat", to="b", request_id="r9")["result"] == {"id": 51}


# --- bad clients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [[b"swap", b"chat", b"b"], [b"", b"", b"x"], [b"x", request()], [request(), request()], [b""] * 12, [b"a"] * 20],
    ids=["words", "delimiters", "no-delimiter", "two-objects", "empty", "many"],
)
def test_frames_that_are_no_request_get_an_error(context, daemon, frames):
    with connect(context, daemon) as client:
        client.send_multipart(frames)
        assert receive(client)["error"]["data"]["code"] == errors.BAD_REQUEST
        assert "result" in ask(client)


def test_a_greeting_is_not_answered(context, daemon):
    with connect(context, daemon, PROBE_ROUTER=1) as client:
        assert ask(client, "status", 9)["id"] == 9


def test_an_oversized_message_ends_that_connection_only(context, daemon):
    with connect(context, daemon) as client:
        client.send(b"{" + b" " * control.MAX_REQUEST_BYTES + b"}")
        assert_serves(context, daemon)


def test_the_largest_request_is_answered(context, daemon):
    with connect(context, daemon) as client:
        client.send(request().ljust(control.MAX_REQUEST_BYTES))
        assert "result" in receive(client)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 64,
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",  # half a greeting, then silence
        b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x01NULL" + b"\x00" * 48 + b"\x04\x05READY" + b"\xff" * 90,
        b"\x01\x00" + b"\xff\xff\xff\xff\xff\xff\xff\xff\xff" * 3,  # ZMTP 1.0 with an absurd length
        b"\x00" * 200,
    ],
    ids=["http", "ff", "half-greeting", "bad-ready", "zmtp1", "zeros"],
)
def test_bytes_that_are_not_zeromq_do_no_harm(context, daemon, raw):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(daemon.endpoint.removeprefix("ipc://"))
        client.sendall(raw)
        assert_serves(context, daemon)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
    assert_serves(context, daemon)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    frames=st.lists(
        st.binary(max_size=64)
        | st.sampled_from([b"", b"{}", b"[]", request(), request("swap"), request("show", 1, id=[[]])])
        | st.text(max_size=20).map(lambda text: request("status", text[:8], service=text)),
        min_size=1,
        max_size=6,
    )
)
def test_any_frames_leave_it_answering(context, daemon, frames):
    """One client sends garbage; the next request of the same connection is still answered."""
    with connect(context, daemon) as client:
        client.send_multipart(frames)
        client.send(request("status", "the last"))
        while receive(client).get("id") != "the last":
            pass


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(raw=st.binary(min_size=1, max_size=300), greets=st.booleans())
def test_any_bytes_leave_it_answering(context, daemon, raw, greets):
    greeting = b"\xff" + b"\x00" * 8 + b"\x7f\x03\x00NULL" + b"\x00" * 16 + b"\x00" * 32
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(daemon.endpoint.removeprefix("ipc://"))
        with contextlib.suppress(OSError):
            client.sendall(greeting + raw if greets else raw)
    assert_serves(context, daemon)


def test_a_flood_does_not_keep_others_from_being_answered(context, daemon):
    stop = threading.Event()

    def flood() -> None:
        with connect(context, daemon, SNDTIMEO=100, RCVHWM=10) as client:
            while not stop.is_set():
                with contextlib.suppress(zmq.Again):
                    client.send(request())

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        wait_until(lambda: len(daemon.calls) > 500, "the flood")
        with connect(context, daemon) as client:
            for number in range(20):
                assert ask(client, "status", number)["id"] == number
    finally:
        stop.set()
        flooding.join(DEADLINE_S)
    assert not flooding.is_alive()


def test_a_client_that_never_reads_blocks_nobody(context, daemon):
    daemon.answers["history"] = [{"id": 1, "padding": "x" * 100_000}]
    with connect(context, daemon, RCVHWM=1, RCVBUF=4096, SNDTIMEO=2000) as deaf:
        # More answers than the kernel's buffers and SEND_MESSAGES hold; the rest is dropped, not waited for.
        for number in range(300):
            deaf.send(request("history", number))
            wait_until(lambda expected=number + 1: daemon.count("history") == expected)
        assert_serves(context, daemon)


def test_a_client_killed_in_mid_request_leaves_nothing_behind(context, daemon):
    release = asyncio.Event()
    daemon.answers["plan"] = lambda params, peer: release.wait()
    script = f"""
        import zmq
        client = zmq.Context().socket(zmq.DEALER)
        client.connect({daemon.endpoint!r})
        client.send({request("plan", 1, service="chat", to="b")!r})
        client.recv()
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)]) as client:
        wait_until(lambda: daemon.count("plan") == 1)
        client.send_signal(signal.SIGKILL)
        client.wait(DEADLINE_S)
    daemon.loop.call_soon_threadsafe(release.set)
    assert_serves(context, daemon)
    assert daemon.socket is not None
    server = daemon.socket
    wait_until(lambda: not server._tasks and not server._per_client)


def test_a_stolen_identity_does_not_get_the_others_answers(context, daemon):
    release = asyncio.Event()
    daemon.answers["plan"] = lambda params, peer: release.wait()
    with connect(context, daemon, ROUTING_ID=b"ana") as ana:
        ana.send(request("plan", 1, service="chat", to="b"))
        wait_until(lambda: daemon.count("plan") == 1)
        with connect(context, daemon, ROUTING_ID=b"ana") as thief:
            thief.send(request("status", 2))
            assert_serves(context, daemon)
            daemon.loop.call_soon_threadsafe(release.set)
            assert receive(ana)["id"] == 1
            assert not thief.poll(0)


def test_too_many_connections_are_kept_out_until_some_leave(context, tmp_path, caplog):
    with FakeDaemon(tmp_path, {"status": {"services": []}}, max_connections=8) as daemon:
        path = Path(daemon.endpoint.removeprefix("ipc://"))
        with connect(context, daemon) as early, contextlib.ExitStack() as leaked:
            ask(early)
            with contextlib.suppress(FileNotFoundError):
                while True:
                    leaked.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
            assert f"pid={os.getpid()}" in caplog.text
            assert "result" in ask(early)  # who is in stays in
            late = connect(context, daemon)
            late.send(request("status", "late"))
        with late:
            assert receive(late)["id"] == "late"
        assert path.exists()


def test_a_client_that_leaks_connections_does_not_end_the_process(tmp_path):
    """libzmq aborts when accept() finds no descriptor; the limit must come first."""
    script = f"""
        import resource, sys, time
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from pathlib import Path
        from support.control_daemon import FakeDaemon
        with FakeDaemon(Path({str(tmp_path)!r}), {{"status": "well"}}):
            print("ready", flush=True)
            sys.stdin.read()
        print("well", flush=True)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "ready\n"
        with contextlib.ExitStack() as leaked:
            with contextlib.suppress(FileNotFoundError, ConnectionError):
                for _ in range(2000):
                    leaked.enter_context(socket.socket(socket.AF_UNIX)).connect(f"{tmp_path}/control.sock")
            assert victim.poll() is None
        out, _ = victim.communicate(timeout=DEADLINE_S)
    assert (out, victim.returncode) == ("well\n", 0)


# --- who asks ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")
def test_each_request_carries_its_senders_user(context, daemon, tmp_path):
    nobody = pwd.getpwnam("nobody")
    path = daemon.endpoint.removeprefix("ipc://")
    os.chmod(path, 0o666)
    for directory in [tmp_path, *tmp_path.parents]:
        if directory == Path("/tmp"):
            break
        os.chmod(directory, 0o755)
    # zmq belongs to the one who runs the tests and may not be readable for others: imported before the change.
    script = f"""
        import os, zmq
        os.setuid({nobody.pw_uid})
        client = zmq.Context().socket(zmq.REQ)
        client.connect({daemon.endpoint!r})
        client.send({request("status")!r})
        client.poll({POLL_MS}) and client.recv()
    """
    with connect(context, daemon) as client:
        ask(client)
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=DEADLINE_S * 2)
        ask(client)
    peers = [peer for _, _, peer in daemon.calls]
    assert [peer.user for peer in peers] == ["root", "nobody", "root"]
    assert [peer.uid for peer in peers] == [0, nobody.pw_uid, 0]
    assert peers[0].pid == os.getpid() != peers[1].pid


def test_actors_are_named_for_the_history():
    assert Peer(1000, 7, "ana").actor() == "ana"
    assert Peer(1000, 7, "ana").actor("deploy") == "ana (deploy)"
    assert Peer(4711, 7, None).actor() == "uid 4711"


# --- binding -------------------------------------------------------------------------------------------------


async def start_and_close(control_endpoint: str, events_endpoint: str) -> None:
    async def handler(method: str, params: dict[str, Any], peer: Peer) -> None:
        return None

    made = ControlSocket(control_endpoint, events_endpoint, handler, epoch=1)
    await made.start()
    await made.close()


def test_the_socket_files_are_for_the_group_and_vanish_at_the_end(daemon):
    paths = [Path(e.removeprefix("ipc://")) for e in (daemon.endpoint, daemon.events_endpoint)]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o660, 0o660]
    daemon.stop()
    assert not any(path.exists() for path in paths)


def test_the_socket_file_never_exists_with_a_wider_mode(context, tmp_path, monkeypatch):
    seen = []
    chmod = os.chmod

    def watched(path: str, mode: int) -> None:
        seen.append(stat.S_IMODE(os.stat(path).st_mode))
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", watched)
    before = os.umask(0)
    try:
        asyncio.run(start_and_close(f"ipc://{tmp_path}/control.sock", f"ipc://{tmp_path}/events.sock"))
    finally:
        os.umask(before)
    assert seen == [0o600, 0o600]


def test_a_stale_file_is_replaced(context, tmp_path):
    for name in ("control.sock", "events.sock", "control.sock.full"):
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(tmp_path / name))
    with FakeDaemon(tmp_path, {"status": {"services": []}}) as daemon:
        assert_serves(context, daemon)
        assert not (tmp_path / "control.sock.full").exists()


def test_a_second_daemon_is_refused_and_harms_nothing(context, daemon):
    with pytest.raises(SwapdError, match="another daemon answers") as refused:
        asyncio.run(start_and_close(daemon.endpoint, daemon.events_endpoint))
    assert refused.value.code == errors.LISTEN_FAILED
    assert_serves(context, daemon)


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    in_the_way = tmp_path / "control.sock"
    in_the_way.write_text("notes")
    with pytest.raises(SwapdError, match="is no socket"):
        asyncio.run(start_and_close(f"ipc://{in_the_way}", f"ipc://{tmp_path}/events.sock"))
    assert in_the_way.read_text() == "notes"


def test_when_the_events_cannot_be_bound_the_control_file_goes_too(tmp_path):
    with pytest.raises(SwapdError, match="make its directory first"):
        asyncio.run(start_and_close(f"ipc://{tmp_path}/control.sock", f"ipc://{tmp_path}/no/events.sock"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("ipc://" + "/x" * 60, "bytes"),
        ("ipc://@abstract", "absolute path"),
        ("ipc://*", "absolute path"),
        ("ipc://run/x.sock", "absolute path"),
        ("tcp://127.0.0.1:5555", "expected ipc"),
        ("/run/swapd/control.sock", "expected ipc"),
        ("", "expected ipc"),
    ],
)
def test_an_endpoint_that_cannot_or_must_not_be_bound_is_refused(endpoint, says):
    with pytest.raises(SwapdError, match=says) as refused:
        check_endpoint(endpoint)
    assert refused.value.code == errors.LISTEN_FAILED


def test_closing_answers_what_is_in_progress(context, daemon):
    release = asyncio.Event()
    daemon.answers["plan"] = lambda params, peer: release.wait()
    with connect(context, daemon) as client:
        client.send(request("plan", 1, service="chat", to="b"))
        wait_until(lambda: daemon.count("plan") == 1)
        closing = asyncio.run_coroutine_threadsafe(daemon.socket.close(), daemon.loop)
        daemon.loop.call_soon_threadsafe(release.set)
        assert receive(client)["result"] is True
        closing.result(DEADLINE_S)
        daemon.socket = None


# --- events --------------------------------------------------------------------------------------------------


@pytest.fixture
def subscriber(context, daemon) -> Iterator[zmq.Socket]:
    """A subscriber that the daemon knows of: events published from now on reach it."""
    with context.socket(zmq.XSUB) as made:
        made.setsockopt(zmq.LINGER, 0)
        made.connect(daemon.events_endpoint)
        made.send(b"\x01")
        while not made.poll(20):
            daemon.publish("test.probe")
        yield made


def next_event(subscriber: zmq.Socket) -> tuple[str, dict[str, Any]]:
    while True:
        assert subscriber.poll(POLL_MS), "no event"
        topic, body = subscriber.recv_multipart()
        if topic != b"test.probe":
            return topic.decode(), json.loads(body)


def test_an_event_says_when_and_where_in_the_order_it_happened(daemon, subscriber):
    daemon.publish("swap.created", swap_id=42)
    daemon.publish("swap.finished", swap_id=42, seq=-1, epoch="forged", event="forged", at=None)
    (topic, first), (_, second) = next_event(subscriber), next_event(subscriber)
    assert topic == first["event"] == "swap.created"
    assert first["swap_id"] == 42
    assert (second["epoch"], second["event"]) == (1, "swap.finished")
    assert second["seq"] == first["seq"] + 1
    assert second["at"] >= first["at"]


def test_events_are_told_again_from_the_ring(context, daemon):
    for number in range(5):
        daemon.publish("swap.step", number=number)
    with connect(context, daemon) as client:
        found = ask(client, "events_since", epoch=1, seq=2)["result"]
        assert [event["number"] for event in found["events"]] == [2, 3, 4]
        assert (found["epoch"], found["seq"], found["lost"], found["more"]) == (1, 5, 0, False)
        paged = ask(client, "events_since", epoch=1, seq=0, limit=2)["result"]
        assert (paged["seq"], paged["more"]) == (2, True)
        current = ask(client, "events_since", epoch=1, seq=5)["result"]
        assert (current["events"], current["seq"]) == ([], 5)
        earlier_daemon = ask(client, "events_since", epoch=0, seq=77)["result"]
        assert [event["seq"] for event in earlier_daemon["events"]] == [1, 2, 3, 4, 5]


def test_events_older_than_the_ring_are_counted_as_lost():
    from swapd.host.control_socket.memory import EventRing

    ring = EventRing(epoch=1, size=3)
    for _ in range(10):
        ring.append("swap.step", {}, 0.0)
    found = ring.since(1, 2, 100)
    assert [event["seq"] for event in found["events"]] == [8, 9, 10]
    assert found["lost"] == 5


def test_an_event_that_is_no_json_is_logged_and_leaves_no_gap(daemon, subscriber, caplog):
    daemon.publish("swap.created", socket=object())
    daemon.publish("swap.created", text="\ud800")
    assert caplog.text.count("control.event_lost") == 2
    daemon.publish("swap.finished")
    daemon.publish("swap.finished")
    assert next_event(subscriber)[1]["seq"] + 1 == next_event(subscriber)[1]["seq"]


def test_a_subscriber_that_does_not_read_holds_up_nobody(context, daemon, subscriber):
    with context.socket(zmq.SUB) as deaf:
        deaf.setsockopt(zmq.RCVHWM, 1)
        deaf.subscribe(b"")
        deaf.connect(daemon.events_endpoint)
        padding = "x" * 2000
        for number in range(6000):
            daemon.publish("swap.step", number=number, padding=padding)
            if number % 100 == 99:
                while next_event(subscriber)[1].get("number") != number:
                    pass
        assert_serves(context, daemon)


def test_many_subscribers_that_come_and_go_leave_it_well(context, daemon, subscriber):
    for _ in range(30):
        with context.socket(zmq.SUB) as passing:
            passing.setsockopt(zmq.LINGER, 0)
            passing.subscribe(os.urandom(8))
            passing.connect(daemon.events_endpoint)
    daemon.publish("swap.created")
    assert next_event(subscriber)[0] == "swap.created"
    assert_serves(context, daemon)


# --- from one daemon to the next -----------------------------------------------------------------------------


@pytest.fixture
def inherited(daemon):
    """What the service manager has kept of the daemon's listener."""
    with daemon.socket.listener.dup() as sock:
        yield sock


def next_daemon(daemon: FakeDaemon, kept: socket.socket | None) -> None:
    daemon.epoch += 1

    async def start() -> None:
        daemon.socket = ControlSocket(
            daemon.endpoint, daemon.events_endpoint, daemon._handle, epoch=daemon.epoch, **daemon.options
        )
        await daemon.socket.start(kept)

    daemon.run(start())


def test_who_asks_between_two_daemons_is_answered_by_the_second(context, daemon, inherited):
    before = connect(context, daemon)
    assert ask(before)["result"] == {"services": []}
    first, daemon.socket = daemon.socket, None
    daemon.run(first.close(leave=True))
    late = connect(context, daemon)
    late.send(request("status", 7))
    daemon.answers["status"] = {"services": ["of the second"]}
    next_daemon(daemon, inherited.dup())
    assert receive(late)["result"] == {"services": ["of the second"]}
    assert ask(before, "status", 8)["result"] == {"services": ["of the second"]}, "it connects again by itself"
    before.close()
    late.close()
    path = Path(daemon.endpoint.removeprefix("ipc://"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    daemon.stop()
    assert not path.exists()


def test_a_kept_listener_whose_file_is_gone_is_not_taken(context, daemon, inherited):
    first, daemon.socket = daemon.socket, None
    daemon.run(first.close())
    next_daemon(daemon, inherited.dup())
    assert_serves(context, daemon)


def test_a_socket_file_that_was_out_of_sight_is_shown_by_the_next_daemon(context, daemon, inherited):
    first, daemon.socket = daemon.socket, None
    daemon.run(first.close(leave=True))
    path = Path(daemon.endpoint.removeprefix("ipc://"))
    path.rename(f"{path}.full")
    next_daemon(daemon, inherited.dup())
    assert_serves(context, daemon)
