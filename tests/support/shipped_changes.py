"""Changes of what serves, under the shipped units, in a daemon that halts at a point of one for something to happen.

The daemon is `crashing_daemon` and stops itself (SIGSTOP) at the point: what is done to it then is done as an operator
or the host would do it. A version lies in /opt/swapd/N, copied from here, and `current` leads to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import zmq
from support import shipped
from support.changes import strategy_of
from support.daemon_host import APPS, DEADLINE_S, Control, free_port, model, server, until
from support.systemd_host import PROJECT, SystemdHost

UNIT = shipped.DAEMON
DROP_IN = "[Service]\nWatchdogSec=3s\n"
SERVICES = {"direct": ("a", ""), "gated": ("x", ""), "brief": ("a", "soak = '2s'")}  # the model, and settings
MODELS = {"a": "abc", "x": "xyz"}
PLAN = "/var/lib/swapd/plan"
WITH_A_RECORD = ("dual", "in-place", "rollback in place")  # other changes are the end of the swap that soaks
OVER = ("Succeeded", "Canceled", "Failed")


def booted(directory: Path) -> SystemdHost:
    """A host with all that `Shipped` needs."""
    return SystemdHost(
        directory,
        units=shipped.UNITS,
        files=shipped.FILES | {f"/etc/systemd/system/{UNIT}.d/test.conf": DROP_IN},
        prepare=f"rm -rf /var/lib/swapd /var/cache/swapd /opt/swapd; {shipped.PREPARE}",
    )


class Shipped(Control):
    def __init__(self, host: SystemdHost) -> None:
        self.host = host
        self.ports = {name: free_port() for name in SERVICES}
        self.control = host.path("/run/swapd/control.sock")
        self.context = zmq.Context()
        self.version = 0
        self.reloads = 0
        self.plan = host.path(PLAN)

    def start(self) -> None:
        self.install()
        self.configure()
        self.host.systemctl("start", UNIT)
        for name in SERVICES:
            until(lambda name=name: self.service(name)["health"] == "Healthy", what=f"{name} healthy")

    def install(self) -> None:
        """The next version, in one step, as install.sh does it."""
        before, self.version = f"/opt/swapd/{self.version}", self.version + 1
        root = f"/opt/swapd/{self.version}"
        if self.version == 1:
            support, package = PROJECT / "tests" / "support" / "crashing_daemon.py", PROJECT / "swapd"
            self.host.run("mkdir", "-p", f"{root}/bin")
            self.host.run("cp", "-a", str(self.host.inside(package)), str(self.host.inside(support)), root)
            self.host.run(self.host.python, "-m", "compileall", "-q", root)
        else:
            self.host.run("cp", "-a", before, root)
        self.host.path(f"{root}/swapd/__init__.py").write_text(f'__version__ = "{self.version_name}"\n')
        for name, what in (("swapd", f"{root}/crashing_daemon.py {PLAN}"), ("swapd-cli", "-m swapd.cli.main")):
            program = self.host.path(f"{root}/bin/{name}")
            start = f"PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={root} exec {self.host.python} {what}"
            program.write_text(f'#!/bin/sh\n{start} "$@"\n')
            program.chmod(0o755)
        self.host.run("ln", "-s", str(self.version), "/opt/swapd/current.new")
        self.host.run("mv", "-T", "/opt/swapd/current.new", "/opt/swapd/current")

    @property
    def version_name(self) -> str:
        return f"0.{self.version}.0"

    def configure(self) -> None:
        models = [*map(model, "abc"), *map(server, "xyz")]
        drain = f"drain_timeout = '{10 + self.reloads}s'\nmax_outage = '5m'"
        services = [
            f'[services.{name}]\nlisten = "127.0.0.1:{self.ports[name]}"\nmodel = "{first}"\n{drain}\n{more}\n'
            for name, (first, more) in SERVICES.items()
        ]
        text = '[devices.host]\nkind = "host"\nmemory = "2GiB"\n' + "".join(models + services)
        text = text.replace(str(APPS), str(self.host.inside(APPS)))
        self.host.path("/etc/swapd/swapd.toml").write_text(text.replace(sys.executable, self.host.python))

    # --- a change, and a point of it -----------------------------------------------------------------------------

    def strike(self, mark, service: str, change: str, how: str, number: int, when: str) -> dict | None:
        """The record of the change once it has ended, one way or the other; None: it was not so long as that."""
        begin = self.prepare(mark, service, change)
        # Whoever halts for something else must not be ended first, however long that takes on a busy machine.
        self.host.systemctl("service-watchdogs", "yes" if how == "hang" else "no")
        newest, pid = self.newest() + (change in WITH_A_RECORD), self.host.pid(UNIT)
        expected = newest if change in WITH_A_RECORD else self.newest(service=service)
        mark()
        if number:
            after = service if change == "soak" else None
            self.plan.write_text(json.dumps({"op": number, "when": when, "how": "SIGSTOP", "any_of": after}))
        with begin():
            if not number:
                self.host.run("kill", "-STOP", str(pid))
            until(lambda: self.halts(pid) or self.ended(service, change, expected), what="the point, or the end")
            struck = self.halts(pid)
            self.plan.unlink(missing_ok=True)
            if struck:
                self.let_happen(how, pid)
        record = until(lambda: self.ended(service, change, expected), what=f"the end of the {change}")
        assert self.newest() == newest, "there is a record of what nobody has asked for"
        return record if struck else None

    def prepare(self, mark, service: str, change: str):
        """What begins it. A rollback needs something to go back to, a soak something that soaks: no part of it."""
        if change == "soak":
            mark()
            self.swap(self.other(service), service=service, strategy="dual")
            return contextlib.nullcontext
        strategy = strategy_of(change)
        if not change.startswith("rollback"):
            return lambda: self.asking("swap", service=service, to=self.other(service), strategy=strategy)
        wanted = "cold" if strategy == "in-place" else "instant"
        while self.kept(service) != wanted:
            mark()
            self.swap(self.other(service), service=service, strategy=strategy)
        return lambda: self.asking("rollback", service=service)

    def other(self, service: str) -> str:
        """Not what is kept for a rollback: to that it would be a return."""
        said = self.service(service)
        kept = said["soak"] and said["soak"]["previous"]["model"]
        return next(name for name in MODELS[SERVICES[service][0]] if name not in (said["model"], kept))

    def kept(self, service: str) -> str | None:
        """How the soak keeps what a rollback goes back to."""
        said = self.service(service)
        return said["rollback"] if said["soak"] else None

    @contextlib.contextmanager
    def asking(self, method: str, **params):
        """An order whose answer nobody waits for: it may be lost with the daemon."""
        sock = self.context.socket(zmq.REQ)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"ipc://{self.control}")
        with sock:
            sock.send_json({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
            yield

    def halts(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            return self.host.path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def newest(self, **of) -> int:
        return max((record["id"] for record in self.call("history", limit=1, **of)), default=0)

    def ended(self, service: str, change: str, expected: int) -> dict | None:
        """The record, once clients are served and nothing is under way."""
        over = OVER + (("Soaking",) if change in WITH_A_RECORD else ())
        with contextlib.suppress(zmq.Again):
            for record in self.call("history", deadline_s=0.5, service=service, limit=1):
                if record["id"] == expected and record["phase"] in over and self.healthy(service):
                    return record
        return None

    def healthy(self, service: str) -> bool:
        return self.call("status", deadline_s=0.5, service=service)["services"][0]["health"] == "Healthy"

    # --- what happens to a daemon ----------------------------------------------------------------------------------

    def let_happen(self, how: str, pid: int) -> None:
        aborts = self.aborts()
        if how == "reload":
            self.reload(pid)
            return
        if how == "kill":
            self.host.run("kill", "-KILL", str(pid))
        elif how == "upgrade":
            self.install()
        if how in ("restart", "upgrade"):
            self.host.systemctl("restart", UNIT)
        until(lambda: self.host.pid(UNIT) not in (0, pid), what="the next daemon")
        self.host.wait_for(UNIT, "ActiveState", "active")
        assert (self.aborts() > aborts) == (how == "hang"), "the watchdog, and only it, has it tell where it hangs"
        assert (said := self.call("hello")["version"]) == self.version_name, said

    def aborts(self) -> int:
        return self.host.units_log.count("Fatal Python error: Aborted")

    def reload(self, pid: int) -> None:
        """The client of the unit's ExecReload is there before the daemon goes on."""
        self.reloads += 1
        self.configure()
        reloading = self.host.popen("systemctl", "reload", UNIT)
        until(lambda: self.waits_at_a_socket(int(self.host.show(UNIT, "ControlPID"))), what="the client of the reload")
        self.host.run("kill", "-CONT", str(pid))
        said, _ = reloading.communicate(timeout=DEADLINE_S)
        assert reloading.returncode == 0, said + self.host.units_log[-2000:]
        assert self.host.pid(UNIT) == pid

    def waits_at_a_socket(self, pid: int) -> bool:
        with contextlib.suppress(OSError):
            held = [os.readlink(path) for path in self.host.path(f"/proc/{pid}/fd").iterdir()] if pid else []
            inodes = {each[len("socket:[") : -1] for each in held if each.startswith("socket:[")}
            lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
            return any(line[5] == "03" and line[6] in inodes for line in lines)
        return False

    # --- what is left ----------------------------------------------------------------------------------------------

    def nothing_is_left_over(self) -> bool:
        """Workers' units are those that the daemon knows, a service has two revisions at most, and no process of ours
        is elsewhere."""
        workers = self.call("workers")
        units = {f"swapd-{worker['id']}.service" for worker in workers}
        served = [worker["service"] for worker in workers if worker["role"] != "gate"]
        few = all(served.count(name) <= 2 for name in SERVICES)
        return few and set(shipped.workers(self.host)) == units and not self.strangers(units)

    def strangers(self, units: set[str]) -> list[str]:
        main, found = str(self.host.pid(UNIT)), []
        for process in self.host.path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                said = (process / "cmdline").read_text()
                unit = (process / "cgroup").read_text().strip().rpartition("/")[2]
                if ("swapd" in said or "model_app" in said) and process.name not in ("1", main) and unit not in units:
                    found.append(said)
        return found

    def close(self) -> None:
        self.context.destroy(linger=0)
