"""A worker as a transient systemd service: its settings, its environment file, and what systemd says of it.

Duty: the unit's name, properties and quoting, and the meaning of what `systemctl show` answers. May not know: how
systemd is called. Everything here is understood by systemd 247 and later.

Source: systemd-run(1), systemd.exec(5), systemd.service(5), systemd.resource-control(5), and for the grammar of an
environment file systemd's src/basic/env-file.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from swapd.core.launch import NVIDIA, Command, Confinement
from swapd.core.process_tree import UNKNOWN_EXIT

OLDEST_SYSTEMD: Final = 247  # ProtectProc=
SLICE: Final = "swapd-workers.slice"
GATE_FLAG: Final = "--gate"  # of worker/launch.py
DAEMON_UNIT: Final = "swapd.service"
USER: Final = "swapd"  # of gates, and of workers whose model names no other
# Of gates and of workers without a user of their own. Not "swapd": whoever is of that one may command the daemon.
WORKERS_GROUP: Final = "swapd-workers"
STOP_LIMIT_S: Final = 45  # when systemd ends a worker (shutdown, `systemctl stop` after a crash): to finish and end
DATA_ROOTS: Final = ("/home", "/root", "/run/user", "/srv", "/mnt", "/media")  # hidden where read_paths are given
_ENV_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

# As strict as a GPU server permits. docs/operations.md says why each of the others is left out.
SANDBOX: Final = (
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "PrivateMounts=yes",
    "ProtectProc=invisible",
    "ProtectKernelTunables=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelLogs=yes",
    "ProtectControlGroups=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "KeyringMode=private",
    "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",  # netlink: names and interfaces, for NCCL too
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
)
_NVIDIA_NODES: Final = ("char-nvidia*", "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")


def unit_name(worker: str) -> str:
    return f"swapd-{worker}.service"


def description(marker: str) -> str:
    """By which a worker's unit is known again: a marker is never used twice."""
    return f"swapd worker {marker}"


def properties(command: Command, environment_file: str) -> Iterator[str]:
    """As for systemd-run -p. Paths stand as the host has resolved them."""
    yield from (
        f"Description={description(command.marker)}",
        f"Before={DAEMON_UNIT}",  # at a shutdown the daemon drains first, and workers end after it
        "Type=exec",
        "RemainAfterExit=yes",  # exit status 0 must be told as well, also to a daemon that comes later
        "KillMode=mixed",  # SIGTERM to the worker, which ends its server in order; in the end SIGKILL to all of it
        f"TimeoutStopSec={STOP_LIMIT_S}s",
        # Half of a model's tree is of no use. A gate has clients, and its shadow's process none.
        "OOMPolicy=continue" if GATE_FLAG in command.argv else "OOMPolicy=kill",
        "UMask=0077",
        "LimitNOFILE=65536:1048576",  # a descriptor for every client connection, twice while they move
        "LimitMEMLOCK=infinity",  # pinned host memory: CUDA copies from it, RDMA needs it
        "TasksMax=infinity",
        "StandardInput=null",
        f"StandardOutput=append:{command.log_path}",
        f"StandardError=append:{command.log_path}",
        f"EnvironmentFile={environment_file}",
    )
    if command.cwd is not None:
        yield f"WorkingDirectory={command.cwd}"
    confinement = command.confinement
    if confinement.user:
        yield f"User={confinement.user}"
    if confinement.group:
        yield f"Group={confinement.group}"
    yield from SANDBOX
    yield from _devices(confinement)
    yield from _paths(confinement, command.directory)
    yield from limits(confinement.memory_max_bytes, confinement.cpu_weight)


def limits(memory_max_bytes: int | None, cpu_weight: int | None) -> Iterator[str]:
    if memory_max_bytes is not None:
        yield f"MemoryMax={memory_max_bytes}"
    if cpu_weight is not None:
        yield f"CPUWeight={cpu_weight}"
        yield f"IOWeight={cpu_weight}"  # a load reads as much as it computes


def _devices(confinement: Confinement) -> Iterator[str]:
    if NVIDIA in confinement.devices:
        yield "DevicePolicy=closed"
        yield from (f"DeviceAllow={node} rw" for node in _NVIDIA_NODES)
    else:
        yield "PrivateDevices=yes"


def _paths(confinement: Confinement, directory: str) -> Iterator[str]:
    writable = [directory, *confinement.write_paths]
    if confinement.cache_dir:
        writable.append(confinement.cache_dir)
    if not confinement.read_paths:
        yield "ProtectHome=read-only"
    else:
        yield "TemporaryFileSystem=" + " ".join(f"{root}:ro" for root in DATA_ROOTS)
        seen = dict.fromkeys((*confinement.needed_paths, *confinement.read_paths))
        yield from _bound("BindReadOnlyPaths", (path for path in seen if path not in writable))
        yield from _bound("BindPaths", writable)
    yield "ReadWritePaths=" + " ".join(quote_word(path) for path in writable)


