"""The start of one command, and words for why it could not be started.

Every call here may block: the program may lie on a file system that hangs.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from swapd.core.errors import COMMAND_NOT_FOUND, SPAWN_FAILED, SwapdError


def start_process(argv: list[str], env: dict[str, str], cwd: str | None, log_path: Path) -> subprocess.Popen[bytes]:
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        log_fd = os.open(log_path, flags, 0o640)
    except OSError as error:
        raise SwapdError(SPAWN_FAILED, f"cannot open the log {log_path}: {error.strerror}") from None
    try:
        os.fchmod(log_fd, 0o640)  # whatever the daemon's umask is
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd=cwd,
            env=env,
            start_new_session=True,
            umask=0o077,
        )
    except OSError as error:
        raise _explain_start(argv[0], env, cwd, error) from None
    except ValueError as error:  # an embedded NUL byte
        raise SwapdError(COMMAND_NOT_FOUND, f"cannot start {argv[0]!r}: {error}") from None
    finally:
        os.close(log_fd)


def _explain_start(command: str, env: Mapping[str, str], cwd: str | None, error: OSError) -> SwapdError:
    def not_found(message: str) -> SwapdError:
        return SwapdError(COMMAND_NOT_FOUND, message, {"command": command, "cwd": cwd})

    if cwd is not None and not os.path.isdir(cwd):
        what = "is not a directory" if os.path.exists(cwd) else "does not exist"
        return not_found(f"cannot start {command!r}: its directory {cwd!r} {what}")
    if error.errno in (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE):
        return SwapdError(SPAWN_FAILED, f"the host cannot start {command!r}: {error.strerror}")
    if os.sep not in command and error.errno == errno.ENOENT:
        return not_found(f"command {command!r} not found in PATH ({env.get('PATH', os.defpath)}); give its full path")
    path = os.path.join(cwd or "", command)
    if os.path.isdir(path):
        return not_found(f"command {command!r} is a directory")
    if error.errno == errno.ENOENT and os.path.exists(path):
        return not_found(f"command {command!r} exists, but the interpreter that its first line names does not")
    if error.errno == errno.ENOENT:
        return not_found(f"command {command!r} does not exist")
    if error.errno == errno.EACCES and os.path.exists(path):
        why = "is not executable (chmod +x), or the file system forbids it"
        if cwd is not None and not os.access(cwd, os.X_OK):
            why = f"cannot be started in {cwd!r}: permission denied"
        return not_found(f"command {command!r} {why}")
    if error.errno == errno.ENOEXEC:
        return not_found(f"command {command!r} is not a program for this machine (a script needs a #! line)")
    return not_found(f"cannot start {command!r}: {error.strerror}")
