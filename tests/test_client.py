"""The Python client against a real control socket."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.control_daemon import DEADLINE_S, FakeDaemon, wait_until
from support.control_values import status, swap_record

from swapd.client import AsyncClient, Client, DaemonUnreachable, SwapFailed
from swapd.core import errors
from swapd.core.errors import SwapdError


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[FakeDaemon]:
    with FakeDaemon(tmp_path, {"status": status()}) as made:
        yield made


@pytest.fixture
def client(daemon: FakeDaemon) -> Iterator[Client]:
    with Client(daemon.endpoint) as made:
        yield made


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


class Swapping:
    """A daemon in which a swap ends as the test says: `finish(phase)` publishes and records it."""

    def __init__(self, daemon: FakeDaemon, record: dict[str, Any] | None = None) -> None:
        self.daemon = daemon
        self.record = record or swap_record(phase="Preparing", steps=[])
        for method in ("swap", "rollback", "restart"):
            daemon.answers[method] = lambda params, peer: dict(self.record)
        daemon.answers["show"] = lambda params, peer: dict(self.record)

    def step(self, name: str, step_status: str = "running") -> None:
        self.daemon.publish("swap.step", swap_id=self.record["id"], step=name, status=step_status, ms=None, detail="")

    def finish(self, phase: str, *, tell: bool = True, **changes: Any) -> None:
        self.record = {**self.record, "phase": phase, **changes}
        if tell:
            self.daemon.publish("swap.phase", swap_id=self.record["id"], phase=phase)

    def begun(self) -> bool:
        return self.daemon.count("show") > 0


# --- calls ---------------------------------------------------------------------------------------------------


def test_every_method_of_the_protocol_has_one_in_both_clients():
    from swapd.wire import control

    for kind in (Client, AsyncClient):
        for name in control.METHODS:
            assert callable(getattr(kind, name)), name


@pytest.mark.parametrize(
    ("method", "arguments", "options", "params"),
    [
        ("status", ("chat",), {}, {"service": "chat"}),
        ("devices", (), {}, {}),
        ("workers", (), {}, {}),
        ("models", (), {}, {}),
        ("plan", ("chat", "b"), {"max_outage": "2m"}, {"service": "chat", "to": "b", "max_outage": 120.0}),
        ("history", ("chat", 5), {}, {"service": "chat", "limit": 5}),
        ("show", (42,), {}, {"id": 42}),
        ("cancel", (), {"id": 42, "actor": "bot"}, {"id": 42, "actor": "bot"}),
        ("logs", ("chat", 10), {"offset": 7}, {"target": "chat", "lines": 10, "offset": 7}),
        ("reload", (), {"dry_run": True}, {"dry_run": True}),
        ("stop_workers", (), {"confirm": True}, {"confirm": True}),
        ("rollback", ("chat", 41), {"wait": False}, {"service": "chat", "to": 41}),
        ("restart", ("chat",), {"wait": False, "reason": "why"}, {"service": "chat", "reason": "why"}),
    ],
)
def test_a_method_sends_what_it_was_given(daemon, client, method, arguments, options, params):
    daemon.answers[method] = {"from": method}
    assert getattr(client, method)(*arguments, **options) == {"from": method}
    assert daemon.calls[-1][:2] == (method, params)


def test_a_refusal_is_raised_with_its_code_and_figures(daemon, client):
    def refuse(params, peer):
        raise SwapdError(errors.VRAM_INSUFFICIENT, "2.5 GiB short", {"short_bytes": 5 << 29})

    daemon.answers["plan"] = refuse
    with pytest.raises(SwapdError, match=r"2.5 GiB short") as refused:
        client.plan("chat", to="b")
    assert (refused.value.code, refused.value.details) == (errors.VRAM_INSUFFICIENT, {"short_bytes": 5 << 29})


def test_the_endpoint_may_come_from_the_environment(daemon, monkeypatch):
    monkeypatch.setenv("SWAPD_CONTROL", daemon.endpoint)
    with Client() as client:
        assert client.hello()["you"]["uid"] == os.getuid()


def test_threads_may_share_a_client(daemon, client):
    async def echo(params, peer):
        await asyncio.sleep(0.001 * (params["id"] % 3))
        return params["id"]

    daemon.answers["show"] = echo
    found: dict[int, int] = {}

    def work(first: int) -> None:
        for number in range(first, first + 20):
            found[number] = client.show(number)

    threads = [in_thread(lambda first=first: work(first)) for first in (0, 100, 200)]
    for thread in threads:
        thread.join(DEADLINE_S)
    assert len(found) == 60
    assert all(key == value for key, value in found.items())


def test_an_answer_that_comes_too_late_is_nobodys(daemon, client):
    release = asyncio.Event()

    async def slow(params, peer):
        await release.wait()
        return "late"

    daemon.answers["devices"] = slow
    with pytest.raises(DaemonUnreachable, match=r"did not answer in 0\.1 s"):
        client.devices(deadline_s=0.1)
    daemon.loop.call_soon_threadsafe(release.set)
    assert client.status() == status()


def test_a_read_is_asked_again_when_the_daemon_comes_back(daemon, client):
    """The first daemon ends with the request in hand; the second answers it."""
    release = asyncio.Event()
    daemon.answers["devices"] = lambda params, peer: release.wait()
    found: list[Any] = []
    asking = in_thread(lambda: found.append(client.devices()))
    wait_until(lambda: daemon.count("devices") == 1)
    # Its socket only: no answer leaves any more, as after a crash.
    daemon.run(abandon(daemon))
    daemon.answers["devices"] = ["gpu0"]
    daemon.start()
    asking.join(DEADLINE_S)
    assert found == [["gpu0"]]


def test_an_order_is_not_given_twice_when_the_daemon_goes_away(daemon, client):
    release = asyncio.Event()
    daemon.answers["cancel"] = lambda params, peer: release.wait()
    failed: list[SwapdError] = []

    def ask() -> None:
        try:
            client.cancel("chat")
        except SwapdError as error:
            failed.append(error)

    asking = in_thread(ask)
    wait_until(lambda: daemon.count("cancel") == 1)
    daemon.run(abandon(daemon))
    daemon.start()
    asking.join(DEADLINE_S)
    assert isinstance(failed[0], DaemonUnreachable)
    assert "may have acted" in failed[0].message
    assert daemon.count("cancel") == 1


async def abandon(daemon: FakeDaemon) -> None:
    """End the control socket as a crash would: without a word to those who wait for an answer."""
    server, daemon.socket = daemon.socket, None
    assert server is not None
    server._reply = lambda envelope, reply: None
    for task in server._tasks:
        task.cancel()
    await server.close()


# --- nobody there --------------------------------------------------------------------------------------------


def unreachable(endpoint: str) -> DaemonUnreachable:
    with Client(endpoint, connect_s=0.2) as client, pytest.raises(DaemonUnreachable) as raised:
        client.status()
    assert raised.value.code == errors.DAEMON_UNREACHABLE
    return raised.value


def test_no_socket_is_told_as_such(tmp_path):
    assert "swapd is not running" in unreachable(f"ipc://{tmp_path}/control.sock").message


def test_a_socket_that_nobody_listens_on_is_told_as_such(tmp_path):
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(f"{tmp_path}/control.sock")
    assert "nobody listens" in unreachable(f"ipc://{tmp_path}/control.sock").message


def test_a_full_daemon_is_told_as_such(tmp_path):
    (tmp_path / "control.sock.full").touch()
    assert "as many connections as it takes" in unreachable(f"ipc://{tmp_path}/control.sock").message


def test_a_server_of_another_kind_is_told_as_such(tmp_path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{tmp_path}/control.sock")
        other.listen()
        assert "nobody there speaks as swapd does" in unreachable(f"ipc://{tmp_path}/control.sock").message


@pytest.mark.parametrize(
    ("endpoint", "cure"),
    [
        ("/run/x.sock", "'/run/x.sock' is no endpoint: write ipc:///run/x.sock"),
        ("run/x.sock", f"write ipc://{os.getcwd()}/run/x.sock"),
        ("ipc://run/x", "write ipc:// and a whole path, such as ipc:///run/swapd/control.sock"),
        ("nonsense", "write ipc:// and a whole path"),
        ("http://127.0.0.1:8000", "write ipc:// and a whole path"),
        ("ipc:///" + "x" * 200, "is no endpoint: its path has 201 bytes, and a Unix socket's at most 107"),
    ],
)
def test_a_wrong_endpoint_is_told_with_what_to_write(endpoint, cure):
    message = unreachable(endpoint).message
    assert cure in message
    assert "addr=" not in message


def test_where_nobody_is_both_causes_are_told(tmp_path):
    path = tmp_path / "control.sock"
    absent = unreachable(f"ipc://{path}").message
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    for message in (absent, unreachable(f"ipc://{path}").message):
        assert "systemctl status swapd" in message
        assert "SWAPD_CONTROL" in message
        assert "--connect" in message


def test_a_closed_tcp_port_is_told_as_such():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    message = unreachable(f"tcp://127.0.0.1:{port}").message
    assert "nobody answers" in message
    assert "swapd itself listens on ipc:// only" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="takes two users")
def test_a_socket_without_permission_is_told_as_such(daemon):
    script = f"""if True:
        import os, zmq
        from swapd.client import Client, DaemonUnreachable
        os.setgroups([]); os.setgid(65534); os.setuid(65534)
        try:
            Client({daemon.endpoint!r}).status()
        except DaemonUnreachable as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S)
    assert "no permission" in done.stdout, done.stderr


