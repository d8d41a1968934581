"""What is wrong on a host, how bad it is, and the command to try next: `doctor`'s judgement. Pure.

Duty: findings from records that others have gathered (`Facts`), each with its cause in a sentence and one concrete
command. May not know: where facts come from. What is None is not known, and no ground for a finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from swapd.core import errors
from swapd.core.model import Health
from swapd.core.offline import Reach
from swapd.core.sizes import human_bytes, human_seconds
from swapd.core.states import TERMINAL, Phase

Record = Mapping[str, Any]

FEW_FILES: Final = 4096  # descriptors: two for each client while it moves, one for each worker and listener
FULL: Final = 0.8  # of the descriptors: from here on somebody should look
LITTLE_DISK_BYTES: Final = 256 << 20
NO_DISK_BYTES: Final = 16 << 20  # the journal's next checkpoint may already fail
LONG_STEP_S: Final = 15 * 60.0  # longer than the default of every timeout that bounds a step

_ENDED: Final = frozenset(phase.value for phase in TERMINAL)
_MEMORY: Final = frozenset(
    {
        errors.VRAM_INSUFFICIENT,
        errors.OUT_OF_MEMORY,
        errors.GUARD_KILLED,
        errors.MEMORY_NOT_RELEASED,
        errors.DEVICE_UNKNOWN,
    }
)
WELL: Final = (Health.HEALTHY.value, Reach.SERVING.value)


class Severity(str, Enum):
    PROBLEM = "problem"  # clients are not served as they should be, or nobody looks after them
    WARNING = "warning"  # it will hurt, or something that was asked for has not come about
    NOTE = "note"  # worth knowing


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    what: str
    try_next: str  # a command, or a short instruction where there is none
    service: str | None = None


@dataclass(frozen=True, slots=True)
class Disk:
    path: str
    free_bytes: int
    total_bytes: int
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, as far as it can be seen. `unit` is swapd's under systemd, by its name, with `unit_state` (active,
    failed, activating, …) and how often systemd has started it again."""

    kernel: str = ""
    driver: str | None = None
    up_s: float | None = None
    systemd: bool = False
    unit: str | None = None
    unit_state: str | None = None
    unit_restarts: int | None = None
    open_files: int | None = None  # of the daemon
    max_files: int | None = None
    disks: tuple[Disk, ...] = ()
    clock_synchronized: bool | None = None
    daemon_log: tuple[str, ...] = ()  # its last lines, where it does not answer


