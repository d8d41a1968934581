"""Public listeners: bound once, by the daemon, and never by anybody else.

Duty: an address of the configuration becomes a listening socket, or an error that says who is in the way. May
not know: who accepts on it. Source: ip(7), unix(7), tcp(7).

Never SO_REUSEPORT: each member has its own queue, and what waits in it is reset when the member closes; and two
programs would share a port without a word. Never shutdown() or a second listen() on a duplicate: both act on
all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from dataclasses import dataclass
from typing import Final

import psutil

from swapd.core.errors import LISTEN_FAILED, SwapdError

BACKLOG: Final = 4096  # also the kernel's default net.core.somaxconn: while clients are held, they wait in here
# Any user may connect, as to a port on the loopback: access is limited by the directory that it lies in.
_UNIX_MODE: Final = 0o666


@dataclass(frozen=True, slots=True)
class _Place:
    family: socket.AddressFamily
    sockaddr: tuple[str, int] | str


def bind(address: str) -> socket.socket:
    """A listening, non-blocking socket for "127.0.0.1:8000", "[::1]:8000", "name:8000" or "unix:/path".

    A name takes its first IPv4 address, or its first IPv6 one if it has no other. "[::]" means IPv6 alone. Port
    0 lets the kernel choose. Raises SwapdError(LISTEN_FAILED). The caller owns the socket; `unbind` ends it.
    """
    place = _resolve(address)
    if isinstance(place.sockaddr, str):
        _clear_stale(address, place.sockaddr)
    sock = socket.socket(place.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        if place.family != socket.AF_UNIX:
            # Without it a restart is refused while connections of the last run are in TIME_WAIT.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if place.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(place.sockaddr)
        if isinstance(place.sockaddr, str):
            os.chmod(place.sockaddr, _UNIX_MODE)  # before listen(): until then every connect is refused
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise _explain(address, place, error) from None
    return sock


def is_at(sock: socket.socket, address: str) -> bool:
    """Whether it listens there: `sock` was bound by somebody else, perhaps to what an older configuration said.

    Raises SwapdError(LISTEN_FAILED) for an address that is none of this host."""
    place = _resolve(address)
    try:
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        name = sock.getsockname()
    except OSError:
        return False
    if not listens or sock.family != place.family:
        return False
    if isinstance(place.sockaddr, str):
        return name == place.sockaddr and os.path.exists(place.sockaddr)
    host, port = place.sockaddr[:2]
    return name[0] == host and (port in (0, name[1]))


def unbind(sock: socket.socket) -> None:
    """Closes our duplicate, and removes the file of a Unix socket. For the real end: others may hold one."""
    with contextlib.suppress(OSError):
        name = sock.getsockname()
        if sock.family == socket.AF_UNIX and isinstance(name, str) and name:
            os.unlink(name)
    sock.close()


def _failed(address: str, why: str, **details: object) -> SwapdError:
    return SwapdError(LISTEN_FAILED, f"cannot listen on {address}: {why}", {"address": address, **details})


def _resolve(address: str) -> _Place:
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if not path.startswith("/"):
            raise _failed(address, "the path of a Unix socket must be absolute")
        return _Place(socket.AF_UNIX, path)
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise _failed(address, 'expected "host:port", "[ipv6]:port" or "unix:/path"')
    bracketed = host.startswith("[") and host.endswith("]")
    if ":" in host and not bracketed:
        raise _failed(address, f'an IPv6 address is written in brackets: "[{host}]:{port}"')
    host = host[1:-1] if bracketed else host
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _failed(address, f"{host!r} is no address of this host, nor a name that resolves ({reason})") from None
    # Clients that know the name try IPv4 somewhere; those that use 127.0.0.1 know nothing of ::1.
    family, _type, _protocol, _name, sockaddr = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    return _Place(family, sockaddr)  # type: ignore[arg-type]  # IPv6 has flow and scope besides


def _clear_stale(address: str, path: str) -> None:
    """Removes the file of a socket that nobody listens on. Refuses to touch anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _failed(address, error.strerror or str(error)) from None
    if not stat.S_ISSOCK(mode):
        raise _failed(address, f"{path} exists and is not a socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):  # its queue is full; it is of another type
                raise _failed(address, error.strerror or str(error)) from None
    raise _failed(address, f"the socket is in use{_holder_of_path(path)}")


def _explain(address: str, place: _Place, error: OSError) -> SwapdError:
    if isinstance(place.sockaddr, str):
        directory = os.path.dirname(place.sockaddr)
        if error.errno == errno.ENOENT:
            return _failed(address, f"the directory {directory} does not exist")
        if error.errno in (errno.EACCES, errno.EPERM):
            return _failed(address, f"no permission to create a socket in {directory}")
        if error.errno is None:  # "AF_UNIX path too long" has no number
            return _failed(address, "the path is too long for a Unix socket (107 bytes at most)")
        return _failed(address, error.strerror or str(error))
    port = place.sockaddr[1]
    if error.errno == errno.EADDRINUSE:
        return _failed(address, f"the port is in use{_holder_of_port(port)}", port=port)
    if error.errno in (errno.EACCES, errno.EPERM):
        return _failed(
            address,
            f"port {port} is privileged; run swapd by systemd with a socket unit for it, give it"
            " AmbientCapabilities=CAP_NET_BIND_SERVICE, or choose a port of 1024 or above",
            port=port,
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return _failed(address, "no network interface of this host has that address")
    return _failed(address, error.strerror or str(error))


def _holder_of_port(port: int) -> str:
    with contextlib.suppress(psutil.Error, OSError, RuntimeError):
        listening = [each for each in psutil.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        return _named([each.pid for each in listening if each.laddr and each.laddr.port == port])
    return ""


def _holder_of_path(path: str) -> str:
    # Connections that it has not accepted yet show the same path, and no process.
    with contextlib.suppress(psutil.Error, OSError, RuntimeError):
        return _named([each.pid for each in psutil.net_connections("unix") if str(each.laddr) == path])
    return ""


def _named(pids: list[int | None]) -> str:
    seen = [pid for pid in pids if pid is not None]
    if not seen:
        return " (`ss -lptx` as root names the process)" if pids else ""
    if os.getpid() in seen:
        return " by this daemon itself: is the address listed twice?"
    try:
        return f" by {psutil.Process(seen[0]).name()} (pid {seen[0]})"
    except psutil.Error:
        return f" by pid {seen[0]}"