# --- waiting for a swap --------------------------------------------------------------------------------------


def test_a_swap_returns_when_the_new_revision_serves(daemon, client):
    swapping = Swapping(daemon)
    seen: list[Any] = []
    found: list[Any] = []
    asking = in_thread(lambda: found.append(client.swap("chat", to="b", on_event=seen.append)))
    wait_until(swapping.begun)
    swapping.step("load")
    daemon.publish("swap.step", swap_id=7, step="load", status="running")  # another swap's
    swapping.finish("Soaking", soak_until=1.0)
    asking.join(DEADLINE_S)
    assert found[0]["phase"] == "Soaking"
    assert [event["event"] for event in seen] == ["swap.step", "swap.phase"]


@pytest.mark.parametrize("phase", ["Failed", "Canceled"])
def test_a_swap_that_did_not_come_about_is_raised_with_its_record(daemon, client, phase):
    swapping = Swapping(daemon)
    error = {"code": errors.PROBE_FAILED, "message": "wrong answer", "details": {}, "step": "verify", "log_tail": ["x"]}
    swapping.finish(phase, tell=False, error=error)
    daemon.answers["swap"] = swap_record(phase="Preparing")
    with pytest.raises(SwapFailed, match="wrong answer") as failed:
        client.swap("chat", to="b")
    assert failed.value.code == errors.PROBE_FAILED
    assert failed.value.record["phase"] == phase


