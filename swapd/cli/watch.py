"""A swap while it goes on: its steps, drawn in place on a terminal, or a line for each that has ended.

Duty: show the steps, and wait. What a swap's end means is `verbs`' to say.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from swapd.cli.render import BACKWARD, STEP_CHARS, Output, step_line
from swapd.cli.text import gib, printable, seconds
from swapd.client import Client, SwapdError

REDRAWS_PER_S = 8


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    status: str
    ms: float | None = None
    detail: str = ""
    began_s: float | None = None  # by this process's monotonic clock: the daemon's may differ, over ssh
    done: float | None = None
    total: float | None = None
    unit: str = ""

    @property
    def ended(self) -> bool:
        return self.status != "running"


class Steps:
    """The steps of one swap. The record tells them; events only say when to look, and how far a step has come: told
    again after a gap, or older than the record, they would show a step twice."""

    def __init__(self, record: Mapping[str, Any], clock_s: float) -> None:
        self.steps: list[Step] = []
        self.correct(record, clock_s)

    def correct(self, record: Mapping[str, Any], clock_s: float) -> None:
        known = self.steps
        self.steps = []
        for index, told in enumerate(record["steps"]):
            step = Step(told["name"], told["status"], told.get("ms"), told.get("detail") or "", clock_s)
            if index < len(known) and known[index].name == step.name:
                step = replace(known[index], status=step.status, ms=step.ms, detail=step.detail)
            self.steps.append(step)

    def progress(self, event: Mapping[str, Any]) -> None:
        """A step may come twice in one swap (the switch, and the switch back): only one of them is running."""
        for index, step in enumerate(self.steps):
            if step.name == event["step"] and not step.ended:
                done, total, unit = event.get("done"), event.get("total"), event.get("unit") or ""
                self.steps[index] = replace(step, done=done, total=total, unit=unit)


def running_line(step: Step, clock_s: float) -> str:
    """load             running      3.1 s  2.0 GiB of 6.0 GiB"""
    took = seconds(clock_s - step.began_s) if step.began_s is not None else ""
    return f"{printable(step.name):<{STEP_CHARS}} {'running':<8} {took:>9}  {_progress(step)}".rstrip()


def _progress(step: Step) -> str:
    if step.done is None:
        return ""
    if step.unit == "bytes":
        return gib(step.done) + (f" of {gib(step.total)}" if step.total else "")
    unit = f" {printable(step.unit)}" if step.unit else ""
    return f"{step.done:g}" + (f" of {step.total:g}" if step.total else "") + unit


class Watch:
    """Shows a swap's steps while `client.wait_swap` waits. The soak is left out: it begins when the wait ends."""

    def __init__(self, output: Output, record: Mapping[str, Any]) -> None:
        self._output = output
        self._steps = Steps(record, time.monotonic())
        # On the way back, the way forth has been told before.
        self._past = sum(s.ended for s in self._steps.steps) if record["phase"] in BACKWARD else 0
        self._printed = 0  # steps told so far, in a pipe

    def wait(self, client: Client, swap_id: int, deadline_s: float | None, since: tuple[int | str, int]) -> Any:
        """The record at rest. Raises what `Client.wait_swap` raises, and KeyboardInterrupt."""
        with self._drawing():

            def hear(event: Mapping[str, Any]) -> None:
                if event["event"] == "swap.progress":
                    self._steps.progress(event)
                elif event["event"] == "swap.step":
                    with contextlib.suppress(SwapdError):  # the wait itself says what is wrong with the daemon
                        self.see(client.show(swap_id))

            record = client.wait_swap(swap_id, deadline_s=deadline_s, on_event=hear, since=since)
            self.see(record)
        return record

    def see(self, record: Mapping[str, Any]) -> None:
        self._steps.correct(record, time.monotonic())
        self._tell()

    def _tell(self) -> None:
        """In a pipe: a line per step, once it has ended, in their order."""
        if self._output.live:
            return
        steps = self._shown()
        while self._printed < len(steps) and steps[self._printed].ended:
            self._output.line(_ended_line(steps[self._printed]))
            self._printed += 1

    def _shown(self) -> list[Step]:
        return [step for step in self._steps.steps[self._past :] if step.name != "soak"]

    def lines(self) -> list[str]:
        now_s = time.monotonic()
        return [_ended_line(s) if s.ended else running_line(s, now_s) for s in self._shown()]

    @contextlib.contextmanager
    def _drawing(self) -> Iterator[None]:
        if not self._output.live:
            yield
            return
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        def draw() -> Text:
            return Text("\n".join(self.lines()))

        console = Console(file=self._output.file, highlight=False)
        with Live(get_renderable=draw, console=console, refresh_per_second=REDRAWS_PER_S):
            yield


def _ended_line(step: Step) -> str:
    return step_line({"name": step.name, "status": step.status, "ms": step.ms, "detail": step.detail})
