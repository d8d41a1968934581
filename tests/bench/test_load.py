"""The load client itself: it must count each kind of loss, or a clean bench proves nothing.

A server with bad manners stands in for swapd. It is the one thing here that is not the real part, because the
real one is meant never to do any of this.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.answers import AnswerReader, Malformed
from bench.loader import ClientGroup, LoadProcess, LoadReport, LoadSpec, http_request
from bench.records import OUTCOMES, Records, Switch, check_cutovers, outside, percentile

GOOD = b"the answer of a"
NEWER = b"the answer of b"


def answer(body: bytes = GOOD, revision: int | None = 1, status: str = "200 OK", extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n"
    if revision is not None:
        head += f"x-swapd-revision: {revision}\r\n"
    return (head + extra + "\r\n").encode() + body


class BadMannered:
    """Answers the n-th request (over all connections) as `script(n)` says: an action's name, or bytes to send."""

    def __init__(self, script: Callable[[int], bytes | str]) -> None:
        self.script = script
        self.requests = 0
        self.connections = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> BadMannered:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._serving: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._serving.discard(task)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                await reader.readexactly(int(line.split(b":")[1]))
        act, self.requests = self.script(self.requests), self.requests + 1
        if isinstance(act, bytes):
            writer.write(act)
            return True
        if act == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if act == "hang":
            await self._stop.wait()
        elif act == "close after":
            writer.write(answer())
        elif act == "truncate":
            writer.write(answer()[:-4])
        elif act == "truncate chunked":
            writer.write(chunked([GOOD])[:-5])
        else:
            assert act == "close"
        await writer.drain()
        return False


def chunked(pieces: list[bytes]) -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nx-swapd-revision: 1\r\n\r\n" + body + b"0\r\n\r\n"


def run_load(
    address: str, *groups: ClientGroup, until: int = 30, timeout_s: float = 20.0, server: BadMannered | None = None
) -> LoadReport:
    """Loads until that many requests are done."""
    spec = LoadSpec(
        address,
        groups or (ClientGroup("closed", ["x"]),),
        {"x": http_request("GET", "/x"), "big": http_request("POST", "/x", b"u" * 1000)},
        {"x": {"a": GOOD, "b": NEWER}, "big": {"a": b"uploaded"}},
        timeout_s=timeout_s,
    )
    with LoadProcess(spec) as load:
        while load.report()["requests"] < until:
            threading.Event().wait(0.02)
        return load.stop()


def load_without_revisions(address: str) -> LoadReport:
    """Asks `x` ten times and more, then `big` ten times and more, of something that is not swapd."""
    requests = {"x": http_request("GET", "/x"), "big": http_request("POST", "/x", b"u" * 1000)}
    answers = {"x": {"a": GOOD, "b": NEWER}, "big": {"a": b"uploaded"}}
    spec = LoadSpec(address, [ClientGroup("closed", ["x"])], requests, answers, require_revision=False)
    with LoadProcess(spec) as load:
        for key in ("x", "big"):
            load.ask(key)
            until = load.report()["requests"] + 10
            while load.report()["requests"] < until:
                threading.Event().wait(0.02)
        return load.stop()


def only(report: LoadReport, **expected: int) -> None:
    """These errors and no others."""
    assert report.summary["errors"] == {name: expected.get(name, 0) for name in OUTCOMES[1:]}, report.summary["notes"]


def test_a_faithful_server_gives_no_error_and_every_request_is_counted_once() -> None:
    with BadMannered(lambda n: answer()) as server:
        report = run_load(server.address, ClientGroup("closed", ["x"], count=5), ClientGroup("fresh", ["x"], count=2))
        only(report)
        assert report.lost == 0
        assert report.summary["requests"] == server.requests == len(report.records)
        assert report.summary["connects"] == server.connections
        fresh = sum(1 for group in report.records.group if report.records.groups[group] == "fresh")
        assert server.connections == 5 + fresh
        assert report.summary["labels"] == {"1": "a"}


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        ("reset", "reset"),
        ("close", "unanswered"),
        ("truncate", "truncated"),
        ("truncate chunked", "truncated"),
        (answer(b"the answer of c"), "wrong_body"),
        (answer(NEWER, revision=1), "wrong_body"),  # right for b, but revision 1 is a
        (answer(b"uploaded"), "wrong_body"),  # right, but for another request
        (answer(revision=None), "no_revision"),
        (answer(status="503 Service Unavailable"), "bad_status"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "malformed"),
        (b"HTTP/1.1 200 OK\r\nx-swapd-revision: 1\r\n\r\nno length", "malformed"),
    ],
    ids=str,
)
def test_each_lost_request_is_counted_as_what_it_was(act: bytes | str, kind: str) -> None:
    bad = {5, 11, 12}
    with BadMannered(lambda n: act if n in bad else answer()) as server:
        report = run_load(server.address)
        only(report, **{kind: 3})
        assert report.lost == 3
        assert report.summary["requests"] == server.requests  # nothing was sent twice
        assert [note["kind"] for note in report.summary["notes"]] == [kind] * 3


