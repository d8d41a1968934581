"""Tells chosen events to the receivers of the configuration, one after the other to each, until it has got them.

At least once within this daemon's life: an attempt that seems to have failed may have arrived, so events carry ids.
What waits when the daemon ends, or beyond MAX_QUEUED, is lost, and told. Nobody waits for a receiver.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from swapd.core.config import Config, NotifyConfig
from swapd.core.errors import BAD_REQUEST, SwapdError
from swapd.core.launch import MARKER
from swapd.core.notices import is_wanted, message, pause_s
from swapd.core.redact import Redactor
from swapd.host.clock import wall_s as now
from swapd.host.notify import post, run
from swapd.host.processes import kill_leftovers

log = logging.getLogger("swapd.notify")

MAX_QUEUED: Final = 1000
LAST_S: Final = 3.0  # for what waits, when the daemon ends


class Receiver:
    def __init__(self, config: NotifyConfig, redactor: Callable[[], Redactor], counts: Counter[str]) -> None:
        self.config = config
        self.counts = counts
        self._redactor = redactor
        self._queue: deque[tuple[str, bytes]] = deque()
        self._stirred = asyncio.Event()
        self.idle = asyncio.Event()
        self.idle.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def queued(self) -> int:
        return len(self._queue)

    def take(self, number: str, body: bytes) -> None:
        """The oldest gives way: the newest says how things are."""
        if len(self._queue) >= MAX_QUEUED:
            self._queue.popleft()
            self.counts["dropped"] += 1
            if self.counts["dropped"] == 1:
                log.warning("notify.dropped notify=%s waiting=%d", self.config.name, MAX_QUEUED)
        self._queue.append((number, body))
        self.idle.clear()
        self._stirred.set()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._queue:
            log.warning("notify.lost notify=%s events=%d", self.config.name, len(self._queue))

    async def _run(self) -> None:
        while True:
            while self._queue:
                number, body = self._queue[0]
                outcome = await self._tell(number, body)
                self.counts[outcome] += 1
                if self._queue and self._queue[0][0] == number:  # it may have given way meanwhile
                    self._queue.popleft()
            self.idle.set()
            self._stirred.clear()
            await self._stirred.wait()

    async def _tell(self, number: str, body: bytes) -> str:
        """Delivered, or failed."""
        for attempt in range(1, self.config.attempts + 1):
            try:
                await self._attempt(body)
                return "delivered"
            except SwapdError as error:
                final = error.code == BAD_REQUEST or attempt == self.config.attempts
                why = self._redactor().text(error.message)
            except Exception as error:  # a bug of ours must not end the telling
                log.exception("notify.bug notify=%s", self.config.name)
                final, why = True, type(error).__name__
            tell = log.warning if final or attempt == 1 else log.debug
            name, what = self.config.name, "failed" if final else "retried"
            tell('notify.%s notify=%s id=%s attempt=%d why="%s"', what, name, number, attempt, why)
            if final:
                break
            await asyncio.sleep(pause_s(attempt))
        return "failed"

    async def _attempt(self, body: bytes) -> None:
        config = self.config
        if config.url is not None:
            await post(config.url, config.headers_file_values, body, deadline_s=config.timeout_s)
            return
        marker = f"notify-{config.name}:{secrets.token_hex(8)}"
        try:
            await run(config.command, body, {MARKER: marker}, deadline_s=config.timeout_s)
        finally:
            await asyncio.shield(kill_leftovers(marker))  # those that have left its session


class Notices:
    def __init__(self, config: Config, redactor: Callable[[], Redactor]) -> None:
        self._redactor = redactor
        self._receivers: dict[str, Receiver] = {}
        self._counts: dict[str, Counter[str]] = {}  # by name, also over a change of the receiver
        self._ending: set[asyncio.Task[None]] = set()
        self._life = secrets.token_hex(6)  # ids of no two daemons are the same
        self._last = 0
        self._host = socket.gethostname()
        self.configure(config)

    def configure(self, config: Config) -> None:
        """Go by this from now on. What waits for a receiver that stays as it is goes on waiting."""
        for name, receiver in list(self._receivers.items()):
            if config.notify.get(name) != receiver.config:
                task = asyncio.get_running_loop().create_task(self._receivers.pop(name).close())
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)
        for name, each in config.notify.items():
            if name not in self._receivers:
                self._receivers[name] = Receiver(each, self._redactor, self._counts.setdefault(name, Counter()))

    def hear(self, event: str, body: Mapping[str, Any]) -> None:
        """One of the daemon's events. Returns at once, and never raises."""
        wanting = [each for each in self._receivers.values() if is_wanted(each.config, event, body)]
        if wanting:
            self._last += 1
            number = f"{self._life}-{self._last}"
            told = message(number, event, self._redactor().value(dict(body)), now(), self._host)
            for each in wanting:
                each.take(number, told)

    def figures(self) -> dict[str, tuple[Mapping[str, int], int]]:
        """By receiver: how many were delivered, failed and dropped, and how many wait."""
        return {name: (each.counts, each.queued) for name, each in self._receivers.items()}

    async def close(self) -> None:
        idle = [asyncio.ensure_future(each.idle.wait()) for each in self._receivers.values()]
        if idle:
            await asyncio.wait(idle, timeout=LAST_S)
        for wait in idle:
            wait.cancel()
        await asyncio.gather(*(each.close() for each in self._receivers.values()), *self._ending)