def test_a_return_within_the_soak_is_done_when_that_swap_is_canceled(daemon, client):
    swapping = Swapping(daemon, swap_record(phase="RollingBack"))
    found: list[Any] = []
    asking = in_thread(lambda: found.append(client.rollback("chat")))
    wait_until(swapping.begun)
    swapping.finish("Canceled")
    asking.join(DEADLINE_S)
    assert found[0]["phase"] == "Canceled"


def test_a_swap_is_not_waited_for_past_its_deadline(daemon, client):
    Swapping(daemon)
    started = time.monotonic()
    with pytest.raises(SwapdError, match="it goes on") as late:
        client.swap("chat", to="b", deadline_s=0.3)
    assert (late.value.code, late.value.details) == (errors.TIMEOUT, {"id": 42})
    assert time.monotonic() - started < DEADLINE_S


def test_the_end_of_a_swap_is_found_out_although_no_event_told_of_it(daemon, client):
    """The daemon died before it could tell, and ended the swap when it came back."""
    swapping = Swapping(daemon)
    found: list[Any] = []
    asking = in_thread(lambda: found.append(client.wait_swap(42)))
    wait_until(swapping.begun)
    daemon.stop()
    swapping.finish("Canceled", tell=False)
    daemon.epoch += 1
    daemon.start()
    asking.join(DEADLINE_S)
    assert found[0]["phase"] == "Canceled"


def test_without_waiting_the_record_comes_at_once(daemon, client):
    Swapping(daemon)
    assert client.swap("chat", to="b", wait=False)["phase"] == "Preparing"


# --- events --------------------------------------------------------------------------------------------------


class Listening:
    """Collects the events of a client in a thread; the generator is closed by its own thread."""

    def __init__(self, client: Client, **options: Any) -> None:
        self.heard: list[Any] = []
        self.failed: list[BaseException] = []
        self._stop = False
        self._thread = in_thread(lambda: self._listen(client, options))

    def _listen(self, client: Client, options: dict[str, Any]) -> None:
        events = client.events(**options)
        try:
            for event in events:
                if event["event"] == "test.stop":
                    return
                self.heard.append(event)
        except SwapdError as error:
            self.failed.append(error)
        finally:
            events.close()

    def names(self) -> list[str]:
        return [event["event"] for event in self.heard]

    def join(self) -> None:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


def test_events_come_each_once_and_in_order(daemon, client):
    listening = Listening(client, since=(1, 0))
    for number in range(200):
        daemon.publish("swap.step", number=number)
    daemon.publish("test.stop")
    listening.join()
    assert [event["number"] for event in listening.heard] == list(range(200))


def test_events_start_now_unless_told_otherwise(daemon, client):
    daemon.publish("swap.created")
    listening = Listening(client)
    while not listening.heard:
        daemon.publish("swap.finished")
    daemon.publish("test.stop")
    listening.join()
    assert set(listening.names()) == {"swap.finished"}
    seqs = [event["seq"] for event in listening.heard]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


def test_events_that_the_socket_lost_are_filled_in(daemon, client):
    """Every third event never reaches a subscriber, as when it read too slowly."""
    assert daemon.socket is not None
    pub = daemon.socket._pub
    send = pub.send
    counter = iter(range(10_000))
    pub.send = lambda frames: None if next(counter) % 3 == 0 else send(frames)
    listening = Listening(client, since=(1, 0))
    for number in range(60):
        daemon.publish("swap.step", number=number)
    daemon.publish("test.stop")
    listening.join()
    assert [event["number"] for event in listening.heard] == list(range(60))


