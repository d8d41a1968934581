"""Changes of what serves, in a daemon in which somebody can be made to die at any point of them."""

import contextlib
import json
import os
from pathlib import Path

import zmq
from support.daemon_host import Daemon, model, server, until

CRASHING = Path(__file__).parent / "crashing_daemon.py"
KINDS = {"direct": (model, ""), "gate": (model, 'front = "gate"'), "server": (server, "")}
CHANGES = ("dual", "in-place", "rollback", "rollback in place", "proved")
PROVED = """
[strategies.proved]
kind = "shadow"
ends = "time"
shadow = { share = "100%", time = "300ms" }
"""  # clients get no answer of the candidate's before all do
MOST = 25  # operations of one change
OVER = ("Succeeded", "Canceled", "Failed")


def crashing(kind):
    make, service = KINDS[kind]
    plan = Path(f"/tmp/swapd-plan-{os.getpid()}")
    settings = f"{service}\nmax_outage = '5m'\ndrain_timeout = '10s'"
    return Daemon([make("a"), make("b"), make("c"), PROVED], service=settings, program=(CRASHING, plan))


def strategy_of(change):
    if change == "proved":
        return change
    return "in-place" if change in ("in-place", "rollback in place") else "dual"


class Bench:
    """A daemon that can be made to crash, and what is asked of it."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.plan = daemon.program[1]
        self.record = None  # of the last change

    def other(self):
        """Not what is kept for a rollback: to that it would be a return."""
        return {"a": "b", "b": "c", "c": "a"}[self.daemon.service()["model"]]

    def change(self, crowd, kind):
        """Begin it. A rollback needs something to go back to, which is not part of the change."""
        strategy = strategy_of(kind)
        wanted = "cold" if strategy == "in-place" else "instant"
        while kind.startswith("rollback") and self.daemon.service()["rollback"] != wanted:
            crowd.mark()
            self.daemon.swap(self.other(), strategy=strategy)  # within a soak it may be a return: then once more
        return lambda: self.ask(kind, strategy)

    def ask(self, kind, strategy):
        if kind.startswith("rollback"):
            return self.daemon.call("rollback", deadline_s=5.0, service="chat")
        return self.daemon.call("swap", deadline_s=5.0, service="chat", to=self.other(), strategy=strategy)

    def strike(self, crowd, kind, number, when, who="daemon", how="SIGKILL"):
        """Whether the change was long enough to strike in it. Afterwards it has ended, one way or the other."""
        begin = self.change(crowd, kind)
        crowd.mark()
        self.plan.write_text(json.dumps({"op": number, "when": when, "who": who, "how": how}))
        before = self.newest()
        ended = self.rolled_back if kind.startswith("rollback") else self.swapped
        with contextlib.suppress(zmq.Again):  # the answer may be lost with the daemon
            begin()
        until(lambda: self.daemon.process.poll() is not None or ended(before), what="the death, or the end")
        struck = not self.plan.exists()
        self.plan.unlink(missing_ok=True)
        if self.daemon.process.poll() is not None:
            self.daemon.stop()  # it is gone already
            self.daemon.start()
        self.record = record = until(lambda: ended(before), what="the end of the change")
        assert all(step["status"] != "running" or step["name"] == "soak" for step in record["steps"]), record["steps"]
        return struck

    def healthy(self):
        with contextlib.suppress(zmq.Again):
            return self.daemon.call("status", deadline_s=2.0)["services"][0]["health"] == "Healthy"
        return False

    def newest(self):
        return max((r["id"] for r in self.daemon.call("history", limit=1)), default=0)

    def swapped(self, before):
        """The new record, once clients are served and nothing is under way."""
        record = self.newest_record()
        return record if record["id"] > before and record["phase"] in (*OVER, "Soaking") and self.healthy() else None

    def rolled_back(self, before):
        """The same; where the old model is still there, it is the record of the soak that ends."""
        record = self.newest_record()
        undone = record["id"] == before and record["phase"] in OVER and self.healthy()
        return record if undone else self.swapped(before)

    def newest_record(self):
        """No record, where the daemon does not answer."""
        with contextlib.suppress(zmq.Again):
            return self.daemon.call("history", deadline_s=2.0, limit=1)[0]
        return {"id": -1, "phase": ""}


def nothing_is_left_over(daemon):
    workers = [w for w in daemon.call("workers") if w["role"] != "gate"]
    known = {w["id"] for w in daemon.call("workers")}
    mark = f"{daemon.dir}/r/w/".encode()
    here = {said(path).partition(mark)[2] for path in Path("/proc").glob("[0-9]*/cmdline")} - {b""}
    ids = {name.partition(b"\0")[0].partition(b"/")[0].decode() for name in here}
    return len(workers) <= 2 and ids == known


def said(path):
    with contextlib.suppress(OSError):
        return path.read_bytes()
    return b""
