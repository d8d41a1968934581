"""How long are clients held by an in-place swap? `python -m bench.inplace [--quick]`

An Engine with a real load (weights of some hundred MB are read, and each byte is touched) on a device whose budget
does not hold two of it, so that swapd itself chooses in-place. The outage is what the clients saw: from the end of
the old model's last answer to the end of the new one's first, with requests always waiting (an open loop). It is
laid beside the load time that the engine measures itself, in the same run.
Goal: outage <= 1.25 x the engine's own load time (median of the ratios).
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.apps import heavy
from bench.harness import RESULTS, Swapd, facts, free_port, quoted, write_result
from bench.loader import ClientGroup, LoadProcess, LoadSpec, http_request
from bench.picture import Bar, Mark, Series, bars, latency_over_time
from bench.records import check_cutovers
from bench.swaps import Done, change, config, milliseconds

GOAL = 1.25
MIB = 1 << 20
RATE_PER_S = 200.0


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.inplace", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    size_mib, swaps = (200, 2) if chosen.quick else (600, 12)
    host = facts()
    listen = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="swapd-weights-", dir="/var/tmp") as folder:
        weights = Path(folder) / "weights"
        with weights.open("wb") as file:
            for _ in range(size_mib):
                file.write(os.urandom(MIB))
        text = config(
            listen, f"{size_mib * 3 // 2}MiB", f"{size_mib + 64}MiB", "heavy:Engine", f"WEIGHTS = {quoted(weights)}"
        ).replace("/hello", "/answer")
        rows, report, done, begun = measure(text, listen, swaps)
    ratio = statistics.median(row["ratio"] for row in rows)
    cutovers = check_cutovers(report.records, [d.switch for d in done])
    late = sum(each.late for each in cutovers)
    result = {
        "weights_bytes": size_mib * MIB,
        "swaps": rows,
        "ratio_median": round(ratio, 3),
        "ratio_max": round(max(row["ratio"] for row in rows), 3),
        "goal": GOAL,
        "requests": len(report.records),
        "errors": report.summary["errors"],
        "forced_reconnects": report.summary["forced_reconnects"],
        "late_old_answers": late,
        "latency_ms": milliseconds(report.records.latencies(["open loop"])),
        "met": {"outage <= 1.25 x load": ratio <= GOAL, "nothing lost": report.lost == 0, "no late answer": late == 0},
    }
    path = write_result("inplace", result, host, chosen.quick)
    folder_out = path.parent if chosen.quick else RESULTS
    draw(folder_out, report, done, begun, rows)
    print(f"  ratio {ratio:.3f}, goal {GOAL}; lost {report.lost}; {result['met']}\n{path}")
    return 0 if all(result["met"].values()) else 1


def measure(text: str, listen: str, swaps: int) -> tuple[list[dict[str, Any]], Any, list[Done], float]:
    answers = {"answer": {name: heavy.answer(name) for name in "ab"}}
    groups = [
        ClientGroup("open", ["answer"], name="open loop", rate_per_s=RATE_PER_S),
        ClientGroup("closed", ["answer"], 16, "keep-alive", think_s=0.05),
        ClientGroup("idle", ["answer"], 10, "idle"),
    ]
    loads = []
    with Swapd(text) as swapd:
        swapd.wait_healthy()
        spec = LoadSpec(listen, groups, {"answer": http_request("GET", "/answer")}, answers, timeout_s=60)
        with LoadProcess(spec) as load:
            load.wait_ready()
            begun = time.monotonic()
            time.sleep(1)
            done: list[Done] = []
            for n in range(swaps):
                done.append(change(swapd, "b" if n % 2 == 0 else "a"))
                loads.append(ask_load(listen))
                time.sleep(1.5)
            report = load.stop()
    rows = []
    for each, loaded in zip(done, loads, strict=True):
        outage = outage_seen(report.records, each)
        row = {
            "strategy": each.record["strategy"],
            "outage_seen_s": round(outage, 4),
            "engine_load_s": round(loaded["load_s"], 4),
            "ratio": round(outage / loaded["load_s"], 4),
            "outage_recorded_s": (each.record["outage_ms"] or 0) / 1000,
            "steps_ms": {step["name"]: step["ms"] for step in each.record["steps"]},
        }
        rows.append(row)
        print(f"  {row}", flush=True)
    return rows, report, done, begun


def ask_load(listen: str) -> dict[str, Any]:
    """What the engine that now serves says of its own load."""
    host, _, port = listen.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", "/load")
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def outage_seen(records: Any, done: Done) -> float:
    """The longest time without an answer to anybody, around one swap."""
    low, high = done.switch.commanded_at - 0.5, done.settled_at + 1.0
    ends = sorted(
        end for end, outcome in zip(records.end, records.outcome, strict=True) if outcome == 0 and low <= end <= high
    )
    return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)


def draw(folder: Path, report: Any, done: list[Done], begun: float, rows: list[dict[str, Any]]) -> None:
    records = report.records
    labels = {int(revision): label for revision, label in report.summary["labels"].items()}
    points: dict[str, list[tuple[float, float]]] = {}
    columns = zip(records.start, records.end, records.revision, records.outcome, strict=True)
    for start, end, revision, outcome in columns:
        if outcome == 0 and start >= begun:
            points.setdefault(f"model {labels[revision]}", []).append((start - begun, end - start))
    marks = [Mark(d.switch.commanded_at - begun, d.settled_at - begun, "", "") for d in done]
    series = [Series(name, points[name]) for name in sorted(points)]
    note = "grey: from the command to the new model serving; nobody is refused, the requests of the outage wait"
    latency_over_time(folder / "inplace-latency.svg", "In-place swaps: clients wait for the load", note, series, marks)
    shown = [
        Bar(f"swap {n + 1}: {name}", row[key], f"{row[key]:.2f} s", row["engine_load_s"] * GOAL if goal else None)
        for n, row in enumerate(rows[:6])
        for name, key, goal in (("engine's own load", "engine_load_s", False), ("outage", "outage_seen_s", True))
    ]
    bars(folder / "inplace-outage.svg", "Outage and load time", "black: the goal, 1.25 times the load", shown)


if __name__ == "__main__":
    sys.exit(main())
