"""A daemon's host of workers, driven from outside: a line of JSON in, a line of JSON out. For tests under systemd."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from swapd.core.errors import SwapdError
from swapd.core.launch import Command, Confinement
from swapd.host.units import UnitProcess, Units

_processes: dict[str, UnitProcess] = {}


def _told(process: UnitProcess) -> dict[str, Any]:
    return {
        "pid": process.pid,
        "start_time": process.identity.start_time,
        "marker": process.marker,
        "alive": process.alive,
        "exit_code": process.exit_code,
        "exit_text": process.exit_text,
        "oom_killed": process.oom_killed,
    }


async def _answer(units: Units, call: str, asked: dict[str, Any]) -> Any:
    name = asked.pop("name", "")
    if call == "spawn":
        confinement = Confinement(**{key: _tupled(value) for key, value in asked.pop("confinement", {}).items()})
        values = {key: _tupled(value) for key, value in asked.items()}
        _processes[name] = await units.spawn(Command(name=name, confinement=confinement, **values))
        return _told(_processes[name])
    if call == "find":
        found = (await units.find({asked["marker"]})).get(asked["marker"])
        if found is None:
            return None
        _processes[name] = found
        return _told(found)
    if call == "wait":
        await asyncio.wait_for(_processes[name].wait(), 30)
        return _told(_processes[name])
    if call == "kill_tree":
        await _processes[name].kill_tree(**asked)
        return _told(_processes[name])
    if call == "pids":
        roots = {process.marker: process.pid for process in _processes.values()}
        return {marker: sorted(pids) for marker, pids in (await units.pids(roots)).items()}
    if call == "set_limits":
        return await units.set_limits(name, **asked)
    raise ValueError(call)


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


async def _main() -> None:
    units = Units()
    print(json.dumps({"missing": units.missing}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        try:
            answer = {"answer": await _answer(units, asked.pop("call"), asked)}
        except SwapdError as error:
            answer = {"code": error.code, "message": error.message}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(_main())
