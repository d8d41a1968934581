"""Swaps as the benches make and measure them: forward by `swap`, back by `rollback`, with their times.

Duty: the config of two models of the trivial app, one swap or rollback with what its record says, and the windows
of time around it. Times are CLOCK_MONOTONIC, records' wall-clock times are moved onto it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.apps import trivial
from bench.harness import Swapd, quoted, wall_to_monotonic
from bench.loader import ClientGroup, http_request
from bench.records import Switch, percentile

APPS = Path(trivial.__file__).resolve().parent
UPLOAD = bytes(range(256)) * 256  # 64 KiB

MODEL = """
[models.{name}]
engine = "asgi"
app = "{app}"
directory = {apps}
device_memory = "{memory}"
env = {{ {env} }}
[models.{name}.ready]
path = "/hello"
[[models.{name}.probes]]
request = {{ method = "GET", path = "/hello" }}
expect = {{ status = 200, within = "2s", json = {{ model = "{name}" }} }}
"""


def config(listen: str, memory: str = "4GiB", each: str = "64MiB", app: str = "trivial:app", env: str = "") -> str:
    """Two models, `a` and `b`, of one app, and the service `chat` that starts with `a`."""
    text = f'[devices.host]\nkind = "host"\nmemory = "{memory}"\nheadroom = "0MiB"\n'
    for name in ("a", "b"):
        own = f"MODEL = {quoted(name)}" + (f", {env}" if env else "")
        text += MODEL.format(name=name, app=app, apps=quoted(APPS), memory=each, env=own)
    return text + f'\n[services.chat]\nlisten = {quoted(listen)}\nmodel = "a"\nsoak = "10m"\n'


REQUESTS = {
    "hello": http_request("GET", "/hello"),
    "stream": http_request("GET", "/stream"),
    "upload": http_request("POST", "/upload", UPLOAD),
}
ANSWERS = {
    "hello": {name: trivial.answer_hello(name) for name in "ab"},
    "stream": {name: trivial.answer_stream(name) for name in "ab"},
    "upload": {name: trivial.answer_upload(name, UPLOAD) for name in "ab"},
}


def saturating(rate_per_s: float, idle: int = 10) -> list[ClientGroup]:
    """As many requests as two cores bear, a fifth of the clients reconnecting; and an open loop for the latency."""
    return [
        ClientGroup("closed", ["hello"], 32, "keep-alive"),
        ClientGroup("fresh", ["hello"], 8, "reconnecting"),
        ClientGroup("closed", ["stream"], 6, "streaming"),
        ClientGroup("upload", ["upload"], 4, "slow upload", parts=8, pause_s=0.05),
        ClientGroup("idle", ["hello"], idle, "idle"),
        ClientGroup("open", ["hello"], name="open loop", rate_per_s=rate_per_s),
    ]


@dataclass(frozen=True, slots=True)
class Done:
    """One finished change of what serves."""

    switch: Switch
    settled_at: float
    back: bool
    record: dict[str, Any]
    offset: float  # from the record's wall-clock times to CLOCK_MONOTONIC

    def step(self, name: str) -> tuple[float, float] | None:
        """When the last step of that name began and ended."""
        for step in reversed(self.record["steps"]):
            if step["name"] == name and step["ms"] is not None:
                begun = step["started_at"] + self.offset
                return begun, begun + step["ms"] / 1000
        return None

    @property
    def switched(self) -> tuple[float, float]:
        return self.step("restore: switch" if self.back else "switch") or (self.switch.commanded_at, self.settled_at)

    @property
    def cutover_s(self) -> float | None:
        """From the old front's quiesce to the new one's start; only forward swaps record it."""
        value = None if self.back else self.record["cutover_ms"]
        return None if value is None else value / 1000


def change(
    swapd: Swapd, to: str | None, meanwhile: Callable[[], None] | None = None, *, strategy: str | None = None
) -> Done:
    """A swap to that model, or with None a rollback; raises if it did not happen. `meanwhile` is called once it is
    asked for. `strategy`: swapd chooses where it is None."""
    offset = wall_to_monotonic()
    at = time.monotonic()
    if to is None:
        record = swapd.control.call("rollback", service="chat")
    else:
        chosen = {} if strategy is None else {"strategy": strategy}
        record = swapd.control.call("swap", service="chat", to=to, **chosen)
    if meanwhile is not None:
        meanwhile()
    record = swapd.wait_swap(record["id"], deadline_s=120)
    settled = time.monotonic()
    back = record["phase"] == "Canceled" and record["reason"].startswith("rolled back")
    if record["phase"] not in ("Soaking", "Succeeded") and not back:
        raise RuntimeError(f"swap {record['id']} ended as {record['phase']}: {record['reason']} {record['error']}")
    old, new = record["from"]["revision"], record["to"]["revision"]
    switch = Switch(at, new, old) if back else Switch(at, old, new)
    return Done(switch, settled, back, record, offset)


def milliseconds(ordered: Sequence[float]) -> dict[str, float | int | None]:
    """A summary of sorted seconds, in ms."""
    if not ordered:
        return {"count": 0, "p50": None, "p99": None, "max": None}
    points = {f"p{round(share * 100)}": round(percentile(ordered, share) * 1000, 3) for share in (0.5, 0.9, 0.99)}
    return {"count": len(ordered), **points, "max": round(ordered[-1] * 1000, 3)}
