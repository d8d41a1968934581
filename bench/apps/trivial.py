"""The app of the benches: as little work as an ASGI app can do, and answers that tell the model and the request.

The model's label comes from the environment (`MODEL`), so that two models are two processes of one file.
`answer_*` are what the clients expect; the app sends exactly these.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import Any

MODEL = os.environ.get("MODEL", "a")
STREAM_EVENTS, STREAM_PAUSE_S = 20, 0.02
START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(b'{"model": "a"}'))],
}


def answer_hello(model: str) -> bytes:
    assert len(model) == 1  # START has the length
    return b'{"model": "%s"}' % model.encode()


def answer_upload(model: str, body: bytes) -> bytes:
    return b'{"model": "%s", "sha256": "%s"}' % (model.encode(), hashlib.sha256(body).hexdigest().encode())


def stream_event(model: str, index: int) -> bytes:
    return b'data: {"model": "%s", "index": %d}\n\n' % (model.encode(), index)


def answer_stream(model: str) -> bytes:
    return b"".join(stream_event(model, index) for index in range(STREAM_EVENTS)) + b"data: [DONE]\n\n"


HELLO = {"type": "http.response.body", "body": answer_hello(MODEL)}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    if scope["path"] == "/stream":
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for index in range(STREAM_EVENTS):
            await send({"type": "http.response.body", "body": stream_event(MODEL, index), "more_body": True})
            await asyncio.sleep(STREAM_PAUSE_S)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
    elif scope["path"] == "/upload":
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        answer = answer_upload(MODEL, body)
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})
    else:
        await send(START)
        await send(HELLO)
