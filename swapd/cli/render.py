"""The daemon's answers as tables and sentences.

Duty: records in, lines out. On a terminal in columns that rich fits to its width, in a pipe as plain columns of full
width. It asks nobody and decides nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from swapd.cli import proofs, text
from swapd.cli.plan_page import strategy_words
from swapd.cli.text import NONE, clock, count, gib, milliseconds, printable, revision, seconds, when
from swapd.core.errors import CANCELED, CRASH_LOOP

Record = Mapping[str, Any]

STEP_CHARS = 15  # "restore: switch"
BACKWARD = ("RollingBack", "Canceled")  # a return answers with the swap that it undoes, in one of these

_STYLES = {
    **dict.fromkeys(("Healthy", "Serving", "Succeeded", "ok", "done"), "green"),
    **dict.fromkeys(("Degraded", "Soaking", "Progressing", "Preparing", "RollingBack", "running"), "yellow"),
    **dict.fromkeys(("Holding", "Unknown"), "yellow"),
    **dict.fromkeys(("Unavailable", "Down", "Failed", "failed", "Canceled", "canceled"), "red"),
}


class Output:
    """Where the lines go. `live` is whether somebody looks at a terminal that can be redrawn."""

    def __init__(self, file: TextIO | None = None) -> None:
        self.file = file or sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - stdout may be closed: `>&-`
        self.live = self.file.isatty()

    def line(self, line: str = "") -> None:
        print(line, file=self.file, flush=True)

    def lines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.line(line)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        if not self.live:
            self.lines(text.columns(header, rows))
            return
        from rich.console import Console  # late: it takes a tenth of a second, which a pipe need not wait for

        Console(file=self.file, highlight=False).print(rich_table(header, rows))


def rich_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell.split(" ")[0], "")) for cell in row))
    return table


# --- status ------------------------------------------------------------------------------------------------------

STATUS_HEADER = ("SERVICE", "HEALTH", "MODEL", "SWAP", "ROLLBACK", "REQUESTS", "IN FLIGHT", "LISTEN")


def status_rows(status: Record, now_s: float) -> list[list[str]]:
    return [_status_row(service, now_s) for service in status["services"]]


def _status_row(service: Record, now_s: float) -> list[str]:
    listen = service["listen"]
    held = service.get("held")
    waiting = f" ({held} held)" if held else " (held)" if service.get("holding") else ""
    return [
        printable(service["name"]),
        service["health"],
        revision({"model": service["model"] or NONE, "revision": service["revision"]}),
        _swap_cell(service, now_s),
        count(service["rollback"]),
        count(service["requests"]),
        count(service["in_flight"]) + waiting,
        printable(", ".join(listen) if isinstance(listen, list) else listen),
    ]


def _swap_cell(service: Record, now_s: float) -> str:
    swap, soak = service.get("swap"), service.get("soak")
    if soak:
        kept = {"instant": " kept", "parked": " parked"}.get(service["rollback"])
        return f"Soaking until {clock(soak['until'], now_s)}" + (
            f", {revision(soak['previous'])}{kept}" if kept else ""
        )
    if swap and swap["phase"] not in ("Succeeded", "Failed", "Canceled"):
        running = [step["name"] for step in swap["steps"] if step["status"] == "running"]
        return f"{swap['phase']} to {revision(swap['to'])}" + (f": {running[-1]}" if running else "")
    return NONE


def status_head(status: Record) -> str:
    daemon = status["daemon"]
    if daemon.get("offline"):
        return printable(f"{_daemon_unasked(daemon)}; by its journal and its workers, {daemon['config']}")
    up = seconds(daemon["uptime_s"]).split(".")[0]
    up = up if " " in up else f"{up} s"
    stopping = ", stopping" if daemon.get("stopping") else ""
    return printable(f"swapd {daemon['version']}, pid {daemon['pid']}, up {up}, {daemon['config']}{stopping}")


def _daemon_unasked(daemon: Record) -> str:
    """What `--offline` knows of it."""
    if not daemon["running"]:
        return "swapd is not running"
    return f"swapd, pid {daemon['pid']}, " + ("is stopped (SIGSTOP)" if daemon["stopped"] else "is there")


def status_notes(status: Record, now_s: float) -> list[str]:
    notes = [f"swapd: {printable(status['daemon']['journal'])}"] if status["daemon"].get("journal") else []
    notes += [f"config: {printable(each)}" for each in status["daemon"].get("config_problems", ())]
    for service in status["services"]:
        name = printable(service["name"])
        if service.get("drift"):
            notes.append(f"{name}: {printable(service['drift'])}")
        if service.get("problem"):
            notes.append(f"{name}: {problem_words(service, now_s)}")
        for each in service.get("device_troubles", ()):
            notes.append(f"{name}: {printable(each['device'])} is {each['state']}: {printable(each['trouble'])}")
        if service.get("note"):
            notes.append(f"{name}: {printable(service['note'])}")
        notes += [f"{name}: {each}" for each in proofs.status_notes(service)]
    return notes


def problem_words(service: Record, now_s: float) -> str:
    """What is wrong, and when it is tried again. A time that has come means that the attempt is under way."""
    again = service.get("retry_at")
    retry = "" if not again else "; being tried now" if again <= now_s else f"; next attempt at {when(again, now_s)}"
    return text.problem(service["problem"]) + retry


def who_serves(service: Record) -> str:
    if (service.get("problem") or {}).get("code") == CRASH_LOOP:
        return "its clients get 503"
    return "its clients wait" if service["holding"] else f"{printable(service['model'])} serves"


def service_line(service: Record, now_s: float) -> str:
    """chat: Healthy, a serves"""
    problem = f": {problem_words(service, now_s)}" if service.get("problem") else ""
    return f"{printable(service['name'])}: {service['health']}, {who_serves(service)}{problem}"


# --- devices and workers -----------------------------------------------------------------------------------------

DEVICES_HEADER = ("DEVICE", "KIND", "TOTAL", "FREE", "RESERVED", "HEADROOM", "AVAILABLE", "DETAIL")
WORKERS_HEADER = (
    *("WORKER", "MODEL", "ROLE", "STATE", "PID", "DEVICE", "RESERVED", "USED", "UP", "IN FLIGHT", "CONNECTIONS"),
)


def device_rows(devices: Sequence[Record]) -> list[list[str]]:
    sizes = ("total_bytes", "free_bytes", "reserved_bytes", "headroom_bytes", "available_bytes")
    return [
        [printable(d["name"]), d["kind"], *(gib(d[size]) for size in sizes), printable(d["detail"] or NONE)]
        for d in devices
    ]


def device_notes(devices: Sequence[Record]) -> list[str]:
    """Who is on each device, ours and others."""
    notes = []
    for device in devices:
        users = [
            text.kept_words(w)
            if text.is_kept(w)
            else f"{w['id']} {gib(w['used_bytes'])} of {gib(w['reserved_bytes'])} reserved"
            for w in device["workers"]
        ]
        users += [f"pid {f['pid']} {printable(f['name'])} {gib(f['bytes'])}, not swapd's" for f in device["foreign"]]
        notes += [f"{printable(device['name'])}: {user}" for user in users]
    return notes


def worker_rows(workers: Sequence[Record]) -> list[list[str]]:
    return [
        [
            printable(w["id"]),
            revision({"model": w["model"], "revision": w["revision"]}) if w["model"] else NONE,
            count(w["role"]),
            w["state"],
            count(w["pid"]),
            text.devices(w),
            text.on_each(w, w["reserved_bytes"]),
            text.on_each(w, w["used_bytes"]),
            seconds(w["uptime_s"]),
            count(w["in_flight"]),
            count(w["connections"]),
        ]
        for w in workers
    ]


# --- swaps -------------------------------------------------------------------------------------------------------

HISTORY_HEADER = (
    "ID",
    "SERVICE",
    "FROM",
    "TO",
    "STRATEGY",
    "PHASE",
    "CLIENTS WAITED",
    "CUTOVER",
    "CUT",
    "ACTOR",
    "WHEN",
    "REASON",
)


def history_rows(history: Sequence[Record], now_s: float) -> list[list[str]]:
    return [
        [
            str(r["id"]),
            printable(r["service"]),
            revision(r["from"]),
            revision(r["to"]),
            r["strategy"],
            r["phase"],
            _waited(r),
            _cutover(r),
            str(r["cut_requests"] or 0),
            printable(r["actor"]),
            when(r["created_at"], now_s),
            printable(_reason(r)),
        ]
        for r in history
    ]


WAYS = ("", "return_")  # forth, and the way back to the old revision


def _held_ms(record: Record, way: str) -> float | None:
    """How long clients were held; None where nobody was: the outage is the cutover's own then."""
    outage: float | None = record.get(f"{way}outage_ms")
    return None if outage == record.get(f"{way}cutover_ms") else outage


