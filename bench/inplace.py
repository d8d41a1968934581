"""How long are clients held by an in-place swap, and by what? `python -m bench.inplace [--quick]`

An Engine whose load is a copy of its weights (0.1 to 4 GB) from the page cache, or from the disk, on a device whose
budget does not hold two of it, so that swapd itself chooses in-place. The outage is what the clients saw: from the end
of the old model's last answer to the end of the new one's first, with requests always waiting (an open loop). Each term
of it stands beside its floor, measured in the same run: the same copy by a process that does nothing else, and the
same memory given back by a process that is killed. The rival is kill-and-restart: a bare uvicorn with the same model.
Goal: outage <= 1.25 x (copy + release of the floor) + 100 ms, for each size and state of the page cache.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.apps import heavy
from bench.harness import RESULTS, ROOT, Swapd, facts, free_port, quoted, write_result
from bench.loader import ClientGroup, LoadProcess, LoadReport, LoadSpec, http_request
from bench.picture import Bar, Mark, Series, bars, latency_over_time
from bench.records import check_cutovers
from bench.swaps import Done, change, config, milliseconds

GOAL_FACTOR, GOAL_MORE_S = 1.25, 0.1
MIB = 1 << 20
SIZES_MIB = (100, 500, 1000, 2000, 4000)
PICTURED_MIB = 1000
RATE_PER_S = 200.0
CALM_S = 1.0
PATIENCE_S = 120.0
# The steps of a swap's record that each term of the outage is made of; "load" is the engine's copy, and opening it.
TERMS = {
    "drain": ("hold", "drain"),
    "release": ("park", "stop"),
    "confirm": ("confirm",),
    "prove": ("warm", "verify"),
    "hand-over": ("switch",),
}


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.inplace", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    sizes, times = ((100,), 1) if chosen.quick else (SIZES_MIB, 3)
    host, results, lost, late = facts(), [], 0, 0
    folder_out = Path(tempfile.gettempdir()) / "swapd-bench-quick" if chosen.quick else RESULTS
    for size_mib in sizes:
        with weights_of(size_mib) as weights:
            floors = {cold: floor(weights, cold, times) for cold in (False, True)}
            swapped, report, done, begun = swaps(weights, size_mib, times)
            restarted, requests_refused = restarts(weights, times)
        lost += report.lost
        late += sum(each.late for each in check_cutovers(report.records, [d.switch for d in done]))
        for cold in (False, True):
            mine = {"weights_mib": size_mib, "page_cache": "cold" if cold else "warm"}
            results.append(mine | verdict(floors[cold], swapped[cold], restarted[cold], requests_refused[cold]))
            print(f"  {json.dumps(results[-1])}", flush=True)
        if size_mib == (PICTURED_MIB if PICTURED_MIB in sizes else sizes[0]):
            draw_latency(folder_out, report, done, begun)
            latencies = milliseconds(report.records.latencies(["open loop"]))
    met = {
        "outage <= 1.25 x floor + 100 ms": all(each["met"] for each in results),
        "nothing lost": lost == 0,
        "no late answer": late == 0,
    }
    result = {"goal": [GOAL_FACTOR, GOAL_MORE_S], "results": results, "latency_ms": latencies, "lost": lost, "met": met}
    path = write_result("inplace", result, host, chosen.quick)
    draw_outages(folder_out, results)
    print(f"  {met}\n{path}")
    return 0 if all(met.values()) else 1


def verdict(
    bare: dict[str, float], rows: Sequence[dict[str, Any]], restarted: Sequence[float], refused: int
) -> dict[str, Any]:
    outage = statistics.median(row["outage_s"] for row in rows)
    least = bare["copy"] + bare["release"]
    return {
        "outage_s": round(outage, 4),
        "floor_s": round(least, 4),
        "ratio": round(outage / least, 3),
        "met": outage <= GOAL_FACTOR * least + GOAL_MORE_S,
        "terms_s": {
            name: round(statistics.median(row["terms_s"][name] for row in rows), 4) for name in rows[0]["terms_s"]
        },
        "floors_s": {name: round(seconds, 4) for name, seconds in bare.items()},
        "restart_outage_s": round(statistics.median(restarted), 4),
        "restart_lost": refused,
        "swaps": list(rows),
    }


# --- the weights, and what a bare process makes of them --------------------------------------------------------


@contextlib.contextmanager
def weights_of(size_mib: int) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="swapd-weights-", dir="/var/tmp") as folder:
        weights = Path(folder) / "weights.bin"
        with weights.open("wb") as file:
            for _ in range(size_mib):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())
        yield weights


def set_page_cache(weights: Path, *, cold: bool) -> None:
    """Out of the page cache (written pages only, which nobody maps), or into it."""
    with weights.open("rb") as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        else:
            while file.read(8 * MIB):
                pass


def floor(weights: Path, cold: bool, times: int) -> dict[str, float]:
    """Seconds that the copy takes in a process that does nothing else, and that the kernel takes to end it."""
    copies, releases = [], []
    for _ in range(times):
        set_page_cache(weights, cold=cold)
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.apps.heavy"],
            cwd=ROOT,
            env={**os.environ, "WEIGHTS": str(weights)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        copies.append(json.loads(process.stdout.readline())["load_s"])
        process.stdout.close()
        begun = time.monotonic()
        process.kill()
        process.wait()
        releases.append(time.monotonic() - begun)
    return {"copy": statistics.median(copies), "release": statistics.median(releases)}


# --- swaps -----------------------------------------------------------------------------------------------------


def swaps(
    weights: Path, size_mib: int, times: int
) -> tuple[dict[bool, list[dict[str, Any]]], LoadReport, list[Done], float]:
    """(by "cold": a row for each swap, what the clients saw, the swaps, when the load began)."""
    listen = f"127.0.0.1:{free_port()}"
    text = config(
        listen, f"{size_mib * 3 // 2 + 100}MiB", f"{size_mib + 64}MiB", "heavy:Engine", f"WEIGHTS = {quoted(weights)}"
    ).replace("/hello", "/answer")
    turns = [cold for _ in range(times) for cold in (False, True)]
    loads = []
    with Swapd(text) as swapd:
        swapd.wait_healthy(PATIENCE_S)
        with LoadProcess(load_spec(listen, require_revision=True)) as load:
            load.wait_ready()
            begun = time.monotonic()
            time.sleep(CALM_S)
            done: list[Done] = []
            for n, cold in enumerate(turns):
                set_page_cache(weights, cold=cold)
                done.append(change(swapd, "b" if n % 2 == 0 else "a"))
                loads.append(ask_load(listen))
                time.sleep(CALM_S)
            report = load.stop()
    rows: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for each, cold, load_s in zip(done, turns, loads, strict=True):
        rows[cold].append(row_of(report, each, load_s))
    return rows, report, done, begun


def row_of(report: LoadReport, each: Done, load_s: float) -> dict[str, Any]:
    steps = {step["name"]: step["ms"] / 1000 for step in each.record["steps"] if step["ms"] is not None}
    terms = {term: sum(steps.get(name, 0.0) for name in names) for term, names in TERMS.items()}
    terms |= {"copy": load_s, "open": steps["load"] - load_s}
    outage = longest_gap(report, each.switch.commanded_at - 0.5, each.settled_at + 1.0)
    return {
        "strategy": each.record["strategy"],
        "outage_s": round(outage, 4),
        "outage_recorded_s": round((each.record["outage_ms"] or 0) / 1000, 4),
        "terms_s": {name: round(seconds, 4) for name, seconds in terms.items()},
    }


def load_spec(listen: str, *, require_revision: bool) -> LoadSpec:
    answers = {"answer": {name: heavy.answer(name) for name in "ab"}}
    groups = [
        ClientGroup("open", ["answer"], name="open loop", rate_per_s=RATE_PER_S),
        ClientGroup("closed", ["answer"], 16, "keep-alive", think_s=0.05),
        ClientGroup("idle", ["answer"], 10, "idle"),
    ]
    request = {"answer": http_request("GET", "/answer")}
    return LoadSpec(listen, groups, request, answers, PATIENCE_S, require_revision=require_revision)


def ask_load(listen: str) -> float:
    """What the engine that now serves says of its own load, in seconds."""
    host, _, port = listen.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", "/load")
    answer: dict[str, float] = json.loads(connection.getresponse().read())
    connection.close()
    return answer["load_s"]


def longest_gap(report: LoadReport, low: float, high: float) -> float:
    """The longest time without an answer to anybody, in seconds."""
    records = report.records
    ends = sorted(
        end for end, outcome in zip(records.end, records.outcome, strict=True) if outcome == 0 and low <= end <= high
    )
    return max((after - before for before, after in itertools.pairwise(ends)), default=0.0)


# --- the rival -------------------------------------------------------------------------------------------------


def restarts(weights: Path, times: int) -> tuple[dict[bool, list[float]], dict[bool, int]]:
    """Kill and restart of a bare server: by "cold", the outages in seconds, and how many requests were lost."""
    listen = f"127.0.0.1:{free_port()}"
    outages: dict[bool, list[float]] = {False: [], True: []}
    lost = {False: 0, True: 0}
    for cold in (False, True):
        server = uvicorn(listen, weights, "a")
        try:
            with LoadProcess(load_spec(listen, require_revision=False)) as load:
                load.wait_ready()
                moments = []
                for n in range(times):
                    time.sleep(CALM_S)
                    set_page_cache(weights, cold=cold)
                    begun = time.monotonic()
                    server.send_signal(signal.SIGTERM)
                    server.wait(PATIENCE_S)
                    server = uvicorn(listen, weights, "b" if n % 2 == 0 else "a")
                    moments.append((begun, time.monotonic()))
                time.sleep(CALM_S)
                report = load.stop()
        finally:
            server.kill()
            server.wait()
        outages[cold] = [longest_gap(report, begun - 0.5, ended + 1.0) for begun, ended in moments]
        lost[cold] = sum(report.summary["errors"].values())
    return outages, lost


def uvicorn(listen: str, weights: Path, model: str) -> subprocess.Popen[bytes]:
    """A server that answers."""
    host, _, port = listen.rpartition(":")
    apps = str(Path(heavy.__file__).parent)
    command = [sys.executable, "-m", "uvicorn", "--app-dir", apps, "heavy:served", "--host", host, "--port", port]
    env = {**os.environ, "WEIGHTS": str(weights), "MODEL": model}
    process = subprocess.Popen([*command, "--log-level", "error"], env=env)
    until = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            ask_load(listen)
            return process
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            process.wait()
            raise TimeoutError("the bare server does not answer")
        time.sleep(0.005)


# --- pictures --------------------------------------------------------------------------------------------------


def draw_latency(folder: Path, report: LoadReport, done: Sequence[Done], begun: float) -> None:
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


def draw_outages(folder: Path, results: Sequence[dict[str, Any]]) -> None:
    shown = []
    for each in results:
        name = f"{each['weights_mib']} MiB, {each['page_cache']}"
        goal = GOAL_FACTOR * each["floor_s"] + GOAL_MORE_S
        shown.append(Bar(f"{name}: bare copy and release", each["floor_s"], f"{each['floor_s']:.2f} s"))
        shown.append(Bar("swapd, in place", each["outage_s"], f"{each['outage_s']:.2f} s, 0 lost", goal))
        lost = f"{each['restart_outage_s']:.2f} s, {each['restart_lost']} lost"
        shown.append(Bar("kill and restart", each["restart_outage_s"], lost))
    bars(folder / "inplace-outage.svg", "What clients wait for in place", "black: 1.25 x the floor + 100 ms", shown)


if __name__ == "__main__":
    sys.exit(main())
