"""swapd: dual and in-place, with the app in its own worker, and with the server as it is behind the gate."""

from __future__ import annotations

import sys
from typing import ClassVar

from bench.harness import Swapd, quoted
from bench.peers.contender import KEEP_ALIVE_S, Contender, Site
from bench.swaps import APPS, change

MIB = 1 << 20
OVERHEAD_MIB = 64  # of an interpreter with uvicorn
MODEL = """
[models.{name}]
{engine}
directory = {apps}
device_memory = "{memory_mib}MiB"
env = {{ MODEL = "{name}", WEIGHTS = {weights} }}
[models.{name}.ready]
path = "/hello"
[[models.{name}.probes]]
request = {{ method = "GET", path = "/hello" }}
expect = {{ status = 200, within = "2s", json = {{ model = "{name}" }} }}
"""
SERVICE = """
[devices.host]
kind = "host"
memory = "{memory_mib}MiB"
headroom = "0MiB"

[services.chat]
listen = {listen}
model = "a"
soak = "1s"
"""


class OwnSwapd(Contender):
    """What all forms of swapd have in common. `budget`: how many models the device holds; it decides the strategy."""

    ours = True
    budget: ClassVar[float]

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.swapd: Swapd | None = None

    def config(self) -> str:
        each_mib = self.site.weights.stat().st_size // MIB + OVERHEAD_MIB
        models = "".join(
            MODEL.format(
                name=name,
                engine=self.engine(),
                apps=quoted(APPS),
                memory_mib=each_mib,
                weights=quoted(self.site.weights),
            )
            for name in "ab"
        )
        return models + SERVICE.format(memory_mib=int(each_mib * self.budget), listen=quoted(self.site.address))

    def engine(self) -> str:
        return 'engine = "asgi"\napp = "weighty:app"'

    def start(self) -> None:
        self.swapd = Swapd(self.config())
        self.swapd.__enter__()
        self.swapd.wait_healthy()

    def change(self, to: str) -> dict[str, float]:
        assert self.swapd is not None
        record = change(self.swapd, to).record
        wanted = "in-place" if self.in_place else "dual"
        if record["strategy"] != wanted:
            raise RuntimeError(f"swapd chose {record['strategy']}, this is about {wanted}: {record['why']}")
        return {step["name"]: step["ms"] / 1000 for step in record["steps"] if step["ms"] is not None}

    def stop(self) -> None:
        if self.swapd is not None:
            self.swapd.__exit__(*sys.exc_info())


class Dual(OwnSwapd):
    name = "swapd-dual"
    title = "swapd, dual"
    budget = 3


class InPlace(OwnSwapd):
    name = "swapd-in-place"
    title = "swapd, in-place"
    budget = 1.5
    in_place = True


class Gated(OwnSwapd):
    """uvicorn as it is, started by `engine = "command"`."""

    def engine(self) -> str:
        words = [sys.executable, "-m", "uvicorn", "--uds", "{socket}", "--no-access-log"]
        words += ["--timeout-keep-alive", KEEP_ALIVE_S, "weighty:app"]
        return f'engine = "command"\ncommand = [{", ".join(quoted(word) for word in words)}]'


class GatedDual(Gated):
    name = "swapd-uvicorn-dual"
    title = "swapd with plain uvicorn, dual"
    budget = 3


class GatedInPlace(Gated):
    name = "swapd-uvicorn-in-place"
    title = "swapd with plain uvicorn, in-place"
    budget = 1.5
    in_place = True
