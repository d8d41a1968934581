"""An Engine with a real load: reads weights of some hundred MB from a file, and needs them to answer.

`WEIGHTS` names the file (made by bench/inplace.py), `MODEL` the label. The load time that the engine itself sees
is told by `GET /load`, so that the bench can lay the clients' outage beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
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


class Engine:
    def __init__(self) -> None:
        self.weights = bytearray()
        self.load_s = 0.0
        self.digest = ""

    def load(self, progress: Callable[..., None] | None = None) -> None:
        begun = time.monotonic()
        self.weights, self.digest = read_weights(Path(os.environ["WEIGHTS"]))
        self.load_s = time.monotonic() - begun

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = answer(MODEL)
        if scope["path"] == "/load":
            body = json.dumps({"load_s": self.load_s, "digest": self.digest, "bytes": len(self.weights)}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
