"""How a swap's steps are folded from its record and its events, and shown."""

from __future__ import annotations

import io
from typing import Any

from support.control_values import swap_record

from swapd.cli.render import Output
from swapd.cli.watch import Steps, Watch, running_line


def step(name: str, status: str = "running", ms: float | None = None) -> dict[str, Any]:
    return {"name": name, "status": status, "started_at": 0.0, "ms": ms, "detail": ""}


def record(*steps: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return swap_record(steps=list(steps), **changes)


def progress(name: str, done: float, total: float | None, unit: str) -> dict[str, Any]:
    return {"event": "swap.progress", "step": name, "done": done, "total": total, "unit": unit}


def test_a_running_step_shows_since_when():
    steps = Steps(record(), 0.0)
    steps.correct(record(step("load")), 1.0)
    steps.correct(record(step("load")), 3.0)
    assert running_line(steps.steps[0], 4.1) == "load            running      3.1 s"
    steps.correct(record(step("load", "done", 1234.0)), 5.0)
    assert [(s.name, s.status, s.ms) for s in steps.steps] == [("load", "done", 1234.0)]


def test_progress_shows_bytes_and_counts():
    steps = Steps(record(step("load"), step("warm")), 0.0)
    steps.progress(progress("load", 2 << 30, 6 << 30, "bytes"))
    assert running_line(steps.steps[0], 2.0).endswith("2.0 s  2.0 GiB of 6.0 GiB")
    steps.progress(progress("warm", 3, 8, "requests"))
    assert running_line(steps.steps[1], 3.0).endswith("3 of 8 requests")
    steps.progress(progress("warm", 3, None, ""))
    assert running_line(steps.steps[1], 3.0).endswith("3.0 s  3")


def test_progress_of_a_step_that_is_not_running_is_nothing_to_show():
    steps = Steps(record(step("load", "done", 1.0)), 0.0)
    steps.progress(progress("load", 1, 2, "bytes"))
    steps.progress(progress("verify", 1, 2, "bytes"))
    assert [(s.name, s.done) for s in steps.steps] == [("load", None)]


def test_in_a_pipe_each_step_is_told_once_when_it_has_ended():
    told = io.StringIO()
    watch = Watch(Output(told), record())
    for _ in range(2):
        watch.see(record(step("start")))
        watch.see(record(step("start", "done", 120.0), step("load")))
    assert told.getvalue() == "start           ok          120 ms\n"
    watch.see(record(step("start", "done", 120.0), step("load", "failed"), step("restore: start")))
    assert told.getvalue().splitlines()[1:] == ["load            failed"]


def test_the_soak_is_no_step_to_wait_for():
    watch = Watch(Output(io.StringIO()), record())
    watch.see(record(step("soak")))
    assert watch.lines() == []


def test_on_the_way_back_the_way_forth_is_not_told_again():
    forth = [step("load", "done", 1.0), step("switch", "done", 1.0), step("soak", "canceled", 1.0)]
    watch = Watch(Output(io.StringIO()), record(*forth, phase="RollingBack"))
    watch.see(record(*forth, step("switch", "done", 2.0), phase="RollingBack"))
    assert watch.lines() == ["switch          ok          2.0 ms"]
