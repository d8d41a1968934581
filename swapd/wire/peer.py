"""Front and front: the messages of a hand-over, over one SOCK_SEQPACKET socketpair, descriptors beside them.

    source to target   OFFER* (listeners first, then connections), COMMIT; later BYTES*, STRAGGLER; ABORT
    target to source   HELD (one an OFFER), STARTED; later ADOPTED or REFUSED (one a STRAGGLER); ABORT

A message is one datagram: a fixed header (version, kind, epoch, three numbers) and a body whose layout the kind
decides. It is binary because a cutover waits for it: 253 connections encode in microseconds. Every length is
bounded and checked, and anything that does not add up is a `WireError`: the socket it came from is then closed.
Who may send what and when is not known here (`swapd.core.handover`). Standard library only: this runs in a model's
interpreter.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

VERSION: Final = 1
MAX_FDS: Final = 253  # SCM_MAX_FD in the kernel: 254 gives EINVAL
MAX_HEAD_BYTES: Final = 64 * 1024  # raw bytes of a request's head that move along with its connection
MAX_PART_BYTES: Final = 64 * 1024
MAX_CARRIED_BYTES: Final = 1024 * 1024  # what BYTES may add up to for one straggler
MAX_MESSAGE_BYTES: Final = 128 * 1024  # below the default SO_SNDBUF (208 KiB), which bounds one datagram
MAX_BATCH_BYTES: Final = 96 * 1024  # so that one more head of the largest size still fits the limit above
MAX_NAME_BYTES: Final = 255
MAX_TEXT_BYTES: Final = 1024
SOCKET_BUFFER_BYTES: Final = 1024 * 1024  # asked for; the kernel grants what wmem_max allows

OFFER: Final = 1
HELD: Final = 2
COMMIT: Final = 3
STARTED: Final = 4
ABORT: Final = 5
STRAGGLER: Final = 6
ADOPTED: Final = 7
REFUSED: Final = 8
BYTES: Final = 9

_HEADER: Final = struct.Struct("<BBHIQQ")  # version, kind, a (u16), b (u32), epoch, c (u64)
_FLOAT: Final = struct.Struct("<d")


class WireError(ValueError):
    """The bytes are not a message of this protocol."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A batch: descriptors of `listeners` first, then one of each entry of `heads` (b"": nothing was read)."""

    epoch: int
    batch: int
    listeners: tuple[str, ...] = ()
    heads: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Held:
    epoch: int
    batch: int


@dataclass(frozen=True, slots=True)
class Commit:
    epoch: int


@dataclass(frozen=True, slots=True)
class Started:
    epoch: int
    started_at: float  # CLOCK_MONOTONIC, seconds


@dataclass(frozen=True, slots=True)
class Abort:
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Straggler:
    """One connection, given for good. `carried` says how many bytes went ahead in BYTES messages."""

    epoch: int
    id: int
    carried: int = 0


