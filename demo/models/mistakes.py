"""The transformer as somebody might have released it by mistake: `MISTAKE=slow` or `failing`. `app = "mistakes:app"`

Slow: each text takes twice as long. Failing: each tenth request ends in an error, as with a batch that does not fit.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from typing import Any

from e5 import App
from embeddings import respond

MISTAKE = os.environ.get("MISTAKE", "")
SLOWER, FAILS_EVERY = 1.0, 10
_numbers = itertools.count(1)
_model = App()


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http" or scope["path"] != "/v1/embeddings":
        await _model(scope, receive, send)
        return
    if MISTAKE == "failing" and next(_numbers) % FAILS_EVERY == 0:
        await respond(send, 500, b'{"error": {"message": "CUDA error: out of memory"}}')
        return
    begun = time.monotonic()

    async def later(message: dict[str, Any]) -> None:
        if MISTAKE == "slow" and message["type"] == "http.response.start":
            await asyncio.sleep(SLOWER * (time.monotonic() - begun))
        await send(message)

    await _model(scope, receive, later)
