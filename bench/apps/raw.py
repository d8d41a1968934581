"""An upstream that costs as little as Python allows: heads are not parsed, answers are bytes. `python raw.py SOCKET`

A relay in front of it is measured, not the model behind. Answers what bench.apps.trivial does, and /burst: a stream
of events as fast as they are taken.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # run by path, from anywhere

from bench.apps.trivial import answer_hello

BURST_EVENTS = 500
EVENT = b'data: {"choices": [{"delta": {"content": "hello"}}]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: raw\r\ncontent-length: %d\r\n\r\n"
HELLO = HEAD % len(answer_hello("a")) + answer_hello("a")
STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)


def answer_burst() -> bytes:
    return EVENT * BURST_EVENTS


class Upstream(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.buffer = b""
        self.writable = asyncio.Event()
        self.writable.set()
        self.tasks: set[asyncio.Task[None]] = set()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head, self.buffer = self.buffer[:end], self.buffer[end + 4 :]
            if head.startswith(b"GET /burst"):
                task = asyncio.get_running_loop().create_task(self.burst())
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)
            else:
                self.transport.write(HELLO)

    async def burst(self) -> None:
        self.transport.write(STREAM)
        for _ in range(BURST_EVENTS):
            self.transport.write(CHUNK)
            await asyncio.sleep(0)  # a write of its own, as a model's token is
            await self.writable.wait()
        self.transport.write(b"0\r\n\r\n")


async def main() -> None:
    server = await asyncio.get_running_loop().create_unix_server(Upstream, sys.argv[1], backlog=1024)
    os.chmod(sys.argv[1], 0o600)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
