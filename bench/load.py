"""The load: many clients against one address, in a process of its own. `python -m bench.load SPEC.json`

Duty: send requests over raw connections (no client library that retries or pools behind our back), check every
answer against what was expected, and record each request. It never repeats a request: what fails is counted as
lost, the client's next request is another one. It knows nothing of swapd but the name of its revision header.

Groups of clients (`kind`):
  closed   the next request when the last is answered, after `think_s`; one keep-alive connection a client
  fresh    the same, with a new connection for each request
  paced    keep-alive, one request each `interval_s`; latency counts from the time that it was due
  upload   keep-alive; the request's bytes go out in `parts` pieces, `pause_s` apart
  idle     keep-alive; one request at the start and one at the end, the connection idle in between
  open     requests at `rate_per_s` whatever the server does, over as many connections as that takes; latency counts
           from the time that each was due, so that a stall is not hidden (coordinated omission)
Streams are answers like any other, checked when complete. The spec's fields: bench/loader.py.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from bench.answers import AnswerReader, Malformed
from bench.records import CODE, OK, Records

NOTES_KEPT = 200  # of the first errors, in words
BACK_OFF_S = 0.05  # after a lost request, so that a dead server is not hammered
SWEEP_S = 0.25
OPEN_CONNECTIONS_LIMIT = 8000
now = time.monotonic


def connect_failure(error: OSError) -> str:
    """The outcome of a request whose connect() failed."""
    if isinstance(error, (ConnectionRefusedError, BlockingIOError)):  # BlockingIOError: a unix listener's queue is full
        return "refused"
    if isinstance(error, (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)):
        return "reset"
    return "timed_out" if isinstance(error, TimeoutError) else "client_fault"


class Connection(asyncio.Protocol):
    """One connection of one client. Its end is the client's business only while the client still has it."""

    __slots__ = ("client", "reader", "transport")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.reader = AnswerReader()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.client.connected(self)

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client.connection is not self:
            return
        if not client.busy:
            client.load.unasked(client, data)
            return
        try:
            complete = self.reader.feed(data)
        except Malformed as error:
            client.finish(CODE["malformed"], str(error))
            return
        if complete:
            client.answered(self.reader)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.client.connection is self:
            self.client.lost(self, exc)


