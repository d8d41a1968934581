"""An HTTP server on a Unix socket whose answers are raw bytes chosen by a test, so that they may be wrong."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

Answer = bytes | Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], object]


def ok(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class RawHttp:
    """`answers` maps a path to bytes, a coroutine function, or a list of either to be used one after the other."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "http.sock")
        self.address = f"unix:{self.path}"
        self.answers: dict[str, object] = {}
        self.requests: list[bytes] = []  # each with its head and body
        self.open = 0
        self.most_open = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> RawHttp:
        await self.listen()
        return self

    async def listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.close()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 1)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                answer = self.answers.get(path, ok(b"not found", 404))
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                if callable(answer):
                    await answer(reader, writer, head)
                else:
                    length = 0
                    for line in head.lower().split(b"\r\n"):
                        if line.startswith(b"content-length:"):
                            length = int(line.partition(b":")[2])
                    self.requests.append(head + await reader.readexactly(length))
                    writer.write(answer)
                    await writer.drain()
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
