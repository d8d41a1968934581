"""What a client raises besides the daemon's own refusals, and why a daemon cannot be reached."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from swapd.core import errors
from swapd.core.config import HIDDEN_SUFFIX, MAX_SOCKET_PATH_BYTES
from swapd.core.errors import SwapdError

NOT_HERE: Final = (
    "swapd is not running (systemctl status swapd), or listens elsewhere (say where with SWAPD_CONTROL or --connect)"
)


class DaemonUnreachable(SwapdError):
    """Nobody answered in time. Unless the message says otherwise, nothing was asked of anybody."""

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(errors.DAEMON_UNREACHABLE, message, details)


class SwapFailed(SwapdError):
    """The swap ended as Failed or Canceled; the previous revision serves. `record` tells everything."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        error = record.get("error") or {}
        why = error.get("message") or record.get("reason") or "no reason given"
        super().__init__(error.get("code") or errors.CANCELED, f"swap {record['id']}: {record['phase']}: {why}", error)
        self.record = record


@dataclass(frozen=True, slots=True)
class Trouble:
    message: str
    final: bool  # waiting does not help


def no_endpoint(endpoint: str) -> str:
    """What to write instead of one that cannot be connected to."""
    scheme, separator, path = endpoint.partition("://")
    length = len(os.fsencode(path))
    if scheme == "ipc" and path.startswith("/") and length > MAX_SOCKET_PATH_BYTES:
        cure = f"its path has {length} bytes, and a Unix socket's at most {MAX_SOCKET_PATH_BYTES}"
    elif not separator and "/" in endpoint:
        cure = f"write ipc://{os.path.abspath(endpoint)}"
    else:
        cure = "write ipc:// and a whole path, such as ipc:///run/swapd/control.sock"
    return f"{endpoint!r} is no endpoint: {cure}"


def diagnose(endpoint: str) -> Trouble | None:
    """Why nobody can be reached at an ipc endpoint: zmq itself only ever goes on trying."""
    scheme, _, path = endpoint.partition("://")
    if scheme == "tcp":
        text = f"nobody answers at {endpoint}: swapd itself listens on ipc:// only, so see to what forwards to it"
        return Trouble(text, final=False)
    if scheme != "ipc" or not path.startswith("/"):
        return Trouble(no_endpoint(endpoint), final=True)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(path)
    except PermissionError:
        return Trouble(f"no permission for {path}: use sudo, or become a member of the group swapd", final=True)
    except FileNotFoundError:
        if os.path.exists(path + HIDDEN_SUFFIX):
            return Trouble(f"swapd has as many connections as it takes at {path}: see its log", final=False)
        return Trouble(f"there is no {path}: {NOT_HERE}", final=False)
    except ConnectionRefusedError:
        return Trouble(f"nobody listens on {path}: {NOT_HERE}", final=False)
    except BlockingIOError:
        return Trouble(f"swapd does not accept connections on {path}: it hangs, see its log", final=False)
    except OSError as wrong:  # the path is too long
        return Trouble(f"{path} cannot be a socket: {wrong.strerror or wrong}", final=True)
    return None
