"""`swapd-cli doctor`: what is wrong, in a screenful for each service, and the command to try next."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from swapd.cli import render, text
from swapd.cli.bundle import write_bundle
from swapd.cli.facts import Gathering
from swapd.cli.render import Output
from swapd.cli.text import count, gib, is_kept, kept_words, printable, revision, seconds, when
from swapd.core.diagnosis import Facts, Finding, Host, Severity, diagnose, is_wrong

NOTHING_WRONG: Final = 0
SOMETHING_FOUND: Final = 1
FINISHED: Final = ("Succeeded", "Failed", "Canceled")

Record = Mapping[str, Any]


def doctor(arguments: argparse.Namespace, output: Output) -> int:
    """The exit status: 0 nothing wrong, 1 something found. Raises SwapdError."""
    with Gathering(arguments.connect, arguments.config) as gathering:
        facts = gathering.facts(arguments.service)
        findings = diagnose(facts)
        told = gathering.redactor.value({"findings": [finding_record(f) for f in findings], **asdict(facts)})
        if arguments.json:
            output.line(json.dumps(told, indent=2, ensure_ascii=False, default=str))
        else:
            output.lines(gathering.redactor.text(line) for line in doctor_lines(facts, findings))
        if arguments.bundle:
            path = Path(arguments.bundle)
            write_bundle(path, gathering, told, list(doctor_lines(facts, findings)))
            if not arguments.json:
                output.line(f"\n{path}: all of the above, the configuration, the journal and the logs, without secrets")
    return SOMETHING_FOUND if is_wrong(findings) else NOTHING_WRONG


def finding_record(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "severity": finding.severity.value}


def doctor_lines(facts: Facts, findings: Sequence[Finding]) -> Iterator[str]:
    yield render.status_head(facts.status)
    for service in facts.status["services"]:
        yield ""
        yield from _service_lines(facts, service)
    if facts.devices:
        yield ""
        yield from _memory_lines(facts.devices)
    yield ""
    yield from _host_lines(facts.host)
    yield ""
    yield from _finding_lines(findings)


# --- a service -----------------------------------------------------------------------------------------------------


def _service_lines(facts: Facts, service: Record) -> Iterator[str]:
    name = service["name"]
    yield render.service_line(service, facts.at)
    yield f"  address    {printable(', '.join(service['listen']))}"
    for worker in facts.workers:
        if worker["service"] == name:
            yield f"  worker     {_worker_words(worker)}"
    swap = facts.swaps.get(name)
    if swap is not None:
        yield f"  last swap  {_swap_words(swap, facts.at)}"
        yield from (f"    {render.step_line(step)}" for step in _steps_that_matter(swap))
        if swap.get("error"):
            yield f"  because    {text.problem(swap['error'])}"
            yield from (f"    | {printable(line)}" for line in swap["error"].get("log_tail", [])[-6:])
    if name in facts.logs:
        worker_id, lines = facts.logs[name]
        yield f"  log        {printable(worker_id)}, its last lines:"
        yield from (f"    | {printable(line)}" for line in lines)


def _worker_words(worker: Record) -> str:
    what = revision({"model": worker["model"], "revision": worker["revision"]}) if worker["model"] else "gate"
    figures = [f"pid {count(worker['pid'])}", f"up {seconds(worker['uptime_s'])}"]
    figures += [f"{worker['in_flight']} in flight"] if worker["in_flight"] is not None else []
    held = f", {text.on_each(worker, worker['used_bytes'])} on {text.devices(worker)}" if worker["device"] else ""
    return f"{printable(worker['id'])}  {what}, {count(worker['role'])}, {worker['state']}: {', '.join(figures)}{held}"


def _swap_words(swap: Record, now_s: float) -> str:
    by = f"{when(swap['created_at'], now_s)} by {printable(swap['actor'])}"
    return (
        f"{swap['id']}  {revision(swap['from'])} to {revision(swap['to'])}, {swap['strategy']}, {swap['phase']}, {by}"
    )


def _steps_that_matter(swap: Record) -> list[Record]:
    """What failed; of a swap that is under way, what it does now."""
    wanted = ("failed",) if swap["phase"] in FINISHED else ("failed", "running")
    return [step for step in swap["steps"] if step["status"] in wanted]


# --- memory, host, findings ----------------------------------------------------------------------------------------


def _memory_lines(devices: Sequence[Record]) -> Iterator[str]:
    yield "device memory"
    for device in devices:
        free = f"{gib(device['free_bytes'])} of {gib(device['total_bytes'])} free"
        yield f"  {printable(device['name'])}  {free}  {printable(device['detail'] or '')}".rstrip()
        yield from (f"    {note}" for note in _holders(device))


def _holders(device: Record) -> Iterator[str]:
    for worker in device["workers"]:
        if is_kept(worker):
            yield kept_words(worker)
            continue
        of = f" of {gib(worker['reserved_bytes'])} reserved" if worker["reserved_bytes"] is not None else ""
        yield f"{printable(worker['id'])} {gib(worker['used_bytes'])}{of}"
    for foreign in device["foreign"]:
        yield f"pid {foreign['pid']} {printable(foreign['name'])} {gib(foreign['bytes'])}, not swapd's"


def _host_lines(host: Host) -> Iterator[str]:
    yield "host"
    driver = f", NVIDIA driver {host.driver}" if host.driver else ""
    yield f"  kernel     {host.kernel}{driver}, up {seconds(host.up_s)}"
    unit = (
        f"{host.unit} is {host.unit_state}, started again {count(host.unit_restarts)} times" if host.unit else "no unit"
    )
    yield f"  systemd    {unit if host.systemd else 'none'}"
    yield f"  files      {count(host.open_files)} open of {count(host.max_files)}"
    for disk in host.disks:
        only = ", read-only" if disk.read_only else ""
        yield f"  disk       {printable(disk.path)}: {gib(disk.free_bytes)} of {gib(disk.total_bytes)} free{only}"
    words = {True: "synchronized", False: "not synchronized", None: text.UNKNOWN}
    yield f"  clock      {words[host.clock_synchronized]}"
    if host.daemon_log:
        yield "  swapd's own last lines:"
        yield from (f"    | {printable(line)}" for line in host.daemon_log)


def _finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    if not is_wrong(findings):
        yield "nothing wrong was found"
    for finding in findings:
        word = finding.severity.value
        yield f"{word.upper() if finding.severity is Severity.PROBLEM else word}: {printable(finding.what)}"
        yield f"  try: {printable(finding.try_next)}"
