"""What do clients see when weights of 1 to 20 GB are swapped on a GPU? `python -m bench.gpu [--quick] [--cpu]`

Needs an NVIDIA GPU and torch in this interpreter. An Engine that uses `swapd.worker.weights` serves under load and is
swapped in place (and woken again by a rollback, where it was parked) and dually, for weights of each size, made here.
Beside it stands what the device does by itself, measured first: pinned and pageable copies, pinning, the import of
torch, the context.
Goals: in-place outage <= 1.25 x bytes / pinned bandwidth + 100 ms, and under 500 ms for 10 GB; dual cutover <= 1 ms +
10 us a connection; nothing lost. With `--cpu` the same on the host device with small weights: it proves the path (and
is judged by what was lost), not the speed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.apps import torch_weights
from bench.apps.device import NO_DEVICE
from bench.harness import ROOT, Swapd, facts, free_port, quoted, write_result
from bench.inplace import longest_gap
from bench.loader import ClientGroup, LoadProcess, LoadReport, LoadSpec, http_request
from bench.records import percentile
from bench.swaps import APPS, Done, change, milliseconds

GB = 10**9
SIZES_GB = (1.0, 5.0, 10.0, 20.0)
SMALL_GB = (0.05,)  # --quick and --cpu
TENSOR_BYTES = 256 << 20
OUTAGE_FACTOR, OUTAGE_MORE_S = 1.25, 0.1
TEN_GB_S = 0.5
CUTOVER_S, CUTOVER_PER_CONNECTION_S = 0.001, 10e-6
RATE_PER_S, CLOSED, IDLE = 100.0, 8, 10
CONNECTIONS = CLOSED + IDLE + int(RATE_PER_S / 10)
CALM_S = 1.5
SOAK_S = 5.0  # long enough for a rollback
PATIENCE_S = 300.0
OVERHEAD_BYTES = 2 << 30  # beside the weights: torch's context and its libraries, or an interpreter with torch


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.gpu", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    options.add_argument("--cpu", action="store_true", help="the same path without a GPU: the host device")
    options.add_argument("--gb", default="", help="sizes of the weights, in GB: 1,5,10,20")
    options.add_argument("--times", type=int, default=0, help="swaps of each kind a size (3)")
    chosen = options.parse_args()
    small = chosen.quick or chosen.cpu
    sizes = [float(size) for size in chosen.gb.split(",") if size] or list(SMALL_GB if small else SIZES_GB)
    device = "cpu" if chosen.cpu else "cuda"
    host, by_itself = facts(), ask_device(device)
    if by_itself is None:
        print("  no NVIDIA GPU that torch can use: nothing is measured (--cpu proves the path without one)")
        return 0
    print(f"  the device by itself: {json.dumps(by_itself)}", flush=True)
    results = []
    for size_gb in sizes:
        results.append(one_size(int(size_gb * GB), device, by_itself, chosen.times or (1 if small else 3)))
        print(f"  {json.dumps({k: v for k, v in results[-1].items() if k != 'swaps'})}", flush=True)
    met = {
        name: all(each["met"][name] for each in results if name in each["met"])
        for name in dict.fromkeys(name for each in results for name in each["met"])
    }
    goal = {"outage": [OUTAGE_FACTOR, OUTAGE_MORE_S], "cutover": [CUTOVER_S, CUTOVER_PER_CONNECTION_S]}
    result = {"device": device, "by_itself": by_itself, "goal": goal, "results": results, "met": met}
    path = write_result("gpu" if device == "cuda" else "gpu-cpu", result, host, chosen.quick)
    print(f"  {met}\n{path}")
    return 0 if all(met.values()) else 1


def ask_device(device: str) -> dict[str, Any] | None:
    """What it does by itself; None: there is none."""
    asked = subprocess.run(
        [sys.executable, "-m", "bench.apps.device", device], cwd=ROOT, stdout=subprocess.PIPE, check=False
    )
    if asked.returncode:
        if asked.returncode == NO_DEVICE or device == "cuda":
            return None
        raise RuntimeError(f"bench.apps.device ended with status {asked.returncode}")
    found: dict[str, Any] = json.loads(asked.stdout)
    return found


# --- one size ----------------------------------------------------------------------------------------------------


def one_size(size: int, device: str, by_itself: dict[str, Any], times: int) -> dict[str, Any]:
    missing = no_room(size, device, by_itself)
    if missing:
        return {"bytes": size, "skipped": missing, "met": {}}
    listen = f"127.0.0.1:{free_port()}"
    with weights_of(size) as (path, total), Swapd(config(listen, path, size, device)) as swapd:
        swapd.wait_healthy(PATIENCE_S)
        with LoadProcess(load_spec(listen, total)) as load:
            load.wait_ready(PATIENCE_S)
            begun = time.monotonic()
            time.sleep(CALM_S * 2)
            calm_until = time.monotonic()
            done = list(swaps(swapd, listen, times))
            report = load.stop()
    rows = [row_of(report, each, strategy, took) for each, strategy, took in done]
    return verdict(size, by_itself, rows, report, device) | {
        "calm_latency_ms": milliseconds(report.records.latencies(["open loop"], [(begun, calm_until)])),
        "swaps": rows,
    }


def no_room(size: int, device: str, by_itself: dict[str, Any]) -> str:
    """Why weights of this size are left out: two of them must fit, and the file and its copies."""
    if shutil.disk_usage("/var/tmp").free < size * 1.1:
        return "no room on the disk"
    with open("/proc/meminfo") as file:
        available = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    if available < 3 * size + 2 * OVERHEAD_BYTES:  # two copies and the page cache
        return "no room in host memory"
    if device == "cuda" and by_itself["memory_bytes"] < 2 * (size + OVERHEAD_BYTES):
        return "no room on the device for two of them"
    return ""


def swaps(swapd: Swapd, listen: str, times: int) -> Iterator[tuple[Done, str, dict[str, float | None]]]:
    """Each change with its kind, and with what the weights of the model that serves then say of themselves."""
    serving = "a"
    for strategy in ("in-place", "dual") * times:
        other = "b" if serving == "a" else "a"
        done = change(swapd, other, strategy=strategy)
        yield done, strategy, ask_took(listen)
        time.sleep(CALM_S)
        if done.record.get("kept") == "parked":
            yield change(swapd, None), "wake", ask_took(listen)
            time.sleep(CALM_S)
        else:
            serving = other
        swapd.wait_no_swap()


def row_of(report: LoadReport, each: Done, strategy: str, took: dict[str, float | None]) -> dict[str, Any]:
    begun, ended = each.switch.commanded_at, each.settled_at
    latency = report.records.latencies(["open loop"], [(begun, ended)])
    return {
        "strategy": strategy,
        "outage_s": round(longest_gap(report, begun - 0.5, ended + 1.0), 4),
        "cutover_s": each.cutover_s,
        "p99_s": round(percentile(latency, 0.99), 4) if latency else None,
        "until_served_s": round(ended - begun, 3),
        "steps_ms": {step["name"]: step["ms"] for step in each.record["steps"]},
        "took": took,
        "peak_memory_bytes": each.record["peak_memory_bytes"],
    }


def verdict(
    size: int, by_itself: dict[str, Any], rows: Sequence[dict[str, Any]], report: LoadReport, device: str
) -> dict[str, Any]:
    def median(strategy: str, key: str) -> float | None:
        found = [row[key] for row in rows if row["strategy"] == strategy]
        return statistics.median(found) if found else None

    floor = size / by_itself["copy_bytes_per_s"]
    outage, cutover = median("in-place", "outage_s"), median("dual", "cutover_s")
    assert outage is not None
    assert cutover is not None
    met = {"nothing lost": report.lost == 0}
    if device == "cuda":
        met["outage <= 1.25 x bytes / bandwidth + 100 ms"] = outage <= OUTAGE_FACTOR * floor + OUTAGE_MORE_S
        met["dual cutover"] = cutover <= CUTOVER_S + CONNECTIONS * CUTOVER_PER_CONNECTION_S
        if size == 10 * GB:
            met["10 GB in place under 500 ms"] = outage < TEN_GB_S
    return {
        "bytes": size,
        "floor_s": round(floor, 4),
        "in_place_outage_s": outage,
        "wake_outage_s": median("wake", "outage_s"),
        "dual_cutover_s": cutover,
        "dual_p99_s": median("dual", "p99_s"),
        "lost": report.lost,
        "errors": report.summary["errors"],
        "met": met,
    }


# --- the models, their weights and their clients -------------------------------------------------------------------


@contextlib.contextmanager
def weights_of(size: int) -> Iterator[tuple[Path, int]]:
    """A safetensors file with so many bytes of tensors, in the page cache; and the sum that its model answers."""
    block, header, at = os.urandom(16 << 20), {}, 0
    while at < size:
        length = min(TENSOR_BYTES, size - at) // 2 * 2
        header[f"{len(header):04}"] = {"dtype": "BF16", "shape": [length // 2], "data_offsets": [at, at + length]}
        at += length
    text = json.dumps(header).encode()
    with tempfile.TemporaryDirectory(prefix="swapd-weights-", dir="/var/tmp") as folder:
        path = Path(folder) / "model.safetensors"
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for begin in range(0, at, len(block)):
                file.write(block[: at - begin])
        with path.open("rb") as file:
            file.seek(8 + len(text))
            total = sum(file.read(torch_weights.EDGE_BYTES))
            file.seek(-torch_weights.EDGE_BYTES, os.SEEK_END)
            total += sum(file.read())
        yield path, total


def config(listen: str, path: Path, size: int, device: str) -> str:
    need = size + OVERHEAD_BYTES
    if device == "cuda":
        text = '[devices.gpu]\nkind = "nvml"\nmatch = "0"\nheadroom = "512MiB"\n'
    else:
        text = f'[devices.host]\nkind = "host"\nmemory = "{3 * need}B"\n'
    for name in ("a", "b"):
        text += f"""
