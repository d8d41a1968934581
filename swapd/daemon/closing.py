"""The last word of a service that is being stopped: 503, from the end of its last front to the end of its listeners.

While the other services drain, and until the daemon itself has ended, clients still find the listener open; likewise
where the one service was removed, until all of it has ended and its listeners are closed. Without
an answer they would wait in its queue, and be reset with it. A gate that turns everybody away, here in the daemon, is
all it takes: it holds nobody, and no request waits for the daemon's loop but to be refused. Clients of a tcp service,
who understand no 503, are only let go of. So is a listener that systemd passed: its queue, and whoever waits there, is
for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection

from swapd.core.config import Config
from swapd.core.model import State
from swapd.daemon.spec import front_settings
from swapd.front.gate import GateFront
from swapd.host import listeners as listening

log = logging.getLogger("swapd.closing")


class Closing:
    """`look` after every step that may have ended something; `close` in the end, which closes the listeners."""

    def __init__(
        self,
        config: Config,
        listeners: dict[str, dict[str, socket.socket]],
        inherited: Collection[socket.socket] = (),
    ) -> None:
        self._services = dict(config.services)
        self._listeners = listeners  # the daemon's own: what has ended is taken out of it
        self._inherited = inherited
        self._gates: dict[str, GateFront] = {}
        self._leaving: set[str] = set()
        self._ends: set[asyncio.Task[None]] = set()

    def configure(self, config: Config) -> None:
        """Those of before are still needed, until they have ended."""
        self._services |= config.services

    def leaves(self, name: str) -> None:
        """The service is being removed: its listeners end with it."""
        self._leaving.add(name)

    def look(self, state: State) -> None:
        """Answer for the services that nobody answers for any more, of those that are being stopped."""
        for service in state.services:
            if (state.stopping or service.name in self._leaving) and service.owner is None:
                self._turn_away(service.name)
        for name in [name for name in self._leaving if state.service(name) is None]:
            self._leaving.discard(name)
            self._turn_away(name)
            self._let_go(name)
            gate = self._gates.pop(name, None)
            if gate is not None:
                task = asyncio.get_running_loop().create_task(gate.close())
                self._ends.add(task)
                task.add_done_callback(self._ends.discard)
            del self._listeners[name]
            log.info("service.addresses_closed service=%s", name)

    def _turn_away(self, name: str) -> None:
        if name not in self._gates and name in self._listeners:
            try:
                self._gates[name] = self._begin(name)
            except OSError as error:  # no descriptor left: its clients wait for the end unanswered
                log.warning("daemon.cannot_turn_away service=%s error=%s", name, error)

    def _begin(self, name: str) -> GateFront:
        gate = GateFront(asyncio.get_running_loop(), **front_settings(self._services[name]))
        gate.turn_away()
        ours = {a: sock for a, sock in self._listeners[name].items() if sock not in self._inherited}
        gate.adopt(1, {address: sock.dup() for address, sock in ours.items()})
        return gate

    async def close(self) -> None:
        """The gate's copy of a listener is the last one, and it looks into the queue right before closing it: only who
        comes in that instant is reset. Whoever comes later is refused."""
        for name in self._listeners:
            self._let_go(name)
        await asyncio.gather(*(gate.close() for gate in self._gates.values()), *self._ends)

    def _let_go(self, name: str) -> None:
        for sock in self._listeners[name].values():
            if sock in self._inherited:
                sock.close()
            else:
                listening.unbind(sock)
        if name in self._gates:
            self._gates[name].let_go_of_listeners()
