"""The workers that a killed daemon has left, ended as a test ends."""

import asyncio
import json

from swapd.host.processes import kill_leftovers


def end_workers(daemon):
    """Nothing, where the daemon lives: it ends them itself."""
    if daemon.process.poll() is None:
        return
    for spec in (daemon.dir / "r/w").glob("*/spec.json"):
        told = json.loads(spec.read_text())
        asyncio.run(kill_leftovers(f"{told['worker_id']}:{told['nonce']}"))