@dataclass(frozen=True, slots=True)
class Facts:
    """`unreachable`: why the daemon did not answer; None: it did, and the records are its own. `logs`: the worker
    concerned and its last lines, by service. `devices` None: they could not be read, for the reason in
    `devices_problem`."""

    at: float
    status: Record
    unreachable: str | None = None
    workers: Sequence[Record] = ()
    devices: Sequence[Record] | None = None
    devices_problem: str | None = None
    swaps: Mapping[str, Record] = field(default_factory=dict)  # the newest of each service
    logs: Mapping[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    host: Host = field(default_factory=Host)


def diagnose(facts: Facts) -> list[Finding]:
    """The worst first; of equals, the daemon before its services and those before the host."""
    found = [
        *_daemon(facts),
        *_configuration(facts),
        *(finding for service in facts.status["services"] for finding in _service(facts, service)),
        *_workers(facts),
        *_devices(facts),
        *_host(facts.host),
    ]
    order = list(Severity)
    return sorted(found, key=lambda finding: order.index(finding.severity))


def is_wrong(findings: Sequence[Finding]) -> bool:
    return any(finding.severity is not Severity.NOTE for finding in findings)


# --- the daemon ----------------------------------------------------------------------------------------------------


def _daemon(facts: Facts) -> Iterator[Finding]:
    daemon, host = facts.status["daemon"], facts.host
    if facts.unreachable is not None:
        yield _absent(facts)
    elif daemon.get("stopping"):
        text = "swapd is stopping: it drains its services, and none answers afterwards."
        yield Finding(Severity.WARNING, text, _restart(host, daemon))
    if host.unit_restarts and facts.unreachable is not None:
        text = f"systemd has started {host.unit} again {host.unit_restarts} times."
        yield Finding(Severity.NOTE, text, f"journalctl -u {host.unit} -n 100")
    if daemon.get("journal"):
        text = f"{daemon['journal']} What serves goes on; no swap is begun."
        place = host.disks[0].path if host.disks else "/var/lib/swapd"
        yield Finding(Severity.PROBLEM, text, f"df -h {place}; ls -l {place}")
    if not host.systemd and facts.unreachable is None:
        text = "There is no systemd here: nothing starts swapd again if it ends."
        yield Finding(Severity.NOTE, text, "see docs/operations.md")


def _absent(facts: Facts) -> Finding:
    daemon, host = facts.status["daemon"], facts.host
    serving = [s["name"] for s in facts.status["services"] if s["health"] == Reach.SERVING.value]
    goes_on = f" Its workers go on serving {', '.join(serving)}." if serving else ""
    if daemon.get("stopped"):
        text = f"swapd (pid {daemon['pid']}) is stopped by a signal: it decides nothing.{goes_on}"
        return Finding(Severity.PROBLEM, text, f"kill -CONT {daemon['pid']}")
    if daemon.get("running"):
        text = f"swapd (pid {daemon['pid']}) does not answer: {facts.unreachable}.{goes_on}"
        return Finding(Severity.PROBLEM, text, _restart(host, daemon))
    if daemon.get("config_problems"):
        text = f"swapd is not running, and would not start: {daemon['config_problems'][0]}.{goes_on}"
        return Finding(Severity.PROBLEM, text, f"swapd --check-config {daemon['config']}")
    text = f"swapd is not running: crashed workers are not started again, and nothing is swapped.{goes_on}"
    return Finding(Severity.PROBLEM, text, _start(host, daemon))


def _start(host: Host, daemon: Record) -> str:
    return f"systemctl start {host.unit}" if host.unit else f"swapd --config {daemon['config']}"


def _restart(host: Host, daemon: Record) -> str:
    return f"systemctl restart {host.unit}" if host.unit else f"kill {daemon['pid']}, then {_start(host, daemon)}"


def _configuration(facts: Facts) -> Iterator[Finding]:
    daemon = facts.status["daemon"]
    mistakes = daemon.get("config_problems") or ()
    if mistakes and facts.unreachable is None:
        more = f" ({len(mistakes)} mistakes in all)" if len(mistakes) > 1 else ""
        text = f"A reload or restart would refuse the configuration: {mistakes[0]}{more}."
        yield Finding(Severity.WARNING, text, f"swapd --check-config {daemon['config']}")


# --- services ------------------------------------------------------------------------------------------------------


def _service(facts: Facts, service: Record) -> Iterator[Finding]:
    name, swap = service["name"], facts.swaps.get(service["name"])
    under_way = swap is not None and swap["phase"] not in (*_ENDED, Phase.SOAKING.value)
    if service["health"] not in WELL:
        if under_way and service.get("problem") is None and facts.unreachable is None:
            assert swap is not None
            text = f"{name} is in the middle of swap {swap['id']}: its clients wait, for hold_timeout at most."
            yield Finding(Severity.NOTE, text, f"swapd-cli wait {name}", name)
        else:
            yield _unwell(facts, service)
    elif service.get("problem"):
        yield Finding(Severity.WARNING, f"{name}: {_sentence(service['problem'])}", _see_to(facts, service), name)
    if service.get("note"):
        yield Finding(Severity.WARNING, f"{name}: {service['note']}.", _absent(facts).try_next, name)
    if swap is not None and swap["phase"] == Phase.FAILED.value:
        yield _failed(facts, swap, service)
    if swap is not None and under_way:
        yield from _slow(facts, swap)
    if service.get("drift"):
        text = f"{name}: {service['drift']}. A restart keeps what runs."
        yield Finding(Severity.NOTE, text, f'write model = "{service["model"]}" in [services.{name}]', name)


def _unwell(facts: Facts, service: Record) -> Finding:
    name, problem = service["name"], service.get("problem")
    why = f": {_sentence(problem)}" if problem else "."
    looping = (problem or {}).get("code") == errors.CRASH_LOOP  # says itself how often
    failures = 0 if looping else service.get("failures") or 0
    often = f" It has failed {failures} times in a row." if failures > 1 else ""
    return Finding(Severity.PROBLEM, f"{name} is {service['health']}{why}{often}", _see_to(facts, service), name)


def _see_to(facts: Facts, service: Record) -> str:
    """The next command, by what is wrong."""
    problem = service.get("problem") or {}
    name, code = service["name"], problem.get("code")
    if code == errors.CRASH_LOOP:
        code = ((problem.get("details") or {}).get("last") or {}).get("code")  # what makes it fail
    if facts.unreachable is not None and service["health"] != Reach.UNKNOWN.value:
        return _absent(facts).try_next
    if code in _MEMORY:
        return _free_memory(facts, service)
    worker = facts.logs[name][0] if name in facts.logs else name
    look = f"{_cli(facts)} logs {worker} -n 200"
    if code == errors.SERVICE_PAUSED:
        return f"{look}; once the cause is gone: swapd-cli resume {name}"
    can_go_back = facts.unreachable is None and service.get("rollback") in ("instant", "parked", "cold")
    return f"{look}; or go back: swapd-cli rollback {name}" if can_go_back else look


def _free_memory(facts: Facts, service: Record) -> str:
    """Who to ask for memory: the largest holder that is not ours."""
    strangers = [(f["bytes"] or 0, f["pid"]) for device in facts.devices or () for f in device["foreign"]]
    if strangers:
        return f"ps -fp {max(strangers)[1]} (not swapd's, and holds memory); then swapd-cli devices"
    return f"swapd-cli devices; then swapd-cli plan {service['name']} --to MODEL"


def _failed(facts: Facts, swap: Record, service: Record) -> Finding:
    error = swap.get("error") or {}
    step = f" in {error['step']}" if error.get("step") else ""
    why = _sentence(error) if error else f"{swap.get('reason') or 'no reason is known'}."
    text = f"The last swap of {swap['service']} ({swap['id']}, to {swap['to']['model']}) failed{step}: {why}"
    return Finding(Severity.WARNING, text, f"{_cli(facts)} show {swap['id']}", service["name"])


def _slow(facts: Facts, swap: Record) -> Iterator[Finding]:
    for step in swap["steps"]:
        took_s = facts.at - step["started_at"]
        if step["status"] == "running" and took_s > LONG_STEP_S:
            text = f"Step {step['name']} of swap {swap['id']} has been running for {human_seconds(took_s)}."
            yield Finding(Severity.WARNING, text, f"swapd-cli cancel {swap['service']}", swap["service"])


def _cli(facts: Facts) -> str:
    return "swapd-cli" if facts.unreachable is None else "swapd-cli --offline"


def _sentence(problem: Record) -> str:
    message = str(problem.get("message") or "").rstrip()
    return f"{message if message.endswith('.') else message + '.'} ({problem.get('code')})"


# --- workers and devices -------------------------------------------------------------------------------------------


def _workers(facts: Facts) -> Iterator[Finding]:
    version = facts.status["daemon"].get("version")
    for worker in facts.workers:
        if worker["state"] in ("no answer", "failed"):
            text = f"{worker['id']} (pid {worker['pid']}): {worker['state']}."
            yield Finding(Severity.WARNING, text, f"{_cli(facts)} logs {worker['id']} -n 200", worker["service"])
        if version and worker.get("version") not in (None, version):
            text = f"{worker['id']} runs swapd {worker['version']}, the daemon {version}."
            yield Finding(Severity.NOTE, text, f"swapd-cli restart {worker['service']}", worker["service"])


def _devices(facts: Facts) -> Iterator[Finding]:
    if facts.devices_problem is not None:
        text = f"Device memory could not be read: {facts.devices_problem}."
        yield Finding(Severity.PROBLEM, text, "nvidia-smi; dmesg -T | grep -i -e nvrm -e xid")
    for device in facts.devices or ():
        name, free = device["name"], device["free_bytes"]
        if device["total_bytes"] is None or free is None:
            text = f"The memory of {name} is not known, so nothing is placed there: {device['detail']}."
            yield Finding(Severity.PROBLEM, text, "nvidia-smi; dmesg -T | grep -i -e nvrm -e xid")
            continue
        if device.get("trouble"):
            text = f"{name} is {device['state']}: {device['trouble']}."
            yield Finding(Severity.WARNING, text, "nvidia-smi -q; dmesg -T | grep -i -e nvrm -e xid")
        if free < device["headroom_bytes"]:
            head = human_bytes(device["headroom_bytes"])
            text = f"{name} has {human_bytes(free, down=True)} free, less than its headroom of {head}."
            yield Finding(Severity.WARNING, text, "swapd-cli devices" if facts.unreachable is None else "nvidia-smi")


# --- the host ------------------------------------------------------------------------------------------------------


def _host(host: Host) -> Iterator[Finding]:
    used, limit = host.open_files, host.max_files
    raised = (
        f"systemctl edit {host.unit}: LimitNOFILE=1048576" if host.unit else "ulimit -n 1048576 before swapd starts"
    )
    if limit is not None and used is not None and used > limit * FULL:
        yield Finding(Severity.PROBLEM, f"swapd has {used} of at most {limit} files open.", raised)
    elif limit is not None and limit < FEW_FILES:
        yield Finding(Severity.WARNING, f"swapd may open {limit} files only, and needs two for each client.", raised)
    for disk in host.disks:
        if disk.read_only:
            text = f"{disk.path} takes no writes (read-only): the journal and the logs stand still."
            yield Finding(
                Severity.PROBLEM, text, f"dmesg -T | tail; then mount -o remount,rw $(df --output=target {disk.path})"
            )
        elif disk.free_bytes < LITTLE_DISK_BYTES:
            none = disk.free_bytes < NO_DISK_BYTES
            text = f"{disk.path} has {human_bytes(disk.free_bytes, down=True)} of disk left."
            yield Finding(Severity.PROBLEM if none else Severity.WARNING, text, f"du -xh {disk.path} | sort -h | tail")
    if host.clock_synchronized is False:
        text = "The clock is not synchronized: times in the history may be wrong. No timeout goes by it."
        yield Finding(Severity.NOTE, text, "timedatectl")