def test_without_revisions_models_are_told_apart_by_what_they_say() -> None:
    with BadMannered(lambda n: answer(NEWER if n % 2 else GOOD, None)) as server:
        report = load_without_revisions(server.address)
    assert report.summary["labels"] == {"1": "a", "2": "b"}
    assert set(report.records.revision[:10]) == {1, 2}
    assert list(report.records.outcome[:10]) == [0] * 10


def test_clients_told_to_ask_for_something_else_do_so() -> None:
    with BadMannered(lambda n: answer(revision=None)) as server:
        report = load_without_revisions(server.address)
    wrong = report.summary["errors"]["wrong_body"]  # GOOD is no answer to `big`
    assert 0 < wrong < report.summary["requests"]


def test_a_request_without_an_answer_times_out() -> None:
    with BadMannered(lambda n: "hang" if n == 5 else answer()) as server:
        report = run_load(server.address, timeout_s=0.5)
        only(report, timed_out=1)


def test_a_closed_port_is_refused() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        report = run_load(f"127.0.0.1:{free.getsockname()[1]}", until=3)
    only(report, refused=report.summary["requests"])


def test_a_missing_unix_socket_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    report = run_load(f"unix:{tmp_path}/none.sock", until=3)
    assert report.lost == report.summary["requests"] >= 3


def test_a_connection_closed_while_idle_is_a_forced_reconnect() -> None:
    with BadMannered(lambda n: "close after" if n in (3, 9) else answer()) as server:
        report = run_load(server.address, ClientGroup("closed", ["x"], think_s=0.05), until=15)
        only(report)
        assert report.summary["forced_reconnects"] == report.lost == 2
        assert server.connections == 3


def test_connection_close_without_being_asked_is_a_forced_reconnect() -> None:
    with BadMannered(lambda n: answer(extra="Connection: close\r\n") if n == 3 else answer()) as server:
        report = run_load(server.address)
        only(report)
        assert report.summary["forced_reconnects"] == 1


def test_an_idle_connection_is_used_again_at_the_end() -> None:
    with BadMannered(lambda n: answer()) as server:
        report = run_load(server.address, ClientGroup("idle", ["x"], count=20), until=20)
        only(report)
        assert report.summary["requests"] == 40
        assert server.connections == report.summary["connects"] == 20


def test_bytes_after_the_answer_are_counted() -> None:
    with BadMannered(lambda n: answer() + b"HTTP" if n == 3 else answer()) as server:
        report = run_load(server.address, ClientGroup("closed", ["x"], think_s=0.02), until=10)
        only(report)
        assert report.summary["unasked_bytes"] == 4


def test_slow_uploads_arrive_whole_and_an_early_answer_is_an_error() -> None:
    with BadMannered(lambda n: answer(b"uploaded")) as server:
        upload = ClientGroup("upload", ["big"], count=2, parts=5, pause_s=0.01)
        only(run_load(server.address, upload, until=6))
    early = socket.create_server(("127.0.0.1", 0))

    def answer_at_once() -> None:
        connection, _ = early.accept()
        with connection, contextlib.suppress(ConnectionError):
            connection.recv(100)
            connection.sendall(answer(b"uploaded"))
            while connection.recv(1000):
                pass

    with early:
        thread = threading.Thread(target=answer_at_once, daemon=True)
        thread.start()
        upload = ClientGroup("upload", ["big"], parts=5, pause_s=0.05)
        report = run_load(f"127.0.0.1:{early.getsockname()[1]}", upload, until=1, timeout_s=1)
        thread.join(10)
    assert report.summary["errors"]["wrong_body"] >= 1


def test_the_open_loop_counts_a_stall_from_when_each_request_was_due() -> None:
    stalled = threading.Event()

    def script(n: int) -> bytes | str:
        if n == 50:  # the server's only thread: everybody waits
            stalled.wait(0.4)
        return answer()

    with BadMannered(script) as server:
        report = run_load(server.address, ClientGroup("open", ["x"], rate_per_s=200.0), until=150)
    only(report)
    slow = [latency for latency in report.records.latencies() if latency > 0.1]
    assert len(slow) > 40  # 0.3 s of requests at 200 a second; a closed loop would have seen one


