"""Contracts: whether a candidate can stand in for what serves, by what both declare and their servers tell.

What a server has told is kept in the journal by its content, its settings and the questions: so what serves is known
although it may not answer when a swap needs it (it is busy, parked, or has made room). It is asked when it proves
itself, be it a first start, and once more at a swap where nothing is kept. May not know: what breaks clients
(`core.contract`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any, Final

from swapd.core.config import ContractConfig, ModelConfig
from swapd.core.contract import (
    UNKNOWN,
    Difference,
    Interface,
    declared,
    differences,
    not_allowed,
    read_models,
    read_openapi,
    read_v2,
    refusal,
    with_told,
)
from swapd.core.errors import TIMEOUT, SwapdError
from swapd.core.model import Op, Service, State, Swap, Worker
from swapd.core.readiness import shown
from swapd.core.states import FORWARD
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.live import Live
from swapd.host.probes import MAX_BODY_BYTES, HttpAnswer, fetch

log = logging.getLogger("swapd.contracts")

CANDIDATE_S: Final = 10.0  # for each answer; a framework makes its OpenAPI document when it is first asked
STABLE_S: Final = 3.0  # of what serves, or starts: neither a swap nor a start waits longer
MAX_KEPT_CHARS: Final = 1 << 20  # of one interface, in the journal; a longer one is asked for at each swap
_MISSING: Final = (404, 405, 501)  # an endpoint that is not there answers one of these
_SENDS: Final = ("POST", "PUT", "PATCH")


class Contracts:
    def __init__(self, state: Callable[[], State], knowledge: Knowledge, live: Mapping[str, Live]) -> None:
        self._state = state
        self._knowledge = knowledge
        self._live = live
        self._incumbents: dict[str, tuple[int, Interface]] = {}  # by service: its stable revision, and what is known

    async def learn_incumbent(self, service: Service) -> None:
        """What clients rely on now, before a swap may bring it to an end."""
        self._incumbents[service.name] = (service.stable, await self._incumbent(service))

    async def check(self, op: Op, live: Live, model: ModelConfig) -> Mapping[str, Any]:
        """Of a worker that has just proved itself. As the candidate of a swap it must be able to stand in for what
        serves: `differences` are those that were allowed. Raises SwapdError: CONTRACT_BROKEN, MODEL_NAME_MISMATCH."""
        worker, service = self._state().worker(op.worker), self._state().service(op.service)
        swap = swap_of(service, worker)
        if worker is None or service is None or swap is None:
            if worker is not None:
                await self._learn(worker, live, model.contract)
            return {}
        told, silent = await self._ask(worker, live, model.contract, CANDIDATE_S)
        number, old = self._incumbents.get(service.name, (0, UNKNOWN))
        if number != service.stable:  # the daemon was started again meanwhile
            old = await self._incumbent(service)
        new = with_told(declared(model, model.contract), told)
        silent += await _missing(live.address, model.contract)
        found = (*await asyncio.to_thread(differences, old, new), *(Difference("unknown", text) for text in silent))
        broken = not_allowed(found, names=swap.allow_name_mismatch, all=swap.allow_breaking)
        texts = tuple(dict.fromkeys((*swap.differences, *(each.text for each in found))))
        if broken:
            problem = refusal(service.name, model.name, broken, old, new)
            raise SwapdError.of(replace(problem, details={**problem.details, "differences": texts}))
        return {"differences": texts}

    async def _incumbent(self, service: Service) -> Interface:
        model = self._knowledge.serving(service)
        if model is None:
            return UNKNOWN
        contract = await self._knowledge.stable_contract(service)
        worker = next((w for w in self._state().workers_of(service.name) if _serves(service, w)), None)
        live = self._live.get(worker.id) if worker is not None else None
        if worker is not None and live is not None:
            return with_told(declared(model, contract), await self._learn(worker, live, contract))
        told = self._knowledge.told(service.name, service.stable, _questions(contract))
        return with_told(declared(model, contract), told or UNKNOWN)

    async def _learn(self, worker: Worker, live: Live, contract: ContractConfig) -> Interface:
        """What its server tells, by asking it only where that is not kept."""
        questions = _questions(contract)
        kept = self._knowledge.told(worker.service, worker.revision, questions) if questions else UNKNOWN
        if kept is not None:
            return kept
        told, silent = await self._ask(worker, live, contract, STABLE_S)
        for text in silent:
            log.warning("contract.not_told worker=%s %s", worker.id, text)
        return told

    async def _ask(
        self, worker: Worker, live: Live, contract: ContractConfig, deadline_s: float
    ) -> tuple[Interface, list[str]]:
        """What the server tells of itself, and a sentence for each question that it does not answer rightly."""
        paths = (contract.openapi, f"/v2/models/{contract.v2}" if contract.v2 else None, contract.models)
        asked = [(path, read) for path, read in zip(paths, (read_openapi, read_v2, read_models), strict=True) if path]
        answers = await asyncio.gather(*(_told(live.address, path, read, deadline_s) for path, read in asked))
        told, silent = UNKNOWN, [answer for answer in answers if isinstance(answer, str)]
        for answer in answers:
            if isinstance(answer, Interface):
                given = {key: value for key in _TOLD if (value := getattr(answer, key)) is not None}
                told = replace(told, **given)
        if asked and not silent:
            # Not by `saved`: a server may have written numbers and texts that it refuses. In a thread: it may be long.
            body = await asyncio.to_thread(lambda: json.dumps(asdict(told)))
            if len(body) <= MAX_KEPT_CHARS:
                self._knowledge.keep_told(worker, _questions(contract), body)
        return told, silent


def swap_of(service: Service | None, worker: Worker | None) -> Swap | None:
    """The swap that the worker has to prove itself for. None: it is no candidate, or one that has served before."""
    swap = service.swap if service is not None else None
    if swap is None or worker is None or swap.phase not in FORWARD or swap.goes_back:
        return None
    return swap if worker.revision == swap.target.number else None


def _serves(service: Service, worker: Worker) -> bool:
    return worker.revision == service.stable and worker.verified and worker.can_serve


def _questions(contract: ContractConfig) -> str:
    """What a server is asked; "": nothing. What it has told once is told by it again as long as they are the same."""
    asked = [contract.openapi, contract.v2, contract.models]
    return json.dumps(asked) if any(asked) else ""


_TOLD: Final = ("inputs", "outputs", "listed", "api")


async def _told(address: str, path: str, read: Callable[[bytes], Interface], deadline_s: float) -> Interface | str:
    try:
        answer = await fetch(address, "GET", path, headers=(("accept", "application/json"),), deadline_s=deadline_s)
    except SwapdError as error:
        return error.message
    if answer.status != 200:
        return f"GET {path} answered {answer.status}: {shown(answer.body)}"
    if answer.truncated:
        return f"GET {path} answered more than {MAX_BODY_BYTES >> 20} MiB"
    try:
        return await asyncio.to_thread(read, answer.body)
    except ValueError as error:
        return f"what GET {path} answers {error}"


async def _missing(address: str, contract: ContractConfig) -> list[str]:
    """Those of its declared endpoints that a server does not have, a sentence each. It is asked in a way that asks for
    nothing: with an empty object where something is sent, and not at all where something might be deleted."""
    missing = []
    for endpoint in contract.endpoints or ():
        method, _, path = endpoint.partition(" ")
        if method in (*_SENDS, "GET", "HEAD") and "{" not in path:
            answer = await _answer(address, method, path)
            if isinstance(answer, str):
                missing.append(answer)
            elif answer is not None and answer.status in _MISSING:
                missing.append(f"{endpoint} is declared, and answered {answer.status}: {shown(answer.body)}")
    return missing


async def _answer(address: str, method: str, path: str) -> HttpAnswer | str | None:
    """None: one that takes its time is there."""
    headers, body = ((("content-type", "application/json"),), b"{}") if method in _SENDS else ((), None)
    try:
        return await fetch(address, method, path, headers=headers, body=body, deadline_s=CANDIDATE_S)
    except SwapdError as error:
        return None if error.code == TIMEOUT else error.message
