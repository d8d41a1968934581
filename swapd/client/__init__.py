"""Give orders to a swapd daemon from a script, and hear what happens.

    from swapd.client import Client

    with Client() as swapd:                                   # or Client("ipc:///run/swapd/control.sock")
        print(swapd.plan("chat", to="b")["why"])
        record = swapd.swap("chat", to="b", reason="retrained")   # returns when clients are served by b
        print(record["phase"], record["cutover_ms"])

Every call has a deadline, and raises `SwapdError` with the daemon's stable code, or `DaemonUnreachable`. Results are
the plain dicts and lists that docs/control.md describes. `AsyncClient` has the same methods, to be awaited.

Needs pyzmq and nothing of the daemon.
"""

from __future__ import annotations

from swapd.client.clients import AsyncClient, Client
from swapd.client.failures import DaemonUnreachable, SwapFailed
from swapd.client.waiting import Event
from swapd.core.errors import SwapdError

__all__ = ["AsyncClient", "Client", "DaemonUnreachable", "Event", "SwapFailed", "SwapdError"]
