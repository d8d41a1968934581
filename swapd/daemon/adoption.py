"""What an earlier daemon has left: its workers are found, spoken to and taken over, before anything is decided.

What is seen is told to the core as `Observed`; nothing is judged here. A worker that lives and does not answer is of no
use to anybody, and is ended. Nothing that one of them says or does keeps the daemon from starting: a model's code runs
in there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from swapd.core.delivery import Split
from swapd.core.errors import WORKER_EXITED, Problem, SwapdError
from swapd.core.events import Observed
from swapd.core.model import Kind, OpKind, State
from swapd.core.states import WorkerState
from swapd.daemon.hosting import WorkerProcess
from swapd.daemon.live import Live
from swapd.daemon.spec import Facts, forget, read_facts, recorded
from swapd.daemon.transfers import HELLO, REQUEST_S
from swapd.daemon.workers import Workers, exit_problem, marker_of
from swapd.wire import worker as wire

log = logging.getLogger("swapd.adoption")

ANSWER_S: Final = 10.0  # for a worker that an earlier daemon has started, perhaps a moment before it died
POLL_S: Final = 0.02
MAX_NAMES_BYTES: Final = 64 * 1024


async def observe(workers: Workers, state: State, settle_s: float) -> tuple[Observed, ...]:
    """Take over every worker that is there. Hand-overs that are under way are given `settle_s` to end by themselves."""
    directory = Path(workers.config.daemon.runtime_dir) / "w"
    left = await asyncio.to_thread(_read_all, directory)
    markers = {worker_id: marker_of(worker_id, facts.nonce) for worker_id, facts in left.items()}
    found = await workers.find(markers)
    processes = {name: process for name, process in found.items() if process.alive}
    gone = {name: _gone(name, workers, found.get(name)) for name in left.keys() - processes.keys()}
    ended = {name: process for name, process in found.items() if not process.alive}
    await asyncio.gather(*(_end_leftovers(name, process) for name, process in ended.items()))
    for worker_id, seen in gone.items():
        because = seen.problem.message if seen.problem is not None else "how is not known"
        log.warning("recovery.worker_had_ended worker=%s because=%s", worker_id, because)
        forget(directory / worker_id)
    adopted = await asyncio.gather(
        *(_adopt(workers, directory / name, left[name], process) for name, process in processes.items())
    )
    await _settle(workers, state, settle_s)
    for live in workers.live.values():
        if live.kind is Kind.GATE:  # to whom it was ever pointed is not known
            live.upstreams = {other.id for other in workers.live.values() if other.facts.service == live.facts.service}
    unseen = [w.id for w in state.workers if w.id not in left]
    living = tuple(_observed(live) for live in workers.live.values())
    mute = (each for each in adopted if each is not None)
    return (*living, *mute, *gone.values(), *(_gone(name, workers) for name in unseen))


async def borrow_listeners(workers: Workers, known: Collection[str]) -> dict[str, socket.socket]:
    """Copies of the listeners that fronts have, by address: of those that are `known`, since a model's code runs in a
    worker, and the file of a Unix socket that is nobody's any more is removed. The caller owns them."""
    fronts = [live for live in workers.live.values() if live.kind is not Kind.ENGINE]
    found: dict[str, socket.socket] = {}
    for lent in await asyncio.gather(*(_borrow(live) for live in fronts)):
        for address, sock in lent.items():
            if address in found or address not in known:
                sock.close()
            else:
                found[address] = sock
    return found


def _read_all(directory: Path) -> dict[str, Facts]:
    found = {}
    for path in recorded(directory):
        try:
            found[path.name] = read_facts(path)
        except (OSError, ValueError) as error:
            log.error("recovery.spec_unreadable path=%s error=%s", path, error)
    return found


async def _end_leftovers(worker_id: str, process: WorkerProcess) -> None:
    try:
        await process.kill_tree(0.0)
    except SwapdError as error:  # what the kernel keeps holds memory, and that is measured
        log.error("recovery.will_not_end worker=%s error=%s", worker_id, error.message)


async def _adopt(workers: Workers, directory: Path, facts: Facts, process: WorkerProcess) -> Observed | None:
    """None: it is ours now, among `workers.live`."""
    worker_id = directory.name
    try:
        live = await workers.adopt(worker_id, directory, process, facts, ANSWER_S)
    except SwapdError as error:
        log.error("recovery.worker_ended worker=%s because=%s", worker_id, error.message)
        problem = Problem(WORKER_EXITED, f"{worker_id} did not answer a daemon that was started: {error.message}")
        return Observed(worker_id, problem=problem, log_tail=workers.last_lines(worker_id))
    log.info("recovery.adopted worker=%s pid=%d state=%s", worker_id, process.pid, live.hello.get("state"))
    return None


