"""A real control socket with a scripted handler: what a daemon answers, without a daemon behind it.

The only fake of the control side. It runs on an event loop in a thread, so that tests speak to it as any client
does, from outside.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from swapd.core import errors
from swapd.core.errors import SwapdError
from swapd.host.control_socket import ControlSocket, Peer

DEADLINE_S = 20.0

Answer = Any  # a value, or a callable (params, peer) that returns one, awaits one, or raises


class FakeDaemon:
    """`answers[method]` is what the method returns. `calls` holds (method, params, peer), in order."""

    def __init__(self, directory: Path, answers: Mapping[str, Answer] | None = None, **options: Any) -> None:
        self.endpoint = f"ipc://{directory}/control.sock"
        self.events_endpoint = f"ipc://{directory}/events.sock"
        self.answers: dict[str, Answer] = dict(answers or {})
        self.calls: list[tuple[str, dict[str, Any], Peer]] = []
        self.options = options
        self.epoch = 1
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="fake-daemon")
        self._thread.start()
        self.socket: ControlSocket | None = None

    def __enter__(self) -> FakeDaemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(DEADLINE_S)
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    def start(self) -> None:
        self.run(self._start())

    async def _start(self) -> None:
        self.socket = ControlSocket(self.endpoint, self.events_endpoint, self._handle, epoch=self.epoch, **self.options)
        await self.socket.start()

    def stop(self) -> None:
        server, self.socket = self.socket, None
        if server is not None:
            self.run(server.close())

    def restart(self) -> None:
        """As after a crash: another epoch, and nothing remembered."""
        self.stop()
        self.epoch += 1
        self.start()

    def publish(self, event: str, /, **body: Any) -> None:
        server = self.socket
        assert server is not None

        async def publish() -> None:
            server.publish(event, body)

        self.run(publish())

    def run(self, coroutine: Any) -> Any:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result(DEADLINE_S)

    async def _handle(self, method: str, params: dict[str, Any], peer: Peer) -> Any:
        self.calls.append((method, params, peer))
        if method not in self.answers:
            raise SwapdError(errors.NOT_SUPPORTED, f"{method} is not scripted")
        answer = self.answers[method]
        if not callable(answer):
            return answer
        result = answer(params, peer)
        return await result if inspect.isawaitable(result) else result

    def count(self, method: str) -> int:
        return sum(1 for name, _, _ in self.calls if name == method)


def wait_until(condition: Callable[[], bool], what: str = "the condition") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about in {DEADLINE_S} s"
        time.sleep(0.005)
