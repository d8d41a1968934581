"""When starting a model again and again is no cure: it goes on, and clients are told at once instead of being kept
waiting for what does not come back.

A failure counts when a worker of the serving revision ended by itself, or could not be started, and none has served for
a while in between (`results.CALM_S`). Nothing else is remembered: the problem is there from the failure that fills the
measure until somebody answers the clients again, and it is what routing and health go by.
"""

from __future__ import annotations

from swapd.core.errors import CRASH_LOOP, DEVICE_UNKNOWN, VRAM_INSUFFICIENT, Problem
from swapd.core.model import Service


def problem_after(service: Service, failures: int, problem: Problem) -> Problem:
    """What a service's trouble is after so many failures in a row, of which `problem` was the last."""
    if failures < service.settings.crash_loop_failures:
        return problem
    stable = service.revision(service.stable)
    model = stable.model if stable is not None else service.config_model
    not_started = problem.code in (VRAM_INSUFFICIENT, DEVICE_UNKNOWN)  # no log tells of it
    look = "See who holds memory (swapd-cli devices)" if not_started else f"See its log (swapd-cli logs {service.name})"
    text = (
        f"{model} has failed {failures} times in a row, the last time: {problem.message.rstrip('.')}. It is"
        f" started again, with pauses; clients get 503 until it serves. {look}, or"
        f" swap to another model (swapd-cli swap {service.name} --to MODEL)."
    )
    last = {"code": problem.code, "message": problem.message, "details": dict(problem.details)}
    return Problem(CRASH_LOOP, text, {"failures": failures, "last": last})


def crash_loops(service: Service) -> bool:
    """Nobody who comes now is to be kept waiting."""
    return service.problem is not None and service.problem.code == CRASH_LOOP
