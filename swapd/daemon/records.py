"""What the journal holds of the state: read at the start, written at every step, before any effect of it begins.

A journal that cannot be written stops new swaps, never a service. What it has missed is written once it works again.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from swapd.core.errors import Problem, SwapdError
from swapd.core.events import Amend, Event, JournalFound, OpDone, OpFailed, Outcome, Publish, Run
from swapd.core.model import Reservation, Service, State, Swap, Worker
from swapd.core.report import problem_record, swap_record
from swapd.core.states import Phase
from swapd.host.clock import wall_s as now
from swapd.host.journal import Journal
from swapd.wire import saved

log = logging.getLogger("swapd.records")

CLEAN_END: Final = "clean_end"  # the number of the last start that was followed by an end

Row = TypeVar("Row", Service, Worker, Reservation)


class Records:
    def __init__(self, journal: Journal) -> None:
        self.problem: Problem | None = None  # why the last write failed
        self._journal = journal
        self.crashed = False  # the last daemon has not ended as it was meant to
        self._lost = False  # it could not even be read
        self._found = False  # it has been read, and not been written since
        self._written = State()  # what the journal holds: older than the state while it cannot be written
        self._unwritten: list[Swap] = []  # swaps that ended meanwhile

    def read(self) -> State:
        """The state as the last daemon left it. What the journal does not tell is left to what the host does."""
        try:
            state = self._stored()
            self.crashed = self._journal.boot > 1 and self._journal.number(CLEAN_END) != self._journal.boot - 1
            self._journal.interrupt_ops(now())
        except SwapdError as error:
            log.error("journal.failed %s", error.message)
            self.problem = error.problem
            self._lost = True
            return State()
        self._found, self._written = True, state
        return state

    def _stored(self) -> State:
        """What the journal holds. Raises SwapdError."""
        journal = self._journal
        workers = _read(Worker, journal.rows("worker"))
        return State(
            _read(Service, journal.rows("service")),
            workers,
            _read(Reservation, journal.rows("reservation")),
            next_op=1 + max((w.op.id for w in workers if w.op is not None), default=0),
            next_worker=journal.number("next_worker"),
            next_swap=journal.last_swap_id() + 1,
        )

    def _close_strangers(self, state: State) -> None:
        """Swaps that are under way by the history alone: their service is not known any more, or not to swap."""
        under_way = {service.swap.id for service in state.services if service.swap is not None}
        for record in self._journal.unfinished_swaps():
            if record["id"] not in under_way:
                soaked = record["phase"] == Phase.SOAKING.value
                record["phase"] = (Phase.SUCCEEDED if soaked else Phase.CANCELED).value
                record["reason"] = f"the daemon ended during the {'soak' if soaked else 'swap'}"
                record["finished_at"] = now()
                self._journal.save_swap(record)

    def end(self) -> None:
        """The daemon ends as it was meant to."""
        with contextlib.suppress(SwapdError):  # the next one takes it for a crash, and counts it
            self._journal.save_number(CLEAN_END, self._journal.boot)

    def find_again(self, at: float) -> JournalFound | None:
        """Try a journal that could not be read at the start, is damaged, or is gone from its place. Once there is one
        again: which numbers have been given. What it says of before gives way to the state at the next step."""
        if not self._lost and self._journal.is_current():
            return None
        self._lost = True
        try:
            failed = self._journal.reopen()
            if failed is not None:
                if self.problem is None:
                    log.error("journal.failed %s", failed.message)
                self.problem = failed
                return None
            stored = self._stored()
            self._journal.interrupt_ops(at)
        except SwapdError as error:
            self.problem = error.problem
            return None
        self._lost, self._found, self._written = False, True, stored  # so that what is gone since is taken out of it
        last = tuple((service.name, service.last_revision) for service in stored.services)
        return JournalFound(at, stored.next_worker, stored.next_swap, last)

    def write(self, outcome: Outcome, event: Event) -> None:
        """One transaction for the step."""
        self._unwritten += outcome.finished
        self._save(outcome.state, lambda: self._write_step(outcome, event))

    def catch_up(self, state: State) -> None:
        """Write what the journal has missed, if it has, without waiting for something to happen."""
        if self.problem is not None and not self._lost:
            self._save(state, lambda: None)

    def _save(self, state: State, write_more: Callable[[], None]) -> None:
        try:
            with self._journal.transaction():
                self._write_state(state)
                write_more()
        except SwapdError as error:
            if self.problem is None:
                log.error("journal.failed %s", error.message)
            self.problem = error.problem
        else:
            if self.problem is not None:
                log.info("journal.works_again")
            self.problem = None
            self._found, self._written, self._unwritten = False, state, []

    def _write_step(self, outcome: Outcome, event: Event) -> None:
        if isinstance(event, OpDone):
            self._journal.conclude(event.op, {"ok": dict(event.result)}, event.at)
        elif isinstance(event, OpFailed):
            self._journal.conclude(event.op, {"error": problem_record(event.problem)}, event.at)
        for effect in outcome.effects:
            self._write_effect(outcome.state, effect, event.at)

    def _write_state(self, state: State) -> None:
        before = self._written
        self._write_rows("service", {s.name: s for s in before.services}, {s.name: s for s in state.services})
        self._write_rows("worker", {w.id: w for w in before.workers}, {w.id: w for w in state.workers})
        reserved = ({r.worker_id: r for r in each.reservations} for each in (before, state))
        self._write_rows("reservation", *reserved)
        for service in state.services:
            old = before.service(service.name)
            if service.swap is not None and (old is None or old.swap != service.swap):
                self._journal.save_swap(swap_record(service.swap))
        if before.next_worker != state.next_worker:
            self._journal.save_number("next_worker", state.next_worker)
        for swap in self._unwritten:
            self._journal.save_swap(swap_record(swap))
        if self._found:
            self._close_strangers(state)

    def _write_rows(self, kind: str, before: Mapping[str, Row], now: Mapping[str, Row]) -> None:
        for name, row in now.items():
            old = before.get(name)
            if old is not row and old != row:
                self._journal.save_row(kind, name, saved.dump(row))
        for name in before.keys() - now.keys():
            self._journal.delete_row(kind, name)

    def _write_effect(self, state: State, effect: object, at: float) -> None:
        if isinstance(effect, Run):
            op = effect.op
            service = state.service(op.service)
            swap_id = service.swap.id if service is not None and service.swap is not None else None
            args = {"target": op.target, "epoch": op.epoch, "deadline_s": op.deadline_s, "force": op.force}
            self._journal.intend(op.id, swap_id, op.service, op.worker, op.kind.value, args, at)
        elif isinstance(effect, Publish):
            self._journal.add_transition(effect.body.get("swap_id"), effect.event, effect.body, at)
        elif isinstance(effect, Amend):
            record = self._journal.last_swap_from(effect.service, effect.revision)
            if record is not None:
                record["cut_requests"] += effect.cut_requests
                self._journal.save_swap(record)


def _read(kind: type[Row], rows: Mapping[str, str]) -> tuple[Row, ...]:
    """Rows that cannot be understood are told and left out."""
    found = []
    for name, body in rows.items():
        try:
            found.append(saved.load(kind, body))
        except ValueError as error:
            log.error("journal.row_unreadable kind=%s name=%s error=%s", kind.__name__, name, error)
    return tuple(found)
