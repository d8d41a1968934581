"""Ray Serve: the model as a deployment, redeployed with `serve.run`. It brings its own server and proxy.

Run as a program (`python -m bench.peers.ray_serve PORT FOLDER`), it is the driver: a model's label a line on its input.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.apps.heavy import read_weights
from bench.apps.trivial import STREAM_EVENTS, STREAM_PAUSE_S, answer_hello, stream_event
from bench.harness import ROOT
from bench.peers.contender import Contender, until
from bench.peers.reloads import need

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its many ports on 127.0.0.1 alone, on Linux too
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RayServe(Contender):
    name = "ray"
    title = "Ray Serve, redeploy"

    @classmethod
    def missing(cls) -> str:
        return need("ray", "ray.serve").replace("--group bench", "--group bench-ray")

    def start(self) -> None:
        self.deployed = 0
        own = self.site.environment(PYTHONPATH=str(ROOT), **ENVIRONMENT)
        command = [sys.executable, "-m", "bench.peers.ray_serve", str(self.site.port), str(self.site.folder)]
        self.driver = self.spawn("ray", command, env=own, cwd=ROOT, stdin=subprocess.PIPE)
        self.change("a")
        self.until_answers("a")

    def change(self, to: str) -> dict[str, float]:
        begun = time.monotonic()
        assert self.driver.stdin is not None
        self.driver.stdin.write(f"{to}\n".encode())
        self.driver.stdin.flush()
        self.deployed += 1
        log = self.site.folder / "ray.log"
        until(lambda: self.driver.poll() is not None or log.read_text().count("deployed ") == self.deployed, "deployed")
        if self.driver.poll() is not None:
            raise RuntimeError(f"Ray Serve ended: {log.read_text()[-2000:]}")
        return {"serve.run": time.monotonic() - begun}


def drive(port: int, folder: str) -> None:
    import ray
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response, StreamingResponse

    ray.init(
        num_cpus=4, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False,
        _node_ip_address="127.0.0.1", _temp_dir=folder,
    )  # fmt: skip
    serve.start(http_options={"host": "127.0.0.1", "port": port})

    @serve.deployment(max_ongoing_requests=100, graceful_shutdown_timeout_s=30)
    class Model:
        def __init__(self, label: str) -> None:
            begun = time.monotonic()
            self.label, self.weights = label, read_weights(Path(os.environ["WEIGHTS"]))
            self.load_s = time.monotonic() - begun

        async def __call__(self, request: Request) -> Any:
            if request.url.path == "/load":
                return Response(json.dumps({"load_s": self.load_s}))
            if request.url.path == "/stream":
                return StreamingResponse(self.events())
            return Response(answer_hello(self.label))

        async def events(self) -> Any:
            for index in range(STREAM_EVENTS):
                yield stream_event(self.label, index)
                await asyncio.sleep(STREAM_PAUSE_S)
            yield b"data: [DONE]\n\n"

    for line in sys.stdin:
        serve.run(Model.bind(line.strip()), name="model", route_prefix="/")
        print(f"deployed {line.strip()}", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    drive(int(sys.argv[1]), sys.argv[2])
