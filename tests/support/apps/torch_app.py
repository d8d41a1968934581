"""The test model with weights of its own on a device, by way of swapd.worker.weights: $WEIGHTS, $DEVICE.

It answers what the weights on the device add up to, so that weights which are not there are seen.
"""

import json
import os

import torch
from model_app import NAME
from model_app import app as answer

from swapd.worker.weights import Weights


class Engine:
    def __init__(self):
        self.weights = Weights(os.environ["WEIGHTS"])
        self.tensor = None

    def stage(self, progress):
        self.weights.stage(progress)

    def load(self, progress):
        self.tensor = self.weights.load(os.environ["DEVICE"], progress)["w"]

    def park(self):
        self.weights.park()

    def wake(self, progress):
        self.weights.wake(progress)

    async def app(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] != "/sum":
            await answer(scope, receive, send)
            return
        total = int(self.tensor.sum(dtype=torch.int64).item())
        body = json.dumps({"model": NAME, "sum": total, "device": self.tensor.device.type}).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})
