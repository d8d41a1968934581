"""The files in which gates write a line for each request: opened here, given to them, and rotated as workers' logs are.

A gate keeps the descriptor, so it needs no daemon to write, and no right to the directory. Where a file was moved or
removed by somebody else, a new one is given within seconds.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from swapd.core.config import Config
from swapd.core.errors import SwapdError
from swapd.core.model import Kind
from swapd.daemon.live import Live
from swapd.host.logs import cap
from swapd.wire import worker as wire

log = logging.getLogger("swapd.daemon")

PERIOD_S: Final = 1.0
LOOKS_A_ROTATION: Final = 10
REQUEST_S: Final = 5.0
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def path_of(config: Config, service: str) -> Path | None:
    """None: its requests are not logged."""
    settings = config.services.get(service)
    if settings is None or not settings.access_log:
        return None
    if isinstance(settings.access_log, str):
        return Path(settings.access_log)
    return Path(config.daemon.log_dir) / f"{service}-access.log"


async def connected(live: Live, config: Config) -> None:
    """To a gate that was started just now, or by an earlier daemon, and has its file."""
    live.access_log = (None, False) if live.hello.get("access_log") else None
    await give(live, config)


async def give(live: Live, config: Config) -> None:
    """To a gate, if it has not what its service's settings say. Fails nothing: without one it serves as well."""
    path = path_of(config, live.facts.service)
    query = path is not None and config.services[live.facts.service].access_log_query
    try:
        wanted = (await asyncio.to_thread(_found, path), query) if path is not None else None
        if wanted == live.access_log and (wanted is None or wanted[0] is not None):
            return
        if path is None:
            await live.request(wire.ACCESS_LOG, deadline_s=REQUEST_S)
            live.access_log = None
            return
        descriptor = await asyncio.to_thread(_open, path)
        try:
            file = os.fstat(descriptor)
            await live.request(wire.ACCESS_LOG, {"query": query}, fds=(descriptor,), deadline_s=REQUEST_S)
        finally:
            os.close(descriptor)
        live.access_log = (file.st_dev, file.st_ino), query
    except (OSError, SwapdError) as error:
        if live.access_log_problem != str(error):  # it is tried again each time, and told once
            live.access_log_problem = str(error)
            log.warning("worker.access_log_not_given worker=%s path=%s error=%s", live.id, path, error)


def _found(path: Path) -> tuple[int, int] | None:
    try:
        file = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return None
    return file.st_dev, file.st_ino


def _open(path: Path) -> int:
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    return os.open(path, _FLAGS, 0o640)


async def keep(config: Callable[[], Config], workers: Callable[[], Collection[Live]]) -> None:
    """For as long as the daemon runs."""
    looks = 0
    while True:
        for live in workers():
            if live.kind is Kind.GATE and live.channel is not None and not live.channel.closed.is_set():
                await give(live, config())
        if looks % LOOKS_A_ROTATION == 0:
            await _rotate(config())
        looks += 1
        await asyncio.sleep(PERIOD_S)


async def _rotate(config: Config) -> None:
    for path in {path for service in config.services if (path := path_of(config, service)) is not None}:
        try:
            await asyncio.to_thread(cap, path, config.daemon.log_max_bytes, config.daemon.log_rotate)
        except OSError as error:
            log.warning("daemon.access_log_not_rotated path=%s error=%s", path, error)
