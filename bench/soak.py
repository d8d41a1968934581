"""Swaps for hours under load: does anything get lost, or grow? `python -m bench.soak [--minutes 60 | --changes 10000]`

One swapd, moderate load of every kind, and changes one after another: swaps, rollbacks, now and then a candidate
that fails its probe and one that dies in its soak. Watched over the time: what clients lose, and the daemon's and
the front's open descriptors, threads and memory. Ends with status 1 if anything was lost, or if descriptors or
threads have grown, or the daemon's or the gate's memory by more than 20 % since the first tenth.

`--gate`: behind a gate, which stays the same process all the while. `--kill-daemon`: the daemon is killed in the middle
of each fourth change, and another one is started: what grows is then looked for in the gate alone.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness import Refused, Swapd, facts, free_port, write_result
from bench.loader import ClientGroup, LoadProcess, LoadReport, LoadSpec
from bench.records import check_cutovers
from bench.swaps import ANSWERS, REQUESTS, Done, change, config

CALM_S = 0.7  # after each change
STRETCH_S = 120.0  # of one load process: its records stay small
MEMORY_GROWTH = 1.2
BAD = """
[models.bad]
engine = "asgi"
app = "trivial:app"
directory = {directory}
device_memory = "64MiB"
env = {{ MODEL = "c" }}
[models.bad.ready]
path = "/hello"
[[models.bad.probes]]
request = {{ method = "GET", path = "/hello" }}
expect = {{ status = 200, within = "2s", json = {{ model = "b" }} }}
"""

GROUPS = [
    ClientGroup("closed", ["hello"], 16, "keep-alive", think_s=0.02),
    ClientGroup("fresh", ["hello"], 4, "reconnecting", think_s=0.02),
    ClientGroup("closed", ["stream"], 4, "streaming"),
    ClientGroup("upload", ["upload"], 2, "slow upload", parts=8, pause_s=0.05),
    ClientGroup("idle", ["hello"], 50, "idle"),
    ClientGroup("open", ["hello"], name="open loop", rate_per_s=50.0),
]


def state_of(pid: int) -> dict[str, int]:
    """Open descriptors, threads and resident bytes of a process."""
    resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "resident_bytes": resident,
    }


def watched(swapd: Swapd) -> dict[str, Any]:
    """The daemon, and whoever owns the listeners if that is a gate."""
    found = {"daemon": state_of(swapd.pid)}
    for worker in swapd.control.call("workers"):
        if worker["role"] == "gate" and "serving" in worker["state"]:
            found["gate"] = state_of(worker["pid"])
    return found


def fail_a_candidate(swapd: Swapd) -> None:
    record = swapd.control.call("swap", service="chat", to="bad")
    record = swapd.wait_swap(record["id"])
    if record["phase"] != "Failed":
        raise RuntimeError(f"a candidate with a wrong answer was not refused: {record['phase']}")


def kill_in_soak(swapd: Swapd) -> None:
    """The new worker dies in its soak: the old one serves again by itself. Its requests in flight are lost, so this
    is done with no load."""
    done = change(swapd, "b")
    worker = next(w for w in swapd.control.call("workers") if w["revision"] == done.switch.new)
    os.kill(worker["pid"], signal.SIGKILL)
    until = time.monotonic() + 30
    while swapd.control.call("show", id=done.record["id"])["phase"] in ("Soaking", "RollingBack"):
        if time.monotonic() > until:
            raise TimeoutError("no return to the old revision within 30 s")
        time.sleep(0.05)
    swapd.wait_healthy()


def dies(swapd: Swapd, after_s: float) -> Callable[[], None]:
    def die() -> None:
        time.sleep(after_s)
        swapd.kill()
        swapd.start()

    return die


def stretch(swapd: Swapd, listen: str, seconds: float, calm_s: float, kill: bool) -> tuple[LoadReport, list[Done]]:
    """One load process' life: swaps, rollbacks, failing candidates; daemons that die, each at another moment."""
    done: list[Done] = []
    with LoadProcess(LoadSpec(listen, GROUPS, REQUESTS, ANSWERS)) as load:
        load.wait_ready()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            death = dies(swapd, 0.07 * (len(done) % 17)) if kill and len(done) % 4 == 0 else None
            done.append(change(swapd, "b", death))
            time.sleep(calm_s)
            done.append(change(swapd, None))
            time.sleep(calm_s)
            if len(done) % 10 == 0:
                fail_a_candidate(swapd)
        return load.stop(), done


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.soak", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "60")))
    options.add_argument("--changes", type=int, help="end after so many instead of --minutes")
    options.add_argument("--calm", type=float, default=CALM_S, metavar="S", help="seconds between changes")
    options.add_argument("--gate", action="store_true", help="behind a gate")
    options.add_argument("--kill-daemon", action="store_true", help="now and then, in the middle of a swap")
    options.add_argument("--quick", action="store_true", help="one minute, no result stored in the repo")
    chosen = options.parse_args()
    minutes = 1.0 if chosen.quick else chosen.minutes
    host, listen = facts(), f"127.0.0.1:{free_port()}"
    text = config(listen)
    directory = next(line.partition("=")[2].strip() for line in text.splitlines() if line.startswith("directory"))
    rows: list[dict[str, Any]] = []
    total = {"changes": 0, "requests": 0, "lost": 0, "late": 0}
    notes: list[Any] = []
    front = 'front = "gate"\n' if chosen.gate else ""
    text = text.replace("[services.chat]\n", f'[services.chat]\nkeep_alive = "1h"\n{front}')  # longer than a stretch
    with Swapd(text + BAD.format(directory=directory)) as swapd:
        swapd.wait_healthy()
        begun = time.monotonic()
        until = begun + (minutes * 60 if chosen.changes is None else float("inf"))
        while time.monotonic() < until and not (chosen.changes and total["changes"] >= chosen.changes):
            report, done = stretch(swapd, listen, min(STRETCH_S, minutes * 60 / 3), chosen.calm, chosen.kill_daemon)
            total["changes"] += len(done)
            total["requests"] += len(report.records)
            total["lost"] += report.lost
            total["late"] += sum(c.late for c in check_cutovers(report.records, [d.switch for d in done]))
            notes += report.summary["notes"]
            kill_in_soak(swapd)
            time.sleep(1)
            rows.append({"minutes": round((time.monotonic() - begun) / 60, 1), **total, **watched(swapd)})
            print(f"  {rows[-1]}", flush=True)
    first, last = rows[len(rows) // 10], rows[-1]
    steady = [who for who in ("daemon", "gate") if who in last and not (who == "daemon" and chosen.kill_daemon)]
    met = {"nothing lost": total["lost"] == 0, "no late answer": total["late"] == 0}
    for who in steady:
        early, late = first[who], last[who]
        counts = all(late[key] <= early[key] + 2 for key in ("descriptors", "threads"))
        met[f"descriptors and threads of the {who} do not grow"] = counts
        met[f"memory of the {who} does not grow"] = late["resident_bytes"] <= early["resident_bytes"] * MEMORY_GROWTH
    name = "soak" + ("-gate" if chosen.gate else "") + ("-kill" if chosen.kill_daemon else "")
    result = {"minutes": rows[-1]["minutes"], **total, "met": met, "first_errors": notes[:20], "over_time": rows}
    path = write_result(name, result, host, chosen.quick)
    print(f"  {met}\n{path}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Refused as error:
        sys.exit(f"swapd refused: {error} ({error.code})")