class Client:
    """One client: at most one request at a time, and at most one connection."""

    __slots__ = (
        "busy", "connecting", "connection", "first", "group", "key", "load", "on_free", "parts", "rng", "sent_at",
        "start",
    )  # fmt: skip

    def __init__(self, load: Load, group: Group, seed: int) -> None:
        self.load, self.group = load, group
        self.rng = random.Random(seed)
        self.connection: Connection | None = None
        self.connecting: asyncio.Task[Any] | None = None
        self.busy, self.first = False, True
        self.start = self.sent_at = 0.0
        self.key = ""
        self.parts: list[bytes] = []
        self.on_free: Any = None

    def begin(self, start: float) -> None:
        """Sends the next request, which counts from `start`."""
        if self.busy or (self.load.stopping and not self.group.last_request):
            return
        self.busy, self.start, self.sent_at = True, start, now()
        self.load.busy += 1
        keys = self.group.keys
        self.key = keys[int(self.rng.random() * len(keys))] if len(keys) > 1 else keys[0]
        if self.connection is None:
            self.connecting = self.load.loop.create_task(self._connect())
        else:
            self._send(self.connection)

    async def _connect(self) -> None:
        load = self.load
        load.connects += 1
        try:
            if load.unix:
                await load.loop.create_unix_connection(lambda: Connection(self), load.unix)
            else:
                await load.loop.create_connection(lambda: Connection(self), load.host, load.port)
        except asyncio.CancelledError:
            return
        except OSError as error:
            self.connecting = None
            self.finish(CODE[connect_failure(error)], f"connecting: {error}")

    def connected(self, connection: Connection) -> None:
        self.connecting = None
        if not self.busy or self.connection is not None:  # given up meanwhile
            connection.transport.abort()
            return
        self.connection = connection
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        connection.reader.begin()
        raw = self.load.requests[self.key]
        if self.group.parts > 1:
            size = -(-len(raw) // self.group.parts)
            self.parts = [raw[at : at + size] for at in range(0, len(raw), size)]
            self._send_part(connection)
        else:
            connection.transport.write(raw)

    def _send_part(self, connection: Connection) -> None:
        if self.connection is not connection or not self.parts:
            return
        connection.transport.write(self.parts.pop(0))
        if self.parts:
            self.load.loop.call_later(self.group.pause_s, self._send_part, connection)

    def answered(self, reader: AnswerReader) -> None:
        head = reader.head
        assert head is not None
        end = now()
        load = self.load
        revision = head.revision or 0
        outcome, detail = OK, ""
        if head.status != 200:
            outcome, detail = CODE["bad_status"], f"{head.status}: {reader.body[:200]!r}"
        elif not revision and load.require_revision:
            outcome, detail = CODE["no_revision"], f"{reader.body[:100]!r}"
        elif self.parts:
            outcome, detail = CODE["wrong_body"], "answered before the upload had ended"
        elif load.answers:
            revision = revision or load.number_of(reader.body)
            detail = load.judge(self.key, revision, reader.body)
            if detail:
                outcome = CODE["wrong_body"]
        if reader.extra:
            load.unasked(self, reader.extra)
        if head.close and outcome == OK and not self.group.fresh:
            load.forced(self, "answered with Connection: close")
        self.finish(outcome, detail, revision, end, keep=not head.close)

    def lost(self, connection: Connection, exc: BaseException | None) -> None:
        """The server (or the network) ended the connection."""
        self.connection = None
        if not self.busy:
            self.load.forced(self, f"closed while idle ({exc or 'end of stream'})")
        elif isinstance(exc, (ConnectionResetError, BrokenPipeError)):
            self.finish(CODE["reset"], f"{exc}; answer begun: {connection.reader.started}")
        elif connection.reader.started:
            self.finish(CODE["truncated"], f"{exc or 'end of stream'} in the answer")
        else:
            self.finish(CODE["unanswered"], str(exc or "end of stream before an answer"))

    def finish(
        self, outcome: int, detail: str = "", revision: int = 0, end: float | None = None, keep: bool = False
    ) -> None:
        load = self.load
        end = now() if end is None else end
        self.busy = False
        self.parts = []
        load.busy -= 1
        load.records.add(self.start, end, revision, self.group.code, outcome)
        if self.first:
            self.first = False
            load.warmed_one()
        if outcome != OK:
            load.note(self, detail, outcome)
        if not keep or outcome != OK or self.group.fresh:
            self.drop()
        if load.stopping:
            self.drop()
            load.check_idle()
        elif self.on_free is not None:
            self.on_free(self)
        else:
            self._next(end, outcome)

    def _next(self, end: float, outcome: int) -> None:
        group = self.group
        if group.kind == "idle" and outcome == OK:
            return
        wait = 0.0
        if group.kind == "paced":
            due = self.start + group.interval_s
            wait = due - end
        else:
            if group.think_s:
                wait = group.think_s * (0.5 + self.rng.random())
            due = 0.0
        if outcome != OK:
            wait = max(wait, BACK_OFF_S)
        if wait > 0:
            self.load.loop.call_later(wait, self._due, due)
        else:
            self.begin(due or end)

    def _due(self, due: float) -> None:
        at = now()
        self.begin(min(due, at) if due else at)  # the loop's timers may fire a millisecond early

    def drop(self) -> None:
        connection, self.connection = self.connection, None
        if self.connecting is not None:
            self.connecting.cancel()
            self.connecting = None
        if connection is not None:
            connection.transport.close()


class Group:
    __slots__ = (
        "code", "count", "fresh", "interval_s", "keys", "kind", "last_request", "name", "parts", "pause_s",
        "rate_per_s", "think_s",
    )  # fmt: skip

    def __init__(self, code: int, spec: dict[str, Any]) -> None:
        self.code = code
        self.kind: str = spec["kind"]
        self.name: str = spec.get("name", self.kind)
        self.count: int = spec.get("count", 1)
        self.keys: list[str] = spec["keys"]
        self.think_s: float = spec.get("think_s", 0.0)
        self.interval_s: float = spec.get("interval_s", 0.0)
        self.rate_per_s: float = spec.get("rate_per_s", 0.0)
        self.parts: int = spec.get("parts", 1)
        self.pause_s: float = spec.get("pause_s", 0.0)
        self.fresh = self.kind == "fresh"
        self.last_request = self.kind == "idle"
        if self.kind not in ("closed", "fresh", "paced", "upload", "idle", "open"):
            raise ValueError(f"no such kind of client: {self.kind}")


class OpenLoop:
    """Requests at a constant rate, each counted from when it was due."""

    def __init__(self, load: Load, group: Group) -> None:
        self.load, self.group = load, group
        self.free: list[Client] = []
        self.made = 0
        self.due = now()
        self._tick()

    def _tick(self) -> None:
        load = self.load
        if load.stopping:
            return
        at = now()
        while self.due <= at:
            load.lags.append(at - self.due)
            client = self.free.pop() if self.free else self._make()
            if client is not None:
                client.begin(min(self.due, at))
            else:
                load.records.add(self.due, at, 0, self.group.code, CODE["client_fault"])
            self.due += 1.0 / self.group.rate_per_s
        load.loop.call_later(max(0.0, self.due - now()), self._tick)

    def _make(self) -> Client | None:
        if self.made >= OPEN_CONNECTIONS_LIMIT:
            return None
        self.made += 1
        client = Client(self.load, self.group, self.made)
        client.first = False
        client.on_free = self.free.append
        self.load.clients.append(client)
        return client


class Load:
    def __init__(self, loop: asyncio.AbstractEventLoop, spec: dict[str, Any]) -> None:
        self.loop = loop
        address: str = spec["address"]
        self.unix = address[5:] if address.startswith("unix:") else ""
        self.host, _, port = address.rpartition(":")
        self.host = self.host.strip("[]")
        self.port = int(port) if not self.unix else 0
        self.timeout_s: float = spec["timeout_s"]
        self.require_revision: bool = spec["require_revision"]
        self.requests = {key: base64.b64decode(raw) for key, raw in spec["requests"].items()}
        # body -> (key, label): one look-up tells which model answers that, and to what
        self.answers = {
            base64.b64decode(body): (key, label)
            for key, labels in spec["answers"].items()
            for label, body in labels.items()
        }
        self.labels: dict[int, str] = {}  # revision -> label of its first answer
        # where answers need no revision, each label counts as one: 1, 2, ... in their alphabetical order
        labels = sorted({label for labels in spec["answers"].values() for label in labels})
        self.label_numbers = {label: number for number, label in enumerate(labels, 1)}
        self.groups = [Group(code, group) for code, group in enumerate(spec["groups"])]
        self.records = Records([group.name for group in self.groups])
        self.records_path = Path(spec["records"])
        self.clients: list[Client] = []
        self.busy = self.connects = self.forced_reconnects = self.unasked_bytes = 0
        self.notes: list[dict[str, Any]] = []
        self.lags: list[float] = []
        self.stopping, self.to_warm = False, 0
        self.done = asyncio.Event()

    def start(self) -> None:
        for group in self.groups:
            if group.kind == "open":
                OpenLoop(self, group)
                continue
            for n in range(group.count):
                client = Client(self, group, n + 1000 * group.code)
                self.clients.append(client)
                self.to_warm += 1
                wait = group.interval_s * n / group.count if group.kind == "paced" else 0.001 * n
                self.loop.call_later(wait, client._due, 0.0)
        self.loop.call_later(SWEEP_S, self._sweep)
        if not self.to_warm:
            say({"event": "ready"})

    def warmed_one(self) -> None:
        self.to_warm -= 1
        if self.to_warm == 0:
            gc.collect()
            gc.freeze()
            say({"event": "ready"})

    def number_of(self, body: bytes) -> int:
        """What stands for the revision of an answer that names none: which model says that."""
        found = self.answers.get(body)
        return self.label_numbers[found[1]] if found else 0

    def judge(self, key: str, revision: int, body: bytes) -> str:
        """What is wrong with this answer; empty if nothing."""
        found = self.answers.get(body)
        if found is None:
            return f"no model answers that to {key!r}: {body[:120]!r}"
        if found[0] != key:
            return f"this is the answer to {found[0]!r}, {key!r} was asked"
        if self.labels.setdefault(revision, found[1]) != found[1]:
            return f"{found[1]} answered as revision {revision}, which is {self.labels[revision]}"
        return ""

    def note(self, client: Client, what: str, outcome: int | None = None) -> None:
        if len(self.notes) < NOTES_KEPT:
            kind = "" if outcome is None else next(name for name, code in CODE.items() if code == outcome)
            self.notes.append({"at": now(), "group": client.group.name, "kind": kind, "what": what})

    def forced(self, client: Client, why: str) -> None:
        self.forced_reconnects += 1
        self.note(client, f"forced to reconnect: {why}")

    def unasked(self, client: Client, data: bytes) -> None:
        self.unasked_bytes += len(data)
        self.note(client, f"bytes that nobody asked for: {data[:120]!r}")
        client.drop()

    def _sweep(self) -> None:
        limit = now() - self.timeout_s
        for client in self.clients:
            if client.busy and client.sent_at < limit:
                client.finish(CODE["timed_out"], f"nothing complete within {self.timeout_s:g} s")
        if not self.done.is_set():
            self.loop.call_later(SWEEP_S, self._sweep)

    def ask(self, key: str) -> None:
        """From now on everybody asks this."""
        for group in self.groups:
            group.keys = [key]

    def stop(self) -> None:
        """No new requests; those under way are finished (or time out)."""
        if self.stopping:
            return
        self.stopping = True
        for client in self.clients:
            if client.busy:
                continue
            if client.group.last_request:
                client.begin(now())
            else:
                client.drop()
        self.check_idle()

    def check_idle(self) -> None:
        if self.stopping and self.busy == 0:
            self.done.set()

    def summary(self) -> dict[str, Any]:
        use = resource.getrusage(resource.RUSAGE_SELF)
        lags = sorted(self.lags)
        return {
            "requests": len(self.records),
            "errors": self.records.errors(),
            "forced_reconnects": self.forced_reconnects,
            "unasked_bytes": self.unasked_bytes,
            "connects": self.connects,
            "labels": {str(revision): label for revision, label in self.labels.items()},
            "notes": self.notes,
            "cpu_s": use.ru_utime + use.ru_stime,
            "open_loop_lag_p99_ms": lags[int(len(lags) * 0.99)] * 1000 if lags else None,
        }


def say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


async def serve(spec: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    load = Load(loop, spec)

    def command() -> None:
        data = os.read(0, 4096)
        for _ in range(data.count(b"report\n")):
            say({"event": "report", **load.summary()})
        for line in data.split(b"\n"):
            if line.startswith(b"ask "):
                load.ask(line[4:].decode())
        if not data or b"stop\n" in data:  # no data: our parent is gone
            loop.remove_reader(0)
            load.stop()

    loop.add_reader(0, command)
    load.start()
    await load.done.wait()
    await asyncio.sleep(0)
    load.records.store(load.records_path)
    say({"event": "done", **load.summary()})


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    wanted = 65536
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, top), hard))
    gc.set_threshold(200_000, 20, 100)
    uvloop.install()
    asyncio.run(serve(spec))


if __name__ == "__main__":
    main()
