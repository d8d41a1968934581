"""What a worker's unit needs before systemd starts it: files, and whose they are. Every call here may block.

What is wrong is said in words here: systemd itself would answer with an exit status.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from typing import Final

from swapd.core.errors import COMMAND_NOT_FOUND, SPAWN_FAILED, SwapdError
from swapd.core.launch import MARKER, Command
from swapd.core.unit_settings import WORKERS_GROUP, environment_text

ENVIRONMENT_NAME: Final = "environment"
# A gate is of the group, so it may pass to the socket of a worker that runs as another user; nobody else may.
_DIRECTORY_MODE: Final = 0o710
_LOG_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def prepare(command: Command) -> str:
    """The path of the environment file. From here on the worker's directory is its user's.

    Raises SwapdError: COMMAND_NOT_FOUND, or SPAWN_FAILED when the host refuses.
    """
    _check(command)
    try:
        os.close(os.open(command.log_path, _LOG_FLAGS, 0o640))
    except OSError as error:
        raise SwapdError(SPAWN_FAILED, f"cannot open the log {command.log_path}: {error.strerror}") from None
    try:
        path = os.path.join(command.directory, ENVIRONMENT_NAME)
        text = environment_text({**command.env, MARKER: command.marker})
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
        if command.confinement.user:
            _hand_over(command, path)
    except ValueError as error:
        raise SwapdError(SPAWN_FAILED, f"cannot start {command.name}: {error}") from None
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise SwapdError(SPAWN_FAILED, f"cannot make the directory of {command.name}: {what}") from None
    return path


def _check(command: Command) -> None:
    def fail(why: str) -> SwapdError:
        return SwapdError(COMMAND_NOT_FOUND, f"cannot start {command.name}: {why}", {"command": command.argv[0]})

    program, confinement = command.argv[0], command.confinement
    if "$" in program:  # systemd would replace it
        raise fail(f"systemd cannot start a program with a $ in its path, {program!r}")
    if not os.path.isabs(program) or not os.access(program, os.X_OK) or os.path.isdir(program):
        what = "is not executable" if os.path.exists(program) else "does not exist"
        raise fail(f"the program {program!r} {what}")
    if command.cwd is not None and not os.path.isdir(command.cwd):
        what = "is not a directory" if os.path.exists(command.cwd) else "does not exist"
        raise fail(f"its directory {command.cwd!r} {what}")
    for key in ("read_paths", "write_paths"):
        for path in getattr(confinement, key):
            if not os.path.exists(path):
                raise fail(f"{key}: {path!r} does not exist")
    try:
        if confinement.user:
            pwd.getpwnam(confinement.user)
    except KeyError:
        raise fail(f'there is no user "{confinement.user}" on this host: create it, or correct "user"') from None


def _hand_over(command: Command, environment_file: str) -> None:
    """The directory and what lies in it, but for the environment: only systemd reads that one."""
    account = pwd.getpwnam(command.confinement.user)
    for entry in os.scandir(command.directory):
        if entry.path != environment_file:
            os.chown(entry.path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    for parent in Path(command.directory).parents[:2]:  # of all workers' directories, and the daemon's
        os.chmod(parent, stat.S_IMODE(parent.stat().st_mode) | 0o011)
    os.chmod(command.directory, _DIRECTORY_MODE)
    os.chown(command.directory, account.pw_uid, _group_of_workers(account.pw_gid))
    cache = command.confinement.cache_dir
    if cache and not os.path.isdir(cache):
        Path(cache).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.mkdir(cache, 0o700)
        os.chown(cache, account.pw_uid, account.pw_gid)


def _group_of_workers(otherwise: int) -> int:
    try:
        return grp.getgrnam(WORKERS_GROUP).gr_gid
    except KeyError:  # not installed by `make install`: a gate and its servers must then be of one user
        return otherwise
