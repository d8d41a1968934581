"""Does swapd's direct front cost anything? `python -m bench.front [--quick]`

swapd serves the trivial app directly (one worker), and a bare uvicorn with the same app, uvloop and httptools serves
beside it. Both are held to core 0, the load to core 1; only one of them is loaded at a time, in turns, and each
pair of turns gives one ratio, so that a change of the host's speed cancels out.
Goal: requests a second >= 0.97 of bare uvicorn's (median of the ratios).
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.harness import RESULTS, Swapd, facts, free_port, write_result
from bench.loader import ClientGroup, LoadProcess, LoadSpec
from bench.picture import Bar, bars
from bench.records import percentile
from bench.swaps import ANSWERS, APPS, REQUESTS, config

SERVER_CPU, LOAD_CPU = 0, 1
CLIENTS = 64
GOAL = 0.97


def turn(address: str, seconds: float) -> dict[str, Any]:
    """One server under load for a while."""
    groups = [ClientGroup("closed", ["hello"], CLIENTS)]
    spec = LoadSpec(address, groups, REQUESTS, ANSWERS, require_revision=False)
    with LoadProcess(spec, cpus={LOAD_CPU}) as load:
        load.wait_ready()
        time.sleep(0.3)
        begun = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
        report = load.stop()
    latencies = report.records.latencies(windows=[(begun, ended)])
    return {
        "requests_per_s": len(latencies) / (ended - begun),
        "p50_ms": percentile(latencies, 0.5) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
        "lost": report.lost,
        "load_cpu_share": report.summary["cpu_s"] / (ended - begun + 0.5),
    }


def bare_uvicorn(port: int) -> subprocess.Popen[bytes]:
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
    options += ["--timeout-keep-alive", "75"]
    command = ["taskset", "-c", str(SERVER_CPU), sys.executable, "-m", "uvicorn", "trivial:app"]
    process = subprocess.Popen([*command, "--port", str(port), *options], cwd=APPS, stdin=subprocess.DEVNULL)
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.02)
    process.kill()
    raise TimeoutError("uvicorn does not listen")


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.front", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    options.add_argument("--rest", type=float, default=0.0, metavar="S", help="after a pair, for others on this host")
    chosen = options.parse_args()
    pairs, seconds = (3, 1.0) if chosen.quick else (30, 1.5)
    host = facts()
    addresses = {"swapd": f"127.0.0.1:{free_port()}", "uvicorn": f"127.0.0.1:{free_port()}"}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in addresses}
    bare = bare_uvicorn(int(addresses["uvicorn"].rpartition(":")[2]))
    try:
        with Swapd(config(addresses["swapd"]), cpus={SERVER_CPU}) as swapd:
            swapd.wait_healthy()
            for n in range(pairs):
                for name in ("swapd", "uvicorn") if n % 2 == 0 else ("uvicorn", "swapd"):
                    turns[name].append(turn(addresses[name], seconds))
                each = {name: round(turns[name][-1]["requests_per_s"]) for name in turns}
                print(f"  {each}, ratio {each['swapd'] / each['uvicorn']:.3f}", flush=True)
                time.sleep(chosen.rest)
    finally:
        bare.terminate()
        bare.wait(30)
    ratios = [a["requests_per_s"] / b["requests_per_s"] for a, b in zip(turns["swapd"], turns["uvicorn"], strict=True)]
    ratio = statistics.median(ratios)
    medians = {
        name: {key: round(statistics.median(t[key] for t in some), 3) for key in some[0]}
        for name, some in turns.items()
    }
    lost = sum(t["lost"] for some in turns.values() for t in some)
    result = {
        "pairs": pairs,
        "seconds_a_turn": seconds,
        "clients": CLIENTS,
        "medians": medians,
        "ratio_median": round(ratio, 4),
        "ratios": [round(each, 4) for each in ratios],
        "goal": GOAL,
        "met": {"ratio >= 0.97": ratio >= GOAL, "nothing lost": lost == 0},
    }
    path = write_result("front", result, host, chosen.quick)
    rows = [
        Bar(label, medians[name]["requests_per_s"], f"{medians[name]['requests_per_s']:,.0f}/s, p99 {p99}")
        for name, label in (("swapd", "swapd's direct front"), ("uvicorn", "bare uvicorn"))
        for p99 in [f"{medians[name]['p99_ms']:.2f} ms"]
    ]
    folder = path.parent if chosen.quick else RESULTS
    bars(folder / "front.svg", "Requests a second on one core", f"the same app; median ratio {ratio:.3f}", rows)
    print(f"  {medians}\n  ratio {ratio:.3f}, goal {GOAL}; lost {lost}\n{path}")
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
