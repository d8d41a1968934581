"""One event told to one receiver: an HTTP server, or a program.

Duty: one attempt, with a deadline for all of it. May not know: what is told, whether it is tried again. The tree of a
program's processes is marked by its environment; whoever calls ends what is left of it.
Source: https://www.rfc-editor.org/rfc/rfc9112#name-status-line
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import ssl
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from swapd.core.errors import BAD_REQUEST, NOT_READY, SPAWN_FAILED, TIMEOUT, SwapdError
from swapd.host.deadlines import within

MAX_LINE_BYTES: Final = 8 * 1024
_AGAIN: Final = (408, 425, 429)  # of the 4xx, those that another attempt may change: RFC 9110 15.5
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |\r?\n)")


async def post(url: str, headers: Mapping[str, str], body: bytes, *, deadline_s: float) -> None:
    """POST it as JSON. Returns once a 2xx has come. Raises SwapdError: TIMEOUT, NOT_READY where another attempt may do
    better; BAD_REQUEST where the receiver does not want it."""
    where = urlsplit(url)
    try:
        status = await within(deadline_s, _post(url, headers, body))
    except asyncio.TimeoutError:
        raise SwapdError(TIMEOUT, f"{where.netloc} did not answer within {deadline_s:g} s") from None
    except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:
        raise SwapdError(NOT_READY, f"{where.netloc} does not answer: {error or type(error).__name__}") from None
    if status is None:
        raise SwapdError(NOT_READY, f"{where.netloc} answers with something else than HTTP")
    if not 200 <= status < 300:
        final = 300 <= status < 500 and status not in _AGAIN
        raise SwapdError(BAD_REQUEST if final else NOT_READY, f"{where.netloc} answered {status}")


async def _post(url: str, headers: Mapping[str, str], body: bytes) -> int | None:
    parts = urlsplit(url)
    assert parts.hostname is not None
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    port = parts.port or (443 if secure is not None else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure, limit=MAX_LINE_BYTES)
    try:
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}", "Connection: close", "User-Agent: swapd"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + body)
        await writer.drain()
        return await _status(reader)
    finally:
        writer.transport.abort()


async def _status(reader: asyncio.StreamReader) -> int | None:
    """Of the final answer; what else it says is not read. None: it is no HTTP."""
    while True:
        found = _STATUS.match(await reader.readuntil(b"\n"))
        if found is None or int(found[1]) >= 200:
            return int(found[1]) if found is not None else None
        while (await reader.readuntil(b"\n")).strip():  # 1xx: the head of an answer that comes before the answer
            pass


async def run(command: Sequence[str], body: bytes, env: Mapping[str, str], *, deadline_s: float) -> None:
    """Run it with the event on its standard input. Returns once it has ended with status 0. Raises SwapdError: TIMEOUT,
    SPAWN_FAILED, or NOT_READY where it ended otherwise."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={**os.environ, **env},
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise SwapdError(SPAWN_FAILED, f"cannot start {command[0]}: {error}") from None
    try:
        await within(deadline_s, _feed(process, body))
    except asyncio.TimeoutError:
        raise SwapdError(TIMEOUT, f"{command[0]} did not end within {deadline_s:g} s") from None
    finally:
        if process.returncode is None:  # later its number may be another's
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        raise SwapdError(NOT_READY, f"{command[0]} ended with status {process.returncode}")


async def _feed(process: asyncio.subprocess.Process, body: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may end without reading
        process.stdin.write(body)
        await process.stdin.drain()
    process.stdin.close()
    await process.wait()
