"""What the control socket remembers, all of it bounded: recent events, answers to repeat, users' names."""

from __future__ import annotations

import asyncio
import pwd
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from swapd.core import errors
from swapd.core.errors import SwapdError
from swapd.host.deadlines import within
from swapd.wire import control

MAX_USERS: Final = 1024
USER_LOOKUP_S: Final = 1.0  # getpwuid may ask a directory server


class EventRing:
    """The last events, numbered from 1 within this daemon's epoch."""

    def __init__(self, epoch: int | str, size: int) -> None:
        self._epoch = epoch
        self._events: deque[dict[str, Any]] = deque(maxlen=size)
        self.last_seq = 0

    def append(self, event: str, body: Mapping[str, Any], at: float) -> bytes:
        """The event as a message. Raises TypeError or ValueError if it cannot be one; nothing is counted then."""
        entry = {**body, "epoch": self._epoch, "seq": self.last_seq + 1, "at": round(at, 6), "event": event}
        message = control.encode_event(entry)
        # What is kept is what was sent: the caller may go on to change what `body` refers to.
        self._events.append(control.decode_event(message))
        self.last_seq += 1
        return message

    def since(self, epoch: int | str, seq: int, limit: int) -> dict[str, Any]:
        """What came after (epoch, seq). After a restart of the daemon everything did, and `lost` is not known of
        the earlier epoch: it counts only what this ring no longer has."""
        after = seq if epoch == self._epoch and seq <= self.last_seq else 0
        oldest = self.last_seq - len(self._events) + 1
        start = max(after + 1, oldest)
        skip = start - oldest
        found = [self._events[i] for i in range(skip, min(skip + max(limit, 1), len(self._events)))]
        return {
            "epoch": self._epoch,
            "seq": found[-1]["seq"] if found else self.last_seq,
            "events": found,
            "lost": start - after - 1,
            "more": skip + len(found) < len(self._events),
        }


class Repeats:
    """At most one call per key, however often it is asked for; the first one's result for all, also while it is
    still being worked out. A call outlives an asker that ran out of time, so that the next still finds it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._calls: OrderedDict[object, tuple[Mapping[str, Any], asyncio.Task[Any]]] = OrderedDict()

    async def once(self, key: object, params: Mapping[str, Any], call: Callable[[], Awaitable[Any]]) -> Any:
        known = self._calls.get(key)
        if known is None:
            self._make_room()

            async def run() -> Any:
                return await call()

            known = (params, asyncio.get_running_loop().create_task(run()))
            known[1].add_done_callback(_retrieve)
            self._calls[key] = known
        elif known[0] != params:
            raise SwapdError(errors.BAD_REQUEST, "request_id: it was used before with other parameters; take a new one")
        self._calls.move_to_end(key)
        return await asyncio.shield(known[1])

    def _make_room(self) -> None:
        if len(self._calls) < self._size:
            return
        for key, (_, task) in self._calls.items():
            if task.done():
                del self._calls[key]
                return
        raise SwapdError(errors.BUSY, "too many requests are still being worked on: nothing was done, ask again")

    def close(self) -> None:
        for _, task in self._calls.values():
            task.cancel()
        self._calls.clear()


class Users:
    """Names of user ids, looked up off the loop: with a directory server behind it, one look-up may take seconds."""

    def __init__(self) -> None:
        self._names: dict[int, asyncio.Future[str | None]] = {}

    async def name(self, uid: int) -> str | None:
        """None when there is no such user, or nobody said so in time; then it may be known the next time."""
        known = self._names.get(uid)
        if known is None:
            if len(self._names) >= MAX_USERS:
                self._names.pop(next(iter(self._names)))
            known = asyncio.ensure_future(asyncio.to_thread(_user_name, uid))
            self._names[uid] = known
        try:
            return await within(USER_LOOKUP_S, asyncio.shield(known))
        except (asyncio.TimeoutError, TimeoutError):
            return None


def _user_name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Marks the outcome as seen: the askers may all have left."""
    if not task.cancelled():
        task.exception()
