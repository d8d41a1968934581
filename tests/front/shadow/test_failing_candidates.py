"""Whatever a candidate does, and whatever happens to the shadow's process, clients have their answers, every one."""

import asyncio
import contextlib
import gc
import os
import signal
import threading

import psutil
import pytest
from support.front_load import Load
from support.front_process import wait_until
from support.raw_upstream import reset, says

MIB = 1 << 20
ENDLESS_CHUNKS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def slow(sock):
    threading.Event().wait(0.5)
    sock.sendall(says("late"))


def hang(sock):
    with contextlib.suppress(OSError):
        sock.recv(1)  # until the other side is gone
    return False


def endless(sock):
    sock.sendall(ENDLESS_CHUNKS)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"100000\r\n" + b"x" * MIB + b"\r\n")
    return False


def endless_head(sock):
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
    return False


def drip(sock):
    sock.sendall(ENDLESS_CHUNKS)
    with contextlib.suppress(OSError):
        while True:
            sock.sendall(b"1\r\nx\r\n")
            threading.Event().wait(0.01)
    return False


CANDIDATES = {
    "slow": (slow, None),
    "hangs": (hang, "timeout"),
    "closes": (None, "died"),
    "resets": (reset, "died"),
    "dies in its answer": (
        lambda sock: sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx") or False,
        "died",
    ),
    "says garbage": (os.urandom(100_000), "broken"),
    "says nothing of HTTP": (b"220 mail.example ESMTP\r\n", "broken"),
    "changes the protocol": (
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        "broken",
    ),
    "answers without end": (endless, None),
    "a head without end": (endless_head, "timeout"),
    "drips": (drip, "timeout"),
    "answers 500": (says("", status="500 Internal Server Error"), "status"),
    "answers other things": (says("{" * 50_000), None),
}


@pytest.mark.parametrize("kind", CANDIDATES)
def test_a_bad_candidate_costs_no_client_anything(spawn, listener, engine, kind):
    """Real clients of a real server, all of whose requests are copied."""
    behaviour, failure = CANDIDATES[kind]
    stable, candidate, gate = spawn(1), engine(), spawn(kind="gate")
    candidate.answer = lambda request: behaviour
    told = {"worker": "chat-2", "revision": 2, "address": candidate.address, "share": 1.0, "noise": 0.2}
    told |= {"deadline_s": 0.3 if failure == "timeout" else 5.0, "compare": {"how": "text"}}
    routes = [{"worker": "chat-1", "revision": 1, "address": f"unix:{stable.private}"}]
    gate.request("point", epoch=1, routes=routes, shadow=told)
    gate.adopt(1, main=listener)
    load = Load(listener.getsockname())

    def enough():
        figures = gate.stats()["shadow"]
        told = (
            figures["failed_for"].get(failure, 0) if failure else figures.get("compared", 0) - figures.get("agreed", 0)
        )
        return told >= 5 and len(load.answers) > 200 and figures

    figures = asyncio.run(
        load.run(8, lambda: wait_until(lambda: gate.stats()["shadow"]["running"] and enough(), kind, 60))
    )
    assert load.errors == []
    assert figures["restarts"] == 0
    assert figures["copied"] <= len(load.answers) + 8
    wait_until(lambda: gate.stats()["in_flight"] == 0, "nothing stays in flight")
    samples = figures["samples"]
    assert samples
    assert all(sample["why"] for sample in samples)
    candidate.faults.clear()  # requests that were cut at their deadline


def shadow_of(gate):
    """Its shadow's process."""

    def there():
        for child in psutil.Process(gate.pid).children():
            with contextlib.suppress(psutil.Error):
                if "--shadow" in child.cmdline():
                    return child
        return None

    return wait_until(there, "a shadow's process")


def test_a_process_that_dies_is_replaced_and_its_figures_go_on(shadowing, connect):
    shadow = shadowing()
    client = connect()
    for number in range(3):
        client.get()
        shadow.wait(agreed=number + 1)
    first = shadow_of(shadow.gate)
    first.kill()
    for _ in range(20):
        assert client.get()[0] == 200
    figures = shadow.wait(restarts=1, running=True)
    assert figures["problem"].startswith("it ended")
    wait_until(lambda: shadow_of(shadow.gate).pid != first.pid, "another process")

    def goes_on():
        assert client.get()[0] == 200
        return shadow.figures["agreed"] > 3

    wait_until(goes_on, "copies go on, and are counted on top of what was")
    wait_until(lambda: not first.is_running(), "the first is reaped")


def test_one_that_dies_again_and_again_is_replaced_later_each_time(shadowing, connect):
    shadow = shadowing()
    client = connect()
    for number in range(1, 4):
        shadow_of(shadow.gate).kill()
        assert client.get()[0] == 200
        shadow.wait(restarts=number)
    assert client.get()[0] == 200
    assert shadow.wait(restarts=3, running=False)["dropped_for"]["down"] >= 1


