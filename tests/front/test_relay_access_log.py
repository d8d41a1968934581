"""The access log of a real gate: a line a request, written off the loop. A slow or full disk costs lines, not time."""

import datetime
import json
import os
import threading

import pytest
from support.front_process import wait_until

from swapd.front.relay import access_log as module
from swapd.front.relay.access_log import AccessLog

KEYS = [
    *("time", "service", "revision", "worker", "method", "path", "status", "bytes", "first_byte_ms", "held_ms"),
    *("total_ms", "request_id", "chosen_by", "instead_of", "error"),
]


class Log:
    def __init__(self, path):
        self.path = path

    def open(self):
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)

    def give(self, gate, **params):
        descriptor = self.open()
        gate.request("access_log", [descriptor], **params)
        os.close(descriptor)

    def lines(self, count):
        def read():
            lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
            return lines if len(lines) >= count else None

        lines = wait_until(read, f"{count} lines") if count else read()
        assert len(lines) == count
        return [json.loads(line) for line in lines]


@pytest.fixture
def logged(tmp_path, relaying, engine):
    upstream = engine()
    gate = relaying(upstream, hold_timeout_s=1.0)
    log = Log(tmp_path / "access.log")
    log.give(gate)
    return gate, upstream, log


def test_a_line_tells_who_answered_what_and_how_long_it_took(logged, connect):
    _, _, log = logged
    client = connect()
    before = datetime.datetime.now(datetime.timezone.utc)
    client.get("/v1/chat?key=secret", headers="x-request-id: abc-1\r\n")
    client.get("/a", "POST", body=b"hello")
    first, second = log.lines(2)
    assert list(first) == KEYS
    at = datetime.datetime.fromisoformat(first.pop("time").replace("Z", "+00:00"))
    assert abs((at - before).total_seconds()) < 60
    assert 0 <= first.pop("held_ms") < first["total_ms"]
    assert 0 < first.pop("first_byte_ms") <= first.pop("total_ms")
    assert first == {
        **{"service": "chat", "revision": 1, "worker": "chat-1", "method": "GET", "path": "/v1/chat", "status": 200},
        **{"bytes": 2, "request_id": "abc-1", "chosen_by": None, "instead_of": None, "error": None},
    }
    assert (second["method"], second["path"]) == ("POST", "/a")
    assert second["request_id"]


def test_the_query_is_logged_on_wish_and_nothing_without_a_file(logged, connect):
    gate, _, log = logged
    client = connect()
    log.give(gate, query=True)
    client.get("/v1/chat?key=value")
    assert log.lines(1)[0]["path"] == "/v1/chat?key=value"
    assert gate.stats()["access_log"] == {"written": 1, "dropped": 0}
    gate.request("access_log")
    client.get("/")
    assert gate.stats()["access_log"] is None
    log.give(gate)
    client.get("/last")
    assert [line["path"] for line in log.lines(2)] == ["/v1/chat?key=value", "/last"]


def test_held_turned_away_and_broken_requests_are_lines_too(logged, connect):
    gate, upstream, log = logged
    gate.request("point", epoch=2, hold=True)
    held, in_vain = connect(), connect()
    in_vain.send_request("/in-vain", headers="x-request-id: lost\r\n")
    assert in_vain.answer()[0] == 503
    held.send_request("/held")
    gate.wait_stats(held=1)
    wait_until(lambda: gate.stats()["oldest_in_flight_s"] > 0.3, "it has waited")
    gate.request("point", epoch=3, routes=[upstream.route()])
    held.answer()
    upstream.answer = lambda request: None
    held.send_request("/died", "POST", headers="content-length: 0\r\n")
    assert held.answer()[0] == 502
    gone = connect()
    upstream.answer = lambda request: lambda sock: threading.Event().wait(0.5) and None
    gone.send_request("/gone")
    upstream.wait_requests(3)
    gone.reset()
    lines = {line["path"]: line for line in log.lines(4)}
    assert (lines["/in-vain"]["status"], lines["/in-vain"]["error"]) == (503, "hold_timeout")
    assert lines["/in-vain"]["request_id"] == "lost"
    assert lines["/in-vain"]["held_ms"] >= 1000
    assert (lines["/held"]["status"], lines["/held"]["error"]) == (200, None)
    assert lines["/held"]["total_ms"] >= lines["/held"]["held_ms"] >= 300
    assert (lines["/died"]["status"], lines["/died"]["error"]) == (502, "upstream_died")
    assert (lines["/gone"]["status"], lines["/gone"]["error"], lines["/gone"]["first_byte_ms"]) == (
        *(None, "client_gone"),
        None,
    )


