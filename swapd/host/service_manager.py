"""What systemd hears from the daemon and hands to it: sd_notify, the watchdog, and the descriptor store.

Duty: the messages and environment variables of the protocol. Without a service manager everything here does nothing.
May not know: when the daemon is ready. Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3), and systemd's
FILE_DESCRIPTOR_STORE document.

`sdnotify` opens the socket; the messages are sent here, since its own `notify` encodes latin-1 (systemd wants UTF-8),
cannot pass descriptors, and hides every error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import time
import warnings
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import sdnotify

_LISTEN_FDS_START: Final = 3  # sd_listen_fds(3)
_NAME_MAX: Final = 255  # of a stored descriptor; systemd refuses a longer one without a word
_STATUS_MAX_BYTES: Final = 2048  # systemd drops a whole message of 4 KiB and more
_SEND_TIMEOUT_S: Final = 1.0  # the manager's queue may be full; the loop must not wait for it for long
_NOTIFY_VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_LISTEN_VARIABLES: Final = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")

_log = logging.getLogger("swapd.service_manager")


@dataclass(frozen=True, slots=True)
class Inherited:
    """Descriptors that the manager has passed, by name; of several with one name the second is "name#2"."""

    sockets: dict[str, socket.socket] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)  # pidfds, memfds, files

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        for fd in self.others.values():
            with contextlib.suppress(OSError):
                os.close(fd)


class ServiceManager:
    """The link to the service manager that started this process. One per daemon, made before any thread is.

    Takes its variables out of `environ`, so that no child speaks in the daemon's name.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._notifier = _open_notifier(environ)
        self.watchdog_interval_s: Final = _watchdog_interval_s(environ)
        self._listen = {name: environ[name] for name in _LISTEN_VARIABLES if name in environ}
        for name in (*_NOTIFY_VARIABLES, *_LISTEN_VARIABLES):
            environ.pop(name, None)

    @property
    def present(self) -> bool:
        return self._notifier is not None

    def close(self) -> None:
        if self._notifier is not None:
            self._notifier.socket.close()
            self._notifier = None

    # --- to the manager ------------------------------------------------------------------------------------
    # Each returns whether it was sent. That it was also heeded, the protocol never says.

    def ready(self, text: str = "") -> bool:
        """The daemon serves its control socket, and all its listeners are bound."""
        return self._send("READY=1", *_status(text))

    def status(self, text: str) -> bool:
        """One line for `systemctl status`."""
        return self._send(*_status(text))

    def reloading(self) -> bool:
        """A reload begins: `ready` must follow, or the unit stays in it for ever (systemd issue 37515)."""
        return self._send("RELOADING=1", f"MONOTONIC_USEC={_monotonic_usec()}")

    def stopping(self, text: str = "") -> bool:
        return self._send("STOPPING=1", *_status(text))

    def watchdog(self) -> bool:
        """Call at least every `watchdog_interval_s` (if that is not None), from the loop itself, never a thread."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Start, stop or reload may take up to `seconds` more from now; again before these are over."""
        return self._send(f"EXTEND_TIMEOUT_USEC={max(1, round(seconds * 1_000_000))}")

    def store_fd(self, name: str, fd: int | socket.socket, *, poll: bool = True) -> bool:
        """Has the manager keep a duplicate, and pass it to the next daemon. Storing the same again does nothing.

        `poll`: dropped from the store on hang-up or error, as for a pidfd of a process that was reaped. Raises
        ValueError for a name that systemd does not allow.
        """
        _check_name(name)
        number = fd if isinstance(fd, int) else fd.fileno()
        flags = () if poll else ("FDPOLL=0",)
        return self._send("FDSTORE=1", f"FDNAME={name}", *flags, fds=(number,))

    def remove_fd(self, name: str) -> bool:
        """Has the manager close every stored descriptor of that name."""
        _check_name(name)
        return self._send("FDSTOREREMOVE=1", f"FDNAME={name}")

    # --- from the manager ----------------------------------------------------------------------------------

    def inherited(self) -> Inherited:
        """Descriptors of socket units and of the store. The caller owns them; a second call has none."""
        listen, self._listen = self._listen, {}
        found = Inherited()
        try:
            count, meant_for = int(listen.get("LISTEN_FDS", "0")), int(listen.get("LISTEN_PID", "0"))
        except ValueError:
            return found
        if meant_for != os.getpid():  # a parent's, and its numbers mean something else here
            return found
        names = listen.get("LISTEN_FDNAMES", "").split(":")
        for index in range(count):
            fd = _LISTEN_FDS_START + index
            try:
                mode = os.fstat(fd).st_mode
            except OSError as error:
                _log.warning("service_manager.fd_missing fd=%d error=%s", fd, error.strerror)
                continue
            os.set_inheritable(fd, False)
            given = names[index] if index < len(names) and names[index] else "unknown"
            name = _free_name(given, (found.sockets, found.others))
            if stat.S_ISSOCK(mode):
                sock = socket.socket(fileno=fd)
                sock.setblocking(False)
                found.sockets[name] = sock
            else:
                found.others[name] = fd
        return found

    def listen_fds(self) -> dict[str, socket.socket]:
        """The sockets among `inherited`, for a daemon that has stored nothing else; the others are closed."""
        found = self.inherited()
        for fd in found.others.values():
            os.close(fd)
        return found.sockets

    # --- the socket ----------------------------------------------------------------------------------------

    def _send(self, *lines: str, fds: Sequence[int] = ()) -> bool:
        if self._notifier is None or not lines:
            return False
        data = "\n".join(lines).encode()
        try:
            socket.send_fds(self._notifier.socket, [data], fds, socket.MSG_NOSIGNAL)
        except OSError as error:
            _log.warning("service_manager.not_sent message=%r error=%s", lines[0], error)
            return False
        return True


