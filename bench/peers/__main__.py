"""How do people replace a model today, and what do their clients see of it? `python -m bench.peers [--quick] [--only NAME]`

The same server, model and load for each contender, one after the other in one run: start with model a, put the clients
to it, replace a by b and back, several times, end. The model reads weights of some hundred MB and touches each byte.
Counted for each: errors by kind, the outage (the longest time without a good answer to anybody), P99 of an open loop
in calm and around the changes, how long until the new model answers, the peak of memory. A second round asks two tiny
language models of a llama-server: by its own router, and by swapd. What is not installed is skipped, and said.
Goals: swapd loses nothing; its in-place outage is 5 x shorter than the script's, or no longer than 1.25 x the load that
no in-place change can do without.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, facts, write_result
from bench.loader import LoadProcess, LoadSpec
from bench.peers import llama, ours, ray_serve, reloads
from bench.peers.contender import Contender, Memory, Site, adopt_orphans, end_what_is_left
from bench.peers.figures import AFTER_S, BEFORE_S, Change, summary
from bench.picture import Bar, bars, duration

MIB = 1 << 20
SHORTER, OF_LOAD = 5.0, 1.25
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
    names = [contender.name for contender in CONTENDERS]
    options.add_argument(
        "--only", metavar="NAME", action="append", help=f"one of {', '.join(names)}; or their beginning"
    )
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
        for contender in wanted:
            results[contender.name] = one(contender, weights, pairs)
            print(f"  {line(contender, results[contender.name])}", flush=True)
    verdict = judge(results)
    result = {"weights_bytes": size_mib * MIB, "changes_each": 2 * pairs, "contenders": results, **verdict}
    part = chosen.quick or chosen.only is not None
    path = write_result("peers", result, host, part)
    draw(path.parent if part else RESULTS, results)
    print(f"  {verdict}\n{path}")
    return 0 if all(verdict["met"].values()) and not any("failed" in each for each in results.values()) else 1


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
    spec = LoadSpec(
        here.site.address, questions.groups, raw, questions.answers, timeout_s=60, require_revision=here.ours
    )
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


def judge(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The goals, and of the in-place ones how near they came to what is possible."""
    measured = {name: each for name, each in results.items() if "outage_median_s" in each}
    ours_lost = {
        name: each["errors_total"] + each["late_old_answers"] for name, each in measured.items() if each["ours"]
    }
    met = {f"{name} loses nothing": lost == 0 for name, lost in ours_lost.items()}
    in_place: dict[str, Any] = {}
    script = measured.get(reloads.InPlace.name)
    for name in (ours.InPlace.name, ours.GatedInPlace.name):
        own = measured.get(name)
        if own is None or script is None:
            continue
        outage, load = own["outage_median_s"], own["engine_load_median_s"]
        in_place[name] = {
            "outage_s": outage,
            "of_its_load": round(outage / load, 3),
            "beyond_its_load_s": round(outage - load, 4),
            "script_outage_s": script["outage_median_s"],
            "script_beyond_its_load_s": round(script["outage_median_s"] - script["engine_load_median_s"], 4),
            "shorter_than_the_script": round(script["outage_median_s"] / outage, 2),
            "most_that_is_possible": round(script["outage_median_s"] / load, 2),
        }
        short = in_place[name]["shorter_than_the_script"] >= SHORTER or in_place[name]["of_its_load"] <= OF_LOAD
        met[f"{name}: outage {SHORTER:g} x shorter than the script's, or <= {OF_LOAD:g} x its load"] = short
    return {"in_place": in_place, "met": met}


def line(contender: type[Contender], result: dict[str, Any]) -> str:
    if "skipped" in result or "failed" in result:
        return f"{contender.name:24} {'skipped' if 'skipped' in result else 'failed'}: {result.get('skipped') or result['failed']}"
    outage, load = result["outage_median_s"], result["engine_load_median_s"]
    return (
        f"{contender.name:24} outage {duration(outage)} (load {duration(load or 0)}), "
        f"P99 {result['calm_ms']['p99']} -> {result['around_changes_ms']['p99']} ms, "
        f"{result['errors_total']} of {result['requests']} lost {result['errors']}, "
        f"{result['forced_reconnects']} forced to reconnect, {result['peak_memory_bytes'] // MIB} MiB"
    )


def draw(folder: Path, results: dict[str, dict[str, Any]]) -> None:
    shown = [each for each in results.values() if "outage_median_s" in each]
    if not shown:
        return
    outages = [
        Bar(each["title"], each["outage_median_s"], duration(each["outage_median_s"]), each["engine_load_median_s"])
        for each in shown
    ]
    note = "median of the longest times without a good answer; black: how long the model itself took to load"
    bars(folder / "peers-outage.svg", "Outage of one change of the model", note, outages)
    lost = [Bar(each["title"], each["errors_total"], count(each)) for each in shown]
    note = f"in {shown[0].get('changes') and len(shown[0]['changes'])} changes each, at 200 requests a second and more"
    bars(folder / "peers-errors.svg", "Requests lost", note, lost)


def count(each: dict[str, Any]) -> str:
    return f"{each['errors_total']:,} of {each['requests']:,}"


if __name__ == "__main__":
    sys.exit(main())
