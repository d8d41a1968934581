"""What a daemon that starts asks of a worker that it has not started: how things stand, and copies of the listeners."""

from __future__ import annotations

import json
import socket
from typing import Any

from swapd.core.errors import BAD_REQUEST, SwapdError
from swapd.worker.direct import Front, GateFront


def standing_of(front: Front | None) -> dict[str, Any]:
    """What `hello` tells of the front: how a transfer has ended of which nobody else has heard the end."""
    if front is None:
        return {"epoch": 0, "owner": False}
    stats, standing = front.stats(), front.standing()
    told: dict[str, Any] = {"epoch": stats.epoch, "owner": stats.owner, "last_epoch": standing.epoch}
    # A target whose source died before it had sent them is an owner without any.
    told["listeners"] = [name for name, _ in front.listeners()]
    told |= {"quiesced_at": standing.quiesced_at, "started_at": standing.started_at}
    if isinstance(front, GateFront):
        table = front.table
        told["access_log"] = front.logs_access
        told |= {"table_epoch": table.epoch, "points_to": front.points_to, "pointed_at": front.pointed_at}
        told["table_label"] = table.label
    return told


def lend(front: Front | None, peer: socket.socket) -> list[str]:
    """Send copies of the listeners through `peer`, in one message with their names as a JSON list. Returns the names.

    Raises SwapdError(BAD_REQUEST) when they cannot be sent: given away in this very moment, or `peer` is no socket that
    takes them.
    """
    found = front.listeners() if front is not None else []
    names = [name for name, _ in found]
    try:
        socket.send_fds(peer, [json.dumps(names).encode()], [fd for _, fd in found], socket.MSG_DONTWAIT)
    except OSError as error:
        raise SwapdError(BAD_REQUEST, f"lend: the listeners cannot be sent: {error}") from None
    return names
