"""Becomes a server: the last steps between the runner's fork and the server's exec, where no thread may interfere.

    python -I -S enter.py REPORT_FD RUNNER_PID USER SOCKET_DIR PROGRAM [ARGUMENT ...]

Takes on the user, asks the kernel to end this process with its runner, gives signals their usual meaning, and execs.
What goes wrong is written to REPORT_FD as "CODE message"; a successful exec closes it with nothing written. Executed by
path with the standard library alone; in a program of its own because code between fork and exec of a process with
threads may deadlock. Sources: prctl(2) PR_SET_PDEATHSIG (cleared by a change of user, kept over exec), execvpe(3).
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1
NOT_STARTED = 127
COMMAND_NOT_FOUND = "COMMAND_NOT_FOUND"  # as in core.errors, which is not importable from here
SPAWN_FAILED = "SPAWN_FAILED"


def main(report_fd: int, runner: int, user: str, socket_dir: str, argv: list[str]) -> NoReturn:
    os.set_inheritable(report_fd, False)

    def fail(code: str, message: str) -> NoReturn:
        os.write(report_fd, f"{code} {message}".encode("utf-8", "replace")[:4000])
        os._exit(NOT_STARTED)

    if user:
        problem = become(user, socket_dir)
        if problem:
            fail(SPAWN_FAILED, problem)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != runner:  # it died before that
        os._exit(NOT_STARTED)
    for number in ("INT", "QUIT", "TERM", "HUP", "PIPE", "XFSZ", "USR1", "USR2"):  # Python, or nohup, ignores some
        signal.signal(getattr(signal, f"SIG{number}"), signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvpe(argv[0], argv, os.environ)
    except (OSError, ValueError) as error:
        fail(COMMAND_NOT_FOUND, explain(argv[0], error))


def become(user: str, socket_dir: str) -> str:
    """Why it is not possible, or an empty string."""
    try:
        account = pwd.getpwnam(user)
    except KeyError:
        return f'there is no user "{user}" on this host: create it, or correct the model\'s "user"'
    if account.pw_uid == os.geteuid():
        return ""
    try:
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    except PermissionError:
        return f'user = "{user}" needs a swapd that runs as root, and this one runs as user {os.geteuid()}'
    if not os.access(socket_dir, os.W_OK | os.X_OK):
        return (
            f'user "{user}" has no way into {socket_dir}, where its socket is to be: let others pass '
            f"(chmod o+x) through every directory above it"
        )
    for name, value in {"HOME": account.pw_dir, "USER": user, "LOGNAME": user}.items():
        os.environ.setdefault(name, value)
    return ""


def explain(command: str, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):
        return f"cannot start {command!r}: {error}"
    if os.sep not in command and error.errno == errno.ENOENT:
        path = os.environ.get("PATH", os.defpath)
        return f"command {command!r} not found in PATH ({path}); give its full path"
    if os.path.isdir(command):
        return f"command {command!r} is a directory"
    if error.errno == errno.ENOENT and os.path.exists(command):
        return f"command {command!r} exists, but the interpreter that its first line names does not"
    if error.errno == errno.ENOENT:
        return f"command {command!r} does not exist"
    if error.errno == errno.EACCES:
        return f"command {command!r} is not executable (chmod +x), or the file system forbids it"
    if error.errno == errno.ENOEXEC:
        return f"command {command!r} is not a program for this machine (a script needs a #! line)"
    return f"cannot start {command!r}: {error.strerror}"


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
