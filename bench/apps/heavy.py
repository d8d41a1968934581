"""An Engine with a real load: copies its weights from a file into memory of its own.

`WEIGHTS` names the file (made by bench/inplace.py), `MODEL` the label. The load time that the engine itself sees
is told by `GET /load`, so that the bench can lay the clients' outage beside it. Run as a program, `python -m
bench.apps.heavy`, it is the load alone: it says how long the copy took, and holds it until it is killed.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODEL = os.environ.get("MODEL", "a")
BLOCK = 8 << 20


def answer(model: str) -> bytes:
    return json.dumps({"model": model}).encode()


def read_weights(path: Path) -> tuple[bytearray, str]:
    """The file's bytes, and a digest of them: it stands for what a loader does with the bytes (unpack, convert)."""
    weights = bytearray(path.stat().st_size)
    view, at = memoryview(weights), 0
    digest = hashlib.blake2b(digest_size=8)
    with path.open("rb", buffering=0) as file:
        while True:
            got = file.readinto(view[at : at + BLOCK])
            if not got:
                break
            digest.update(view[at : at + got])
            at += got
    return weights, digest.hexdigest()


def copy_weights(path: Path) -> mmap.mmap:
    """The file's bytes in anonymous memory: what the fastest of loaders does on a host device."""
    weights, at = mmap.mmap(-1, path.stat().st_size), 0
    view = memoryview(weights)
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(view[at : at + BLOCK]):
            at += got
    view.release()
    return weights


class Engine:
    def __init__(self) -> None:
        self.weights: mmap.mmap | None = None
        self.load_s = 0.0

    def load(self, progress: Callable[..., None] | None = None) -> None:
        begun = time.monotonic()
        self.weights = copy_weights(Path(os.environ["WEIGHTS"]))
        self.load_s = time.monotonic() - begun

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = answer(MODEL)
        if scope["path"] == "/load":
            body = json.dumps({"load_s": self.load_s}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Server:
    """The same for a server that knows nothing of swapd: uvicorn --app-dir bench/apps heavy:served."""

    def __init__(self) -> None:
        self.engine = Engine()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await self.engine.app(scope, receive, send)
            return
        await receive()
        self.engine.load()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})


served = Server()

if __name__ == "__main__":
    alone = Engine()
    alone.load()
    print(json.dumps({"load_s": alone.load_s}), flush=True)
    signal.pause()