def _waited(record: Record) -> str:
    """The longest that clients were held, on the way forth or back."""
    held = [ms for way in WAYS if (ms := _held_ms(record, way)) is not None]
    return milliseconds(max(held)) if held else NONE


def _cutover(record: Record) -> str:
    """How long the switch took; of a swap that went back before it, the switch back."""
    took = [ms for way in WAYS if (ms := record.get(f"{way}cutover_ms")) is not None]
    return milliseconds(took[0]) if took else NONE


def _reason(record: Record) -> str:
    error = record.get("error")
    return str((error and error.get("message")) or record.get("reason") or record.get("asked_reason") or NONE)


def step_line(step: Record) -> str:
    """load             ok           1.2 s  (detail)"""
    words = {"done": "ok"}
    took = milliseconds(step["ms"]) if step.get("ms") is not None else ""
    detail = f"  {printable(step['detail'])}" if step.get("detail") else ""
    status = words.get(step["status"], step["status"])
    return f"{printable(step['name']):<{STEP_CHARS}} {status:<8} {took:>9}{detail}".rstrip()


def swap_lines(record: Record, now_s: float) -> list[str]:
    """Everything about one swap: `show`."""
    asked = f": {printable(record['asked_reason'])}" if record.get("asked_reason") else ""
    reason = f", {printable(record['reason'])}" if record.get("reason") else ""
    lines = [
        f"swap {record['id']}  {printable(record['service'])}: {revision(record['from'])} to {revision(record['to'])}",
        f"phase     {record['phase']}{reason}",
        f"strategy  {strategy_words(record)}",
        f"asked     {when(record['created_at'], now_s)} by {printable(record['actor'])}{asked}",
    ]
    if record.get("finished_at"):
        lines.append(f"finished  {when(record['finished_at'], now_s)}")
    if record.get("soak_until") and record["phase"] == "Soaking":
        lines.append(
            f"soak      until {when(record['soak_until'], now_s)}, {revision(record['from'])} {record['kept']}"
        )
    lines.append(f"clients   {_client_words(record)}")
    lines += proofs.delivery_lines(record)
    lines += proofs.contract_lines(record)
    for device, peak in (record.get("peak_memory_bytes") or {}).items():
        lines.append(f"peak      {gib(peak)} in use on {printable(device)}, by everything there")
    lines += ["", *(step_line(step) for step in record["steps"])] if record["steps"] else []
    return [*lines, *(["", *failure_lines(record)] if record.get("error") else [])]