def test_figures_that_no_process_can_go_on_from_are_given_up(shadowing, connect, tmp_path, monkeypatch):
    """The one before has told something that the next dies of: not again and again."""
    launcher = tmp_path / "launch.py"
    launcher.write_text(
        "import socket, struct, sys\n"
        "gate = socket.socket(fileno=int(sys.argv[2]))\n"
        'told = b\'{"dropped_for": {}, "samples": 7}\'\n'
        "gate.sendall(struct.pack('!dI', 0.02, len(told)) + told)\n"
    )
    keeper = tmp_path / "sitecustomize.py"
    keeper.write_text(
        "import swapd.front.shadow.keeper as keeper\n"
        "real, init = keeper.LAUNCHER, keeper.Process.__init__\n"
        f"keeper.LAUNCHER = {str(launcher)!r}\n"
        "def once(self, *rest):\n"
        "    init(self, *rest)\n"
        "    keeper.LAUNCHER = real\n"
        "keeper.Process.__init__ = once\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    shadow = shadowing()
    client = connect()

    def works():
        assert client.get()[0] == 200
        return shadow.figures.get("agreed", 0) > 0

    wait_until(works, "a process that works", 60)
    assert shadow.figures["restarts"] == 2
    assert shadow.figures["throttled"] < 0.5, "it goes on from the share that was told"


def test_one_that_stands_still_delays_nobody_and_takes_no_memory(shadowing, connect):
    shadow = shadowing(max_body=MIB)
    body = os.urandom(MIB)
    shadow.stable.answer = lambda request: says(body)
    client = connect()
    assert client.get()[2] == body
    shadow.wait(copied=1)
    shadow_of(shadow.gate).suspend()
    gate = psutil.Process(shadow.gate.pid)
    before, most = gate.memory_info().rss, 0
    for _ in range(60):
        assert client.get("/", "POST", body=body)[2] == body
        most = max(most, gate.memory_info().rss - before)
    assert most < 24 * MIB
    assert shadow.figures["dropped_for"]["queue"] >= 50


def test_large_answers_that_never_end_are_not_collected(shadowing, connect):
    shadow = shadowing(max_body=4 * MIB)
    shadow.stable.answer = lambda request: endless
    gate = psutil.Process(shadow.gate.pid)
    before = gate.memory_info().rss
    client = connect()
    client.send_request()
    assert client.head()[0] == 200
    for _ in range(100):
        assert len(client.chunk()) > 0
    assert gate.memory_info().rss - before < 24 * MIB
    shadow.wait(dropped=1)
    client.close()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_it_ends_with_its_gate(shadowing, how):
    shadow = shadowing()
    process = shadow_of(shadow.gate)
    if how == "kill":
        shadow.gate.kill()
    else:
        shadow.gate.request("stop")
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "its end")


def test_it_ends_with_a_gate_that_is_killed_while_it_asks(shadowing, connect):
    shadow = shadowing(deadline_s=600.0)
    shadow.candidate.answer = lambda request: hang
    connect().get()
    shadow.candidate.wait_requests(1)
    process = shadow_of(shadow.gate)
    shadow.gate.kill()
    wait_until(lambda: not process.is_running(), "its end")


def test_nothing_is_left_when_a_table_has_no_shadow_any_more(shadowing, connect):
    shadow = shadowing()
    gate = psutil.Process(shadow.gate.pid)
    client = connect()
    counts = []
    for number in range(4):
        shadow.point(share=1.0 - number / 100)
        for _ in range(20):
            assert client.get()[0] == 200
        shadow.point(shadow=False)
        wait_until(lambda: not gate.children(), "no process, not even a dead one")
        counts.append(gate.num_fds())
    assert len(set(counts)) == 1


def test_a_hundred_tables_in_a_row_leave_one_process(shadowing, connect):
    shadow = shadowing()
    client = connect()
    told = {"worker": "chat-2", "revision": 2, "address": shadow.candidate.address}
    routes = [shadow.stable.route("chat-1", 1)]
    for number in range(20):
        shadow.gate.request("point", epoch=10 + number, routes=routes, shadow={**told, "share": 1 - number / 100})
        assert client.get()[0] == 200
    gate = psutil.Process(shadow.gate.pid)
    wait_until(lambda: len(gate.children()) == 1, "one process")
    wait_until(lambda: shadow.figures["running"], "it works")


def test_long_work_leaks_nothing(shadowing, connect):
    shadow = shadowing(compare={"how": "json"}, noise=0.5)
    bodies = {shadow.stable: b'{"a": [1, 2, 3]}', shadow.candidate: b'{"a": [1, 2, 4]}'}
    for each, body in bodies.items():
        each.answer = lambda request, body=body: says(body)
    client = connect()
    process = shadow_of(shadow.gate)

    def work(count):
        aim = shadow.figures["compared"] + count
        while shadow.figures["compared"] < aim:
            for _ in range(50):
                assert client.get("/", "POST", body=b"x" * 5000)[0] == 200
            shadow.stable.forget_requests()
            shadow.candidate.forget_requests()
        gc.collect()
        return process.memory_info().rss, process.num_fds(), psutil.Process(shadow.gate.pid).memory_info().rss

    work(300)
    before, after = work(300), work(1500)
    assert after[1] <= before[1] + 4
    assert after[0] - before[0] < 6 * MIB
    assert after[2] - before[2] < 6 * MIB


def test_the_terminals_signals_are_not_for_it(shadowing, connect):
    shadow = shadowing()
    os.kill(shadow_of(shadow.gate).pid, signal.SIGINT)
    connect().get()
    assert shadow.wait(agreed=1)["restarts"] == 0
