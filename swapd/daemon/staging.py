"""What is done for a model that has no `stage` hook, while the old one serves: its weight files into the page cache."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swapd.core.config import ModelConfig
from swapd.core.errors import SwapdError
from swapd.core.sizes import human_bytes
from swapd.daemon.knowledge import files_loaded
from swapd.daemon.live import Live
from swapd.wire.worker import PAGE_CACHE

PART_OF_READY: Final = 0.5  # of `ready.timeout`, which a whole load may take: at idle priority it may never end
ANSWER_S: Final = 30.0  # for the piece that it is reading then, from a disk that is busy
MAX_NAMES_BYTES: Final = 64 * 1024  # half of what one message holds

_Stage = Callable[[float, Mapping[str, Any]], Awaitable[Mapping[str, Any]]]  # (patience in seconds, parameters)


async def bring_files(live: Live, model: ModelConfig, stage: _Stage) -> Mapping[str, Any]:
    """Have the worker read them; the result's `detail` tells what came of it. Raises SwapdError if the worker ends."""
    if PAGE_CACHE not in live.hello.get("capabilities", ()):  # of an older swapd
        return {}
    try:
        names = _that_fit(await asyncio.to_thread(files_loaded, model))
    except SwapdError:  # the load will tell of it
        names = []
    limit_s = model.ready.timeout_s * PART_OF_READY
    result = await stage(limit_s + ANSWER_S, {"files": names, "deadline_s": limit_s})
    return {**result, "detail": _words(result)}


def _that_fit(paths: Sequence[Path]) -> list[str]:
    names: list[str] = []
    left = MAX_NAMES_BYTES
    for path in paths:
        left -= len(json.dumps(str(path))) + 2
        if left < 0:
            break
        names.append(str(path))
    return names


def _words(result: Mapping[str, Any]) -> str:
    """4.1 GiB of weights: 1.0 GiB was cached, 3.0 GiB read, no room for 100 MiB"""
    if not result.get("bytes"):
        return ""
    text = f"{human_bytes(result['bytes'])} of weights: {human_bytes(result['cached_bytes'])} was cached"
    text += f", {human_bytes(result['read_bytes'])} read"
    return text + (f", no room for {human_bytes(result['no_room_bytes'])}" if result["no_room_bytes"] else "")
