"""The file of a listening Unix socket: its place, its permissions, and its end.

Replaced only when nobody answers on it, removed only when it is still ours. It knows nothing of zmq.

Source: unix(7).
"""

from __future__ import annotations

import contextlib
import errno
import grp
import logging
import os
import socket
import stat
from typing import Final

from swapd.core import errors
from swapd.core.config import HIDDEN_SUFFIX, MAX_SOCKET_PATH_BYTES
from swapd.core.errors import SwapdError

log = logging.getLogger(__name__)

SOCKET_GROUP: Final = "swapd"
MAX_PATH_BYTES: Final = MAX_SOCKET_PATH_BYTES - len(HIDDEN_SUFFIX)


class SocketFile:
    """The file of a Unix socket: replaced only when nobody answers on it, removed only when it is still ours."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._hidden_path = path + HIDDEN_SUFFIX
        self._inode: tuple[int, int] | None = None
        self.hidden = False

    def bind(self) -> int:
        """A listening descriptor, owned by the caller. Raises SwapdError(LISTEN_FAILED)."""
        for path in (self._hidden_path, self._path):
            _remove_stale(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            os.fchmod(listener.fileno(), 0o600)  # before bind: the file never exists with a wider mode
            listener.bind(self._path)
            found = os.lstat(self._path)
            self._inode = (found.st_dev, found.st_ino)
            self._give_to_group()
            listener.listen(1024)
        except OSError as failed:
            listener.close()
            self.remove()
            cure = {
                errno.ENOENT: "make its directory first",
                errno.EACCES: "this user may not write to its directory",
                errno.EADDRINUSE: "another process has just taken it",
            }.get(failed.errno or 0, failed.strerror or "unknown")
            raise SwapdError(errors.LISTEN_FAILED, f"cannot listen on {self._path}: {cure}") from None
        return listener.detach()

    def adopt(self, listener: socket.socket) -> int | None:
        """As `bind`, of what an earlier daemon has bound, with the clients that wait in it. None: it is not there.

        `listener` stays the caller's.
        """
        if not os.path.lexists(self._path):
            with contextlib.suppress(OSError):
                os.rename(self._hidden_path, self._path)  # it had too many clients when it went
        try:
            if listener.getsockname() != self._path:
                return None
            found = os.lstat(self._path)
            if not stat.S_ISSOCK(found.st_mode):
                return None
            self._inode = (found.st_dev, found.st_ino)
            return os.dup(listener.fileno())
        except OSError:
            return None

    def _give_to_group(self) -> None:
        """root:swapd 0660 for the daemon as root, where there is such a group; else the user's own."""
        if os.geteuid() == 0:
            with contextlib.suppress(KeyError):
                os.chown(self._path, 0, grp.getgrnam(SOCKET_GROUP).gr_gid)
        os.chmod(self._path, 0o660)

    def hide(self) -> None:
        self.hidden = self._move(self._path, self._hidden_path)

    def show(self) -> None:
        self.hidden = not self._move(self._hidden_path, self._path)

    def _move(self, source: str, target: str) -> bool:
        try:
            if self._is_ours(source):
                os.rename(source, target)
                return True
        except OSError:
            log.exception("control.rename_failed source=%s", source)
        return False

    def _is_ours(self, path: str) -> bool:
        try:
            found = os.lstat(path)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == self._inode

    def remove(self) -> None:
        for path in (self._path, self._hidden_path):
            if self._inode is not None and self._is_ours(path):
                with contextlib.suppress(OSError):
                    os.unlink(path)


def _remove_stale(path: str) -> None:
    """Raises SwapdError(LISTEN_FAILED) when somebody answers there, or when it is no socket at all."""
    try:
        kind = os.lstat(path).st_mode
    except OSError:
        return
    if not stat.S_ISSOCK(kind):
        raise SwapdError(errors.LISTEN_FAILED, f"{path} is in the way and is no socket: move it, or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError:
            pass  # a full queue, or no permission: somebody may be there
    raise SwapdError(errors.LISTEN_FAILED, f"another daemon answers on {path}: stop it, or name another path")
