"""Unattended: one good model and three bad ones, each asked for with `--strategy guarded`. `python -m demo.guarded`

A transformer embeds real sentences for some clients. Four times somebody releases a new version: one is slower, one
fails now and then, one has the wrong weights, one is as good as the old one. swapd lets each prove itself on copies of
the clients' requests, then on a share of them, sends the bad ones back and promotes the good one. Every answer that a
client gets is compared byte for byte. Exit status 1 if a request was lost, or a model was judged wrongly.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import CLIENTS_SERVED, Swapd, free_port, quoted
from bench.loader import ClientGroup, LoadProcess, LoadReport, LoadSpec, http_request
from bench.picture import Mark, Series, duration, latency_over_time
from bench.records import OK
from demo.run import ROOT, expectations, guarded, preflight, say
from demo.texts import MODELS, sentences

TEXTS, CLIENTS = 60, 6
BUSY_SHARE = 0.3  # of one core, that the model is kept busy with: copies come on top
PATIENCE_S = 600.0
WEIGHTS, LABEL = "enpt", "e5"

MODEL = """
[models.{name}]
engine = "asgi"
app = "{app}"
directory = {models}
device_memory = "90MiB"
env = {{ E5_VARIANT = "{weights}", MISTAKE = "{mistake}", OMP_NUM_THREADS = "1" }}
[models.{name}.ready]
path = "/health"
[[models.{name}.probes]]
request = {{ method = "POST", path = "/v1/embeddings", json = {{ input = "Is anybody there?" }} }}
expect = {{ status = 200, within = "5s", json = "/data/0/embedding/383" }}
"""
CONFIG = """
[devices.memory]                  # there is no GPU here: a budget of the host's memory stands for one
kind = "host"
memory = "280MiB"
headroom = "0MiB"
{models}
[services.embeddings]
listen = {listen}
model = "e5"
rules = ["error_rate < 5%", "p95 <= 1.35 x stable", "agreement >= 98%"]

[strategies.guarded-demo]         # as `guarded`, in a hurry
kind = "guarded"
steps = [20, 50]
step_time = "6s"
step_deadline = "150s"
[strategies.guarded-demo.shadow]
share = "100%"
time = "6s"
noise = "40%"
compare = "number"
pointer = "/data/0/embedding"
"""


@dataclass(frozen=True, slots=True)
class Release:
    model: str
    what: str
    good: bool
    weights: str = WEIGHTS
    mistake: str = ""


RELEASES = (
    Release("e5-slow", "twice as slow", good=False, mistake="slow"),
    Release("e5-failing", "each tenth request fails", good=False, mistake="failing"),
    Release("e5-wrong", "the wrong weights", good=False, weights="original"),
    Release("e5-next", "as good as the old one", good=True),
)


@dataclass(slots=True)
class Outcome:
    release: Release
    begun_at: float
    ended_at: float
    record: dict[str, Any]

    @property
    def promoted(self) -> bool:
        return self.record["phase"] in ("Soaking", "Succeeded")

    @property
    def as_expected(self) -> bool:
        code = (self.record.get("error") or {}).get("code")
        return self.promoted if self.release.good else code == "ANALYSIS_FAILED"


def config(listen: str) -> str:
    releases = (Release("e5", "", good=True), *RELEASES)
    models = (
        MODEL.format(
            name=each.model,
            app="mistakes:app" if each.mistake else "e5:app",
            models=quoted(MODELS),
            weights=each.weights,
            mistake=each.mistake,
        )
        for each in releases
    )
    return CONFIG.format(models="".join(models), listen=quoted(listen))


def load_spec(address: str, texts: list[str], known: dict[str, Any]) -> LoadSpec:
    requests, answers = {}, {}
    for n, text in enumerate(texts):
        body = json.dumps({"input": text}).encode()
        requests[f"one-{n}"] = http_request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        answers[f"one-{n}"] = {LABEL: base64.b64decode(known["one"][n])}
    interval_s = max(0.05, CLIENTS * known["ms_per_text"] / 1000 / BUSY_SHARE)
    say(f"{CLIENTS} clients embed a text every {duration(interval_s)} each; each answer is compared byte for byte.\n")
    return LoadSpec(address, [ClientGroup("paced", list(requests), CLIENTS, interval_s=interval_s)], requests, answers)


def release(swapd: Swapd, each: Release) -> Outcome:
    say(f"  $ swapd-cli swap embeddings --to {each.model} --strategy guarded-demo      # {each.what}")
    begun_at = time.monotonic()
    begun = swapd.control.call(
        "swap", service="embeddings", to=each.model, strategy="guarded-demo", actor="demo", reason=each.what
    )
    record = settled(swapd, begun["id"])
    outcome = Outcome(each, begun_at, time.monotonic(), record)
    for step in record["steps"]:
        if "%" in step["name"]:
            took = duration((step["ms"] or 0) / 1000)
            say(f"      {step['name']:<12} {step['status']:<8} {took:>7}  {step['detail']}")
    word = "promoted" if outcome.promoted else f"{record['phase']}: {record['reason']}"
    say(f"      {word}" + ("" if outcome.as_expected else "   UNEXPECTED"))
    return outcome


def settled(swapd: Swapd, swap_id: int) -> dict[str, Any]:
    """Promoted, sent back, or waiting for a person: which nobody is here."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        record: dict[str, Any] = swapd.control.call("show", id=swap_id)
        if record["phase"] in (*CLIENTS_SERVED, "Paused"):
            return record
        time.sleep(0.2)
    raise TimeoutError(f"swap {swap_id} has not settled within {PATIENCE_S:g} s")


