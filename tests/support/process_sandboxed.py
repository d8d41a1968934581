"""Does as the unit's main process what the daemon does with workers, and writes to the state directory what worked."""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import sys
from pathlib import Path

from support.process_waiting import await_until, is_running

from swapd.host.processes import Supervisor, tree_pids
from swapd.host.service_manager import ServiceManager


def _may_compile() -> bool:
    """Memory that is written and then executed: what every just-in-time compiler needs."""
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return True


async def _try_workers(state: Path) -> dict[str, object]:
    notes = state / "notes"
    notes.mkdir(exist_ok=True)
    supervisor = Supervisor()
    supervisor.become_subreaper()
    worker = str(Path(__file__).with_name("process_worker.py"))
    process = await supervisor.spawn(
        [sys.executable, worker, "tree", str(notes)],
        env={"PATH": os.environ["PATH"]},
        cwd=None,
        log_path=state / "worker.log",
        marker="chat-1:0a",
    )
    named = await await_until(lambda: len(pids := [note.name for note in notes.glob("[0-9]*")]) == 4 and pids)
    found = tree_pids(process.pid, process.marker)
    await process.kill_tree(0)
    supervisor.close()
    return {
        "found": sorted(found) == sorted(map(int, named)),
        "left": [pid for pid in found if is_running(pid)],
        "exit": process.exit_text,
    }


def main() -> None:
    service = ServiceManager()
    service.ready()
    state = Path(os.environ["STATE_DIRECTORY"])
    result = {
        **asyncio.run(_try_workers(state)),
        "jit": _may_compile(),
        "runtime": os.access(os.environ["RUNTIME_DIRECTORY"], os.W_OK),
        "read_only": [path for path in ("/etc", "/usr", "/home", "/srv") if not os.access(path, os.W_OK)],
        "devices": [name for name in ("null", "zero", "urandom", "shm") if os.access(f"/dev/{name}", os.W_OK)],
    }
    (state / "result.json").write_text(json.dumps(result))
    service.stopping()


if __name__ == "__main__":
    main()
