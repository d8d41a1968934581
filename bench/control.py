"""How fast does the control socket answer, and does a swap slow it? `python -m bench.control [--quick]`

Round trips of `status` over one DEALER socket, one after the other: at rest, and while swaps and rollbacks run one
after another (asked for over another connection, from another process).
Goal: p99 <= 2 ms, at rest and during swaps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from typing import Any

from bench.harness import RESULTS, ROOT, Control, Swapd, facts, free_port, write_result
from bench.picture import Bar, bars
from bench.swaps import config, milliseconds

GOAL_MS = 2.0
PAUSE_S = 0.002  # between two requests: a monitor's pace, not a flood

SWAPPER = """
import sys, time
from bench.harness import Control
control = Control(sys.argv[1])
until = time.monotonic() + float(sys.argv[2])
count = 0
def settle(number, phases):
    while control.call("show", id=number)["phase"] not in phases:
        time.sleep(0.05)
while time.monotonic() < until:
    settle(control.call("swap", service="chat", to="b")["id"], ("Soaking", "Failed"))
    settle(control.call("rollback", service="chat")["id"], ("Canceled", "Failed"))
    count += 2
print(count)
"""


def round_trips(control: Control, seconds: float) -> list[float]:
    """Sorted seconds."""
    took = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        begun = time.perf_counter()
        control.call("status")
        took.append(time.perf_counter() - begun)
        time.sleep(PAUSE_S)
    return sorted(took)


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.control", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    seconds = 2.0 if chosen.quick else 30.0
    host = facts()
    with Swapd(config(f"127.0.0.1:{free_port()}")) as swapd:
        swapd.wait_healthy()
        round_trips(swapd.control, 0.5)
        rest = milliseconds(round_trips(swapd.control, seconds))
        command = [sys.executable, "-c", SWAPPER, swapd.endpoint, str(seconds)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as swapper:
            time.sleep(0.3)
            during = milliseconds(round_trips(swapd.control, seconds - 0.3))
            changes = int(swapper.communicate(timeout=60)[0])
    result: dict[str, Any] = {
        "at_rest_ms": rest,
        "during_swaps_ms": during,
        "changes": changes,
        "goal_p99_ms": GOAL_MS,
        "met": {"at rest": rest["p99"] <= GOAL_MS, "during swaps": during["p99"] <= GOAL_MS},  # type: ignore[operator]
    }
    path = write_result("control", result, host, chosen.quick)
    rows = [
        Bar(f"{when}, {point}", figures[point], f"{figures[point]:.2f} ms", GOAL_MS)  # type: ignore[arg-type]
        for when, figures in (("at rest", rest), ("during swaps", during))
        for point in ("p50", "p99")
    ]
    folder = path.parent if chosen.quick else RESULTS
    bars(folder / "control.svg", "Round trip of `status`", f"{changes} swaps and rollbacks; black: the goal", rows)
    print(f"  at rest {rest}\n  during {changes} changes {during}\n  {result['met']}\n{path}")
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
