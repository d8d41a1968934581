"""A gate by itself, without a daemon: started by its documented spec, and told what to do over its control socket.

For questions that need a routing table of their own. It uses none of swapd's own code (docs/worker-protocol.md).
"""

from __future__ import annotations

import array
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.harness import ROOT, Refused

LAUNCHER = ROOT / "swapd" / "worker" / "launch.py"
MAX_MESSAGE_BYTES = 128 * 1024
DEADLINE_S = 30.0


class Gate:
    """Use as a context manager: leaving it kills the gate, whatever happened."""

    def __init__(self, cpus: set[int]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="swapd-gate-", dir="/tmp"))
        self._ids = itertools.count(1)
        self._epochs = itertools.count(1)
        spec = {"protocol": 1, "worker_id": "gate-1", "nonce": "bench", "kind": "gate", "service": "chat"}
        (self.folder / "spec.json").write_text(json.dumps({**spec, "daemon_uid": os.getuid()}))
        pinned = ["taskset", "-c", ",".join(map(str, sorted(cpus)))]
        with (self.folder / "log").open("wb") as log:
            command = [*pinned, sys.executable, str(LAUNCHER), "--gate", str(self.folder)]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Gate:
        until = time.monotonic() + DEADLINE_S
        while self._control.connect_ex(str(self.folder / "control.sock")):
            if time.monotonic() > until or self._process.poll() is not None:
                raise TimeoutError((self.folder / "log").read_text())
            time.sleep(0.02)
        self._control.settimeout(DEADLINE_S)
        self.ask("hello", protocol=1, min_protocol=1, worker_id="gate-1")
        self.ask("adopt", fds=[self._listener.fileno()], epoch=next(self._epochs), listeners=["main"])
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        self._listener.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, verb: str, *, fds: Sequence[int] = (), **params: Any) -> dict[str, Any]:
        """Raises Refused."""
        number = next(self._ids)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._control.sendmsg([json.dumps({"id": number, "verb": verb, "params": params}).encode()], ancillary)
        while True:
            reply = json.loads(self._control.recv(MAX_MESSAGE_BYTES))
            if reply.get("re") != number:
                continue  # an event
            if "error" in reply:
                raise Refused({"message": reply["error"]["message"], "data": reply["error"]})
            ok: dict[str, Any] = reply["ok"]
            return ok

    def point(self, routes: Sequence[dict[str, Any]], **table: Any) -> None:
        self.ask("point", epoch=next(self._epochs), routes=list(routes), **table)
