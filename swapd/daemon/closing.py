"""The last word of a service that is being stopped: 503, from the end of its last front to the end of its listeners.

While the other services drain, and until the daemon itself has ended, clients still find the listener open. Without
an answer they would wait in its queue, and be reset with it. A gate that turns everybody away, here in the daemon, is
all it takes: it holds nobody, and no request waits for the daemon's loop but to be refused. Clients of a tcp service,
who understand no 503, are only let go of. So is a listener that systemd passed: its queue, and whoever waits there, is
for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection, Mapping

from swapd.core.config import Config
from swapd.core.model import State
from swapd.daemon.spec import front_settings
from swapd.front.gate import GateFront
from swapd.host import listeners as listening

log = logging.getLogger("swapd.closing")


class Closing:
    """`look` after every step; `close` in the end, which closes the listeners."""

    def __init__(
        self,
        config: Config,
        listeners: Mapping[str, Mapping[str, socket.socket]],
        inherited: Collection[socket.socket] = (),
    ) -> None:
        self._config = config
        self._listeners = listeners
        self._inherited = inherited
        self._gates: dict[str, GateFront] = {}

    def look(self, state: State) -> None:
        """Answer for the services that nobody answers for any more, once all are being stopped."""
        if not state.stopping:
            return
        for service in state.services:
            if service.owner is None and service.name not in self._gates:
                try:
                    self._gates[service.name] = self._begin(service.name)
                except OSError as error:  # no descriptor left: its clients wait for the end unanswered
                    log.warning("daemon.cannot_turn_away service=%s error=%s", service.name, error)

    def _begin(self, name: str) -> GateFront:
        gate = GateFront(asyncio.get_running_loop(), **front_settings(self._config.services[name]))
        gate.turn_away()
        ours = {a: sock for a, sock in self._listeners[name].items() if sock not in self._inherited}
        gate.adopt(1, {address: sock.dup() for address, sock in ours.items()})
        return gate

    async def close(self) -> None:
        """The gate's copy of a listener is the last one, and it looks into the queue right before closing it: only who
        comes in that instant is reset. Whoever comes later is refused."""
        for name, socks in self._listeners.items():
            for sock in socks.values():
                if sock in self._inherited:
                    sock.close()
                else:
                    listening.unbind(sock)
            if name in self._gates:
                self._gates[name].let_go_of_listeners()
        await asyncio.gather(*(gate.close() for gate in self._gates.values()))
