"""The daemon is killed at every point of its journal, in every kind of change; clients ask all the while, and notice
nothing: the next daemon finishes the change or takes it back."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import zmq
from support.daemon_host import Crowd, Daemon, model, server, until

CRASHING = Path(__file__).parents[1] / "support" / "crashing_daemon.py"
KINDS = {"direct": (model, ""), "gate": (model, 'front = "gate"'), "server": (server, "")}
CHANGES = ("dual", "in-place", "rollback", "rollback in place")
MOST = 25  # operations of one change


class Bench:
    """A daemon that can be made to crash, and what is asked of it."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.plan = daemon.program[1]

    def other(self):
        return "b" if self.daemon.service()["model"] == "a" else "a"

    def change(self, kind):
        """Begin it. A rollback needs something to go back to, which is not part of the change."""
        strategy = "in-place" if kind in ("in-place", "rollback in place") else "dual"
        if kind.startswith("rollback"):
            self.daemon.swap(self.other(), strategy=strategy)
        return lambda: self.ask(kind, strategy)

    def ask(self, kind, strategy):
        if kind.startswith("rollback"):
            return self.daemon.call("rollback", deadline_s=1.0, service="chat")
        return self.daemon.call("swap", deadline_s=1.0, service="chat", to=self.other(), strategy=strategy)

    def crash(self, kind, number, when):
        """Whether the change was long enough to crash in it. Afterwards it has ended, one way or the other."""
        begin = self.change(kind)
        self.plan.write_text(json.dumps({"op": number, "when": when}))
        asked = self.newest()
        with contextlib.suppress(zmq.Again):  # the answer may be lost with the daemon
            begin()
        until(lambda: self.daemon.process.poll() is not None or self.ended(asked), what="the crash, or the end")
        crashed = self.daemon.process.poll() is not None
        self.plan.unlink(missing_ok=True)
        if crashed:
            self.daemon.stop()  # it is gone already
            self.daemon.start()
        record = until(lambda: self.ended(asked), what="the end of the change")
        assert record["phase"] in ("Soaking", "Succeeded", "Canceled", "Failed"), record
        assert all(step["status"] != "running" or step["name"] == "soak" for step in record["steps"]), record["steps"]
        return crashed

    def healthy(self):
        return self.daemon.call("status", deadline_s=1.0)["services"][0]["health"] == "Healthy"

    def newest(self):
        return max((r["id"] for r in self.daemon.call("history", limit=1)), default=0)

    def ended(self, before):
        """The record, once clients are served and nothing is under way: a soak of before is what is to be undone."""
        with contextlib.suppress(zmq.Again):
            record = self.daemon.call("history", deadline_s=1.0, limit=1)[0]
            over = record["phase"] in ("Succeeded", "Canceled", "Failed")
            soaks = record["phase"] == "Soaking" and record["id"] > before
            return record if (over or soaks) and self.healthy() else None
        return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_no_client_notices_whatever_the_point(kind, change):
    make, service = KINDS[kind]
    plan = Path(f"/tmp/swapd-plan-{os.getpid()}")
    program = (CRASHING, plan)
    with Daemon(
        [make("a"), make("b")], service=f"{service}\nmax_outage = '5m'\ndrain_timeout = '10s'", program=program
    ) as daemon:
        bench = Bench(daemon)
        for number in range(1, MOST):
            crashes = 0
            for when in ("intended", "done"):
                with Crowd(daemon.port, keep_alive=3, first_answers=10) as crowd:
                    crashes += bench.crash(change, number, when)
                    crowd.more(10)
                assert not crowd.errors, (number, when, crowd.errors, daemon.output.read_text()[-6000:])
                assert crowd.reconnects == 0
            if not crashes:
                break
        assert number > (1 if change == "rollback" else 5), "the points were not reached"
        until(lambda: nothing_is_left_over(daemon), what="no worker that nobody needs, and no process besides")


def nothing_is_left_over(daemon):
    workers = [w for w in daemon.call("workers") if w["role"] != "gate"]
    known = {w["id"] for w in daemon.call("workers")}
    mark = f"{daemon.dir}/r/w/".encode()
    here = {said(path).partition(mark)[2] for path in Path("/proc").glob("[0-9]*/cmdline")} - {b""}
    ids = {name.partition(b"\0")[0].partition(b"/")[0].decode() for name in here}
    return len({w["model"] for w in workers}) == len(workers) and ids == known


def said(path):
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""
