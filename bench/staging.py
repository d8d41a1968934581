"""What does staging a model cost the clients of the one that serves? `python -m bench.staging [--quick]`

A small app serves an open loop of requests while a second process brings weights into memory, again and again: as a
`stage` hook does (`swapd.worker.weights`, last in line), into the page cache, and, for comparison, at full speed as a
load does; from the page cache and from the disk. Calm stretches lie between, so that each is compared with what was
around it.
Goal: P99 while staging <= calm + 5 ms, whichever way.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from bench.gpu import weights_of
from bench.harness import ROOT, Swapd, facts, free_port, write_result
from bench.loader import ClientGroup, LoadProcess, LoadSpec
from bench.records import Records, percentile
from bench.swaps import ANSWERS, REQUESTS, config, milliseconds

GOAL_MORE_S = 0.005
RATE_PER_S = 200.0
WAYS = ("stage", "cache", "load")  # the last one is what staging must not be


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.staging", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    size, seconds, times = (50_000_000, 2.0, 1) if chosen.quick else (1_000_000_000, 6.0, 3)
    host, listen = facts(), f"127.0.0.1:{free_port()}"
    with weights_of(size) as (path, _), Swapd(config(listen)) as swapd:
        swapd.wait_healthy()
        spec = LoadSpec(
            listen, [ClientGroup("open", ["hello"], name="open loop", rate_per_s=RATE_PER_S)], REQUESTS, ANSWERS
        )
        with LoadProcess(spec) as load:
            load.wait_ready()
            spans = [
                each for _ in range(times) for way in WAYS for cold in (False, True)
                for each in stretch(str(path), way, seconds, cold)
            ]  # fmt: skip
            report = load.stop()
    results = [row(report.records, spans, way, cold) for way in WAYS for cold in (False, True)]
    for each in results:
        print(f"  {json.dumps(each)}", flush=True)
    met = {
        f"P99 of {each['way']}, {each['page_cache']} <= calm + 5 ms": each["rise_p99_ms"] <= GOAL_MORE_S * 1000
        for each in results
        if each["way"] != "load"
    } | {"nothing lost": report.lost == 0}
    result = {"weights_bytes": size, "rate_per_s": RATE_PER_S, "results": results, "lost": report.lost, "met": met}
    path_out = write_result("staging", result, host, chosen.quick)
    print(f"  {met}\n{path_out}")
    return 0 if all(met.values()) else 1


Span = tuple[str, bool, float, float, float]  # way or "calm", cold, begun, ended, bytes a second


def stretch(path: str, way: str, seconds: float, cold: bool) -> list[Span]:
    """A calm one, and one of work as long."""
    begun = time.monotonic()
    time.sleep(seconds)
    middle = time.monotonic()
    more = ["cold"] if cold else []
    command = [sys.executable, "-m", "bench.apps.stager", path, way, str(seconds), *more]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    told = json.loads(ran.stdout)
    return [
        (f"calm {way}", cold, begun, middle, 0.0),
        (way, cold, middle, time.monotonic(), told["bytes"] / told["seconds"]),
    ]


def row(records: Records, spans: list[Span], way: str, cold: bool) -> dict[str, Any]:
    def latencies(name: str) -> list[float]:
        return records.latencies(["open loop"], [(a, b) for n, c, a, b, _ in spans if (n, c) == (name, cold)])

    calm, busy = latencies(f"calm {way}"), latencies(way)
    rates = [rate for n, c, _, _, rate in spans if (n, c) == (way, cold)]
    return {
        "way": way,
        "page_cache": "cold" if cold else "warm",
        "bytes_per_s": round(sum(rates) / len(rates)),
        "calm_ms": milliseconds(calm),
        "busy_ms": milliseconds(busy),
        "rise_p99_ms": round((percentile(busy, 0.99) - percentile(calm, 0.99)) * 1000, 3),
    }


if __name__ == "__main__":
    sys.exit(main())
