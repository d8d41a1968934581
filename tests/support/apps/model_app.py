"""A model whose behaviour, good or bad, is set by its environment: what the daemon's tests serve and swap.

NAME: what it answers. HOLD_MB: memory that it takes at load. LOAD_S: how long loading takes. READY_AFTER_S: from its
import until its ready path says so. FAIL: one of import, exit, load, never_ready, probe, slow_probe, warmup,
after_cutover, oom, shutdown (which hangs), killed_at_switch, stopped_at_switch (both right after the second probe).
PROBE_S: how long a probe takes. LEAK: it says that value when it fails to load and in its failing probe, and writes
it at import. CHATTER: so many bytes of lines that it writes at import. EXIT_WHILE, "at:PATH": it exits at its import
for as long as there is that file. TELLS, "at:DIRECTORY": it answers with the file there that a path names, and to
/gone with 404. WRONG: every so manieth answer of /score has another label. Every answer has, as "asked", how many
requests of its path there were.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from urllib.parse import parse_qs

NAME = os.environ.get("NAME", "?")
FAIL = os.environ.get("FAIL", "")
LEAK = os.environ.get("LEAK", "")
END_AT_THE_SWITCH = {"killed_at_switch": signal.SIGKILL, "stopped_at_switch": signal.SIGSTOP}
TELLS = os.environ.get("TELLS", "").removeprefix("at:")
files = [file for file in Path(TELLS).rglob("*") if file.is_file()] if TELLS else []
told = {f"/{file.relative_to(TELLS)}": file.read_bytes() for file in files}
WRONG = int(os.environ.get("WRONG", "0"))
held = []
hanging = set()  # "ready", "all": what has been told to hang, by /hang?what=…
asked = Counter()
ready_at = time.monotonic() + float(os.environ.get("READY_AFTER_S", "0"))

if LEAK:
    print(f"the token is {LEAK}", file=sys.stderr, flush=True)

for _ in range(int(os.environ.get("CHATTER", "0")) // 64):
    print("x" * 63, file=sys.stderr)

if FAIL == "import":
    import a_module_that_is_not_there  # noqa: F401
if FAIL == "exit" or os.path.exists(os.environ.get("EXIT_WHILE", "").removeprefix("at:")):
    print("I cannot find my weights", file=sys.stderr, flush=True)
    os._exit(3)


def load():
    time.sleep(float(os.environ.get("LOAD_S", "0")))
    if FAIL == "load":
        raise RuntimeError(f"the weights are of another model {LEAK}".strip())
    if FAIL == "oom":
        raise MemoryError("out of memory: tried to allocate 20.00 GiB")
    held.append(bytearray(b"w") * (int(os.environ.get("HOLD_MB", "0")) << 20))


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        await answer(scope, receive, send)


async def lifespan(receive, send):
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            try:
                load()
            except Exception as error:
                await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
                raise
            await send({"type": "lifespan.startup.complete"})
        else:
            if FAIL == "shutdown":
                await asyncio.Event().wait()
            await send({"type": "lifespan.shutdown.complete"})
            return


async def answer(scope, receive, send):
    query = {k: v[0] for k, v in parse_qs(scope["query_string"].decode()).items()}
    path = scope["path"]
    asked[path] += 1
    status = 200
    if path == "/hang":
        hanging.add(query["what"])
    if "all" in hanging or (path == "/ready" and "ready" in hanging):
        await asyncio.Event().wait()
    if path == "/ready":
        ready = FAIL != "never_ready" and time.monotonic() > ready_at
        status = 200 if ready else 503
    elif path == "/probe":
        if FAIL == "slow_probe":
            await asyncio.sleep(5)
        status = 500 if FAIL == "probe" else 200
        await asyncio.sleep(float(os.environ.get("PROBE_S", "0")))
        if asked[path] == 2 and FAIL in END_AT_THE_SWITCH:  # it has proved itself, and gets the clients in a moment
            asyncio.get_running_loop().call_later(0.002, os.kill, os.getpid(), END_AT_THE_SWITCH[FAIL])
    elif path == "/warm":
        if FAIL == "warmup":
            os._exit(11)
    elif path == "/crash" or (path == "/" and FAIL == "after_cutover"):
        os._exit(12)
    elif path == "/say":
        print(query["line"], file=sys.stderr, flush=True)
    elif path == "/last_words":
        print(query["line"], end="", file=sys.stderr, flush=True)
        os._exit(13)
    elif path == "/sleep":
        await asyncio.sleep(float(query["s"]))
    elif path == "/block":
        time.sleep(float(query["s"]))  # noqa: ASYNC251 - what bad models do
    elif path == "/stream":
        await stream(int(query["n"]), float(query["s"]), send)
        return
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if path == "/gone" or path in told:
        await whole(send, 200 if path in told else 404, told.get(path, b"{}"))
        return
    document = {"model": NAME, "pid": os.getpid(), "got": len(body), "asked": asked[path]}
    if path == "/score":
        document |= {"label": "dog" if WRONG and asked[path] % WRONG == 0 else "cat", "score": 0.9}
    text = json.dumps(document).encode()
    if status == 500:
        text = f"no access with {LEAK}".encode()
    await whole(send, status, text)


async def whole(send, status, text):
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text})


async def stream(count, pause_s, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
    for number in range(count):
        await send({"type": "http.response.body", "body": f"data: {NAME} {number}\n\n".encode(), "more_body": True})
        await asyncio.sleep(pause_s)
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
