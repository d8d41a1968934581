"""A worker that cannot run in this interpreter tells the daemon so, over the channel, instead of just ending.

Standard library only, and none of what is missing: it answers every hello with the reason, then it is over.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any, Final

from swapd.core.errors import IMPORT_FAILED, SwapdError
from swapd.wire import worker as wire
from swapd.worker.channel import MAX_LINKS, Channel, Link
from swapd.worker.sockets import Descriptors, allowed_uids, bind_control
from swapd.worker.spec import read_spec

WAIT_S: Final = 10.0  # for a daemon that does not call; its spawn and its first connection are milliseconds apart


class _Refusal:
    """A `Handler` that knows one sentence."""

    def __init__(self, message: str) -> None:
        self._message = message
        self.told = threading.Event()

    def hello(self) -> Mapping[str, Any]:
        self.told.set()
        raise SwapdError(IMPORT_FAILED, self._message)

    def greeted(self, link: Link) -> None:
        raise AssertionError("no hello is accepted")

    def request(self, link: Link, request: wire.Request, fds: Descriptors) -> None:
        raise AssertionError("no hello is accepted")

    def lost(self, link: Link) -> None:
        pass


def tell_misfit(worker_dir: str, message: str, wait_s: float = WAIT_S) -> None:
    """Answer the first hello with `message`. Never raises: the caller exits with its own status anyway."""
    with contextlib.suppress(SwapdError, OSError):
        spec = read_spec(worker_dir)
        refusal = _Refusal(message)
        listener = bind_control(spec.control_path, MAX_LINKS)
        channel = Channel(listener, spec.worker_id, allowed_uids(spec.daemon_uid), refusal)
        channel.start()
        refusal.told.wait(wait_s)
        channel.close()