def test_paced_clients_count_from_when_the_request_was_due() -> None:
    stalled = threading.Event()

    def script(n: int) -> bytes | str:
        if n == 10:
            stalled.wait(0.3)
        return answer()

    with BadMannered(script) as server:
        report = run_load(server.address, ClientGroup("paced", ["x"], interval_s=0.02), until=40)
    only(report)
    assert sum(latency > 0.05 for latency in report.records.latencies()) > 5


def test_streams_are_checked_to_their_end() -> None:
    with BadMannered(lambda n: chunked([GOOD[:4], GOOD[4:]]) if n % 2 else chunked([GOOD, GOOD])) as server:
        report = run_load(server.address, until=10)
        assert report.summary["errors"]["wrong_body"] >= 5
        assert report.summary["errors"]["wrong_body"] == report.lost < report.summary["requests"]


def rows(*entries: tuple[float, float, int]) -> Records:
    records = Records(["all"])
    for start, end, revision in entries:
        records.add(start, end, revision, 0, 0)
    return records


def test_an_old_answer_to_a_request_begun_after_the_first_new_answer_is_late() -> None:
    switches = [Switch(10.0, 1, 2)]
    fine = rows((9.0, 9.1, 1), (10.0, 10.5, 1), (10.1, 10.6, 2), (10.59, 10.9, 1), (10.7, 10.8, 2))
    assert [cutover.late for cutover in check_cutovers(fine, switches)] == [0]
    late = rows((10.1, 10.6, 2), (10.61, 10.9, 1))
    (cutover,) = check_cutovers(late, switches)
    assert (cutover.late, cutover.first_new_at) == (1, 10.6)


def test_a_rollback_brings_the_old_revision_back_rightly() -> None:
    switches = [Switch(10.0, 1, 2), Switch(20.0, 2, 1)]
    records = rows((9, 9.1, 1), (10.1, 10.6, 2), (19.9, 20.4, 1), (20.3, 20.5, 2), (20.41, 20.6, 1), (21, 21.1, 1))
    assert [cutover.late for cutover in check_cutovers(records, switches)] == [0, 0]
    records = rows((10.1, 10.6, 2), (11, 11.1, 1), (20.3, 20.4, 1), (20.5, 20.6, 2))
    assert [cutover.late for cutover in check_cutovers(records, switches)] == [1, 1]


def test_a_slow_answer_from_before_two_switches_is_not_the_first_of_what_comes_back() -> None:
    switches = [Switch(10.0, 1, 2), Switch(11.0, 2, 1)]
    records = rows((9.9, 11.1, 1), (10.1, 10.2, 2), (11.2, 11.25, 2), (11.2, 11.3, 1))
    assert [cutover.late for cutover in check_cutovers(records, switches)] == [0, 0]


def test_a_switch_that_no_client_saw_says_so() -> None:
    (cutover,) = check_cutovers(rows((10.1, 10.2, 1)), [Switch(10.0, 1, 2)])
    assert not cutover.seen


def test_records_survive_their_file_and_join(tmp_path: Path) -> None:
    records = rows((1.0, 2.0, 1), (1.5, 2.5, 2))
    records.store(tmp_path / "r")
    again = Records.load(tmp_path / "r")
    assert (again.start, again.end, again.revision, again.groups) == (
        records.start,
        records.end,
        records.revision,
        ["all"],
    )
    again.join(records)
    assert len(again) == 4
    assert again.groups == ["all", "all"]
    assert list(again.group) == [0, 0, 1, 1]


def test_windows_choose_by_the_beginning() -> None:
    records = rows((1.0, 2.0, 1), (3.0, 3.5, 1), (5.0, 5.1, 1))
    assert records.latencies(windows=[(2.5, 4.0)]) == [0.5]
    assert outside([(2, 3), (2.5, 4)], 1, 5) == [(1, 2), (4, 5)]
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.99) == 99


def test_answers_are_read_whatever_the_pieces() -> None:
    for raw, body in ((answer(), GOOD), (chunked([b"abc", b"de"]), b"abcde")):
        for size in range(1, len(raw) + 1):
            reader = AnswerReader()
            done = [reader.feed(raw[at : at + size]) for at in range(0, len(raw), size)]
            assert done[-1]
            assert not any(done[:-1])
            assert (reader.body, reader.extra) == (body, b"")


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
    ],
)
def test_what_is_not_http_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        AnswerReader().feed(raw)
