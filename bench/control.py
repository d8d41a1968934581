"""How fast does the control socket answer, and does a swap slow it? `python -m bench.control [--quick]`

Round trips of `status` over one DEALER socket, one after the other: at rest, and while a swap or a rollback is under
way (asked for by another process; the time between two swaps does not count as during).
Beside it, what the host itself costs: round trips to a bare ROUTER socket that answers at once, at rest and while
bare uvicorns are started and ended as often as swapd starts and ends workers. On two cores a starting interpreter
takes one of them, and whoever wants to answer may wait for the scheduler.
Goal: p99 <= 2 ms, at rest and during swaps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, ROOT, Control, Swapd, facts, free_port, write_result
from bench.picture import Bar, bars
from bench.swaps import APPS, config, milliseconds

GOAL_MS = 2.0
PAUSE_S = 0.002  # between two requests: a monitor's pace, not a flood
CALM_S = 0.2

SWAPPER = """
import json, sys, time
from bench.harness import Control
control = Control(sys.argv[1])
spans = []
def settle(call, phases, **params):
    begun = time.monotonic()
    number = control.call(call, service="chat", **params)["id"]
    while (phase := control.call("show", id=number)["phase"]) not in phases:
        if phase == "Failed":
            sys.exit(f"swap {number} failed")
        time.sleep(0.03)
    spans.append((begun, time.monotonic()))
    time.sleep(float(sys.argv[3]))
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    settle("swap", ("Soaking",), to="b")
    settle("rollback", ("Canceled",))
print(json.dumps(spans))
"""

ECHO = """
import sys, zmq
router = zmq.Context().socket(zmq.ROUTER)
router.bind(sys.argv[1])
while True:
    router.send_multipart(router.recv_multipart())
"""

STARTER = """
import json, pathlib, subprocess, sys, time
spans = []
until = time.monotonic() + float(sys.argv[2])
while time.monotonic() < until:
    begun = time.monotonic()
    path = pathlib.Path(sys.argv[1]) / f"{len(spans)}.sock"
    options = ["--uds", str(path), "--log-level", "error"]
    process = subprocess.Popen([sys.executable, "-m", "uvicorn", "trivial:app", *options])
    while not path.exists():
        time.sleep(0.03)
    process.terminate()
    process.wait()
    spans.append((begun, time.monotonic()))
    time.sleep(float(sys.argv[3]))
print(json.dumps(spans))
"""


def round_trips(ask: Callable[[], object], seconds: float) -> list[tuple[float, float]]:
    """(begun, seconds) of each."""
    took = []
    until = time.monotonic() + seconds
    while (begun := time.monotonic()) < until:
        ask()
        took.append((begun, time.monotonic() - begun))
        time.sleep(PAUSE_S)
    return took


def rest_and_during(ask: Callable[[], object], command: list[str], cwd: Path, seconds: float) -> dict[str, Any]:
    """Round trips at rest, and within the spans of time that the command reports."""
    round_trips(ask, 0.5)
    rest = round_trips(ask, seconds)
    with subprocess.Popen([*command, str(seconds), str(CALM_S)], cwd=cwd, stdout=subprocess.PIPE, text=True) as other:
        all_trips = round_trips(ask, seconds)
        spans = json.loads(other.communicate(timeout=60)[0] or "[]")
    during = [took for at, took in all_trips if any(begin <= at <= end for begin, end in spans)]
    return {
        "at_rest_ms": milliseconds(sorted(took for _, took in rest)),
        "during_ms": milliseconds(sorted(during)),
        "spans": len(spans),
    }


def bare(seconds: float) -> dict[str, Any]:
    """The same with a socket that only answers, and workers that nobody swaps."""
    with tempfile.TemporaryDirectory(prefix="swapd-") as folder:
        endpoint = f"ipc://{folder}/echo.sock"
        with subprocess.Popen([sys.executable, "-c", ECHO, endpoint]) as echo:
            try:
                control = Control(endpoint)
                result = rest_and_during(control.echo, [sys.executable, "-c", STARTER, folder], APPS, seconds)
                control.close()
            finally:
                echo.terminate()
    return result


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.control", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    seconds = 3.0 if chosen.quick else 30.0
    host = facts()
    with Swapd(config(f"127.0.0.1:{free_port()}")) as swapd:
        swapd.wait_healthy()
        command = [sys.executable, "-c", SWAPPER, swapd.endpoint]
        measured = rest_and_during(lambda: swapd.control.call("status"), command, ROOT, seconds)
    beside = bare(seconds)
    result: dict[str, Any] = {
        "status": measured,
        "bare_socket": beside,
        "goal_p99_ms": GOAL_MS,
        "met": {
            "at rest": measured["at_rest_ms"]["p99"] <= GOAL_MS,
            "during swaps": measured["during_ms"]["p99"] <= GOAL_MS,
        },
    }
    path = write_result("control", result, host, chosen.quick)
    rows = [
        Bar(f"{who}, {when}, {point}", figures[point], f"{figures[point]:.2f} ms", GOAL_MS if who == "swapd" else None)
        for who, part, busy in (("swapd", measured, "during swaps"), ("bare socket", beside, "during starts"))
        for when, figures in (("at rest", part["at_rest_ms"]), (busy, part["during_ms"]))
        for point in ("p50", "p99")
    ]
    folder = path.parent if chosen.quick else RESULTS
    note = f"{measured['spans']} swaps and rollbacks; a bare ROUTER socket beside it; black: the goal"
    bars(folder / "control.svg", "Round trip of `status`", note, rows)
    print(f"  swapd: {measured}\n  bare socket: {beside}\n  {result['met']}\n{path}")
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
