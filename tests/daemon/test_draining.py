"""Draining and pointing: who is asked what. The channels are stand-ins; what the processes do is tested with them."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from swapd.core.config import ServiceConfig
from swapd.core.errors import INTERNAL, TIMEOUT, WORKER_EXITED, SwapdError
from swapd.core.model import Kind, Op, OpKind
from swapd.daemon.draining import drain
from swapd.daemon.live import Live
from swapd.daemon.reading import Reading
from swapd.daemon.transfers import Transfers


@dataclass
class Asked:
    """A live worker, whose answers are given."""

    id: str
    kind: Kind = Kind.DIRECT
    answer: object = field(default_factory=dict)
    stats: dict = field(default_factory=dict)
    upstreams: set = field(default_factory=set)
    revision: int = 7
    address: str = "unix:/run/w/http.sock"
    facts: object = field(default_factory=lambda: SimpleNamespace(blocked=("/sleep",), uid=None, reuse=True))
    heard: list = field(default_factory=list)
    channel: object = True

    route = Live.route

    async def request(self, verb, params=None, *, fds=(), deadline_s):
        self.heard.append((verb, params))
        if isinstance(self.answer, SwapdError):
            raise self.answer
        return self.answer


def op(kind, worker, target=None, epoch=5):
    return Op(1, kind, "chat", worker, target, epoch, deadline_s=2.0)


def drained(worker, *gates):
    everybody = {live.id: live for live in (worker, *gates)}
    return asyncio.run(drain(worker, op(OpKind.DRAIN, worker.id), everybody))


def test_a_worker_is_drained_in_its_own_front_and_in_every_gate_that_relays_to_it():
    worker = Asked("chat-1", answer={"cut": 1})
    new, old = (Asked(f"chat-gate-{n}", Kind.GATE, {"cut": 2}, upstreams={"chat-1"}) for n in (3, 2))
    other = Asked("chat-gate-4", Kind.GATE, upstreams={"chat-9"})
    assert drained(worker, new, old, other) == {"cut": 5, "detail": "5 cut"}
    assert worker.heard == [("drain", {"deadline_s": 2.0, "and_close": False})]
    assert new.heard == old.heard == [("drain", {"deadline_s": 2.0, "and_close": False, "upstream": "chat-1"})]
    assert not other.heard


def test_an_engine_has_no_front_to_drain():
    engine = Asked("chat-1", Kind.ENGINE)
    assert drained(engine, Asked("chat-gate-2", Kind.GATE, {"cut": 3}, upstreams={"chat-1"}))["cut"] == 3
    assert not engine.heard


@pytest.mark.parametrize(("code", "cut"), [(WORKER_EXITED, 0), (TIMEOUT, 4)])
def test_a_gate_that_does_not_answer_keeps_nobody_from_draining(code, cut):
    stats = {"upstreams": {"chat-1": {"in_flight": 4, "streams": 0, "upgraded": 0, "oldest_in_flight_s": 1.0}}}
    gate = Asked("chat-gate-2", Kind.GATE, SwapdError(code, "no"), stats, {"chat-1"})
    assert drained(Asked("chat-1", Kind.ENGINE), gate)["cut"] == cut


def test_a_gate_that_refuses_is_told():
    gate = Asked("chat-gate-2", Kind.GATE, SwapdError(INTERNAL, "no"), upstreams={"chat-1"})
    with pytest.raises(SwapdError, match="no"):
        drained(Asked("chat-1", Kind.ENGINE), gate)


CHAT = ServiceConfig(name="chat", listen=("127.0.0.1:8000",), model="a")


def point(everybody, target):
    def live(name):
        if name not in everybody:
            raise SwapdError(WORKER_EXITED, f"{name} is not running.")
        return everybody[name]

    transfers = Transfers(live, {}, lambda: 2.0, lambda name: (None, CHAT))
    return asyncio.run(transfers.point(op(OpKind.POINT, "chat-gate-2", target)))


def test_a_gate_is_pointed_to_where_the_worker_answers_and_remembers_it():
    gate = Asked("chat-gate-2", Kind.GATE, {"quiesced_at": 1.0})
    assert point({"chat-gate-2": gate, "chat-1": Asked("chat-1")}, "chat-1") == {"quiesced_at": 1.0}
    known = {"worker": "chat-1", "revision": 7, "address": "unix:/run/w/http.sock", "uid": None, "reuse": True}
    route = {**known, "blocked": ["/sleep"]}
    assert gate.heard == [("point", {"epoch": 5, "hold": False, "routes": [route]})]
    assert gate.upstreams == {"chat-1"}


@pytest.mark.parametrize("target", [None, "chat-1"])
def test_a_gate_that_is_pointed_to_nobody_or_to_who_has_just_died_holds(target):
    gate = Asked("chat-gate-2", Kind.GATE)
    point({"chat-gate-2": gate}, target)
    assert gate.heard == [("point", {"epoch": 5, "hold": True, "routes": []})]


def figures(server, *live):
    state = SimpleNamespace(server_of=lambda name: server)
    workers = SimpleNamespace(live={each.id: each for each in live})
    reading = Reading(SimpleNamespace(state=state), workers, None, None, None)
    return asyncio.run(reading.open_requests(SimpleNamespace(name="chat", owner="chat-gate-2")))


def test_open_requests_behind_a_gate_are_those_that_it_relays_and_those_of_the_models_own_front():
    upstreams = {
        "chat-1": {"in_flight": 2, "streams": 1, "upgraded": 0, "oldest_in_flight_s": 9.0},
        "chat-0": {"in_flight": 5},
    }
    gate = Asked("chat-gate-2", Kind.GATE, {"upstreams": upstreams})
    own = Asked("chat-1", answer={"in_flight": 1, "streams": 0, "upgraded": 1, "oldest_in_flight_s": 3.0})
    expected = {"in_flight": 3, "streams": 1, "upgraded": 1, "oldest_in_flight_s": 9.0}
    assert figures(own, gate, own) == expected
    engine = Asked("chat-1", Kind.ENGINE)
    assert figures(engine, gate, engine)["in_flight"] == 2
    assert figures(engine, Asked("chat-gate-2", Kind.GATE), engine) == {}, "not known"