@dataclass(frozen=True, slots=True)
class Adopted:
    epoch: int
    id: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The target could not take the descriptor (its table is full, or it is nobody's successor): keep it."""

    epoch: int
    id: int


@dataclass(frozen=True, slots=True)
class Bytes:
    """A part of what was read from the straggler `id`, in order."""

    epoch: int
    id: int
    data: bytes


Message = Offer | Held | Commit | Started | Abort | Straggler | Adopted | Refused | Bytes


def encode(message: Message) -> bytes:
    """The message as one datagram. Raises WireError when it is over a limit."""
    if isinstance(message, Offer):
        data = _encode_offer(message)
    elif isinstance(message, Bytes):
        if len(message.data) > MAX_PART_BYTES:
            raise WireError(f"a part of {len(message.data)} bytes is over the limit of {MAX_PART_BYTES}")
        data = _head(BYTES, message.epoch, c=message.id) + message.data
    elif isinstance(message, Straggler):
        data = _head(STRAGGLER, message.epoch, b=message.carried, c=message.id)
    elif isinstance(message, Adopted):
        data = _head(ADOPTED, message.epoch, c=message.id)
    elif isinstance(message, Refused):
        data = _head(REFUSED, message.epoch, c=message.id)
    elif isinstance(message, Held):
        data = _head(HELD, message.epoch, b=message.batch)
    elif isinstance(message, Commit):
        data = _head(COMMIT, message.epoch)
    elif isinstance(message, Started):
        data = _head(STARTED, message.epoch) + _FLOAT.pack(message.started_at)
    else:
        data = _head(ABORT, message.epoch) + message.reason.encode()[:MAX_TEXT_BYTES]
    return data


def descriptors_of(message: Message) -> int:
    """How many descriptors come with the message."""
    if isinstance(message, Offer):
        return len(message.listeners) + len(message.heads)
    return 1 if isinstance(message, Straggler) else 0


def decode(data: bytes) -> Message:
    """The message in one datagram. Raises WireError on anything that is not one."""
    if not _HEADER.size <= len(data) <= MAX_MESSAGE_BYTES:
        raise WireError(f"{len(data)} bytes are no message")
    version, kind, a, b, epoch, c = _HEADER.unpack_from(data)
    if version != VERSION:
        raise WireError(f"version {version}: expected {VERSION}")
    body = data[_HEADER.size :]
    if kind == OFFER:
        return _decode_offer(epoch, a, b, c, body)
    if kind == BYTES:
        if not 0 < len(body) <= MAX_PART_BYTES:
            raise WireError(f"a part of {len(body)} bytes")
        return Bytes(epoch, c, body)
    if kind == ABORT:
        if len(body) > MAX_TEXT_BYTES:
            raise WireError("a reason that is too long")
        return Abort(epoch, body.decode(errors="replace"))
    if kind == STARTED:
        if len(body) != _FLOAT.size:
            raise WireError("STARTED without its time")
        return Started(epoch, _FLOAT.unpack(body)[0])
    if body:
        raise WireError(f"{len(body)} bytes too many in a message of kind {kind}")
    if kind == STRAGGLER:
        if b > MAX_CARRIED_BYTES:
            raise WireError(f"{b} bytes are too many for one straggler")
        return Straggler(epoch, c, b)
    if kind == ADOPTED:
        return Adopted(epoch, c)
    if kind == REFUSED:
        return Refused(epoch, c)
    if kind == HELD:
        return Held(epoch, b)
    if kind == COMMIT:
        return Commit(epoch)
    raise WireError(f"unknown kind {kind}")


def batches(
    epoch: int, listeners: Sequence[tuple[str, int]], connections: Sequence[tuple[int, bytes]]
) -> list[tuple[Offer, list[int]]]:
    """The offer in as many batches as the kernel and the limits ask for, listeners first; always at least one.

    Heads over MAX_HEAD_BYTES do not belong here: such connections follow as stragglers.
    """
    if len(listeners) > MAX_FDS:
        raise WireError(f"{len(listeners)} listeners are over the limit of {MAX_FDS}")
    result: list[tuple[Offer, list[int]]] = []
    names = tuple(name for name, _ in listeners)
    fds = [fd for _, fd in listeners]
    heads: list[bytes] = []
    size = 0
    for fd, head in connections:
        if len(fds) == MAX_FDS or (head and size + len(head) > MAX_BATCH_BYTES):
            result.append((Offer(epoch, len(result), names, tuple(heads)), fds))
            names, fds, heads, size = (), [], [], 0
        fds.append(fd)
        heads.append(head)
        size += len(head)
    result.append((Offer(epoch, len(result), names, tuple(heads)), fds))
    return result


def prepare(sock: socket.socket) -> None:
    """Make the socket non-blocking and widen its buffers (best effort: the kernel caps them at wmem_max)."""
    sock.setblocking(False)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)


