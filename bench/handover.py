"""What a hand-over costs and whether it loses anything. `python -m bench.handover [--quick]`

Part 1, idle: cutover (from the old front's quiesce to the new one's start, as swapd records it) with 10, 100 and
1,000 idle connections and nothing else; each connection is used again afterwards.
Part 2, saturated: 200 changes under as much load as the host bears (keep-alive, a fifth reconnecting for each
request, streams, slow uploads), half of them swaps that load a worker, half rollbacks to a resident one. A rollback
loads nothing, so the windows around rollbacks show the hand-over alone, and those around swaps the load as well.
Part 3, control: the same load while a bare uvicorn with the same app is started and ended again, without swapd:
what a candidate's load costs by itself.
Goals: no loss, no forced reconnect, no late answer; cutover p99 <= 1 ms + 10 us a connection; P99 around a rollback
<= steady P99 + 1 ms.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, Swapd, facts, free_port, write_result
from bench.loader import ClientGroup, LoadProcess, LoadReport, LoadSpec
from bench.picture import Bar, Mark, Series, bars, duration, latency_over_time
from bench.records import check_cutovers, outside
from bench.swaps import ANSWERS, APPS, REQUESTS, Done, change, config, milliseconds, saturating

CALM_S = 0.6
AROUND_S = 0.5  # to each side of the switch: the second around a swap
RATE_PER_S = 500.0


def idle_cutovers(connections: int, changes: int) -> dict[str, Any]:
    """Part 1, for one number of idle connections."""
    listen = f"127.0.0.1:{free_port()}"
    groups = [ClientGroup("idle", ["hello"], connections)]
    with Swapd(config(listen)) as swapd:
        swapd.wait_healthy()
        with LoadProcess(LoadSpec(listen, groups, REQUESTS, ANSWERS)) as load:
            load.wait_ready()
            done: list[Done] = []
            for n in range(changes):
                done.append(change(swapd, "b" if n % 2 == 0 else None))
                time.sleep(0.1)
            report = load.stop()
    cutovers = sorted(each.cutover_s for each in done if each.cutover_s is not None)
    goal_ms = 1 + 0.01 * connections
    result: dict[str, Any] = {"connections": connections, "cutover_ms": milliseconds(cutovers), "goal_p99_ms": goal_ms}
    result["lost"] = report.lost
    result["met"] = report.lost == 0 and result["cutover_ms"]["p99"] <= goal_ms
    print(
        f"  {connections:5} idle: cutover {result['cutover_ms']}, goal {goal_ms:g} ms, lost {report.lost}", flush=True
    )
    return result


@dataclass(slots=True)
class Run:
    """One stretch of load with its changes."""

    report: LoadReport
    done: list[Done]
    begun: float
    ended: float


def saturated(changes: int) -> Run:
    """Part 2, or a stretch of it."""
    listen = f"127.0.0.1:{free_port()}"
    with Swapd(config(listen)) as swapd:
        swapd.wait_healthy()
        with LoadProcess(LoadSpec(listen, saturating(RATE_PER_S), REQUESTS, ANSWERS)) as load:
            load.wait_ready()
            time.sleep(1)
            begun = time.monotonic()
            time.sleep(3)
            done: list[Done] = []
            for n in range(changes):
                done.append(change(swapd, "b" if n % 2 == 0 else None))
                time.sleep(CALM_S)
            time.sleep(2)
            ended = time.monotonic()
            report = load.stop()
    return Run(report, done, begun, ended)


def judged(runs: list[Run]) -> dict[str, Any]:
    swaps, backs = [d for run in runs for d in run.done if not d.back], [d for run in runs for d in run.done if d.back]
    cutovers = [each for run in runs for each in check_cutovers(run.report.records, [d.switch for d in run.done])]
    busy = [(d.switch.commanded_at, d.settled_at + AROUND_S) for d in swaps + backs]
    # After a rollback the other worker is stopped, and before one nothing happens: only the hand-over is in there.
    windows = {
        "steady": [span for run in runs for span in outside(busy, run.begun, run.ended)],
        "the second around a rollback": [(d.switched[0] - AROUND_S, d.switched[1] + AROUND_S) for d in backs],
        "a rollback's switch and 100 ms after": [(d.switched[0], d.switched[1] + 0.1) for d in backs],
        "a candidate loads": [(d.switch.commanded_at, d.switched[0]) for d in swaps],
        "a swap's switch and 100 ms after": [(d.switched[0], d.switched[1] + 0.1) for d in swaps],
        "the second around a swap": [(d.switched[0] - AROUND_S, d.switched[1] + AROUND_S) for d in swaps],
    }
    latency = {name: milliseconds(open_loop(runs, spans)) for name, spans in windows.items()}
    steady, around = latency["steady"]["p99"], latency["the second around a rollback"]["p99"]
    added_ms = round(around - steady, 3) if steady is not None and around is not None else None
    late = sum(each.late for each in cutovers)
    unseen = sum(not each.seen for each in cutovers)
    lost = sum(run.report.lost for run in runs)
    requests, seconds = sum(len(run.report.records) for run in runs), sum(run.ended - run.begun for run in runs)
    summaries = [run.report.summary for run in runs]
    return {
        "changes": len(cutovers),
        "swaps": len(swaps),
        "rollbacks": len(backs),
        "stretches": len(runs),
        "seconds": round(seconds, 1),
        "requests": requests,
        "requests_per_s": round(requests / seconds),
        "errors": {kind: sum(summary["errors"][kind] for summary in summaries) for kind in summaries[0]["errors"]},
        "forced_reconnects": sum(summary["forced_reconnects"] for summary in summaries),
        "unasked_bytes": sum(summary["unasked_bytes"] for summary in summaries),
        "connections": sum(summary["connects"] for summary in summaries),
        "cut_requests": sum(d.record["cut_requests"] or 0 for d in swaps + backs),
        "late_old_answers": late,
        "changes_no_client_saw": unseen,
        "cutover_ms": milliseconds(sorted(d.cutover_s for d in swaps if d.cutover_s is not None)),
        "switch_step_ms": milliseconds(sorted(b - a for a, b in (d.switched for d in swaps + backs))),
        "open_loop_latency_ms": latency,
        "open_loop_generator_lag_p99_ms": max(summary["open_loop_lag_p99_ms"] for summary in summaries),
        "p99_added_by_a_hand_over_ms": added_ms,
        "first_errors": [note for summary in summaries for note in summary["notes"]][:20],
        "met": {
            "nothing lost": lost == 0,
            "no late answer": late == 0 and unseen == 0,
            "P99 around a hand-over <= steady + 1 ms": added_ms is not None and added_ms <= 1.0,
        },
    }


def open_loop(runs: list[Run], spans: list[tuple[float, float]]) -> list[float]:
    return sorted(latency for run in runs for latency in run.report.records.latencies(["open loop"], spans))


def control(rounds: int) -> dict[str, Any]:
    """Part 3: a neighbour starts and ends; no swap."""
    listen = f"127.0.0.1:{free_port()}"
    spans = []
    with tempfile.TemporaryDirectory(prefix="swapd-") as folder, Swapd(config(listen)) as swapd:
        swapd.wait_healthy()
        with LoadProcess(LoadSpec(listen, saturating(RATE_PER_S), REQUESTS, ANSWERS)) as load:
            load.wait_ready()
            time.sleep(1)
            begun = time.monotonic()
            time.sleep(3)
            for n in range(rounds):
                at = time.monotonic()
                neighbour(f"{folder}/{n}.sock")
                spans.append((at, time.monotonic()))
                time.sleep(CALM_S)
            ended = time.monotonic()
            report = load.stop()
    latency = {
        "steady": milliseconds(report.records.latencies(["open loop"], outside(spans, begun, ended))),
        "a bare uvicorn starts and ends": milliseconds(report.records.latencies(["open loop"], spans)),
    }
    return {"rounds": rounds, "lost": report.lost, "open_loop_latency_ms": latency}


def neighbour(path: str) -> None:
    """A bare uvicorn with the same app, until it listens; then it ends."""
    command = [sys.executable, "-m", "uvicorn", "trivial:app", "--uds", path, "--log-level", "error"]
    process = subprocess.Popen(command, cwd=APPS, stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while not Path(path).exists() and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.terminate()
        process.wait(30)


def draw(run: Run, idle: list[dict[str, Any]], folder: Path) -> None:
    report, done, begun = run.report, run.done, run.begun
    records, shown_s = report.records, 16.0
    labels = {int(revision): label for revision, label in report.summary["labels"].items()}
    group = records.groups.index("open loop")
    points: dict[str, list[tuple[float, float]]] = {}
    rows = zip(records.start, records.end, records.revision, records.group, records.outcome, strict=True)
    for start, end, revision, code, outcome in rows:
        if code == group and outcome == 0 and begun <= start < begun + shown_s:
            points.setdefault(labels[revision], []).append((start - begun, end - start))
    marks = [
        Mark(
            d.switch.commanded_at - begun,
            d.settled_at - begun,
            "rollback" if d.back else "swap",
            duration(d.cutover_s) if d.cutover_s is not None else "",
        )
        for d in done
        if d.settled_at < begun + shown_s
    ]
    note = f"the first {shown_s:g} s; dots: the open loop's requests, by the model that answered"
    series = [Series(f"model {name}", points[name]) for name in sorted(points)]
    latency_over_time(
        folder / "handover-latency.svg", "Changes of the model under saturating load", note, series, marks
    )
    rows_of_bars = [
        Bar(
            f"{each['connections']} idle connections, {name}",
            each["cutover_ms"][name],
            f"{each['cutover_ms'][name]:.2f} ms",
            each["goal_p99_ms"],
        )
        for each in idle
        for name in ("p50", "p99")
    ]
    note = "from the old front's quiesce to the new one's start; black: the goal, 1 ms + 10 µs a connection"
    bars(folder / "handover-cutover.svg", "Cutover", note, rows_of_bars)


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.handover", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run: few swaps, no result stored in the repo")
    options.add_argument("--swaps", type=int, default=None, help="changes under load (default 200)")
    options.add_argument("--stretch", type=int, default=200, help="changes in one stretch of load (default: all)")
    options.add_argument(
        "--rest", type=float, default=0.0, metavar="S", help="after a stretch, for others on this host"
    )
    chosen = options.parse_args()
    changes = chosen.swaps or (8 if chosen.quick else 200)
    host = facts()
    idle = [idle_cutovers(n, 4 if chosen.quick else 200) for n in (10, 100, 1000)]
    runs = []
    for begin in range(0, changes, chosen.stretch):
        runs.append(saturated(min(chosen.stretch, changes - begin)))
        print(f"  {begin + len(runs[-1].done)} changes, lost so far {sum(run.report.lost for run in runs)}", flush=True)
        time.sleep(chosen.rest)
    loaded = judged(runs)
    alone = control(2 if chosen.quick else 20)
    result = {"idle": idle, "saturated": loaded, "control": alone}
    path = write_result("handover", result, host, chosen.quick)
    draw(runs[0], idle, path.parent if chosen.quick else RESULTS)
    for name in ("requests", "requests_per_s", "errors", "forced_reconnects", "late_old_answers", "cutover_ms"):
        print(f"  {name}: {loaded[name]}")
    for part in (loaded, alone):
        for name, value in part["open_loop_latency_ms"].items():
            print(f"  {name}: {value}")
    print(f"  goals: {loaded['met']}, idle: {[each['met'] for each in idle]}")
    print(path)
    return 0 if all(loaded["met"].values()) and all(each["met"] for each in idle) else 1


if __name__ == "__main__":
    sys.exit(main())
