"""A plan as a page: which memory there is and whose, why so, what clients will notice, and the way back. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from swapd.cli.text import UNKNOWN, is_kept, kept_words, printable, revision, seconds
from swapd.core.outage import not_counted
from swapd.core.sizes import human_bytes, human_seconds

Record = Mapping[str, Any]

_TERMS = (("drain_s", "drain"), ("release_s", "release"), ("load_s", "load"), ("warm_s", "warm-up and probes"))


def plan_lines(plan: Record) -> list[str]:
    return [f"{printable(plan['service'])}: {revision(plan['from'])} to {revision(plan['to'])}", *_sections(plan)]


def strategy_words(record: Record) -> str:
    """The strategy and why, which often begins with the strategy itself."""
    strategy, why = record["strategy"], printable(record["why"])
    return why if why.startswith(strategy) else f"{strategy}: {why}"


def _other_words(other: Record) -> str:
    """possible: in-place on gpu0: ... / dual impossible on gpu0: ..."""
    words = strategy_words(other)
    if other["possible"]:
        return f"possible: {words}"
    return words if words == printable(other["why"]) else f"impossible: {words}"


def _sections(plan: Record) -> Iterator[str]:
    """Each with its name before the first line."""
    yield from _section("strategy", [strategy_words(plan)])
    yield from _section("device", _device_lines(plan))
    yield from _section("needs", [_need_words(plan), *_forecast_words(plan.get("last_forecast"))])
    yield from _section("outage", [_outage_words(plan), *_term_words(plan.get("outage_terms"))])
    yield from _section("streams", [_stream_words(plan)])
    yield from _section("rollback", [_rollback_words(plan)])
    if plan.get("flags"):
        yield from _section("adds", [printable(" ".join(plan["flags"]))])
    if plan.get("differences"):
        yield from _section("breaks", [printable(text) for text in plan["differences"]])
    if plan.get("golden"):
        yield from _section("golden", [f"{plan['golden']} requests with expected answers, before clients come"])
    if plan.get("probes") == 0:
        model = printable(plan["to"]["model"])
        yield from _section("proof", [f"none: model {model} has no probes, see [[models.{model}.probes]]"])
    for other in plan["alternatives"]:
        if other["why"] not in plan["why"]:  # what was passed over is told there
            yield from _section("or", [_other_words(other)])
    for change in plan["would_change"]:
        yield from _section("change", [printable(change)])


def _section(name: str, lines: list[str]) -> list[str]:
    return [f"{name if number == 0 else '':<9} {line}" for number, line in enumerate(lines)]


# --- memory ------------------------------------------------------------------------------------------------------


def _device_lines(plan: Record) -> list[str]:
    """The chosen devices in full; of the others that there are a line each."""
    devices = plan.get("memory") or []
    chosen = [device for device in devices if device["name"] in (plan.get("devices") or [plan["device"]])]
    lines = [line for device in chosen for line in (_totals(device), *_holders(device))]
    if chosen:
        lines.append(_room_words(plan))
    lines += [f"{_totals(d)}, {_size(d['available_bytes'], down=True)} available" for d in devices if d not in chosen]
    return lines


def _totals(device: Record) -> str:
    return (
        f"{printable(device['name'])}: {_size(device['total_bytes'])}, {_size(device['free_bytes'])} free,"
        f" headroom {_size(device['headroom_bytes'])}"
    )


def _holders(device: Record) -> list[str]:
    lines = []
    for worker in device["workers"]:
        if is_kept(worker):
            lines.append(kept_words(worker))
            continue
        name = f"{printable(worker['model'])} ({worker['id']})" if worker.get("model") else printable(worker["id"])
        lines.append(f"{name}: {_size(worker['reserved_bytes'])} promised, {_size(worker['used_bytes'])} held")
    return lines + [
        f"{printable(f['name'])} (pid {f['pid']}): {_size(f['bytes'])} held, not swapd's" for f in device["foreign"]
    ]


def _room_words(plan: Record) -> str:
    """2.5 GiB available now, 22.5 GiB at the load, 16.5 GiB after it"""
    now, then, after = (plan.get(f"available_{when}bytes") for when in ("", "then_", "after_"))
    words = [f"{_size(now, down=True)} available now"]
    if then is not None and then != now:
        words.append(f"{_size(then, down=True)} at the load")
    if after is not None:
        words.append(f"{_size(after, down=True)} after it")
    return ", ".join(words)


def _size(size_bytes: Any, *, up: bool = False, down: bool = False) -> str:
    """In the figures of the reasons. Rounded so that none contradicts the decision."""
    return human_bytes(size_bytes, up=up, down=down) if isinstance(size_bytes, int) else UNKNOWN


def _need_words(plan: Record) -> str:
    detail = f": {printable(plan['need_detail'])}" if plan.get("need_detail") else ""
    devices = plan.get("devices") or [plan["device"] or "no device"]
    where = f"each of {', '.join(devices)}" if len(devices) > 1 else devices[0]
    return f"{_size(plan['need_bytes'], up=True)} on {printable(where)}, {plan['need_source']}{detail}"


def _forecast_words(last: Record | None) -> list[str]:
    """How right the plan before the last load was."""
    if not last:
        return []
    planned, seen = last["planned_bytes"], last["seen_bytes"]
    off = f"{abs(planned - seen) / max(seen, 1):.0%} too {'much' if planned >= seen else 'little'}"
    return [f"last time {_size(planned, up=True)} was planned ({last['source']}) and {_size(seen)} taken: {off}"]


# --- what clients will notice ------------------------------------------------------------------------------------


def _outage_words(plan: Record) -> str:
    outage, hold = plan["expected_outage_s"], plan["hold_timeout_s"]
    if outage is None:
        return f"unknown; clients who wait longer than {human_seconds(hold)} (hold_timeout) get 503"
    if outage == 0:
        return "none expected"
    too_long = (
        f", longer than hold_timeout ({human_seconds(hold)}): clients get 503 from then on" if outage > hold else ""
    )
    terms = plan.get("outage_terms")
    return human_seconds(outage) + (not_counted(terms["release_s"]) if terms else "") + too_long


def _term_words(terms: Record | None) -> list[str]:
    """drain 0 ms at most, release 1.2 s, load 9.4 s, warm-up and probes 0.3 s"""
    if not terms:
        return []
    words = []
    for key, name in _TERMS:
        known = terms[key]
        most = " at most" if key == "drain_s" and known else ""
        words.append(f"{name} {'not known' if known is None else human_seconds(known)}{most}")
    return [", ".join(words)]


def _stream_words(plan: Record) -> str:
    if plan["open_streams"] is None:
        return "unknown"
    longest = plan["longest_stream_s"]
    return f"{plan['open_streams']} open" + (f", which may go on for {seconds(longest)}" if longest else "")


def _rollback_words(plan: Record) -> str:
    """parked, 800 ms, until the soak ends (10 min), then cold, 11 s"""
    words, later = _way(plan["rollback"], plan["rollback_s"]), plan.get("rollback_later")
    if later is None or later == plan["rollback"] or not plan.get("soak_s"):
        return words
    return (
        f"{words}, until the soak ends ({human_seconds(plan['soak_s'])}), then {_way(later, plan['rollback_later_s'])}"
    )


def _way(kind: str, takes_s: float | None) -> str:
    return kind + (f", {human_seconds(takes_s)}" if takes_s else "")
