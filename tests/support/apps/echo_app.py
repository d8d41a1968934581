"""An ASGI app for tests: echoes, streams, blocks its loop on request; its lifespan is its load step."""

import asyncio
import json
import os
import sys
import time


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await _lifespan(scope, receive, send)
    elif scope["type"] == "http":
        await _http(scope, receive, send)


async def _lifespan(scope, receive, send):
    await receive()
    scope["state"]["weights"] = os.environ.get("ECHO_WEIGHTS", "w1")
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("echo_app: lifespan shutdown", file=sys.stderr, flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def _http(scope, receive, send):
    path = scope["path"]
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if path == "/block":  # a model that does not yield, until the file named in the body is there
        until_s = time.monotonic() + 60
        while not os.path.exists(body) and time.monotonic() < until_s:  # noqa: ASYNC240
            time.sleep(0.01)  # noqa: ASYNC251
    elif path == "/slow":
        await asyncio.sleep(float(body))
    elif path == "/stream":
        await _stream(send, int(body))
        return
    elif path == "/exit":
        asyncio.get_running_loop().call_soon(sys.exit, int(body))
    answer = {
        "path": path,
        "body": body.decode("latin-1"),
        "pid": os.getpid(),
        "weights": scope["state"].get("weights"),
        "cwd": os.getcwd(),
        "first_path": sys.path[0],
    }
    await _answer(send, json.dumps(answer).encode())


async def _stream(send, count):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(count):
        await send({"type": "http.response.body", "body": b"chunk %d\n" % number, "more_body": True})
        await asyncio.sleep(0.05)
    await send({"type": "http.response.body", "body": b"end\n"})


async def _answer(send, body):
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