def draw(path: Path, begun: float, title: str, outcome: Outcome, report: LoadReport) -> None:
    """What clients saw of one release, by who answered."""
    records, stop = report.records, outcome.ended_at + 3.0
    start = max(begun, outcome.begun_at - 3.0)
    names = {side["revision"]: side["model"] for side in (outcome.record["from"], outcome.record["to"])}
    points: dict[str, list[tuple[float, float]]] = {}
    lost: list[tuple[float, float]] = []
    for at, end, revision, result in zip(records.start, records.end, records.revision, records.outcome, strict=True):
        if not start <= at < stop:
            continue
        if result != OK:
            lost.append((at - start, end - at))
        elif revision in names:
            points.setdefault(names[revision], []).append((at - start, end - at))
    zero = outcome.record["created_at"] - (outcome.begun_at - start)
    marks = [
        Mark(s["started_at"] - zero, s["started_at"] + (s["ms"] or 0) / 1000 - zero, s["name"], s["status"])
        for s in outcome.record["steps"]
        if "%" in s["name"]
    ]
    note = f"{outcome.record['reason'][:150]}"
    latency_over_time(path, title, note, [Series(name, points[name]) for name in points], marks, lost)


def main() -> int:
    options = argparse.ArgumentParser(prog="demo.guarded", description=(__doc__ or "").split("\n\n")[1])
    options.add_argument("--out", type=Path, default=ROOT / "demo-out", help="where the pictures and the result go")
    chosen = options.parse_args()
    preflight()
    say("Reading sentences of this machine's documents, and asking the model once what it answers to them ...")
    texts = sentences(TEXTS)
    known = expectations(texts, [], names=(WEIGHTS,))[WEIGHTS]
    listen = f"127.0.0.1:{free_port()}"
    with Swapd(config(listen)) as swapd:
        swapd.wait_healthy()
        with LoadProcess(load_spec(listen, texts, known)) as load:
            load.wait_ready()
            begun = time.monotonic()
            time.sleep(3.0)
            outcomes = [release(swapd, each) for each in RELEASES]
            time.sleep(3.0)
            report = load.stop()
    chosen.out.mkdir(parents=True, exist_ok=True)
    good, bad = outcomes[-1], outcomes[0]
    draw(chosen.out / "guarded-good.svg", begun, "A good model proves itself", good, report)
    draw(chosen.out / "guarded-bad.svg", begun, "A slow model is sent back", bad, report)
    result = {"swaps": [outcome.record for outcome in outcomes], "clients": report.summary}
    (chosen.out / "guarded.json").write_text(json.dumps(result, indent=1) + "\n")
    say(f"\n{len(report.records):,} requests, {report.lost} lost; the pictures are in {chosen.out}")
    wrong = [outcome.release.model for outcome in outcomes if not outcome.as_expected]
    if wrong or report.lost:
        say(f"NOT WELL: judged wrongly: {', '.join(wrong) or 'none'}; errors: {report.summary['errors']}")
        for told in report.summary["notes"][:10]:
            say(f"  {told['at'] - begun:8.3f} s  {told['group']}: {told['kind']} {told['what']}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
