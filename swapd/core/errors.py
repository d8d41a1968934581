"""One error type with stable codes.

A *refusal* is a value inside core (`Problem`); at the edges it is raised as `SwapdError`. Codes are part of
the public interface (`error.data.code`): people script against them, so a code is never reused or renamed.
Standard library only: this module also runs in a model's interpreter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# --- what the caller asked for is wrong, or not possible now -----------------------------------------------
BAD_REQUEST: Final = "BAD_REQUEST"
UNKNOWN_METHOD: Final = "UNKNOWN_METHOD"
UNKNOWN_SERVICE: Final = "UNKNOWN_SERVICE"
UNKNOWN_MODEL: Final = "UNKNOWN_MODEL"
UNKNOWN_DEVICE: Final = "UNKNOWN_DEVICE"
UNKNOWN_SWAP: Final = "UNKNOWN_SWAP"
UNKNOWN_WORKER: Final = "UNKNOWN_WORKER"
UNKNOWN_REVISION: Final = "UNKNOWN_REVISION"
CONFIG_INVALID: Final = "CONFIG_INVALID"
SWAP_IN_PROGRESS: Final = "SWAP_IN_PROGRESS"
ALREADY_SERVING: Final = "ALREADY_SERVING"
NOTHING_TO_ROLL_BACK: Final = "NOTHING_TO_ROLL_BACK"
NOTHING_TO_CANCEL: Final = "NOTHING_TO_CANCEL"
NOTHING_TO_RESUME: Final = "NOTHING_TO_RESUME"
NOT_POSSIBLE_NOW: Final = "NOT_POSSIBLE_NOW"  # a control that makes no sense where the swap stands
SERVICE_PAUSED: Final = "SERVICE_PAUSED"  # the daemon has ended again and again in the middle of something of it
NOT_SUPPORTED: Final = "NOT_SUPPORTED"
SHUTTING_DOWN: Final = "SHUTTING_DOWN"
BUSY: Final = "BUSY"  # too many requests at once: nothing was done, ask again
DAEMON_UNREACHABLE: Final = "DAEMON_UNREACHABLE"  # raised by the client, never sent
VERSION_MISMATCH: Final = "VERSION_MISMATCH"
# --- memory ------------------------------------------------------------------------------------------------
VRAM_INSUFFICIENT: Final = "VRAM_INSUFFICIENT"
DEVICE_UNKNOWN: Final = "DEVICE_UNKNOWN"  # the device's memory cannot be read: nothing is planned on it
MODEL_NAME_MISMATCH: Final = "MODEL_NAME_MISMATCH"  # clients name the model in their requests, and would lose it
CONTRACT_BROKEN: Final = "CONTRACT_BROKEN"  # clients rely on something of the old model that the new one has not
OUTAGE_TOO_LONG: Final = "OUTAGE_TOO_LONG"
NO_WAY_BACK: Final = "NO_WAY_BACK"  # in-place, and the old model's files have changed since it was loaded
CONTENT_CHANGED: Final = "CONTENT_CHANGED"  # a revision cannot be served again: its files have changed
MEMORY_NOT_RELEASED: Final = "MEMORY_NOT_RELEASED"
OUT_OF_MEMORY: Final = "OUT_OF_MEMORY"
GUARD_KILLED: Final = "GUARD_KILLED"  # it loaded beside others, and the device had less free than its floor
# --- a model or its worker failed --------------------------------------------------------------------------
COMMAND_NOT_FOUND: Final = "COMMAND_NOT_FOUND"
SPAWN_FAILED: Final = "SPAWN_FAILED"  # the host refuses: too many processes, no memory, no log
IMPORT_FAILED: Final = "IMPORT_FAILED"
LOAD_FAILED: Final = "LOAD_FAILED"
WORKER_EXITED: Final = "WORKER_EXITED"
WORKER_HUNG: Final = "WORKER_HUNG"  # it lives, and gives no sign of it
CRASH_LOOP: Final = "CRASH_LOOP"  # it fails again and again; its clients are told at once
NOT_READY: Final = "NOT_READY"
NOT_ON_DEVICE: Final = "NOT_ON_DEVICE"  # it answers, and holds next to nothing of its GPU
WARMUP_FAILED: Final = "WARMUP_FAILED"
PROBE_FAILED: Final = "PROBE_FAILED"
PROBE_TOO_SLOW: Final = "PROBE_TOO_SLOW"
GOLDEN_FAILED: Final = "GOLDEN_FAILED"  # the service's requests with expected answers were answered otherwise
HAND_OVER_FAILED: Final = "HAND_OVER_FAILED"
HOOK_FAILED: Final = "HOOK_FAILED"  # an Engine's stage, park or wake raised
CANCELED: Final = "CANCELED"
ANALYSIS_FAILED: Final = "ANALYSIS_FAILED"  # the candidate answers, and does worse than its rules allow
TIMEOUT: Final = "TIMEOUT"
# --- the host ----------------------------------------------------------------------------------------------
LISTEN_FAILED: Final = "LISTEN_FAILED"
JOURNAL_FAILED: Final = "JOURNAL_FAILED"
JOURNAL_NEWER: Final = "JOURNAL_NEWER"  # written by a later version of swapd
INTERNAL: Final = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something was refused or failed: a stable code, a sentence that says what to do, and figures."""

    code: str
    message: str
    details: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class SwapdError(Exception):
    """A `Problem` raised at an edge. Anything else that escapes is a bug in swapd."""

    def __init__(self, code: str, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(code, message, dict(details or {}))

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def message(self) -> str:
        return self.problem.message

    @property
    def details(self) -> Mapping[str, Any]:
        return self.problem.details

    @classmethod
    def of(cls, problem: Problem) -> SwapdError:
        return cls(problem.code, problem.message, problem.details)
