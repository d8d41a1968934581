"""A gate as a transient service of a real systemd: its sandbox lets it have a shadow, whose end is not its own."""

from __future__ import annotations

import json
import textwrap

import pytest
from support.systemd_host import PROJECT, SystemdHost

from .test_units import Daemon, daemon, host  # noqa: F401 (fixtures)

pytestmark = pytest.mark.systemd
GATE = "chat-gate-1"
DIRECTORY = f"/run/swapd/w/{GATE}"
# What a daemon does, and a look at the gate's processes.
ASK = """
    import itertools, json, os, socket, sys, time
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ids = itertools.count(1)

    def ask(verb, **params):
        number = next(ids)
        channel.send(json.dumps({"id": number, "verb": verb, "params": params}).encode())
        while (reply := json.loads(channel.recv(1 << 17))).get("re") != number:
            pass
        return reply["ok"]

    def until(condition):
        deadline = time.monotonic() + 30
        while not (value := condition()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return value

    def process():
        return until(lambda: open(f"/proc/{gate}/task/{gate}/children").read().split())[0]

    until(lambda: os.path.exists(sys.argv[1] + "/control.sock"))
    channel.connect(sys.argv[1] + "/control.sock")
    gate = ask("hello", protocol=1, min_protocol=1, worker_id=sys.argv[2])["pid"]
    shadow = {"worker": "chat-2", "revision": 2, "address": "unix:/nowhere"}
    ask("point", epoch=1, routes=[{"worker": "chat-1", "revision": 1, "address": "unix:/nowhere"}], shadow=shadow)
    figures = lambda: ask("stats", windows=True)["shadow"]
    until(lambda: figures()["running"])
    first = process()
    status = open(f"/proc/{first}/status").read()
    niceness, gates = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (int(first), gate))
    told = {"nice": niceness == min(19, gates + 10)}
    told["limit"] = next(l for l in open(f"/proc/{first}/limits") if l.startswith("Max data")).split()[3]
    told["same_user"] = status.split("Uid:")[1].split()[0] == str(os.stat(f"/proc/{gate}").st_uid)
    os.kill(int(first), 9)
    until(lambda: figures()["restarts"] == 1 and figures()["running"])
    told["another"] = process() != first
    print(json.dumps(told))
"""


def test_a_gate_may_have_a_shadow(host: SystemdHost, daemon: Daemon):  # noqa: F811
    host.run("mkdir", "-p", DIRECTORY)
    spec = {"protocol": 1, "worker_id": GATE, "nonce": "0a", "kind": "gate", "service": "chat", "daemon_uid": 0}
    host.path(f"{DIRECTORY}/spec.json").write_text(json.dumps(spec))
    host.run("chown", "-R", "swapd:swapd-workers", DIRECTORY)
    launcher = str(host.inside(PROJECT / "swapd" / "worker" / "launch.py"))
    daemon.call(
        "spawn",
        name=GATE,
        marker=f"{GATE}:0a",
        argv=[host.python, launcher, "--gate", DIRECTORY],
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        cwd=None,
        log_path="/var/log/chat-gate-1.log",
        directory=DIRECTORY,
        confinement={"user": "swapd", "group": "swapd-workers"},
    )
    told = json.loads(host.run(host.python, "-c", textwrap.dedent(ASK), DIRECTORY, GATE).splitlines()[-1])
    assert told == {"nice": True, "limit": str(1 << 30), "same_user": True, "another": True}
    assert host.show(f"swapd-{GATE}.service", "OOMPolicy") == "continue"
    assert host.show(f"swapd-{GATE}.service", "ActiveState") == "active"
    daemon.call("kill_tree", name=GATE, grace_s=0)
    assert host.run("pgrep", "-f", "launch.py --shadow", check=False) == ""