def _client_words(record: Record) -> str:
    words = _wait_words(record, "")
    back = _wait_words(record, "return_")
    if back:
        words.append("on the way back " + ", ".join(back))
    words.append(f"{record['cut_requests'] or 'no'} requests cut")
    if record["refused_requests"]:
        words.append(f"{record['refused_requests']} answered 503 while they waited")
    return ", ".join(words)


def _wait_words(record: Record, way: str) -> list[str]:
    held, cutover = _held_ms(record, way), record.get(f"{way}cutover_ms")
    words = [f"waited {milliseconds(held)}"] if held is not None else []
    return words + ([f"cutover {milliseconds(cutover)}"] if cutover is not None else [])


def headline(record: Record) -> str:
    """swap 42  chat: a #41 to b #42, dual: why"""
    head = f"swap {record['id']}  {printable(record['service'])}: "
    if record["phase"] not in BACKWARD:
        return f"{head}{revision(record['from'])} to {revision(record['to'])}, {strategy_words(record)}"
    if _clients_moved(record):
        return f"{head}{revision(record['to'])} back to {revision(record['from'])}"
    word = "canceled" if (record.get("error") or {}).get("code") == CANCELED else "failed"
    return f"{head}{word}; " + (
        f"{revision(record['from'])} goes on serving" if record["from"] else "no model served before"
    )


def _clients_moved(record: Record) -> bool:
    """They were held or switched, or might have been: before that, the old revision has never stopped to serve."""
    return record.get("cutover_ms") is not None or any(step["name"] in ("hold", "switch") for step in record["steps"])


def success_line(record: Record, now_s: float) -> str:
    """b serves; a kept until 14:32 (cutover 0.8 ms)"""
    if (record.get("delivery") or {}).get("rehearsal"):
        return f"{printable(record['to']['model'])}: {printable(record['reason'])}"
    kept = {"resident": "kept", "parked": "parked"}.get(record.get("kept") or "")
    words = f"{printable(record['to']['model'])} serves"
    if record["from"] and kept:
        words += f"; {printable(record['from']['model'])} {kept} until {clock(record['soak_until'], now_s)}"
    held, cutover = _held_ms(record, ""), record.get("cutover_ms")
    figures = [f"outage {milliseconds(held)}"] if held is not None else []
    if cutover is not None and held is None:
        figures.append(f"cutover {milliseconds(cutover)}")
    if record["cut_requests"]:
        figures.append(f"{record['cut_requests']} requests cut")
    return words + (f" ({', '.join(figures)})" if figures else "")


def failure_lines(record: Record) -> list[str]:
    """Which step failed, why, and what the candidate wrote last."""
    error = record.get("error") or {}
    where = f" in {error['step']}" if error.get("step") else ""
    if error:
        lines = [f"swap {record['id']} {record['phase'].lower()}{where}: {text.problem(error)}"]
    else:
        why = f": {printable(record['reason'])}" if record.get("reason") else ""
        lines = [f"swap {record['id']} {record['phase'].lower()}{where}{why}"]
    log_tail = error.get("log_tail") or []
    if log_tail:
        lines += [f"the last lines of {printable(record['to']['model'])}:", *(f"  | {printable(x)}" for x in log_tail)]
    return lines
