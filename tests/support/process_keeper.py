"""A daemon's life with one worker in a unit of its own: adopts or starts it, leaves it at SIGUSR2, drains at SIGTERM.

What it does is appended to `told.jsonl` in its state directory.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from swapd.core.launch import Command, Confinement
from swapd.host.service_manager import ServiceManager
from swapd.host.units import UnitProcess, Units

STATE = Path(os.environ.get("STATE_DIRECTORY", "."))
DIRECTORY = Path("/run/swapd/w/chat-1")
MARKER = "chat-1:0a"


def tell(**what: Any) -> None:
    with (STATE / "told.jsonl").open("a") as file:
        file.write(json.dumps(what) + "\n")


def _is_there() -> bool:
    return DIRECTORY.is_dir()


def _make_directory() -> None:
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)


async def worker(units: Units) -> UnitProcess:
    found = (await units.find({MARKER})).get(MARKER)
    if found is not None and found.alive:
        tell(did="adopted", worker=found.pid, directory=_is_there())
        return found
    _make_directory()
    command = Command(
        name="chat-1",
        marker=MARKER,
        argv=("/bin/sleep", "1000"),
        env={},
        cwd=None,
        log_path=str(STATE / "chat-1.log"),
        directory=str(DIRECTORY),
        confinement=Confinement(user="swapd", group="swapd-workers"),
    )
    started = await units.spawn(command)
    tell(did="started", worker=started.pid)
    return started


async def main() -> None:
    manager = ServiceManager()
    told: asyncio.Queue[str] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGUSR2):
        asyncio.get_running_loop().add_signal_handler(number, told.put_nowait, number.name)
    process = await worker(Units())
    manager.ready()
    while True:
        manager.watchdog()
        try:
            name = await asyncio.wait_for(told.get(), 0.2)
            break
        except asyncio.TimeoutError:
            continue
    tell(did=name, worker_alive=process.alive)
    if name == "SIGTERM":
        await process.kill_tree(5.0)
        tell(did="drained", worker=process.exit_text)


if __name__ == "__main__":
    if Path("/etc/swapd/wrong").exists():
        sys.exit(2)
    asyncio.run(main())
