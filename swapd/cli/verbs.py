"""What each verb does: asks the daemon, shows the answer, and says by its exit status how it went."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from swapd.cli import proofs, render, text
from swapd.cli.looking import DONE, FOLLOW_S, Arguments, Looking
from swapd.cli.plan_page import plan_lines
from swapd.cli.render import Output
from swapd.cli.watch import Watch
from swapd.client import Client, SwapdError
from swapd.core import errors
from swapd.wire.control import PHASES_AT_REST, PHASES_WELL

FAILED: Final = 1  # the swap failed or was rolled back
USAGE: Final = 2
UNREACHABLE: Final = 3
REFUSED: Final = 4
UNFINISHED: Final = 5  # timed out, or detached by Ctrl-C


class Verbs(Looking):
    """One method a verb, named as it is; each returns the exit status."""

    def __init__(self, client: Client, arguments: Arguments, output: Output) -> None:
        super().__init__(client, arguments, output)
        self._client = client

    # --- swaps ---------------------------------------------------------------------------------------------------

    def swap(self) -> int:
        given = self._arguments
        if given.dry_run:
            return self.plan()
        how = {**self._how(), **self._why()}
        return self._change(lambda: self._client.swap(given.service, given.to, wait=False, **how))

    def restart(self) -> int:
        service = self._arguments.service
        return self._change(lambda: self._client.restart(service, wait=False, **self._how(), **self._why()))

    def rollback(self) -> int:
        given = self._arguments
        to = int(given.to) if given.to and given.to.isdigit() else given.to
        params = {"max_outage": given.max_outage}
        return self._change(lambda: self._client.rollback(given.service, to, wait=False, **params, **self._why()))

    def cancel(self) -> int:
        target = self._arguments.target
        which = {"id": int(target)} if target.isdigit() else {"service": target}
        return self._change(lambda: self._client.cancel(**which, **self._why()))

    def rehearse(self) -> int:
        given = self._arguments
        how = {**self._how(), **self._why()}
        return self._change(lambda: self._client.rehearse(given.service, given.to, wait=False, **how))

    def promote(self) -> int:
        given = self._arguments
        return self._change(lambda: self._client.promote(given.service, full=given.full or None, **self._why()))

    def pause(self) -> int:
        record = self._client.pause(self._arguments.service, **self._why())
        if not self._json(record):
            self._output.line(f"{render.headline(record)}; swapd-cli resume {text.printable(record['service'])}")
        return DONE

    def resume(self) -> int:
        service = self._service()
        if service["swap"] is not None and service["swap"]["phase"] == "Paused":
            return self._change(lambda: self._client.resume(service["name"], **self._why()))
        record = self._client.resume(self._arguments.service, actor=self._arguments.actor)
        if not self._json(record):
            swap = "phase" in record  # it was paused in this very moment
            self._output.line(render.headline(record) if swap else render.service_line(record, time.time()))
        return DONE

    def _how(self) -> dict[str, Any]:
        given = self._arguments
        allow = {  # not sent to a daemon that may not know them
            "allow_name_mismatch": given.allow_name_mismatch or None,
            "allow_breaking": given.allow_breaking or None,
        }
        return {"strategy": given.strategy, "steps": given.steps, "max_outage": given.max_outage, **allow}

    def _why(self) -> dict[str, Any]:
        return {"reason": self._arguments.reason, "actor": self._arguments.actor}

    def _change(self, ask: Callable[[], Any]) -> int:
        hello = self._client.hello()  # first, so that no event of the swap is missed
        record = ask()
        if self._arguments.detach:
            if not self._json(record):
                self._output.line(render.headline(record))
                self._output.line(f"goes on; {_how_to_watch(record)}")
            return DONE
        return self._follow(record, (hello["epoch"], hello["seq"]))

    def _follow(self, record: Mapping[str, Any], since: tuple[int | str, int]) -> int:
        """Wait until the swap is at rest, show how it goes, and say how it went."""
        # A return answers with the swap that it undoes: canceled is what was asked for.
        returning = record["phase"] in render.BACKWARD
        shown = Output(sys.stderr) if self._arguments.json else self._output
        if not self._arguments.json:
            shown.line(render.headline(record))
        watch = Watch(shown, record)
        try:
            if self._arguments.json:
                record = self._client.wait_swap(record["id"], deadline_s=self._arguments.deadline, since=since)
            else:
                record = watch.wait(self._client, record["id"], self._arguments.deadline, since)
        except KeyboardInterrupt:
            shown.line(f"detached; swap {record['id']} goes on; {_how_to_watch(record)}")
            return UNFINISHED
        except SwapdError as late:
            if late.code != errors.TIMEOUT:
                raise
            shown.line(f"{late.message}; {_how_to_watch(record)}")
            return UNFINISHED
        if record["phase"] == "Paused":
            if not self._json(record):
                self._output.lines(proofs.paused_lines(record))
            return UNFINISHED
        well = record["phase"] in PHASES_WELL or (returning and record["phase"] == "Canceled")
        more_follows = self._arguments.verb == "wait" and self._arguments.healthy and well  # one document of JSON
        if not self._arguments.json:
            self._tell_end(record, well, returning)
        elif not more_follows:
            self._json(record)
        return DONE if well else FAILED

    def _tell_end(self, record: Mapping[str, Any], well: bool, returning: bool) -> None:
        if well and not returning:
            self._output.line(render.success_line(record, time.time()))
            return
        if not well:
            self._output.lines(render.failure_lines(record))
        self._output.line(self._who_serves(record["service"]))

    def _who_serves(self, name: str) -> str:
        service = self._client.status(name)["services"][0]
        if not service["holding"]:
            return render.who_serves(service)
        name = text.printable(name)
        return f"{name}: {render.who_serves(service)} ({service['health']}); swapd-cli status {name}"

    def wait(self) -> int:
        given = self._arguments
        started = time.monotonic()
        hello = self._client.hello()
        service = self._service()
        record = service["swap"]
        if record is not None and record["phase"] not in PHASES_AT_REST:
            status = self._follow(record, (hello["epoch"], hello["seq"]))
            if status != DONE or not given.healthy:
                return status
            service = self._service()
        while given.healthy and service["health"] != "Healthy":
            if given.deadline is not None and time.monotonic() - started > given.deadline:
                line = f"not Healthy after {text.seconds(given.deadline)}; {render.service_line(service, time.time())}"
                Output(sys.stderr if given.json else self._output.file).line(line)
                return UNFINISHED
            time.sleep(FOLLOW_S)
            service = self._service()
        if not self._json(service):
            self._output.line(render.service_line(service, time.time()))
        return DONE

    def _service(self) -> Any:
        return self._client.status(self._arguments.service)["services"][0]

    def plan(self) -> int:
        given = self._arguments
        plan = self._client.plan(given.service, given.to, **self._how())
        if not self._json(plan):
            self._output.lines(plan_lines(plan))
        return DONE

    # --- reading: see `Looking` for what can also be told without the daemon -----------------------------------------

    def devices(self) -> int:
        devices = self._client.devices()
        if not self._json(devices):
            self._output.table(render.DEVICES_HEADER, render.device_rows(devices))
            self._output.lines(render.device_notes(devices))
        return DONE

    def events(self) -> int:
        hello = self._client.hello()
        since = (hello["epoch"], max(0, hello["seq"] - self._arguments.lines))
        if self._arguments.follow:
            for event in self._client.events(since):
                self._event(event)
        for event in self._client.events_since(*since, limit=self._arguments.lines)["events"]:
            self._event(event)
        return DONE

    def _event(self, event: Mapping[str, Any]) -> None:
        if self._arguments.json:
            self._output.line(json.dumps(event, ensure_ascii=False))
            return
        rest = {key: value for key, value in event.items() if key not in ("event", "epoch", "seq", "at")}
        at = time.strftime("%H:%M:%S", time.localtime(event.get("at", time.time())))
        self._output.line(f"{at}  {text.printable(event['event']):<14}  {text.pairs(rest)}".rstrip())

    # --- the daemon ----------------------------------------------------------------------------------------------

    def reload(self) -> int:
        found = self._client.reload(dry_run=self._arguments.dry_run, actor=self._arguments.actor)
        if self._json(found):
            return DONE
        for change in found["changes"]:
            self._output.line(f"{text.printable(change['text'])}  ({_EFFECTS.get(change['effect'], change['effect'])})")
        if not found["changes"]:
            self._output.line("nothing has changed")
        elif found.get("refused"):
            self._output.line(
                f"not possible while swapd runs as it does: {text.printable(', '.join(found['refused']))}"
            )
        elif found["applied"]:
            self._output.line("applied")
        for record in found.get("swaps", []):
            self._output.line(f"{render.headline(record)}; {_how_to_watch(record)}")
        return DONE

    def stop_workers(self) -> int:
        if not self._arguments.yes:
            if not sys.stdin.isatty():
                print("stop-workers: no service answers afterwards; say --yes to mean it", file=sys.stderr)
                return USAGE
            if input("Stop every worker? No service answers afterwards. [y/N] ").strip().lower() not in ("y", "yes"):
                return REFUSED
        found = self._client.stop_workers(confirm=True, actor=self._arguments.actor)
        if not self._json(found):
            names = ", ".join(found.get("workers", [])) or "none is running"
            self._output.line(f"stopping: {text.printable(names)}")
        return DONE


_EFFECTS: Final = {
    "now": "at once",
    "next swap": "from the next swap on",
    "swap": "a swap to it is begun, unless it serves already",
    "restart": "when swapd starts again",
}


def _how_to_watch(record: Mapping[str, Any]) -> str:
    service = text.printable(record["service"])
    return f"to watch it: swapd-cli wait {service}; to end it: swapd-cli cancel {service}"
