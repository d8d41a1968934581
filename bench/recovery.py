"""How long is nobody there when the daemon is killed, and do clients notice? `python -m bench.recovery [--quick]`

From SIGKILL to READY=1 (control answers, every listener is held, every worker taken over) with 1, 10 and 100 workers,
a service each, while clients ask one of them. The next daemon is started at once: systemd's RestartSec comes on top.
Beside it, in the same run, what no daemon can do without: `swapd --check-config`, which is an interpreter, imports and
the file. Goal: no request lost, no worker started anew, READY within 3 x that and 10 ms a worker.
"""

from __future__ import annotations

import argparse
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, Swapd, facts, free_ports, quoted, swapd_command, write_result
from bench.loader import ClientGroup, LoadProcess, LoadSpec
from bench.picture import Bar, bars
from bench.swaps import ANSWERS, APPS, MODEL, REQUESTS

COUNTS = (1, 10, 100)
KILLS = 5
FLOOR_FACTOR, PER_WORKER_S = 3.0, 0.01
CALM_S = 0.5
GROUPS = [
    ClientGroup("closed", ["hello"], 4, "keep-alive", think_s=0.02),
    ClientGroup("fresh", ["hello"], 2, "reconnecting", think_s=0.02),
    ClientGroup("closed", ["stream"], 2, "streaming"),
    ClientGroup("open", ["hello"], name="open loop", rate_per_s=50.0),
]


def config(listen: list[str]) -> str:
    """One model, and a service for each address."""
    text = '[devices.host]\nkind = "host"\nheadroom = "0MiB"\n'
    text += MODEL.format(name="a", app="trivial:app", apps=quoted(APPS), memory="64MiB", env='MODEL = "a"')
    return text + "".join(
        f'\n[services.s{number}]\nlisten = {quoted(address)}\nmodel = "a"\n' for number, address in enumerate(listen)
    )


class Ready:
    """The service manager, as far as READY=1 goes. It reads all the time, as a real one does."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._came: queue.Queue[float] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            if b"READY=1" in self._socket.recv(8192).split(b"\n"):
                self._came.put(time.monotonic())

    def wait(self, deadline_s: float) -> float:
        """When it came."""
        return self._came.get(timeout=deadline_s)


def pids(swapd: Swapd) -> dict[str, int]:
    return {w["id"]: w["pid"] for w in swapd.control.call("workers") if w["role"] != "gate"}


def kills(count: int, rounds: int) -> dict[str, Any]:
    """`rounds` deaths of a daemon with `count` workers."""
    listen = [f"127.0.0.1:{port}" for port in free_ports(count)]
    with tempfile.TemporaryDirectory(prefix="swapd-") as folder:
        ready = Ready(folder)
        with Swapd(config(listen), env={"NOTIFY_SOCKET": ready.path}) as swapd:
            swapd.wait_healthy(600.0)
            ready.wait(60.0)
            before = pids(swapd)
            took = []
            with LoadProcess(LoadSpec(listen[0], GROUPS, REQUESTS, ANSWERS)) as load:
                load.wait_ready()
                for _ in range(rounds):
                    time.sleep(CALM_S)
                    begun = time.monotonic()
                    swapd.kill()
                    swapd.start()
                    took.append(ready.wait(120.0) - begun)
                    swapd.wait_healthy()
                report = load.stop()
            return {
                "workers": count,
                "ready_s": [round(each, 3) for each in took],
                "requests": len(report.records),
                "lost": report.lost,
                "kept": pids(swapd) == before,
            }


def floor(listen: list[str]) -> float:
    """The quickest of five."""
    with tempfile.TemporaryDirectory(prefix="swapd-") as folder:
        path = Path(folder) / "swapd.toml"
        path.write_text(config(listen))
        took = []
        for _ in range(5):
            begun = time.monotonic()
            subprocess.run([*swapd_command(), "--check-config", path], stdout=subprocess.DEVNULL, check=True)
            took.append(time.monotonic() - begun)
        return min(took)


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.recovery", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    host = facts()
    counts, rounds = ((1, 3), 2) if chosen.quick else (COUNTS, KILLS)
    floor_s = floor(["127.0.0.1:1"])
    measured = []
    for count in counts:
        measured.append(kills(count, rounds))
        print(f"  {measured[-1]}", flush=True)
    met = {
        "nothing lost": all(each["lost"] == 0 for each in measured),
        "no worker started anew": all(each["kept"] for each in measured),
        "ready in time": all(
            sorted(each["ready_s"])[rounds // 2] <= FLOOR_FACTOR * floor_s + PER_WORKER_S * each["workers"]
            for each in measured
        ),
    }
    result = {"check_config_s": round(floor_s, 3), "kills": measured, "met": met}
    path = write_result("recovery", result, host, chosen.quick)
    rows = [Bar("swapd --check-config", floor_s * 1000, f"{floor_s * 1000:.0f} ms", None)]
    for each in measured:
        median_ms = sorted(each["ready_s"])[rounds // 2] * 1000
        goal_ms = (FLOOR_FACTOR * floor_s + PER_WORKER_S * each["workers"]) * 1000
        rows.append(Bar(f"{each['workers']} workers", median_ms, f"{median_ms:.0f} ms", goal_ms))
    folder = path.parent if chosen.quick else RESULTS
    bars(folder / "recovery.svg", "From SIGKILL to READY", "median; black: the goal; no request was lost", rows)
    print(f"  {met}\n{path}")
    return 0 if all(met.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