def _hidden(path: str) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in DATA_ROOTS)


def _bound(setting: str, paths: Iterable[str]) -> Iterator[str]:
    if hidden := [quote_word(path) for path in paths if _hidden(path)]:  # systemd-run takes no empty list
        yield f"{setting}={' '.join(hidden)}"


def quote_word(word: str) -> str:
    """One word of a list of paths. In quotes a colon does not begin the place to mount at."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def quote_argument(argument: str) -> str:
    """An argument of the command: systemd replaces $NAME and ${NAME} in it, whoever has passed it."""
    return argument.replace("$", "$$")


def environment_text(environment: Mapping[str, str]) -> str:
    """What systemd reads back as exactly these variables. Raises ValueError naming one that it cannot hold."""
    lines = []
    for name, value in environment.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for an environment variable of a systemd service")
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise ValueError(f"the value of {name} is not UTF-8, or has a NUL in it: systemd cannot pass it on")
        quoted = "".join(f"\\{char}" if char in '"\\`$' else char for char in value)
        lines.append(f'{name}="{quoted}"\n')
    return "".join(lines)


# --- what systemctl show answers -----------------------------------------------------------------------------

SHOWN: Final = (
    "Id",
    "LoadState",
    "ActiveState",
    "SubState",
    "Description",
    "MainPID",
    "ExecMainPID",
    "ExecMainCode",
    "ExecMainStatus",
    "Result",
    "ControlGroup",
)
_EXITED, _KILLED, _DUMPED = 1, 2, 3  # CLD_EXITED and so on: waitid(2)
# What systemd exits with in a worker's place when it cannot get as far as the command: systemd.exec(5).
_BEFORE_EXEC: Final = {
    200: "its directory {cwd!r} cannot be entered",
    203: "{argv0!r} cannot be executed: it is not there, not executable, or not a program for this machine",
    209: "its log {log} cannot be written",
    216: 'user "{user}" has no usable group',
    217: 'there is no user "{user}" on this host',
    226: "its view of the file system cannot be made: is each of read_paths and write_paths there?",
    228: "this kernel refuses its system call filter",
}


@dataclass(frozen=True, slots=True)
class UnitState:
    """One unit, as systemd sees it."""

    unit: str
    loaded: bool
    marker: str  # "": it is no worker of swapd
    running: bool  # its main process is not known to have ended
    pid: int  # of the main process, also when it has ended; 0: there was none
    exit_code: int | None  # negative: the signal; None: running, or it never started
    out_of_memory: bool
    cgroup: str  # "": nothing is left in it


def parse_show(text: str) -> list[UnitState]:
    """The units of one `systemctl show`, in the order in which they were asked for."""
    return [_parse_unit(block) for block in re.split(r"\n\n+", text.strip("\n")) if block]


def _parse_unit(block: str) -> UnitState:
    values = dict(line.partition("=")[::2] for line in block.splitlines())
    code, status = int(values.get("ExecMainCode", 0)), int(values.get("ExecMainStatus", 0))
    prefix = description("")
    text = values.get("Description", "")
    pid = int(values.get("MainPID", 0))
    exit_code: int | None = None
    if code:
        exit_code = {_EXITED: status, _KILLED: -status, _DUMPED: -status}.get(code, UNKNOWN_EXIT)
    return UnitState(
        unit=values.get("Id", ""),
        loaded=values.get("LoadState") == "loaded",
        marker=text[len(prefix) :] if text.startswith(prefix) else "",
        running=pid > 0 or (not code and values.get("ActiveState") in ("activating", "active")),
        pid=pid or int(values.get("ExecMainPID", 0)),
        exit_code=exit_code,
        out_of_memory=values.get("Result") == "oom-kill",
        cgroup=values.get("ControlGroup", ""),
    )


def explain_start(command: Command, state: UnitState, said: str) -> str:
    """Why a unit did not get as far as its command. `said`: the words of systemd-run."""
    if state.exit_code in _BEFORE_EXEC:
        why = _BEFORE_EXEC[state.exit_code].format(
            cwd=command.cwd, argv0=command.argv[0], log=command.log_path, user=command.confinement.user
        )
        return f"systemd cannot start {command.name}: {why}"
    return f"systemd cannot start {command.name}: {' '.join(said.split()) or 'it does not say why'}"
