"""A model as people write one: an ASGI app that loads its weights when it starts (`lifespan`) and needs no swapd.

    uvicorn --app-dir bench/apps weighty:app

`WEIGHTS` names the file, made by the bench; `MODEL` is the label, or `MODEL_FILE` a file that has it, as the symlink
`current` of many deployments does. Answers what bench.apps.trivial does, and `/load`: how long its own load took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))  # run by path, from anywhere

if "MODEL_FILE" in os.environ:
    os.environ["MODEL"] = Path(os.environ["MODEL_FILE"]).read_text().strip()

from bench.apps import trivial
from bench.apps.heavy import read_weights

loaded: dict[str, Any] = {}


def load() -> None:
    begun = time.monotonic()
    loaded["weights"], loaded["digest"] = read_weights(Path(os.environ["WEIGHTS"]))
    loaded["load_s"] = time.monotonic() - begun


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        load()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http" and scope["path"] == "/load":
        body = json.dumps({"load_s": loaded["load_s"], "digest": loaded["digest"]}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
    else:
        await trivial.app(scope, receive, send)
