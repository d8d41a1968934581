"""How long does a placement decision take on a large host? `python -m bench.placement [--quick]`

`core.placement.place`, which the daemon's loop waits for, with 64 devices and 200 workers: one that fits beside, one
that fits in place only, one that fits nowhere (every device is judged and told of), and one that spans eight devices.
No process and no device takes part. Goal: p99 of each at most 10 ms, so that no control request waits for it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping
from typing import Any

from bench.harness import RESULTS, facts, write_result
from bench.picture import Bar, bars
from bench.swaps import milliseconds
from swapd.core.errors import Problem
from swapd.core.fitting import PlacementRequest
from swapd.core.model import DeviceKind, DeviceReading, Footprint, FootprintSource, Reservation
from swapd.core.outage import ExpectedTimes
from swapd.core.placement import place

DEVICES, WORKERS = 64, 200
GIB = 1 << 30
GOAL_MS = 10.0
NEEDS = {"beside": (1, 1), "in place": (30, 1), "nowhere": (79, 1), "of eight": (1, 8)}  # GiB on each, devices


def host(seed: int) -> tuple[tuple[DeviceReading, ...], tuple[Reservation, ...]]:
    """Cards of 80 GiB with some 10 to 20 GiB free, of which the daemon knows who holds what."""
    chance = random.Random(seed)
    homes = [number % DEVICES for number in range(WORKERS)]
    held = [
        Reservation(f"s{number}-1", f"s{number}", f"gpu{home}", chance.randint(18, 20) * GIB, True)
        for number, home in enumerate(homes)
    ]
    readings = []
    for index in range(DEVICES):
        used = tuple((r.worker_id, r.bytes) for r in held if r.device == f"gpu{index}")
        free = 80 * GIB - sum(size or 0 for _, size in used)
        readings.append(DeviceReading(f"gpu{index}", DeviceKind.NVML, GIB // 2, 80 * GIB, free, used))
    return tuple(readings), tuple(held)


def decide(case: str, rounds: int) -> Mapping[str, Any]:
    need, gpus = NEEDS[case]
    took, answers = [], set()
    for seed in range(rounds):
        readings, held = host(seed)
        worker = held[seed % WORKERS]
        request = PlacementRequest(
            service=worker.service,
            model="b",
            footprint=Footprint(need * GIB, FootprintSource.DECLARED),
            readings=readings,
            reservations=held,
            incumbents=(worker.worker_id,),
            expected=ExpectedTimes(drain_s=0.0, release_s=1.0, load_s=5.0, warm_s=1.0),
            gpus=gpus,
        )
        begun = time.process_time()  # the processor's: a decision waits for nothing
        answer = place(request)
        took.append(time.process_time() - begun)
        answers.add(answer.code if isinstance(answer, Problem) else answer.strategy.value)
    spent_s = sum(took)
    return {
        "answers": sorted(answers),
        "decisions_per_second": round(rounds / spent_s),
        "ms": milliseconds(sorted(took)),
    }


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.placement", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    told = facts()
    cases = {}
    for case in NEEDS:
        cases[case] = decide(case, 50 if chosen.quick else 2000)
        print(f"  {case}: {cases[case]}", flush=True)
    met = {case: figures["ms"]["p99"] <= GOAL_MS for case, figures in cases.items()}
    result = {"devices": DEVICES, "workers": WORKERS, "cases": cases, "met": met}
    path = write_result("placement", result, told, chosen.quick)
    folder = path.parent if chosen.quick else RESULTS
    rows = [
        Bar(case, figures["ms"]["p99"], f"{figures['ms']['p99']:.2f} ms", GOAL_MS) for case, figures in cases.items()
    ]
    title = f"One decision at {DEVICES} devices and {WORKERS} workers"
    bars(folder / "placement.svg", title, "p99; black: the goal", rows)
    print(f"  {met}\n{path}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
