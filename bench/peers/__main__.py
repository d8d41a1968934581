"""What do clients see when a model is replaced the way people do it today? `python -m bench.peers [--quick]`

The same server, model and load for each contender, one after the other in one run: start with model a, put the clients
to it, replace a by b and back, several times, end. The model reads weights of some hundred MB and touches each byte.
Counted for each: errors by kind, the outage (the longest time without a good answer to anybody), P99 of an open loop
in calm and around the changes, how long until the new model answers, the peak of memory. A second round asks two tiny
language models of a llama-server: by its own router, and by swapd. What is not installed is skipped, and said.
`--only NAME` measures those whose name begins so (it may be repeated).
Goals: swapd loses nothing; its in-place outage is 5 x shorter than the script's, or else no longer than 1.25 x what
no change in place can do without: the streams in flight end, then the model loads.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, facts, write_result
from bench.loader import LoadProcess, LoadSpec
from bench.peers import llama, ours, ray_serve, reloads
from bench.peers.contender import Bare, Contender, Memory, Site, adopt_orphans, end_what_is_left
from bench.peers.figures import AFTER_S, BEFORE_S, Change, summary
from bench.peers.verdict import draw, judge, line

MIB = 1 << 20
SETTLED_S = BEFORE_S + AFTER_S + 1.5  # calm after a change, of which the last part counts as such
CONTENDERS: tuple[type[Contender], ...] = (
    ours.Dual,
    ours.GatedDual,
    reloads.BlueGreen,
    reloads.Gunicorn,
    reloads.Circus,
    ray_serve.RayServe,
    ours.InPlace,
    ours.GatedInPlace,
    reloads.InPlace,
    llama.SwapdDual,
    llama.SwapdInPlace,
    llama.Router,
)


def main() -> int:
    options = argparse.ArgumentParser(prog="bench.peers", description=(__doc__ or "").split("\n\n")[0])
    options.add_argument("--quick", action="store_true", help="a smoke run, no result stored in the repo")
    names = ", ".join(contender.name for contender in CONTENDERS)
    options.add_argument("--only", metavar="NAME", action="append", help=f"the beginning of one of: {names}")
    chosen = options.parse_args()
    wanted = [c for c in CONTENDERS if any(c.name.startswith(word) for word in chosen.only or [""])]
    if not wanted:
        options.error(f"no contender's name begins with {' or '.join(chosen.only)}")
    size_mib, pairs = (300, 1) if chosen.quick else (1000, 3)
    host = facts()
    adopt_orphans()
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="swapd-peers-", dir="/var/tmp") as folder:
        weights = Path(folder) / "weights"
        with weights.open("wb") as file:
            for _ in range(size_mib):
                file.write(os.urandom(MIB))
        alone = server_alone(weights)
        print(f"  the server by itself: {alone}", flush=True)
        for contender in wanted:
            results[contender.name] = one(contender, weights, pairs)
            print(f"  {line(contender.name, results[contender.name])}", flush=True)
    verdict = judge(results, alone)
    result = {
        "weights_bytes": size_mib * MIB,
        "changes_each": 2 * pairs,
        "server_alone": alone,
        "contenders": results,
        **verdict,
    }
    part = chosen.quick or chosen.only is not None
    path = write_result("peers", result, host, part)
    draw(path.parent if part else RESULTS, results)
    print(f"  {verdict}\n{path}")
    return 0 if all(verdict["met"].values()) and not any("failed" in each for each in results.values()) else 1


def server_alone(weights: Path, times: int = 3) -> dict[str, float]:
    """How long the server as it is takes to start (beside its load) and to end, with nobody there; medians."""
    starts, loads, ends = [], [], []
    with tempfile.TemporaryDirectory(prefix="peer-", dir="/tmp") as folder:
        for _ in range(times):
            here = Bare(Site(Path(folder), weights))
            begun = time.monotonic()
            here.start()
            starts.append(time.monotonic() - begun)
            loads.append(here.load_s() or 0.0)
            begun = time.monotonic()
            here.stop()
            ends.append(time.monotonic() - begun)
    beside = statistics.median(start - load for start, load in zip(starts, loads, strict=True))
    return {
        "load_s": round(statistics.median(loads), 4),
        "start_beside_load_s": round(beside, 4),
        "end_s": round(statistics.median(ends), 4),
    }


def one(contender: type[Contender], weights: Path, pairs: int) -> dict[str, Any]:
    """The figures of one contender; `skipped` or `failed` with the reason where there are none."""
    result: dict[str, Any] = {"title": contender.title, "in_place": contender.in_place, "ours": contender.ours}
    missing = contender.missing()
    if missing:
        return result | {"skipped": missing}
    with tempfile.TemporaryDirectory(prefix="peer-", dir="/tmp") as folder:
        here = contender(Site(Path(folder), weights))
        memory = Memory()
        try:
            result |= measure(here, memory, pairs)
        except Exception as error:  # one contender's failure is a result, and the others are still measured
            traceback.print_exc()
            result["failed"] = f"{type(error).__name__}: {error}"
        finally:
            memory.stop()
            here.stop()
            result["left_running"] = end_what_is_left()
        return result | {"peak_memory_bytes": memory.peak_bytes, "most_processes": memory.most_processes}


def measure(here: Contender, memory: Memory, pairs: int) -> dict[str, Any]:
    memory.start()
    begun = time.monotonic()
    here.start()
    started_s = time.monotonic() - begun
    questions = here.questions
    raw = {key: request.raw() for key, request in questions.requests.items()}
    spec = LoadSpec(here.site.address, questions.groups, raw, questions.answers, 60.0, require_revision=here.ours)
    with LoadProcess(spec) as load:
        memory.not_counted.add(load.pid)
        load.wait_ready()
        begun = time.monotonic()
        time.sleep(SETTLED_S)
        changes = []
        for to in itertools.islice(itertools.cycle("ba"), 2 * pairs):
            at = time.monotonic()
            if questions.clients_choose:
                load.ask(questions.key_of[to])
            steps = here.change(to)
            here.until_answers(to)
            changes.append(Change(to, at, time.monotonic(), here.load_s(), steps))
            time.sleep(SETTLED_S)
        ended = time.monotonic()
        report = load.stop()
    labels = {int(revision): label for revision, label in report.summary["labels"].items()}
    return {
        "start_s": round(started_s, 3),
        **summary(report.records, labels, changes, (begun, ended), questions.streams),
        "forced_reconnects": report.summary["forced_reconnects"],
        "unasked_bytes": report.summary["unasked_bytes"],
        "open_loop_lag_p99_ms": report.summary["open_loop_lag_p99_ms"],
        "first_errors": [note["what"] for note in report.summary["notes"] if note["kind"]][:5],
    }


if __name__ == "__main__":
    sys.exit(main())
