"""From the spec to a front: the only place in `worker` that names the fronts' classes."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from typing import Any

from swapd.worker.engines.lifespan import AsgiApp
from swapd.worker.spec import WorkerSpec

Front = Any  # until swapd.front lands


class _StubFront:  # ruff: noqa: ANN
    """Serves the private socket only, until swapd.front lands."""

    def __init__(self, loop, app, state, private_socket):  # type: ignore[no-untyped-def]
        from uvicorn.config import Config
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.server import ServerState

        config = Config(app, log_config=None, access_log=False, lifespan="off", http="httptools")
        config.load()
        shared = ServerState()
        make = lambda: HttpToolsProtocol(config, shared, state)  # noqa: E731
        self._server = loop.create_task(loop.create_unix_server(make, sock=private_socket))

    def stats(self):  # type: ignore[no-untyped-def]
        from swapd.worker.direct import _StubStats

        return _StubStats()

    async def drain(self, deadline_s, and_close=False):  # type: ignore[no-untyped-def]
        return _StubStats()

    def abort_hand_over(self):  # type: ignore[no-untyped-def]
        pass

    async def close(self):  # type: ignore[no-untyped-def]
        pass


@dataclasses.dataclass
class _StubStats:
    owner: bool = False
    epoch: int = 0
    loop_blocked_s: float = 0.0


def build_direct(
    loop: asyncio.AbstractEventLoop,
    spec: WorkerSpec,
    app: AsgiApp,
    app_state: dict[str, Any],
    private_socket: socket.socket,
) -> Front:
    """The front inside an asgi worker: it serves the clients itself. Takes over `private_socket`."""
    try:
        from swapd.front.direct import DirectFront
    except ImportError:
        return _StubFront(loop, app, app_state, private_socket)

    return DirectFront(
        loop,
        app,
        app_state,
        revision=spec.revision,
        health_path=spec.health_path,
        keep_alive_s=spec.keep_alive_s,
        retry_after_s=spec.retry_after_s,
        private_socket=private_socket,
    )


def build_gate(loop: asyncio.AbstractEventLoop, spec: WorkerSpec) -> Front:
    """The front of a gate: it holds the clients until a model takes them."""
    from swapd.front.gate import GateFront

    return GateFront(
        loop,
        health_path=spec.health_path,
        hold_timeout_s=spec.hold_timeout_s,
        queue_limit=spec.queue_limit,
        retry_after_s=spec.retry_after_s,
    )
