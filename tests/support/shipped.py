"""The shipped units, as they are installed, for a `SystemdHost`."""

from __future__ import annotations

from support.systemd_host import PROJECT, SystemdHost

DAEMON = "swapd.service"
KEEP = "swapd-keep.service"
SLICE = "swapd-workers.slice"
UNITS = {name: (PROJECT / "systemd" / name).read_text() for name in (DAEMON, KEEP, SLICE)}
FILES = {
    "/etc/sysusers.d/swapd.conf": (PROJECT / "systemd" / "swapd.sysusers.conf").read_text(),
    "/etc/tmpfiles.d/swapd.conf": (PROJECT / "systemd" / "swapd.tmpfiles.conf").read_text(),
}
PREPARE = "systemd-sysusers /etc/sysusers.d/swapd.conf; systemd-tmpfiles --create /etc/tmpfiles.d/swapd.conf"


def install(host: SystemdHost, script: str, name: str = "swapd") -> None:
    """What the unit's ExecStart runs, or its ExecReload."""
    program = host.path(f"/opt/swapd/current/bin/{name}")
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def python_script(host: SystemdHost, what: str) -> str:
    """Runs `what` ("-m module", or a file) with the project's packages."""
    path = f"{host.inside(PROJECT)}:{host.inside(PROJECT / 'tests')}"
    return f'PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={path} exec {host.python} {what} "$@"'


def workers(host: SystemdHost) -> list[str]:
    """The units of workers that systemd knows of, dead ones too."""
    listed = host.systemctl("list-units", "--all", "--no-legend", "--plain", "swapd-*.service").splitlines()
    return [line.split()[0] for line in listed if line.split()[0] != KEEP]