def _open_notifier(environ: MutableMapping[str, str]) -> Any:
    """An open notifier of the library, which reads os.environ alone; or None."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return None
    before = os.environ.get("NOTIFY_SOCKET")
    os.environ["NOTIFY_SOCKET"] = path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # it drops its socket when it cannot connect
            notifier = sdnotify.SystemdNotifier(debug=True)  # or it would hide why it could not
        notifier.socket.settimeout(_SEND_TIMEOUT_S)
        notifier.socket.set_inheritable(False)
    except OSError as error:
        _log.warning("service_manager.no_socket path=%r error=%s", path, error)
        return None
    finally:
        if before is None:
            del os.environ["NOTIFY_SOCKET"]
        else:
            os.environ["NOTIFY_SOCKET"] = before
    return notifier


def _watchdog_interval_s(environ: MutableMapping[str, str]) -> float | None:
    """Half of the time after which the manager kills a silent daemon, as sd_watchdog_enabled(3) advises."""
    try:
        limit_usec = int(environ.get("WATCHDOG_USEC", "0"))
        meant_for = int(environ.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return None
    return limit_usec / 2 / 1_000_000 if limit_usec > 0 and meant_for == os.getpid() else None


def _monotonic_usec() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def _status(text: str) -> tuple[str, ...]:
    if not text:
        return ()
    line = " ".join(text.split())  # a line break would begin the next field
    data = line.encode(errors="replace")[:_STATUS_MAX_BYTES]
    return (f"STATUS={data.decode(errors='ignore')}",)


def _check_name(name: str) -> None:
    if not 0 < len(name) <= _NAME_MAX or not name.isascii() or not name.isprintable() or ":" in name:
        raise ValueError(f"{name!r} cannot name a descriptor: 1 to {_NAME_MAX} printable ASCII characters, no colon")


def _free_name(name: str, taken: Sequence[MutableMapping[str, Any]]) -> str:
    free, number = name, 1
    while any(free in names for names in taken):
        number += 1
        free = f"{name}#{number}"
    return free