def test_a_lost_event_is_fetched_at_once_while_others_keep_coming(daemon, client):
    """Not only when the stream pauses: it may never."""
    listening = Listening(client, since=(1, 0))
    while not listening.heard:
        daemon.publish("test.probe")
    pub = daemon.socket._pub
    send, pub.send = pub.send, lambda frames: None
    daemon.publish("swap.created")
    pub.send = send

    def heard() -> bool:
        daemon.publish("test.probe")
        return "swap.created" in listening.names()

    wait_until(heard)
    daemon.publish("test.stop")
    listening.join()


def test_the_last_event_is_heard_of_although_it_was_lost(daemon, client):
    """No later event shows the gap: only asking does."""
    listening = Listening(client, since=(1, 0))
    daemon.publish("swap.created")
    wait_until(lambda: bool(listening.heard))
    daemon.socket._pub.send = lambda frames: None
    daemon.publish("test.stop")
    listening.join()


def test_events_go_on_after_a_restart_of_the_daemon(daemon, client):
    listening = Listening(client, since=(1, 0))
    daemon.publish("swap.created")
    wait_until(lambda: listening.names() == ["swap.created"])
    daemon.restart()
    daemon.publish("swap.phase")
    daemon.publish("test.stop")
    listening.join()
    assert listening.names() == ["swap.created", "events.restarted", "swap.phase"]
    assert listening.heard[-1]["epoch"] == 2


def test_events_older_than_the_daemons_memory_are_said_to_be_lost(daemon, client):
    from swapd.host.control_socket.memory import EventRing

    daemon.socket._ring = EventRing(1, 3)
    for _ in range(5):
        daemon.publish("swap.step")
    daemon.publish("test.stop")
    listening = Listening(client, since=(1, 0))
    listening.join()
    assert listening.names() == ["events.lost", "swap.step", "swap.step"]
    assert listening.heard[0]["count"] == 3


def test_patience_with_an_absent_daemon_ends(daemon):
    with Client(daemon.endpoint, connect_s=0.05) as client:
        listening = Listening(client, since=(1, 0), patience_s=0.1)
        daemon.publish("swap.created")
        wait_until(lambda: bool(listening.heard))
        daemon.stop()
        listening.join()
    assert isinstance(listening.failed[0], DaemonUnreachable)


# --- asyncio -------------------------------------------------------------------------------------------------


def test_the_async_client_does_the_same(daemon):
    swapping = Swapping(daemon)

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            assert await client.status() == status()
            seen: list[Any] = []
            swap = asyncio.create_task(client.swap("chat", to="b", on_event=seen.append))
            await asyncio.to_thread(wait_until, swapping.begun)
            assert await client.status("chat") == status()  # meanwhile
            await asyncio.to_thread(swapping.step, "load")
            await asyncio.to_thread(swapping.finish, "Soaking")
            assert (await swap)["phase"] == "Soaking"
            assert [event["event"] for event in seen] == ["swap.step", "swap.phase"]

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_the_async_client_overlaps_its_calls(daemon):
    release = asyncio.Event()
    daemon.answers["devices"] = lambda params, peer: release.wait()

    async def main() -> None:
        async with AsyncClient(daemon.endpoint) as client:
            calls = [asyncio.create_task(client.devices()) for _ in range(5)]
            assert await client.status() == status()
            daemon.loop.call_soon_threadsafe(release.set)
            assert await asyncio.gather(*calls) == [True] * 5

    asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


def test_async_events_come_each_once_and_in_order(daemon):
    async def main() -> list[int]:
        heard = []
        async with AsyncClient(daemon.endpoint) as client:
            events = client.events(since=(1, 0))
            async for event in events:
                if event["event"] == "test.stop":
                    break
                heard.append(event["number"])
            await events.aclose()
        return heard

    def publish() -> None:
        for number in range(100):
            daemon.publish("swap.step", number=number)
        daemon.publish("test.stop")

    publishing = in_thread(publish)
    assert asyncio.run(asyncio.wait_for(main(), DEADLINE_S)) == list(range(100))
    publishing.join(DEADLINE_S)


def test_an_async_client_without_a_daemon_says_so(tmp_path):
    async def main() -> None:
        async with AsyncClient(f"ipc://{tmp_path}/control.sock", connect_s=0.1) as client:
            await client.status()

    with pytest.raises(DaemonUnreachable):
        asyncio.run(main())


def test_the_client_needs_nothing_of_the_daemon():
    script = "import sys, swapd.client; print([m for m in sys.modules if m.startswith('swapd.')])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE_S, check=True
    )
    assert not any(part in done.stdout for part in ("swapd.daemon", "swapd.host", "swapd.front", "swapd.worker"))
