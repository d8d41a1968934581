"""The workers' directories as anybody finds them: who was started there, and which process listens.

Duty: read runtime_dir/w/*.json, the daemon's records, and see by the control socket whether a process is behind one.
May not know: what a worker says (`worker_channel`), why it was started. Source: unix(7), SO_PEERCRED.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from swapd.core.config import CONTROL_SOCKET

RECORD_SUFFIX: Final = ".json"
_UCRED: Final = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class WorkerDir:
    """One worker that was started, as the daemon has recorded it. It may have ended since."""

    id: str
    path: Path
    spec: Mapping[str, Any]

    @property
    def control(self) -> Path:
        return self.path / CONTROL_SOCKET

    @property
    def devices(self) -> tuple[str, ...]:
        """That it was placed on; (): it is a gate, or it is not known."""
        slot = self._host.get("slot")
        if not isinstance(slot, dict) or not slot.get("device"):
            return ()
        others = slot.get("others")
        return (str(slot["device"]), *(map(str, others) if isinstance(others, list) else ()))

    @property
    def log_path(self) -> Path | None:
        """Where it writes, whatever the configuration says now. None: not known."""
        path = self._host.get("log_path")
        return Path(path) if isinstance(path, str) else None

    @property
    def _host(self) -> Mapping[str, Any]:
        """What the daemon noted of it for the next daemon."""
        host = self.spec.get("host")
        return host if isinstance(host, dict) else {}


def worker_dirs(runtime_dir: Path) -> list[WorkerDir]:
    """Those whose record can be read, by name. Raises PermissionError when not one could, for want of permission."""
    found: list[WorkerDir] = []
    refused: PermissionError | None = None
    try:
        records = sorted(path for path in (runtime_dir / "w").iterdir() if path.name.endswith(RECORD_SUFFIX))
    except FileNotFoundError:
        return []
    for record in records:
        try:
            spec = json.loads(record.read_text(encoding="utf-8"))
            directory = record.with_name(record.name.removesuffix(RECORD_SUFFIX))
            found.append(WorkerDir(str(spec["worker_id"]), directory, spec))
        except PermissionError as error:
            refused = error
        except (OSError, ValueError, KeyError, TypeError):
            continue  # it begins or ends just now
    if refused is not None and not found:
        raise refused
    return found


def listener_pid(path: Path) -> int:
    """Who listens on this control socket, by the kernel's word, also when it does not answer.

    Raises OSError: ECONNREFUSED or ENOENT when nobody does, EAGAIN when its queue is full, EACCES.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as sock:
        sock.connect(os.fspath(path))
        pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return int(pid)
