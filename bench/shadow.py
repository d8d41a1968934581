"""What does a shadow cost the clients? `python -m bench.shadow [--quick]`

One gate, held to core 0; two upstreams that cost as little as Python allows, the shadow's process and the load, on core
1. The gate's table is changed from turn to turn, so that a change of the host's speed cancels out: no shadow; 1, 10 and
50 percent of the requests copied to the second upstream. The throttle takes part: upstream, candidate and load share a
core, as models share a GPU.
Questions: requests a second with 64 clients, and the gate's processor time for each; p50 and p99 of one client.
Goals: p50 at most 1 ms above that without; requests a second >= 0.9 of it, up to 10 percent; nothing lost.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.gate import Gate
from bench.harness import RESULTS, facts, write_result
from bench.picture import Bar, bars
from bench.split import CLIENTS, GATE_CPU, OTHERS_CPU, P50_MS, THROUGHPUT, turn, upstreams

SHARES = {"none": 0.0, "1 %": 0.01, "10 %": 0.1, "50 %": 0.5}
CHEAP = ("1 %", "10 %")  # whose cost must not be seen
STARTED_S = 20.0


def point(gate: Gate, paths: list[str], share: float) -> None:
    first, second = (
        {"worker": f"chat-{n}", "revision": n, "address": f"unix:{path}"} for n, path in enumerate(paths, 1)
    )
    if not share:
        gate.point([first])
        return
    gate.point([first], shadow={**second, "share": share, "compare": {"how": "exact"}})
    until = time.monotonic() + STARTED_S
    while not figures(gate)["running"]:
        if time.monotonic() > until:
            raise TimeoutError("the shadow's process does not start")
        time.sleep(0.02)
    os.sched_setaffinity(process_of(gate), {OTHERS_CPU})  # it has its gate's


def figures(gate: Gate) -> dict[str, Any]:
    told: dict[str, Any] = gate.ask("stats", windows=True)["shadow"]
    return told


def process_of(gate: Gate) -> int:
    [child] = Path(f"/proc/{gate.pid}/task/{gate.pid}/children").read_text().split()
    return int(child)


def measure(gate: Gate, paths: list[str], seconds: float, rounds: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Turns by question and share."""
    turns: dict[str, dict[str, list[dict[str, Any]]]] = {
        question: {name: [] for name in SHARES} for question in ("throughput", "latency")
    }
    for n in range(rounds):
        for question, clients in (("throughput", CLIENTS), ("latency", 1)):
            for name in list(SHARES) if n % 2 == 0 else list(reversed(SHARES)):
                point(gate, paths, SHARES[name])
                told = turn(gate, clients, seconds)
                if SHARES[name]:
                    seen = figures(gate)
                    told |= {key: seen.get(key, 0) for key in ("copied", "compared", "agreed", "dropped", "throttled")}
                turns[question][name].append(told)
            last = {name: some[-1] for name, some in turns[question].items()}
            print(
                f"  {question:10} { {k: (round(t['requests_per_s']), round(t['p50_ms'], 3)) for k, t in last.items()} }"
            )
    return turns


def compare(turns: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, Any]:
    def against(question: str, name: str, value: Callable[[dict[str, Any], dict[str, Any]], float]) -> float:
        pairs = zip(turns[question][name], turns[question]["none"], strict=True)
        return round(statistics.median(value(one, none) for one, none in pairs), 4)

    medians = {
        question: {
            name: {key: round(statistics.median(t[key] for t in some), 4) for key in some[0]}
            for name, some in each.items()
        }
        for question, each in turns.items()
    }
    added = {
        name: {
            "requests_per_s": against("throughput", name, lambda a, b: a["requests_per_s"] / b["requests_per_s"]),
            "gate_cpu": against("throughput", name, lambda a, b: a["gate_cpu_us"] / b["gate_cpu_us"]),
            "p50_ms": against("latency", name, lambda a, b: a["p50_ms"] - b["p50_ms"]),
            "p99_ms": against("latency", name, lambda a, b: a["p99_ms"] - b["p99_ms"]),
        }
        for name in SHARES
        if name != "none"
    }
    lost = sum(t["lost"] for each in turns.values() for some in each.values() for t in some)
    disagreed = sum(t["compared"] - t["agreed"] for each in turns.values() for name in added for t in each[name])
    return {"medians": medians, "against_none": added, "lost": lost, "disagreed": disagreed}


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.shadow", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    seconds, rounds = (0.5, 2) if chosen.quick else (1.5, 15)
    host = facts()
    with upstreams() as paths, Gate({GATE_CPU}) as gate:
        cost = compare(measure(gate, paths, seconds, rounds))
    against = cost["against_none"]
    met = {
        f"p50 <= without + {P50_MS:g} ms": all(each["p50_ms"] <= P50_MS for each in against.values()),
        f"requests a second >= {THROUGHPUT:g} of without, up to 10 percent": all(
            against[name]["requests_per_s"] >= THROUGHPUT for name in CHEAP
        ),
        "nothing lost": cost["lost"] == 0,
        "equal answers agree": cost["disagreed"] == 0,
    }
    result = {"clients": CLIENTS, "rounds": rounds, "seconds_a_turn": seconds, **cost}
    path = write_result("shadow", {**result, "met": met}, host, chosen.quick)
    rows = [
        Bar(name, t["requests_per_s"], f"{t['requests_per_s']:,.0f}/s, {t['gate_cpu_us']:.1f} us of processor")
        for name, t in cost["medians"]["throughput"].items()
    ]
    folder = path.parent if chosen.quick else RESULTS
    bars(folder / "shadow.svg", "Requests a second, 64 clients", "one gate, by the share that is copied", rows)
    print(f"  {against}\n  {met}\n{path}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
