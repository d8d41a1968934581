"""What do a canary and a shadow cost the clients, and does it get its percent? `python -m bench.split [--quick]`

One gate, held to core 0; two upstreams that cost as little as Python allows, and the load, on core 1. The gate's table
is changed from turn to turn, so that a change of the host's speed cancels out: one revision alone; a second one with 1,
10 and 50 percent of the requests; with 10 percent of 64 sessions (a header), kept where they are; and as a shadow, with
copies of 1, 10 and 50 percent. The shadow's process has the gate's core, and what the gate leaves of it.
Questions: requests a second with 64 clients, and the gate's processor time for each; p50 and p99 of one client; how
many of 100, 1,000 and 10,000 requests over 16 connections the second revision gets, as the clients and the gate count.
Goals: p50 at most 1 ms above that of one revision alone; with a canary, requests a second >= 0.9 of it (copies are work
that the same two cores have to do); no percent is a request off; the gate has measured every request; nothing lost.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.answers import AnswerReader
from bench.gate import Gate
from bench.harness import RESULTS, facts, write_result
from bench.loader import ClientGroup, LoadProcess, LoadSpec, http_request
from bench.picture import Bar, bars
from bench.records import percentile
from bench.relay import cpu_s
from bench.swaps import APPS

GATE_CPU, OTHERS_CPU = 0, 1
CLIENTS, CONNECTIONS = 64, 16
COUNTS = (100, 1_000, 10_000)
P50_MS, THROUGHPUT = 1.0, 0.9


@dataclass(frozen=True)
class Contender:
    """What the second revision gets: a percent of the requests, or copies of a share of them."""

    percent: float = 0
    copies: float = 0
    table: Mapping[str, Any] = field(default_factory=dict)


CONTENDERS: Mapping[str, Contender] = {
    "alone": Contender(),
    "1 %": Contender(1),
    "10 %": Contender(10),
    "50 %": Contender(50),
    "10 % of sessions": Contender(10, table={"session_key": "header:x-session", "keep_sessions_s": 600}),
    "copies of 1 %": Contender(copies=0.01),
    "copies of 10 %": Contender(copies=0.1),
    "copies of 50 %": Contender(copies=0.5),
}
REQUESTS = {
    f"session-{number}": http_request("GET", "/hello", headers={"x-session": f"user-{number}"})
    for number in range(CLIENTS)
}


@contextlib.contextmanager
def upstreams() -> Iterator[list[str]]:
    """Two, by the paths of their sockets."""
    with tempfile.TemporaryDirectory(prefix="swapd-split-") as folder:
        paths = [f"{folder}/{name}.sock" for name in "ab"]
        command = ["taskset", "-c", str(OTHERS_CPU), sys.executable, str(APPS / "raw.py")]
        running = [subprocess.Popen([*command, path], stdin=subprocess.DEVNULL) for path in paths]
        try:
            until = time.monotonic() + 20
            while not all(Path(path).exists() for path in paths):
                if time.monotonic() > until:
                    raise TimeoutError("the upstreams do not listen")
                time.sleep(0.02)
            yield paths
        finally:
            for process in running:
                process.kill()
                process.wait()


def point(gate: Gate, paths: list[str], name: str) -> None:
    chosen = CONTENDERS[name]
    first, second = (
        {"worker": f"chat-{n}", "revision": n, "address": f"unix:{path}"} for n, path in enumerate(paths, 1)
    )
    if chosen.percent:
        weighed = [{**first, "weight": 100 - chosen.percent}, {**second, "weight": chosen.percent}]
        gate.point(weighed, split=True, **chosen.table)
    elif chosen.copies:
        gate.point([first], shadow={**second, "share": chosen.copies})
    else:
        gate.point([first])


def turn(gate: Gate, clients: int, seconds: float) -> dict[str, Any]:
    """The gate under load for a while."""
    groups = [ClientGroup("closed", list(REQUESTS), clients)]
    with LoadProcess(LoadSpec(gate.address, groups, REQUESTS), cpus={OTHERS_CPU}) as load:
        load.wait_ready()
        time.sleep(0.2)
        begun, used = time.monotonic(), cpu_s(gate.pid)
        time.sleep(seconds)
        ended, used = time.monotonic(), cpu_s(gate.pid) - used
        copies = gate.ask("stats", windows=True)["shadow"] or {}
        report = load.stop()
    latencies = report.records.latencies(windows=[(begun, ended)])
    return {
        "requests_per_s": len(latencies) / (ended - begun),
        "gate_cpu_us": used / max(1, len(latencies)) * 1e6,
        "p50_ms": percentile(latencies, 0.5) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
        "lost": report.lost,
        "copied": copies.get("copied", 0),
    }


def costs(gate: Gate, paths: list[str], seconds: float, rounds: int) -> dict[str, Any]:
    turns: dict[str, dict[str, list[dict[str, Any]]]] = {
        question: {name: [] for name in CONTENDERS} for question in ("throughput", "latency")
    }
    for n in range(rounds):
        for question, clients in (("throughput", CLIENTS), ("latency", 1)):
            for name in list(CONTENDERS) if n % 2 == 0 else list(reversed(CONTENDERS)):
                point(gate, paths, name)
                turns[question][name].append(turn(gate, clients, seconds))
            last = {name: some[-1] for name, some in turns[question].items()}
            print(
                f"  {question:10} { {k: (round(t['requests_per_s']), round(t['p50_ms'], 3)) for k, t in last.items()} }"
            )

    def against(question: str, name: str, value: Callable[[dict[str, Any], dict[str, Any]], float]) -> float:
        pairs = zip(turns[question][name], turns[question]["alone"], strict=True)
        return round(statistics.median(value(one, alone) for one, alone in pairs), 4)

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
        for name in CONTENDERS
        if name != "alone"
    }
    lost = sum(t["lost"] for each in turns.values() for some in each.values() for t in some)
    return {"medians": medians, "against_alone": added, "lost": lost}


def accuracy(gate: Gate, paths: list[str], name: str, count: int) -> dict[str, Any]:
    """Of so many requests, sent at the same time over some connections."""
    point(gate, paths, name)
    host, _, port = gate.address.rpartition(":")
    seen: Counter[int | None] = Counter()
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(CONNECTIONS)]
        request, left = next(iter(REQUESTS.values())), count
        while left:
            asked = socks[: min(left, CONNECTIONS)]
            for sock in asked:
                sock.sendall(request)
            for sock in asked:
                reader = AnswerReader()
                while not reader.feed(sock.recv(65536)):
                    pass
                seen[reader.head.revision if reader.head is not None else None] += 1
            left -= len(asked)
    told, until = gate.ask("stats", windows=True), time.monotonic() + 5.0
    while measured(told) < count and time.monotonic() < until:  # the last answers are out before they are counted
        told = gate.ask("stats", windows=True)
    percent = CONTENDERS[name].percent
    return {
        "set_percent": percent,
        "requests": count,
        "second_got": seen[2],
        "off_by": abs(seen[2] - count * percent / 100),
        "gate_says": told["split"]["weights"]["2"]["requests"],
        "gate_measured": measured(told),
    }


def measured(stats: Mapping[str, Any]) -> int:
    return sum(window["requests"] for window in stats["windows"]["revisions"].values())


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.split", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    seconds, rounds = (0.5, 2) if chosen.quick else (1.5, 15)
    host = facts()
    with upstreams() as paths, Gate({GATE_CPU}) as gate:
        counted = [
            accuracy(gate, paths, name, n)
            for name, each in CONTENDERS.items()
            if each.percent and not each.table
            for n in COUNTS
        ]
        cost = costs(gate, paths, seconds, rounds)
    against = cost["against_alone"]
    met = {
        f"p50 <= alone + {P50_MS:g} ms": all(each["p50_ms"] <= P50_MS for each in against.values()),
        f"with a canary requests a second >= {THROUGHPUT:g} of alone": all(
            each["requests_per_s"] >= THROUGHPUT for name, each in against.items() if CONTENDERS[name].percent
        ),
        "no percent is a request off": all(row["off_by"] < 1 for row in counted),
        "the gate counted and measured every request": all(
            (row["gate_says"], row["gate_measured"]) == (row["second_got"], row["requests"]) for row in counted
        ),
        "nothing lost": cost["lost"] == 0,
    }
    result = {"clients": CLIENTS, "rounds": rounds, "seconds_a_turn": seconds, "accuracy": counted, **cost}
    path = write_result("split", {**result, "met": met}, host, chosen.quick)
    rows = [
        Bar(name, t["requests_per_s"], f"{t['requests_per_s']:,.0f}/s, {t['gate_cpu_us']:.1f} us of processor")
        for name, t in cost["medians"]["throughput"].items()
    ]
    folder = path.parent if chosen.quick else RESULTS
    bars(folder / "split.svg", "Requests a second, 64 clients", "one gate, what the second revision gets", rows)
    print(f"  {against}\n  {met}\n{path}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
