"""What the service manager keeps for the next daemon: the public listeners and the control socket's.

Few descriptors, whatever the number of workers. Names of ours begin with a plus sign, which no service's does: what a
socket unit gives comes by itself each time, under the service's name.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Final

from swapd.host.service_manager import ServiceManager

CONTROL: Final = "@control"  # beside the services' names, which have no such character
_OURS: Final = "+"


class Keeper:
    """`given`: the listeners of socket units, by service. `kept`: those of an earlier daemon, by the name that they
    were kept under. The caller owns both."""

    def __init__(self, manager: ServiceManager) -> None:
        self._manager = manager
        passed = manager.listen_fds()
        self.given: Final = {name: sock for name, sock in passed.items() if not name.startswith(_OURS)}
        self.kept: Final = {name[1:]: sock for name, sock in passed.items() if name.startswith(_OURS)}
        self._stored: dict[str, socket.socket] = dict(self.kept)

    def keep(self, wanted: Mapping[str, socket.socket]) -> None:
        """Have these kept, and no others; again whenever they may have changed, and for what could not be sent.

        Ends at the first that cannot be: the loop waits a second for each, and a watchdog for the loop.
        """
        given = self.given.values()
        ours = {name: sock for name, sock in wanted.items() if sock not in given}
        for name, sock in list(self._stored.items()):
            if ours.get(name) is not sock:
                if not self._manager.remove_fd(_OURS + name):
                    return
                del self._stored[name]
        for name, sock in ours.items():
            if name not in self._stored:
                if not self._manager.store_fd(_OURS + name, sock, poll=False):
                    return
                self._stored[name] = sock
