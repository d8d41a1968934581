"""What the contenders' figures come to: the goals, one line each, two pictures. It knows figures, not contenders."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.picture import Bar, bars, duration

MIB = 1 << 20
SHORTER, OF_FLOOR = 5.0, 1.25
SCRIPT, DIRECT, GATED = "script-in-place", "swapd-in-place", "swapd-uvicorn-in-place"
FAULTS = ("errors_total", "late_old_answers", "unasked_bytes", "forced_reconnects")


def judge(results: Mapping[str, Mapping[str, Any]], alone: Mapping[str, float]) -> dict[str, Any]:
    """The goals; and of the in-place swaps, how near they came to the floor, which is what none can do without.

    It is the time for the streams in flight to end, and then for the model to load: in swapd's own worker, whose
    interpreter runs before, the load alone; of a server as it is, its end and its start too (`alone`: what they take
    when nobody is there). If the script takes less than five times the floor, nothing that loads after the old model
    has gone can be five times shorter. Each is laid beside loads of its own, for a shared host changes its speed. The
    script waits for the streams too; what is left of its outage is its polling.
    """
    measured = {name: each for name, each in results.items() if "outage_median_s" in each}
    met = {f"{name} loses nothing": not any(each[f] for f in FAULTS) for name, each in measured.items() if each["ours"]}
    in_place: dict[str, Any] = {}
    for name in (DIRECT, GATED):
        if name not in measured or SCRIPT not in measured:
            continue
        own, script = measured[name], measured[SCRIPT]
        outage, theirs = own["outage_median_s"], script["outage_median_s"]
        drain = statistics.median(c["steps_s"]["drain"] for c in own["changes"])
        process = alone["end_s"] + alone["start_beside_load_s"]
        floor = drain + own["engine_load_median_s"] + (0.0 if name == DIRECT else process)
        in_place[name] = {
            "outage_s": outage,
            "streams_end_s": round(drain, 4),
            "floor_s": round(floor, 4),
            "of_its_floor": round(outage / floor, 3),
            "beyond_its_floor_s": round(outage - floor, 4),
            "script_outage_s": theirs,
            "script_polling_s": round(theirs - drain - script["engine_load_median_s"] - process, 4),
            "shorter_than_the_script": round(theirs / outage, 2),
            "shortest_possible": round(theirs / floor, 2),
        }
        goal = f"{name}: outage {SHORTER:g} x shorter than the script's, or <= {OF_FLOOR:g} x the floor"
        met[goal] = theirs / outage >= SHORTER or outage / floor <= OF_FLOOR
    return {"in_place": in_place, "met": met}


def line(name: str, result: Mapping[str, Any]) -> str:
    for word in ("skipped", "failed"):
        if word in result:
            return f"{name:24} {word}: {result[word]}"
    load = result["engine_load_median_s"]
    return (
        f"{name:24} outage {duration(result['outage_median_s'])}"
        + (f" (load {duration(load)})" if load else "")
        + f", P99 {result['calm_ms']['p99']} -> {result['around_changes_until_good_ms']['p99']} ms, "
        f"{result['errors_total']} of {result['requests']} lost {result['errors']}, "
        f"{result['forced_reconnects']} forced to reconnect, {result['peak_memory_bytes'] // MIB} MiB"
    )


def draw(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    shown = [each for each in results.values() if "outage_median_s" in each]
    if not shown:
        return
    outages = [
        Bar(each["title"], each["outage_median_s"], duration(each["outage_median_s"]), each["engine_load_median_s"])
        for each in shown
    ]
    note = "median of the longest times without a good answer; black: how long the model's own load takes"
    bars(folder / "peers-outage.svg", "Outage when the model is replaced", note, outages)
    lost = [
        Bar(each["title"], each["errors_total"], f"{each['errors_total']:,} of {each['requests']:,}") for each in shown
    ]
    note = f"in {len(shown[0]['changes'])} changes each; a client tries nothing twice"
    bars(folder / "peers-errors.svg", "Requests lost", note, lost)
