"""An OpenAI-style embeddings API as a plain ASGI app: no framework, so that nothing is hidden.

`POST /v1/embeddings` answers `{"input": "text" or ["text", ...]}`; with `"stream": true` it sends one server-sent
event a text, as soon as each is ready. `GET /v1/models` and `GET /health` say which model it is. This file knows
nothing of swapd: it would run under any ASGI server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

Embed = Callable[[str], Sequence[float]]
DIGITS = 6  # of each number in an answer
INPUTS_LIMIT = 256


class BadRequest(Exception):
    """Answered with 400 and this text."""


class EmbeddingsApi:
    """Serves one embedding function. A slow one is called in `executor`, so that the event loop stays free."""

    def __init__(self, model: str, embed: Embed, executor: Executor | None = None) -> None:
        self.model = model
        self._embed = embed
        self._executor = executor

    # --- what is answered: pure, and the same bytes each time, so that clients can check every one of them ---

    def item(self, index: int, text: str) -> dict[str, Any]:
        vector = [round(float(value), DIGITS) for value in self._embed(text)]
        return {"object": "embedding", "index": index, "embedding": vector}

    def whole(self, items: list[dict[str, Any]], texts: list[str]) -> bytes:
        count = sum(len(text.split()) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return json.dumps({"object": "list", "data": items, "model": self.model, "usage": usage}).encode()

    def event(self, item: dict[str, Any]) -> bytes:
        return b"data: " + json.dumps({**item, "model": self.model}).encode() + b"\n\n"

    def answer(self, texts: list[str]) -> bytes:
        """The body that these texts get."""
        return self.whole([self.item(index, text) for index, text in enumerate(texts)], texts)

    def stream(self, texts: list[str]) -> bytes:
        """The same as a stream, from its first event to its last."""
        events = [self.event(self.item(index, text)) for index, text in enumerate(texts)]
        return b"".join(events) + b"data: [DONE]\n\n"

    def listing(self) -> bytes:
        """Which model serves: OpenAI's list of models, of one."""
        return json.dumps({"object": "list", "data": [{"id": self.model, "object": "model"}]}).encode()

    # --- ASGI ---

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        route = (scope["method"], scope["path"])
        if route == ("GET", "/health"):
            await respond(send, 200, json.dumps({"status": "ok", "model": self.model}).encode())
        elif route == ("GET", "/v1/models"):
            await respond(send, 200, self.listing())
        elif route == ("POST", "/v1/embeddings"):
            try:
                texts, streamed = parse(await read_body(receive))
            except BadRequest as error:
                await respond(send, 400, failure(str(error)))
                return
            await (self._send_stream if streamed else self._send_whole)(send, texts)
        else:
            await respond(send, 404, failure("try POST /v1/embeddings, GET /v1/models or GET /health"))

    async def _item(self, index: int, text: str) -> dict[str, Any]:
        if self._executor is None:
            return self.item(index, text)
        return await asyncio.get_running_loop().run_in_executor(self._executor, self.item, index, text)

    async def _send_whole(self, send: Any, texts: list[str]) -> None:
        items = [await self._item(index, text) for index, text in enumerate(texts)]
        await respond(send, 200, self.whole(items, texts))

    async def _send_stream(self, send: Any, texts: list[str]) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index, text in enumerate(texts):
            event = self.event(await self._item(index, text))
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def read_body(receive: Any) -> bytes:
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("the client went away")
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


def parse(body: bytes) -> tuple[list[str], bool]:
    try:
        asked = json.loads(body)
    except ValueError:
        raise BadRequest("the body is not JSON") from None
    texts = asked.get("input") if isinstance(asked, dict) else None
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list) or not 0 < len(texts) <= INPUTS_LIMIT or not all(isinstance(t, str) for t in texts):
        raise BadRequest(f"'input' must be a text, or a list of 1 to {INPUTS_LIMIT} texts")
    return texts, bool(asked.get("stream"))


def failure(message: str) -> bytes:
    return json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode()


async def respond(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
