"""A classifier whose faults are set by its environment: what candidates are judged by.

NAME. LATENCY_MS: of an answer (10). WRONG_EVERY, ERROR_EVERY: each so-manieth answer has another label, or is a 500.
ERROR_AFTER: so many are well before. LEAK_MS: so much slower
with each hundred answers. SCHEMA: another name of the field "label".
"""

import asyncio
import hashlib
import json
import os

NAME = os.environ.get("NAME", "?")
LATENCY_S = float(os.environ.get("LATENCY_MS", "10")) / 1000
WRONG_EVERY, ERROR_EVERY, ERROR_AFTER = (
    int(os.environ.get(name, "0")) for name in ("WRONG_EVERY", "ERROR_EVERY", "ERROR_AFTER")
)
LEAK_S = float(os.environ.get("LEAK_MS", "0")) / 1000
FIELD = os.environ.get("SCHEMA", "label")
LABELS = ("good", "bad", "neutral")
asked = 0


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    status, answer = await classify(body)
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


async def classify(body):
    global asked
    asked += 1
    mine = asked
    await asyncio.sleep(LATENCY_S + LEAK_S * (mine // 100))
    if ERROR_EVERY and mine > ERROR_AFTER and mine % ERROR_EVERY == 0:
        return 500, {"error": "out of luck"}
    place = int.from_bytes(hashlib.sha256(body).digest()[:4], "big") + bool(WRONG_EVERY and mine % WRONG_EVERY == 0)
    return 200, {FIELD: LABELS[place % len(LABELS)], "score": 0.9, "id": f"{NAME}-{mine}"}
