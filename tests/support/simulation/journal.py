"""A simulated journal: what is durable, by the same rows and the same encoding as the real one."""

from __future__ import annotations

from dataclasses import replace

from swapd.core.model import Reservation, Service, State, Swap, Worker
from swapd.core.states import TERMINAL, Phase
from swapd.wire import saved

KINDS = {"service": Service, "worker": Worker, "reservation": Reservation}


class Journal:
    """`works` False: nothing is written, so that what is durable grows old."""

    def __init__(self) -> None:
        self.works = True
        self.found = False  # it has been read, and not been written since
        self.rows: dict[str, dict[str, object]] = {kind: {} for kind in KINDS}
        self.next_worker = 1
        self.history: dict[int, Swap] = {}  # as last saved: under way, or ended
        self.ended: set[int] = set()
        self._written = State()
        self._unwritten: list[Swap] = []

    def write(self, state: State, finished: tuple[Swap, ...]) -> None:
        """One step, whole or not at all."""
        self._unwritten += finished
        if not self.works:
            return
        for kind, now in _rows(state).items():
            before = _rows(self._written)[kind]
            for name, row in now.items():
                if before.get(name) is not row:
                    self.rows[kind][name] = row
            for name in before.keys() - now.keys():
                self.rows[kind].pop(name, None)
        for service in state.services:
            if service.swap is not None:
                self._save(service.swap)
        for swap in self._unwritten:
            self._save(swap)
        if self.found:
            self._close_strangers(state)
        self.next_worker = state.next_worker
        self.found, self._written, self._unwritten = False, state, []

    def is_behind(self, state: State) -> bool:
        return self._written is not state

    def _save(self, swap: Swap) -> None:
        old = self.history.get(swap.id)
        if swap.id in self.ended:
            assert old == swap, f"swap {swap.id} had ended and changes: {old} to {swap}"
        self.history[swap.id] = swap
        if swap.phase in TERMINAL:
            self.ended.add(swap.id)

    def read(self) -> State:
        """What a daemon that starts finds."""
        read = {kind: tuple(_again(KINDS[kind], row) for row in rows.values()) for kind, rows in self.rows.items()}
        self.found = True
        self._written = State(
            read["service"],
            read["worker"],
            read["reservation"],
            next_op=1 + max((w.op.id for w in read["worker"] if w.op is not None), default=0),
            next_worker=self.next_worker,
            next_swap=1 + max(self.history, default=0),
        )
        return self._written

    def _close_strangers(self, state: State) -> None:
        """What is under way by the history alone has ended."""
        under_way = {service.swap.id for service in state.services if service.swap is not None}
        for swap in list(self.history.values()):
            if swap.phase not in TERMINAL and swap.id not in under_way:
                phase = Phase.SUCCEEDED if swap.phase is Phase.SOAKING else Phase.CANCELED
                self._save(replace(swap, phase=phase))

    def forget(self) -> None:
        """A daemon has ended: the next one knows nothing of what is in there, nor of what is not."""
        self._unwritten = []
        self._written = State()


def _rows(state: State) -> dict[str, dict[str, object]]:
    return {
        "service": {s.name: s for s in state.services},
        "worker": {w.id: w for w in state.workers},
        "reservation": {r.worker_id: r for r in state.reservations},
    }


def _again(kind: type, row: object) -> object:
    return saved.load(kind, saved.dump(row))