[models.{name}]
app = "torch_weights:Engine"
directory = {quoted(APPS)}
device_memory = "{need}B"
stage = {"true" if device == "cuda" else "false"}
env = {{ MODEL = "{name}", DEVICE = "{device}", WEIGHTS = {quoted(path)} }}
[[models.{name}.probes]]
request = {{ path = "/answer" }}
expect = {{ status = 200, within = "30s", json = {{ model = "{name}" }} }}
"""
    return (
        text + f'\n[services.chat]\nlisten = {quoted(listen)}\nmodel = "a"\nsoak = "{SOAK_S:g}s"\nmax_outage = "5m"\n'
    )


def load_spec(listen: str, total: int) -> LoadSpec:
    groups = [
        ClientGroup("open", ["answer"], name="open loop", rate_per_s=RATE_PER_S),
        ClientGroup("closed", ["answer"], CLOSED, "keep-alive", think_s=0.05),
        ClientGroup("idle", ["answer"], IDLE, "idle"),
    ]
    answers = {"answer": {name: torch_weights.answer(name, total) for name in "ab"}}
    return LoadSpec(listen, groups, {"answer": http_request("GET", "/answer")}, answers, PATIENCE_S)


def ask_took(listen: str) -> dict[str, float | None]:
    """How long the weights of the model that now serves took to be read, pinned and copied, in seconds."""
    host, _, port = listen.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("GET", "/took")
    took: dict[str, float | None] = json.loads(connection.getresponse().read())
    connection.close()
    return took


if __name__ == "__main__":
    sys.exit(main())
