"""swapd, in which somebody dies at a point of its journal: `python crashing_daemon.py PLAN --config FILE`.

PLAN is a file that a test writes when it wants a death: {"op": n, "when": "intended" or "done", "who": "daemon",
"incumbent" or "holder"}. The n-th operation of a swap from then on is journaled, and the victim is killed: before
anything of it is begun ("intended"), or when it is done on the host and the core has not been told ("done"). The plan
is removed then. With "how": "SIGUSR2" the daemon makes way for a successor instead, with "SIGHUP" it reloads, with
"SIGSTOP" it halts. "any_of": operations of that service count too that are of no swap, which follow the end of one. The
incumbent is who answers the clients; the holder, a gate that owns their connections.
"""

import json
import os
import signal
import sys
from pathlib import Path

from swapd.core.events import OpDone, Run
from swapd.core.model import Kind
from swapd.daemon import main
from swapd.daemon.records import Records
from swapd.daemon.workers import Workers


class Plan:
    def __init__(self, path):
        self.path = path
        self.text = ""
        self.seen = 0  # operations, since it was written
        self.awaited = None
        self.workers = None

    def read(self):
        try:
            text = self.path.read_text()
            plan = json.loads(text)
        except (FileNotFoundError, ValueError):
            text, plan = "", None
        if text != self.text:
            self.text, self.seen = text, 0
        return plan

    def strike(self, state, service):
        victim, how = self.victim(state, service), self.read().get("how", "SIGKILL")
        self.awaited = None
        if victim is not None:  # else the plan stays, and the test sees that nobody was struck
            self.path.unlink()
            os.kill(victim, signal.Signals[how])

    def victim(self, state, service):
        who = self.read().get("who", "daemon")
        if who == "daemon":
            return os.getpid()
        worker = state.worker(state.service(service).owner) if who == "holder" else state.server_of(service)
        if worker is None or (who == "holder" and worker.kind is not Kind.GATE):
            return None
        return self.workers.live[worker.id].process.pid

    def before(self, event, state):
        if isinstance(event, OpDone) and self.awaited is not None and event.op == self.awaited.id:
            self.strike(state, self.awaited.service)

    def after(self, outcome):
        plan = self.read()
        for effect in outcome.effects if plan is not None else ():
            if isinstance(effect, Run) and (effect.op.step or effect.op.service == plan.get("any_of")):
                self.seen += 1
                if self.seen == plan["op"]:
                    if plan["when"] == "intended":
                        self.strike(outcome.state, effect.op.service)
                    else:
                        self.awaited = effect.op


plan = Plan(Path(sys.argv.pop(1)))
write, start = Records.write, Workers.start


def write_and_perhaps_strike(self, outcome, event):
    plan.before(event, self._written)
    write(self, outcome, event)
    plan.after(outcome)


def start_and_tell(self, **how):
    plan.workers = self
    start(self, **how)


Records.write, Workers.start = write_and_perhaps_strike, start_and_tell
sys.exit(main.main())
