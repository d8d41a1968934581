"""Readers for where a service listens and where swapd is reached, and which of two addresses are one.

Duty: one spelling for each address, so that equal ones compare equal, and what to write instead of one that
cannot be bound. May not know: whether an address is free (that is seen when it is bound).
"""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import PurePosixPath

from swapd.core.config import HIDDEN_SUFFIX, MAX_SOCKET_PATH_BYTES
from swapd.core.config_readers import Wrong, items, shown, text


def listen(value: object, base: str) -> tuple[str, ...]:
    return items(value, base, listen_address, 'one address or more, such as "127.0.0.1:8000"')


def listen_address(value: object, base: str) -> str:
    """host:port with an IP address, or unix:/path, in one spelling each."""
    if isinstance(value, int) and not isinstance(value, bool):
        raise Wrong(f'expected host:port: write "127.0.0.1:{value}", or "0.0.0.0:{value}" for every interface')
    word = text(value, base).strip()
    if word.startswith("unix:"):
        return "unix:" + socket_path(word.removeprefix("unix:").removeprefix("//"))
    if word.startswith("/"):
        raise Wrong(f'{shown(word)} is a path: write "unix:{word}"')
    if "://" in word:
        raise Wrong(f'{shown(word)} is a URL: write host:port, such as "127.0.0.1:8000", or "unix:/path"')
    host, colon, port = word.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()):
        raise Wrong(f'{shown(word)} is not an address: write host:port, such as "127.0.0.1:8000", or "unix:/path"')
    if not host or host == "*":
        raise Wrong(f'{shown(word)} has no host: write "127.0.0.1:{port}", or "0.0.0.0:{port}" for every interface')
    if not 1 <= int(port[:6]) <= 65535:
        raise Wrong(f"{shown(word)}: clients need a port that is known: write one from 1 to 65535")
    try:
        address = ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        cure = f'"127.0.0.1:{port}"' if host == "localhost" else f'such as "127.0.0.1:{port}"'
        raise Wrong(f"{shown(host)} is not an IP address, and names are not looked up: write {cure}") from None
    if address.version == 6 and not host.startswith("["):
        raise Wrong(f'{shown(word)}: an IPv6 address needs brackets: write "[{address}]:{port}"')
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


def endpoint(value: object, base: str) -> str:
    """ipc:// only: who may give orders is decided by the socket's owner, group and mode."""
    word = text(value, base)
    if not word.startswith("ipc://"):
        cure = f'write "ipc://{word}"' if word.startswith("/") else 'write "ipc:///run/swapd/control.sock"'
        raise Wrong(f"{shown(word)} is not an ipc:// endpoint, and only there the caller's user is known: {cure}")
    return "ipc://" + socket_path(word.removeprefix("ipc://"), MAX_SOCKET_PATH_BYTES - len(HIDDEN_SUFFIX))


def socket_path(word: str, most_bytes: int = MAX_SOCKET_PATH_BYTES) -> str:
    """A path that a Unix socket can be bound to."""
    if not word.startswith("/"):
        raise Wrong(f"{shown(word)} is relative: write the socket's whole path, from /")
    clean = str(PurePosixPath("/", word.lstrip("/")))
    length = len(clean.encode("utf-8", "replace"))
    if length > most_bytes:
        raise Wrong(f"the path has {length} bytes, and a Unix socket's here at most {most_bytes}: shorten it")
    return clean


def device_match(value: object, base: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1024:
        return str(value)
    word = text(value, base)
    if word.startswith(("GPU-", "MIG-")) or (word.isascii() and word.isdigit() and len(word) < 5):
        return word
    raise Wrong(f'{shown(word)} is not a device: write its UUID ("GPU-…" or "MIG-…", see nvidia-smi -L) or index ("0")')


def clash(one: str, other: str) -> bool:
    """Whether two listen addresses cannot both be bound: the same, or one of them is every interface's.

    0.0.0.0 and [::] do not clash: an IPv6 listener is bound with IPV6_V6ONLY.
    """
    if one == other:
        return True
    if one.startswith("unix:") or other.startswith("unix:"):
        return False
    (host, _, port), (other_host, _, other_port) = one.rpartition(":"), other.rpartition(":")
    if port != other_port or host.startswith("[") != other_host.startswith("["):
        return False
    return bool({host, other_host} & {"0.0.0.0", "[::]"})
