"""An Engine as docs/weights.md has it: its weights staged, loaded, parked and woken by swapd.worker.weights.

`WEIGHTS` names a safetensors file (made by bench/gpu.py), `MODEL` the label, `DEVICE` where the weights go ("cuda",
"cpu"). Each answer is computed on that device from the first and the last of the weights, so that weights that are not
there, or not whole, are seen by the clients. `GET /took` tells the times that the weights took. Without torch, which
the host device does not need, they stay in host memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from swapd.worker.weights import Weights

try:
    import torch
except ImportError:
    torch = None

MODEL = os.environ.get("MODEL", "a")
DEVICE = os.environ.get("DEVICE", "cpu")
EDGE_BYTES = 4096


def answer(model: str, total: int) -> bytes:
    return json.dumps({"model": model, "sum": total}).encode()


class Engine:
    def __init__(self) -> None:
        self.weights = Weights(os.environ["WEIGHTS"])
        self.edges: list[Any] = []

    def stage(self, progress: Any) -> None:
        self.weights.stage(progress)

    def load(self, progress: Any) -> None:
        if torch is None:
            tensors = self.weights.host_tensors(progress)
            ordered = [tensors[name].data for name in sorted(tensors)]
        else:
            loaded = self.weights.load(DEVICE, progress)
            ordered = [loaded[name].reshape(-1).view(torch.uint8) for name in sorted(loaded)]
        self.edges = [ordered[0][:EDGE_BYTES], ordered[-1][-EDGE_BYTES:]]

    def park(self) -> None:
        self.weights.park()

    def wake(self, progress: Any) -> None:
        self.weights.wake(progress)

    def total(self) -> int:
        if torch is None:
            return sum(sum(edge) for edge in self.edges)
        return int(sum(edge.sum(dtype=torch.int64) for edge in self.edges).item())

    async def app(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] == "/took":
            body = json.dumps(dataclasses.asdict(self.weights.took)).encode()
        else:
            body = answer(MODEL, self.total())
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
