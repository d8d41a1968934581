"""An ASGI app's lifespan as a load step that can fail, over uvicorn's `LifespanOn`.

uvicorn (0.54) swallows the exception of a failing lifespan, and in "auto" mode takes an app that fails while
loading for one that does not speak lifespan. Here the app is watched: if it fails before it asks for the
`lifespan.startup` message it does not speak lifespan (the ASGI specification's way to say so), nor if it answers
with HTTP messages (it never looked at the scope's type); any other failure is a failure to load.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final

from uvicorn.config import Config
from uvicorn.lifespan.on import LifespanOn

log = logging.getLogger("swapd.worker.lifespan")

SHUTDOWN_TIMEOUT_S: Final = 10.0
_SETTLE_S: Final = 1.0  # an app that sent startup.failed raises right after: wait that long for the exception

AsgiApp = Callable[..., Awaitable[None]]


class StartupFailed(Exception):
    """The app sent `lifespan.startup.failed` and raised nothing."""


class Lifespan:
    def __init__(self, app: AsgiApp) -> None:
        self._app = app
        self._asked = False
        self._spoke_http = False
        self._error: BaseException | None = None
        self._said = ""
        self._ended = asyncio.Event()
        config = Config(
            self._watched,
            loop="none",
            http="httptools",
            ws="none",
            lifespan="auto",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
        )
        self._inner = LifespanOn(config)

    @property
    def state(self) -> dict[str, Any]:
        return self._inner.state

    async def startup(self) -> None:
        """Raises what the app raised, or StartupFailed."""
        await self._inner.startup()
        if self._inner.startup_failed:
            try:
                await asyncio.wait_for(self._ended.wait(), _SETTLE_S)
            except asyncio.TimeoutError:
                log.debug("worker.lifespan_still_running after startup.failed")
            raise self._error or StartupFailed(self._said or "the app sent lifespan.startup.failed")
        if self._error is not None:
            speaks_lifespan = self._asked and not self._spoke_http
            if speaks_lifespan or isinstance(self._error, (SystemExit, MemoryError)):
                raise self._error
            said = f"{type(self._error).__name__}: {self._error}".rstrip(": ")
            log.info("worker.no_lifespan the app does not speak lifespan (%s)", said)

    async def shutdown(self) -> None:
        """At most SHUTDOWN_TIMEOUT_S. A failure is logged: there is nobody left who could act on it."""
        try:
            await asyncio.wait_for(self._inner.shutdown(), SHUTDOWN_TIMEOUT_S)
        except asyncio.TimeoutError:
            log.warning("worker.lifespan_shutdown_timeout limit_s=%g", SHUTDOWN_TIMEOUT_S)
        if self._error is not None and self._asked:
            log.warning("worker.lifespan_shutdown_failed", exc_info=self._error)

    async def _watched(self, scope: Any, receive: Any, send: Any) -> None:
        async def watched_receive() -> Any:
            self._asked = True
            return await receive()

        async def watched_send(message: Any) -> None:
            kind = message.get("type", "")
            self._spoke_http = self._spoke_http or not kind.startswith("lifespan.")
            if kind == "lifespan.startup.failed":
                self._said = str(message.get("message", ""))
            await send(message)

        try:
            await self._app(scope, watched_receive, watched_send)
        except BaseException as error:
            self._error = error
            raise
        finally:
            self._ended.set()
