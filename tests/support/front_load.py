"""Clients that keep asking, and notice everything: refused, reset, truncated, mixed or late answers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field

KINDS = ("get", "echo", "slow", "stream")


@dataclass
class Load:
    """`answers` holds (sent at, answered at, revision) of each request; `errors` whatever went otherwise."""

    address: tuple[str, int]
    answers: list[tuple[float, float, int]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    stopping: bool = False

    async def keep_asking(self, number, *, reconnect):
        turn = number
        while not self.stopping:
            try:
                reader, writer = await asyncio.open_connection(*self.address)
            except OSError as error:
                self.errors.append(f"connect: {error!r}")
                continue
            try:
                while not self.stopping:
                    kind = KINDS[turn % len(KINDS)]
                    turn += 1
                    try:
                        await asyncio.wait_for(self.ask(reader, writer, kind), 20)
                    except Exception as error:
                        self.errors.append(f"{kind}: {error!r}")
                        break
                    if reconnect:
                        break
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()

    async def ask(self, reader, writer, kind):
        body = b"z" * 30_000 if kind == "echo" else b""
        path = {"get": "/", "echo": "/echo", "slow": "/slow?s=0.01", "stream": "/stream?n=4&gap=0.005"}[kind]
        sent_at = time.monotonic()
        writer.write(
            f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body[:10_000]
        )
        if body:
            await asyncio.sleep(0.002)
            writer.write(body[10_000:])
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        revision = int(headers[b"x-swapd-revision"])
        if b"content-length" in headers:
            content = await reader.readexactly(int(headers[b"content-length"]))
            assert content.split()[0] == b"%d" % revision, content
        else:
            content = await self.chunks(reader)
            assert content.endswith(b"[DONE]\n\n"), content
            assert content.count(b"data: %d " % revision) == 4, content
        self.answers.append((sent_at, time.monotonic(), revision))

    async def chunks(self, reader):
        content = b""
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            data = await reader.readexactly(size + 2)
            if not size:
                return content
            content += data[:-2]

    async def run(self, clients, during):
        """Let the clients ask while `during` (a blocking function) runs on a thread; its result."""
        tasks = [asyncio.create_task(self.keep_asking(number, reconnect=number % 4 == 3)) for number in range(clients)]
        try:
            return await asyncio.to_thread(during)
        finally:
            self.stopping = True
            await asyncio.wait(tasks, timeout=30)


def late_answers(answers, history):
    """Answers by a revision whose time was over when the request was sent, or had not come when it was answered.

    `history` lists (started at, revision) of each owner in turn; all times are CLOCK_MONOTONIC.
    """
    late = []
    for sent_at, answered_at, revision in answers:
        first = max((number for number, (started_at, _) in enumerate(history) if started_at <= sent_at), default=0)
        possible = {
            owner for number, (started_at, owner) in enumerate(history) if number >= first and started_at <= answered_at
        }
        if revision not in possible:
            late.append((sent_at, answered_at, revision))
    return late
