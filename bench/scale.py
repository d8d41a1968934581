"""What does swapd cost at rest, and does a long history slow it? `python -m bench.scale [--quick]`

At rest, with 1, 10, 50, 100 and 200 workers (a service each): the daemon's share of a processor and its memory (PSS),
and a worker's beside those of a bare uvicorn with the same app. Then 100,000 swaps in the journal: round trips of
`history`, `history SERVICE`, `show` and `status`, and how long a start takes.
Goals: at most 0.1 % of a processor a worker in the daemon, and 5 ms (p99) for each of the queries.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, Swapd, facts, free_port, free_ports, write_result
from bench.picture import Bar, bars
from bench.recovery import config
from bench.swaps import APPS, milliseconds
from bench.swaps import config as two_models

COUNTS = (1, 10, 50, 100, 200)
REST_S = 20.0
GOAL_SHARE = 0.001
GOAL_MS = 5.0
SWAPS = 100_000
TICK = os.sysconf("SC_CLK_TCK")

COPIES = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
INSERT INTO swap SELECT :first + i, service, 'Succeeded', source, target, from_model, to_model, actor, created_at,
  created_at + 1, json_set(body, '$.id', :first + i, '$.phase', 'Succeeded') FROM n, (SELECT * FROM swap LIMIT 1)
"""


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def at_rest(count: int, seconds: float) -> dict[str, Any]:
    listen = [f"127.0.0.1:{port}" for port in free_ports(count)]
    with Swapd(config(listen)) as swapd:
        swapd.wait_healthy(900.0)
        workers = [w["pid"] for w in swapd.control.call("workers", deadline_s=60.0) if w["role"] != "gate"]
        time.sleep(2.0)
        everybody = [swapd.pid, *workers]
        before = {pid: cpu_s(pid) for pid in everybody}
        time.sleep(seconds)
        used = {pid: (cpu_s(pid) - before[pid]) / seconds for pid in everybody}
        return {
            "workers": count,
            "daemon_cpu_share": round(used[swapd.pid], 5),
            "daemon_pss_bytes": pss_bytes(swapd.pid),
            "daemon_descriptors": len(os.listdir(f"/proc/{swapd.pid}/fd")),
            "worker_cpu_share": round(sum(used[pid] for pid in workers) / count, 5),
            "worker_pss_bytes": sum(map(pss_bytes, workers)) // count,
        }


def bare_uvicorn(seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="swapd-") as folder:
        path = Path(folder) / "uvicorn.sock"
        command = [sys.executable, "-m", "uvicorn", "trivial:app", "--uds", str(path), "--log-level", "error"]
        with subprocess.Popen(command, cwd=APPS) as process:
            try:
                until = time.monotonic() + 30
                while not path.exists() and time.monotonic() < until:
                    time.sleep(0.02)
                time.sleep(2.0)
                before = cpu_s(process.pid)
                time.sleep(seconds)
                share = (cpu_s(process.pid) - before) / seconds
                return {"cpu_share": round(share, 5), "pss_bytes": pss_bytes(process.pid)}
            finally:
                process.terminate()


def history(count: int, rounds: int) -> dict[str, Any]:
    with Swapd(two_models(f"127.0.0.1:{free_port()}"), daemon=f"history_keep = {count + 10}") as swapd:
        swapd.wait_healthy()
        record = swapd.wait_swap(swapd.control.call("swap", service="chat", to="b")["id"])
        swapd.kill()
        with sqlite3.connect(swapd.folder / "state" / "journal.db") as db:
            db.execute(COPIES, {"count": count - 1, "first": record["id"]})
        db.close()
        begun = time.monotonic()
        swapd.start()
        swapd.wait_healthy(60.0)
        start_s = time.monotonic() - begun
        queries: dict[str, dict[str, Any]] = {
            "history": {},
            "history chat": {"service": "chat"},
            "show": {"id": count // 2},
            "status": {},
        }
        figures = {}
        for name, params in queries.items():
            took = []
            for _ in range(rounds):
                begun = time.monotonic()
                swapd.control.call(name.split()[0], **params)
                took.append(time.monotonic() - begun)
                time.sleep(0.002)
            figures[name] = milliseconds(sorted(took))
        size = (swapd.folder / "state" / "journal.db").stat().st_size
        return {"swaps": count, "journal_bytes": size, "start_s": round(start_s, 3), "queries_ms": figures}


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.scale", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    host = facts()
    counts, seconds, swaps, rounds = ((1, 3), 3.0, 1000, 50) if chosen.quick else (COUNTS, REST_S, SWAPS, 500)
    beside = bare_uvicorn(seconds)
    rest = []
    for count in counts:
        rest.append(at_rest(count, seconds))
        print(f"  {rest[-1]}", flush=True)
    long_history = history(swaps, rounds)
    met = {
        "little work a worker": all(r["daemon_cpu_share"] <= 0.01 + GOAL_SHARE * r["workers"] for r in rest),
        "quick queries": all(q["p99"] <= GOAL_MS for q in long_history["queries_ms"].values()),
    }
    result = {"bare_uvicorn": beside, "at_rest": rest, "history": long_history, "met": met}
    path = write_result("scale", result, host, chosen.quick)
    rows = [
        Bar(
            f"daemon, {r['workers']} workers",
            r["daemon_cpu_share"] * 100,
            f"{r['daemon_cpu_share'] * 100:.2f} %, {r['daemon_pss_bytes'] >> 20} MiB",
            (0.01 + GOAL_SHARE * r["workers"]) * 100,
        )
        for r in rest
    ]
    folder = path.parent if chosen.quick else RESULTS
    bars(folder / "scale.svg", "The daemon at rest", "share of one processor, and its memory; black: the goal", rows)
    print(f"  {long_history}\n  {met}\n{path}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
