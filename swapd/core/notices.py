"""Which of the daemon's events are told to others, as the configuration chooses, and what they are told.

Pure. May not know: how a receiver is reached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from swapd.core.config import NotifyConfig
from swapd.core.model import Health
from swapd.core.states import Phase

# The events of docs/control.md, but those that come many times a second.
_EVENTS: Final = (
    *("swap.created", "swap.phase", "swap.strategy", "swap.step", "swap.finished"),
    *("service.changed", "service.health", "service.removed", "worker.state", "device.changed"),
)
# One transition of them: swap.paused is swap.phase to Paused.
_ONE: Final = {
    **{f"swap.{phase.value.lower()}": ("swap.phase", "phase", phase.value) for phase in Phase},
    **{f"service.{health.value.lower()}": ("service.health", "health", health.value) for health in Health},
}
NAMES: Final = (*_EVENTS, *_ONE)

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0


def is_wanted(notify: NotifyConfig, event: str, body: Mapping[str, Any]) -> bool:
    service = body.get("service")
    if notify.services is not None and service is not None and service not in notify.services:
        return False
    return event in notify.on or any(_is(name, event, body) for name in notify.on)


def _is(name: str, event: str, body: Mapping[str, Any]) -> bool:
    of, key, value = _ONE.get(name, ("", "", ""))
    return event == of and body.get(key) == value


def message(number: str, event: str, body: Mapping[str, Any], at: float, host: str) -> bytes:
    """What a receiver gets, in JSON. `number` is the same at each attempt."""
    told = {"id": number, "event": event, "at": round(at, 3), "host": host, "text": text_of(event, body), **body}
    return json.dumps(told, default=str).encode()


def text_of(event: str, body: Mapping[str, Any]) -> str:
    """For people, in a line."""
    who = body.get("service") or body.get("device") or "swapd"
    what = f"swap {body['swap_id']}" if "swap_id" in body else event.partition(".")[0]
    now = next((str(body[key]) for key in ("phase", "health", "state", "status", "strategy") if body.get(key)), event)
    named = body.get("worker") or body.get("step")
    why = next((str(body[key]) for key in ("reason", "message", "trouble", "detail", "why") if body.get(key)), "")
    return f"{who}: {what} {f'{named} ' if named else ''}{now}" + (f": {why}" if why else "")


def pause_s(failures: int) -> float:
    """Until the next attempt, after so many that failed."""
    return float(min(FIRST_PAUSE_S * 2 ** min(failures - 1, 16), LONGEST_PAUSE_S))
