"""How a swap's steps are folded from its record and its events, and shown."""

from __future__ import annotations

import io

from support.control_values import swap_record

from swapd.cli.render import Output
from swapd.cli.watch import Steps, Watch, running_line


def step(name: str, status: str = "running", ms: float | None = None) -> dict:
    return {"event": "swap.step", "step": name, "status": status, "ms": ms, "detail": ""}


def progress(name: str, done: float, total: float | None, unit: str) -> dict:
    return {"event": "swap.progress", "step": name, "done": done, "total": total, "unit": unit}


def test_a_step_runs_and_ends():
    steps = Steps(swap_record(steps=[]), 0.0)
    steps.take(step("load"), 1.0)
    assert running_line(steps.steps[0], 4.1) == "load      running      3.1 s"
    steps.take(step("load", "done", 1234.0), 5.0)
    assert [(s.name, s.status, s.ms) for s in steps.steps] == [("load", "done", 1234.0)]


def test_progress_shows_bytes_and_counts():
    steps = Steps(swap_record(steps=[]), 0.0)
    steps.take(step("load"), 0.0)
    steps.take(progress("load", 2 << 30, 6 << 30, "bytes"), 1.0)
    assert running_line(steps.steps[0], 2.0).endswith("2.0 s  2.0 GiB of 6.0 GiB")
    steps.take(step("warm"), 2.0)
    steps.take(progress("warm", 3, 8, "requests"), 3.0)
    assert running_line(steps.steps[1], 3.0).endswith("3 of 8 requests")
    steps.take(progress("verify", 1, None, ""), 3.0)  # of a step that is not running: nothing to show it at
    assert len(steps.steps) == 2


def test_a_step_that_comes_twice_is_shown_twice():
    steps = Steps(swap_record(steps=[]), 0.0)
    for _ in range(2):
        steps.take(step("switch"), 0.0)
        steps.take(step("switch", "done", 1.0), 0.0)
    assert [s.name for s in steps.steps] == ["switch", "switch"]


def test_the_record_corrects_what_events_missed():
    steps = Steps(swap_record(steps=[]), 0.0)
    steps.take(step("start"), 0.0)
    steps.correct(swap_record(), 1.0)
    assert [(s.name, s.status, s.ms) for s in steps.steps] == [("start", "done", 120.0), ("load", "done", 1234.0)]


def test_in_a_pipe_each_step_is_told_once_when_it_has_ended():
    told = io.StringIO()
    watch = Watch(Output(told), swap_record(steps=[]))
    for event in (step("start"), step("start", "done", 120.0), step("load"), progress("load", 1, 2, "bytes")):
        watch._hear(event)
    assert told.getvalue() == "start     ok          120 ms\n"
    watch._hear(step("load", "failed"))
    assert told.getvalue().splitlines()[1] == "load      failed"


def test_the_soak_is_no_step_to_wait_for():
    watch = Watch(Output(io.StringIO()), swap_record(steps=[]))
    watch._hear(step("soak"))
    assert watch.lines() == []
