"""Thousands of clients on one event loop, each with a connection of its own and one request, or a few."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
from dataclasses import dataclass

import pytest
from support import daemon_host


@dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def document(self):
        return json.loads(self.body)


def need_descriptors(count):
    """Raise the limit, or skip where the host does not allow that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"needs {count} descriptors a process, and this host allows {hard}")
    if soft != resource.RLIM_INFINITY and soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))


class Client:
    def __init__(self, port):
        self.port = port

    async def connect(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    def ask(self, path="/", body=b""):
        method = "POST" if body else "GET"
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)

    async def answer(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readexactly(2)
        else:
            body = await self.reader.readexactly(int(headers["content-length"]))
        return Answer(int(head[0].split()[1]), headers, body)

    async def close(self):
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


async def connected(port, count):
    return await asyncio.gather(*(Client(port).connect() for _ in range(count)))


async def close_all(clients):
    await asyncio.gather(*(client.close() for client in clients))


async def until(condition, *, deadline_s=60.0, what="the condition"):
    """As daemon_host.until, of a blocking condition, while the clients go on."""
    return await asyncio.to_thread(daemon_host.until, condition, deadline_s=deadline_s, what=what)