def send(sock: socket.socket, message: Message, fds: Sequence[int] = ()) -> None:
    """Send the message whole, with its descriptors.

    Raises BlockingIOError when the socket is full, OSError(ETOOMANYREFS) when too many descriptors of this user are
    in flight (try again once the other side has received some), and OSError when the peer is gone.
    """
    data = encode(message)
    if not fds:
        sock.send(data, socket.MSG_NOSIGNAL)
        return
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    sock.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)


@dataclass(frozen=True, slots=True)
class Received:
    """One message, and its descriptors, which the caller now owns. `short`: some were lost for lack of room."""

    message: Message
    fds: list[int]
    short: bool


def receive(sock: socket.socket) -> Received | None:
    """The next message, or None at end of file.

    Raises BlockingIOError when there is none yet, and WireError (with every descriptor closed) when it is not one.
    """
    while True:
        try:
            data, ancillary, flags, _ = sock.recvmsg(
                MAX_MESSAGE_BYTES + 1, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
            break
        except ConnectionResetError:
            # The peer died with unread messages of ours. What it had sent before is still in the queue behind this.
            continue
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data and not fds:
        return None
    try:
        if flags & socket.MSG_TRUNC:
            raise WireError("a datagram over the limit")
        message = decode(data)
        short = bool(flags & socket.MSG_CTRUNC)
        if not short and len(fds) != descriptors_of(message):
            raise WireError(f"{len(fds)} descriptors came, {descriptors_of(message)} were announced")
    except WireError:
        close_all(list(fds))
        raise
    return Received(message, list(fds), short)


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)


def _head(kind: int, epoch: int, a: int = 0, b: int = 0, c: int = 0) -> bytes:
    return _HEADER.pack(VERSION, kind, a, b, epoch, c)


def _encode_offer(offer: Offer) -> bytes:
    if len(offer.listeners) + len(offer.heads) > MAX_FDS:
        raise WireError(f"a batch of {descriptors_of(offer)} descriptors is over the limit of {MAX_FDS}")
    names = [name.encode() for name in offer.listeners]
    if any(not 0 < len(name) <= MAX_NAME_BYTES for name in names):
        raise WireError("a listener's name that is empty or too long")
    if any(len(head) > MAX_HEAD_BYTES for head in offer.heads):
        raise WireError(f"a head over the limit of {MAX_HEAD_BYTES} bytes")
    data = b"".join(
        (
            _head(OFFER, offer.epoch, len(names), offer.batch, len(offer.heads)),
            *(bytes((len(name),)) + name for name in names),
            struct.pack(f"<{len(offer.heads)}I", *map(len, offer.heads)),
            *offer.heads,
        )
    )
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"a batch of {len(data)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return data


def _decode_offer(epoch: int, names: int, batch: int, count: int, body: bytes) -> Offer:
    if names + count > MAX_FDS:
        raise WireError(f"a batch of {names + count} descriptors is over the limit of {MAX_FDS}")
    at = 0
    listeners = []
    for _ in range(names):
        size = body[at] if at < len(body) else 0
        name = body[at + 1 : at + 1 + size]
        if not size or len(name) != size:
            raise WireError("a listener's name is cut short")
        try:
            listeners.append(name.decode())
        except UnicodeDecodeError:
            raise WireError("a listener's name is not UTF-8") from None
        at += 1 + size
    end = at + 4 * count
    if len(body) < end:
        raise WireError("a batch is cut short")
    sizes = struct.unpack_from(f"<{count}I", body, at)
    if max(sizes, default=0) > MAX_HEAD_BYTES or end + sum(sizes) != len(body):
        raise WireError("a batch whose heads do not add up")
    if end == len(body):
        return Offer(epoch, batch, tuple(listeners), (b"",) * count)
    heads = []
    for size in sizes:
        heads.append(body[end : end + size])
        end += size
    return Offer(epoch, batch, tuple(listeners), tuple(heads))
