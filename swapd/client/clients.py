"""The two clients: every method once, waited for in two ways."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, Final

from swapd.client.talk import DEADLINE_S, OnEvent, Talk, least
from swapd.client.waiting import Event, Steps, Wait, await_it, sit_out

DEFAULT_ENDPOINT: Final = "ipc:///run/swapd/control.sock"
CONNECT_S: Final = 2.0  # for a daemon that is just being restarted


class _Methods:
    """The methods, written once. `Client` returns the result, `AsyncClient` a coroutine of it."""

    def __init__(self, endpoint: str | None = None, *, connect_s: float = CONNECT_S) -> None:
        self.endpoint = endpoint or os.environ.get("SWAPD_CONTROL") or DEFAULT_ENDPOINT
        self._talk = Talk(self.endpoint, connect_s)

    def _do(self, steps: Steps[Any]) -> Any:
        raise NotImplementedError

    def _ask(self, method: str, deadline_s: float, **params: Any) -> Any:
        return self._do(self._talk.call(method, params, deadline_s))

    def hello(self, *, deadline_s: float = DEADLINE_S) -> Any:
        return self._ask("hello", deadline_s)

    def status(self, service: str | None = None, *, deadline_s: float = DEADLINE_S) -> Any:
        return self._ask("status", deadline_s, service=service)

    def devices(self, *, deadline_s: float = DEADLINE_S) -> Any:
        return self._ask("devices", deadline_s)

    def workers(self, *, deadline_s: float = DEADLINE_S) -> Any:
        return self._ask("workers", deadline_s)

    def models(self, *, deadline_s: float = DEADLINE_S) -> Any:
        return self._ask("models", deadline_s)

    def plan(
        self,
        service: str,
        to: str,
        *,
        strategy: str | None = None,
        steps: str | None = None,
        max_outage: str | float | None = None,
        allow_name_mismatch: bool | None = None,
        allow_breaking: bool | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> Any:
        how = {"strategy": strategy, "steps": steps, "max_outage": max_outage}
        allow = {"allow_name_mismatch": allow_name_mismatch, "allow_breaking": allow_breaking}
        return self._ask("plan", deadline_s, service=service, to=to, **how, **allow)

    def swap(
        self,
        service: str,
        to: str,
        *,
        wait: bool = True,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Any:
        """The swap's record. With `wait`, once clients are served by the new revision, or the swap is paused; raises
        SwapFailed when they are not, and SwapdError(TIMEOUT) at the deadline (None: as long as it takes), when the swap
        goes on.

        Options: strategy, steps ("5,25,50"), max_outage ("2m" or seconds), allow_name_mismatch, allow_breaking, reason,
        actor, request_id.
        """
        return self._act("swap", {"service": service, "to": to, **options}, wait, deadline_s, on_event)

    def rehearse(
        self,
        service: str,
        to: str,
        *,
        wait: bool = True,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Any:
        """As `swap`, ending before any client notices: Succeeded is a model that was proved, SwapFailed one that was
        not."""
        return self._act("rehearse", {"service": service, "to": to, **options}, wait, deadline_s, on_event)

    def pause(self, service: str, *, deadline_s: float = DEADLINE_S, **options: Any) -> Any:
        """Let the swap in progress go no further by itself. Returns its record."""
        return self._ask("pause", deadline_s, service=service, **options)

    def promote(self, service: str, *, full: bool | None = None, deadline_s: float = DEADLINE_S, **options: Any) -> Any:
        """On to the next stage; `full`: to all clients. Returns the swap's record at once."""
        return self._ask("promote", deadline_s, service=service, full=full, **options)

    def rollback(
        self,
        service: str,
        to: int | str | None = None,
        *,
        wait: bool = True,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Any:
        """As `swap`, to the previous revision or to the one named. A return within the soak has the record of the swap
        that it undoes, which ends as Canceled: that is success here, and not raised."""
        return self._act("rollback", {"service": service, "to": to, **options}, wait, deadline_s, on_event)

    def restart(
        self,
        service: str,
        *,
        wait: bool = True,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
        **options: Any,
    ) -> Any:
        """As `swap`, to the same model."""
        return self._act("restart", {"service": service, **options}, wait, deadline_s, on_event)

    def _act(
        self, method: str, params: dict[str, Any], wait: bool, deadline_s: float | None, on_event: OnEvent | None
    ) -> Any:
        if not wait:
            return self._do(self._talk.call(method, params, least(deadline_s, DEADLINE_S)))
        return self._do(self._talk.act(method, params, deadline_s, on_event))

    def wait_swap(
        self,
        swap_id: int,
        *,
        deadline_s: float | None = None,
        on_event: OnEvent | None = None,
        since: tuple[int | str, int] | None = None,
    ) -> Any:
        """The record of the swap once it is at rest: Soaking, Succeeded, Failed or Canceled. `on_event` gets each
        event of this swap, from now on or from `since` = (epoch, seq). Raises SwapdError(TIMEOUT) at the deadline."""
        return self._do(self._talk.wait_swap(swap_id, deadline_s, on_event, since))

    def cancel(
        self, service: str | None = None, *, id: int | None = None, deadline_s: float = DEADLINE_S, **options: Any
    ) -> Any:
        """Returns the record at once; `wait_swap` tells when the old revision serves again."""
        return self._ask("cancel", deadline_s, service=service, id=id, **options)

    def resume(self, service: str, *, deadline_s: float = DEADLINE_S, **options: Any) -> Any:
        """Have a paused swap go on: its record; or a service that swapd has paused: as `status` has it."""
        return self._ask("resume", deadline_s, service=service, **options)

    def history(self, service: str | None = None, limit: int | None = None, *, deadline_s: float = DEADLINE_S) -> Any:
        return self._ask("history", deadline_s, service=service, limit=limit)

    def show(self, id: int, *, deadline_s: float = DEADLINE_S) -> Any:
        return self._ask("show", deadline_s, id=id)

    def logs(
        self, target: str, lines: int | None = None, *, offset: int | None = None, deadline_s: float = DEADLINE_S
    ) -> Any:
        return self._ask("logs", deadline_s, target=target, lines=lines, offset=offset)

    def reload(self, *, dry_run: bool = False, deadline_s: float = DEADLINE_S, **options: Any) -> Any:
        return self._ask("reload", deadline_s, dry_run=dry_run or None, **options)

    def stop_workers(self, *, confirm: bool, deadline_s: float = DEADLINE_S, **options: Any) -> Any:
        return self._ask("stop_workers", deadline_s, confirm=confirm, **options)

    def events_since(
        self, epoch: int | str, seq: int, limit: int | None = None, *, deadline_s: float = DEADLINE_S
    ) -> Any:
        return self._ask("events_since", deadline_s, epoch=epoch, seq=seq, limit=limit)


class Client(_Methods):
    """The synchronous client. Threads may share one; close it, or use it in a `with`."""

    def _do(self, steps: Steps[Any]) -> Any:
        try:
            wait = next(steps)
            while True:
                wait = steps.send(sit_out(wait))
        except StopIteration as done:
            return done.value
        finally:
            steps.close()

    def events(self, since: tuple[int | str, int] | None = None, *, patience_s: float | None = None) -> Iterator[Event]:
        """Every event from now on, or after `since` = (epoch, seq), in order and each once, without end. Gaps are
        filled from the daemon's memory. When it was restarted an event `events.restarted` comes first, and
        `events.lost` (with `count`) where its memory did not reach back far enough. An absent daemon is waited for,
        `patience_s` at most."""
        steps = self._talk.events(since, patience_s)
        try:
            item = next(steps)
            while True:
                if isinstance(item, Wait):
                    item = steps.send(sit_out(item))
                else:
                    yield item
                    item = next(steps)
        finally:
            steps.close()

    def close(self) -> None:
        self._talk.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Methods):
    """The same for asyncio: `async with AsyncClient() as swapd: await swapd.status()`. Calls may overlap."""

    def _do(self, steps: Steps[Any]) -> Coroutine[Any, Any, Any]:
        return self._drive(steps)

    async def _drive(self, steps: Steps[Any]) -> Any:
        try:
            wait = next(steps)
            while True:
                wait = steps.send(await await_it(wait))
        except StopIteration as done:
            return done.value
        finally:
            steps.close()

    async def events(
        self, since: tuple[int | str, int] | None = None, *, patience_s: float | None = None
    ) -> AsyncIterator[Event]:
        """As `Client.events`: `async for event in swapd.events()`."""
        steps = self._talk.events(since, patience_s)
        try:
            item = next(steps)
            while True:
                if isinstance(item, Wait):
                    item = steps.send(await await_it(item))
                else:
                    yield item
                    item = next(steps)
        finally:
            steps.close()

    async def close(self) -> None:
        self._talk.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._talk.close()
