"""How a swap's candidate proves itself, for people: stages, verdicts, contracts, golden requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swapd.cli.text import milliseconds, printable, revision

Record = Mapping[str, Any]


def status_notes(service: Record) -> list[str]:
    """How far the proof of a swap's candidate is, who gets how much meanwhile, and whom it waits for."""
    swap = service.get("swap") or {}
    proof = swap.get("delivery")
    if proof is None:
        return []
    weights = (service.get("split") or {}).get("weights") or {}
    mine = weights.get(str(swap["to"]["revision"]))
    notes = []
    if mine is not None and mine["actual"] is not None and swap["phase"] != "Soaking":
        notes.append(f"{revision(swap['to'])} gets {mine['actual']:.3g} % of the requests ({mine['set']:g} % set)")
    if proof["verdict"] is not None:
        notes.append(f"{proof['verdict']['verdict']}: {printable(proof['verdict']['text'])}")
    if swap["phase"] == "Paused":
        notes += [line.strip() for line in paused_lines(swap)]
    return notes


def delivery_lines(record: Record) -> list[str]:
    """How far the candidate's proof is."""
    proof = record.get("delivery")
    if proof is None or not (proof["stages"] or proof["rules"]):
        return []
    names = [stage["name"] for stage in proof["stages"]]
    now = min(proof["stage"], len(names))
    where = f"{now + 1} of {len(names)}: {names[now]}" if now < len(names) else "all over" if names else "none"
    lines = [f"stages    {where}" + (f" ({', '.join(names)})" if len(names) > 1 else "")] if names else []
    lines += [f"rules     {', '.join(printable(rule) for rule in proof['rules'])}"] if proof["rules"] else []
    verdict = proof["verdict"]
    return lines + ([f"verdict   {verdict['verdict']}: {printable(verdict['text'])}"] if verdict else [])


def contract_lines(record: Record) -> list[str]:
    """By what clients may break, be it allowed or what the swap failed by; and the golden requests."""
    breaks, golden = record.get("differences") or [], record.get("golden")
    allowed = "allowed: " if record.get("allow_breaking") else ""
    lines = [f"{'contract' if not n else '':<9} {allowed}{printable(text)}" for n, text in enumerate(breaks)]
    if golden:
        lines.append(f"golden    {golden_words(golden)}")
        lines += [f"{'':<9} {printable(text)}" for text in golden["differences"]]
    return lines


def golden_words(golden: Record) -> str:
    """40 requests: 39 answered rightly, 1 wrongly, p50 12 ms, p95 20 ms, slowest 31 ms"""
    asked = golden["right"] + golden["wrong"]
    counts = [f"{golden['right']} answered rightly", f"{golden['wrong']} wrongly"]
    counts += [f"{golden['requests'] - asked} not asked"] if asked < golden["requests"] else []
    times = [(name, golden[f"{name}_ms"]) for name in ("p50", "p95", "slowest")]
    told = [f"{name} {milliseconds(ms)}" for name, ms in times if ms is not None]
    return f"{golden['requests']} requests: {', '.join(counts + told)}"


def paused_lines(record: Record) -> list[str]:
    """What it waits for, and what may be done."""
    name, proof = printable(record["service"]), record.get("delivery") or {}
    verbs = (possible.split(" ") for possible in proof.get("possible") or ("resume", "promote", "cancel"))
    ways = (" ".join(["  swapd-cli", verb, name, *options]) for verb, *options in verbs)
    return [f"paused: {printable(record['reason'])}", *ways]
