"""From the spec to a front: the only place in `worker` that names the fronts' classes."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from swapd.front.base import Front
from swapd.front.direct import DirectFront
from swapd.front.gate import GateFront
from swapd.worker.engines.lifespan import AsgiApp
from swapd.worker.spec import WorkerSpec

__all__ = ["Front", "GateFront", "build_direct", "build_gate"]


def build_direct(
    loop: asyncio.AbstractEventLoop,
    spec: WorkerSpec,
    app: AsgiApp,
    app_state: dict[str, Any],
    private_socket: socket.socket,
) -> Front:
    """The front inside an asgi worker: it serves the clients itself. Takes over `private_socket`."""
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


def build_gate(loop: asyncio.AbstractEventLoop, spec: WorkerSpec) -> GateFront:
    """The front of a gate: it relays to engines, and holds the clients while there are none."""
    return GateFront(
        loop,
        health_path=spec.health_path,
        hold_timeout_s=spec.hold_timeout_s,
        queue_limit=spec.queue_limit,
        retry_after_s=spec.retry_after_s,
        keep_alive_s=spec.keep_alive_s,
        trust_forwarded=spec.trust_forwarded,
        tcp=spec.tcp,
    )
