"""swapd, that kills itself at a point of its journal: `python crashing_daemon.py PLAN --config FILE`.

PLAN is a file that a test writes when it wants a crash: {"op": n, "when": "intended" | "done"}. The n-th operation of a
swap from then on is journaled, and the process is gone: before anything of it is begun ("intended"), or when it is done
on the host and nobody has been told ("done"). Without the file nothing happens.
"""

import json
import os
import signal
import sys
from pathlib import Path

from swapd.core.events import OpDone, Run
from swapd.daemon import main
from swapd.daemon.records import Records


class Plan:
    def __init__(self, path):
        self.path = path
        self.seen = 0
        self.awaited = None

    def read(self):
        try:
            return json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            self.seen = 0
            return None

    def crash(self):
        self.path.unlink()
        os.kill(os.getpid(), signal.SIGKILL)

    def before(self, event):
        if isinstance(event, OpDone) and event.op == self.awaited:
            self.crash()

    def after(self, outcome):
        plan = self.read()
        for effect in outcome.effects if plan is not None else ():
            if isinstance(effect, Run) and effect.op.step is not None:
                self.seen += 1
                if self.seen == plan["op"]:
                    if plan["when"] == "intended":
                        self.crash()
                    self.awaited = effect.op.id


plan = Plan(Path(sys.argv.pop(1)))
write = Records.write


def write_and_perhaps_crash(self, outcome, event):
    plan.before(event)
    write(self, outcome, event)
    plan.after(outcome)


Records.write = write_and_perhaps_crash
sys.exit(main.main())