async def _settle(workers: Workers, state: State, limit_s: float) -> None:
    """A source takes back what it has not committed, now that its daemon is gone; what it has, its target takes.

    Both were greeted at different moments. Asked again, the source first, they tell of one end: of what has come about
    by the source's word, its target knows.
    """
    clock = asyncio.get_running_loop().time
    until_s = clock() + limit_s
    ops = (worker.op for worker in state.workers)
    moves = ((op.worker, op.target or "") for op in ops if op is not None and op.kind is OpKind.HAND_OVER)
    pairs = [pair for pair in moves if all(name in workers.live for name in pair)]
    while pairs and clock() < until_s:
        await asyncio.gather(*(_greet_again(workers, source) for source, _ in pairs))
        await asyncio.gather(*(_greet_again(workers, target) for _, target in pairs))
        pairs = [pair for pair in pairs if all(name in workers.live for name in pair) and _hands_over(workers, pair[0])]
        if pairs:
            await asyncio.sleep(POLL_S)


async def _greet_again(workers: Workers, worker_id: str) -> None:
    live = workers.live.get(worker_id)
    if live is not None:
        with contextlib.suppress(SwapdError):  # its end is seen by its watcher
            live.hello = await live.request(wire.HELLO, HELLO | {"worker_id": live.id}, deadline_s=REQUEST_S)


def _hands_over(workers: Workers, source: str) -> bool:
    return workers.live[source].hello.get("state") == WorkerState.HANDING_OVER.value


@dataclass(frozen=True, slots=True)
class _Said:
    """What `hello` tells of the front."""

    state: str = WorkerState.FAILED.value
    owner: bool = False
    epoch: int = 0
    last_epoch: int = 0
    table_epoch: int = 0
    points_to: str | None = None
    table_label: str = ""
    listeners: tuple[str, ...] | None = None
    hooks: frozenset[str] = frozenset()
    quiesced_at: float | None = None
    started_at: float | None = None
    pointed_at: float | None = None


def _said(live: Live) -> _Said:
    try:
        return msgspec.convert(live.hello, _Said)
    except msgspec.ValidationError as error:  # as good as one that has failed
        log.error("recovery.hello_unreadable worker=%s error=%s", live.id, error)
        return _Said()


def _observed(live: Live) -> Observed:
    said, facts = _said(live), live.facts
    return Observed(
        live.id,
        _state_of(said.state),
        owner=said.owner and said.listeners != (),
        epoch=max(said.epoch, said.last_epoch),
        table_epoch=said.table_epoch,
        points_to=said.points_to,
        split=Split.parse(said.table_label),
        listeners=said.listeners,
        hooks=said.hooks,
        quiesced_at=said.quiesced_at,
        started_at=said.started_at,
        pointed_at=said.pointed_at,
        service=facts.service,
        kind=facts.kind,
        revision=facts.revision,
        slot=facts.slot,
        made_of=facts.made_of,
    )


def _state_of(said: str) -> WorkerState:
    try:
        return WorkerState(said)
    except ValueError:  # of a later version
        return WorkerState.FAILED


def _gone(worker_id: str, workers: Workers, process: WorkerProcess | None = None) -> Observed:
    """`process`: it has ended, and how is known."""
    lines = workers.last_lines(worker_id)
    return Observed(worker_id, problem=exit_problem(worker_id, process, lines) if process else None, log_tail=lines)


async def _borrow(live: Live) -> dict[str, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds: list[int] = []
    with ours, theirs:
        try:
            await live.request(wire.LEND, fds=(theirs.fileno(),), deadline_s=REQUEST_S)
            ours.setblocking(False)
            data, fds, _, _ = socket.recv_fds(ours, MAX_NAMES_BYTES, wire.MAX_FDS)
            names = _names_of(data, fds)
        except (SwapdError, OSError, ValueError) as error:  # it has just ended, or is of a version that cannot
            log.warning("recovery.no_listeners worker=%s error=%s", live.id, error)
            for fd in fds:
                os.close(fd)
            return {}
    socks = [socket.socket(fileno=fd) for fd in fds]
    for sock in socks:
        sock.set_inheritable(False)
    return dict(zip(names, socks, strict=True))


def _names_of(data: bytes, fds: Sequence[int]) -> list[str]:
    """A name for each of these sockets. Raises ValueError."""
    try:
        names = msgspec.json.decode(data, type=list[str])
    except msgspec.DecodeError as error:
        raise ValueError(f"no list of names: {error}") from None
    if len(names) != len(fds) or len(names) != len(set(names)):
        raise ValueError(f"{len(fds)} descriptors with {len(names)} names")
    if not all(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in fds):
        raise ValueError("a descriptor that is no socket")
    return names