def test_a_fallback_tells_who_could_not_be_reached(logged, connect, engine):
    gate, upstream, log = logged
    candidate = engine()
    routes = [upstream.route("chat-1", 41, weight=0), candidate.route("chat-2", 42, weight=100)]
    gate.request("point", epoch=2, routes=routes, split=True)
    candidate.refuse()
    connect().get()
    [line] = log.lines(1)
    assert (line["revision"], line["chosen_by"], line["instead_of"]) == (41, "fallback", "chat-2")


def test_a_web_socket_is_logged_with_its_handshake(logged, connect):
    _, upstream, log = logged
    upstream.on_head = lambda request: (
        lambda sock: (
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            or False
        )
    )
    client = connect()
    client.send_request("/ws", headers="connection: upgrade\r\nupgrade: websocket\r\n")
    assert client.head()[0] == 101
    assert log.lines(1)[0]["status"] == 101


def test_all_that_was_queued_is_written_at_the_end(logged, connect):
    gate, _, log = logged
    client = connect()
    for _ in range(50):
        client.get()
    gate.request("stop")
    assert len(log.lines(50)) == 50


# --- where the disk does not follow -------------------------------------------------------------------------------


class Ended:
    """What is logged of an exchange."""

    def __init__(self):
        self.upstream = self.choice = self.error = None
        self.came_at = self.sent_at = self.first_at = 1.0
        self.status, self.body_bytes = 200, 0
        self.head = type("Head", (), {"method": b"GET", "target": b'/\xff"', "request_id": b"r"})


def test_a_disk_that_hangs_costs_lines_and_delays_nobody(tmp_path, monkeypatch):
    """A full pipe stands for it: a write to it blocks."""
    monkeypatch.setattr(module, "MAX_QUEUED", 100)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writing, True)
    log = AccessLog(writing, "chat", query=False)
    for _ in range(200):
        log.note(Ended(), 2.0)
    assert log.stats()["written"] == 0
    assert 200 - 100 - module.BATCH <= log.dropped <= 100
    os.set_blocking(reading, False)
    wait_until(lambda: _drained(reading) and log.written + log.dropped == 200, "the rest is written")
    log.end()
    log.wait()
    os.close(reading)


def _drained(descriptor):
    try:
        while os.read(descriptor, 65536):
            pass
    except BlockingIOError:
        return True


def test_a_full_disk_costs_lines_and_is_told_once(caplog):
    log = AccessLog(os.open("/dev/full", os.O_WRONLY), "chat", query=False)
    for _ in range(40):
        log.note(Ended(), 2.0)
    wait_until(lambda: log.dropped == 40, "they are dropped")
    assert log.written == 0
    log.end()
    log.wait()
    assert [record.message.split()[0] for record in caplog.records] == ["relay.access_log_not_written"]


def test_bytes_of_clients_are_escaped(tmp_path):
    path = tmp_path / "log"
    log = AccessLog(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "chat", query=False)
    log.note(Ended(), 2.0)
    log.note_turned_away(b"\xff\x00 half a head", 1.5, "hold_timeout")
    log.end()
    log.wait()
    first, second = map(json.loads, path.read_text(encoding="ascii").splitlines())
    assert first["path"] == '/\xff"'
    assert (second["path"], second["error"], second["held_ms"]) == ("", "hold_timeout", 1500.0)
