"""What the control socket's methods do when the journal cannot be written."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest

from swapd.core import errors, events
from swapd.core.config import DaemonConfig, ServiceConfig
from swapd.core.errors import SwapdError
from swapd.core.model import Revision, ServiceSettings, State
from swapd.daemon.api import Api, service_settings
from swapd.daemon.loop import Loop
from swapd.daemon.reading import Reading
from swapd.daemon.records import Records
from swapd.host.control_socket import Peer
from swapd.host.journal import Journal


class Idle:
    """In place of the executor: nothing is done."""

    def run(self, effect):
        pass

    measure = wake_at = run

    def exit(self):
        pass


@pytest.fixture
def world(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    loop = Loop(State(), Records(journal), Idle(), lambda event, body: None)
    loop.take(events.ServiceAdded(1.0, "chat", ServiceSettings(), "a", Revision(1, "chat", "a", "s", "a")))
    reading = Reading(loop, SimpleNamespace(live={}), None, None, journal)
    stop = lambda: loop.take(events.ShutdownRequested(2.0))  # noqa: E731
    api = Api(loop, reading, None, journal, stop)
    yield SimpleNamespace(api=api, loop=loop, journal=journal)
    journal.close()


def call(world, method, **params):
    return asyncio.run(world.api.handle(method, params, Peer()))


def full(*_, **__):
    raise SwapdError(errors.JOURNAL_FAILED, "database or disk is full")


def test_a_full_disk_keeps_nobody_from_canceling_or_stopping(world):
    world.journal.add_command = full
    with pytest.raises(SwapdError) as caught:
        call(world, "cancel", service="chat")
    assert caught.value.code == errors.NOTHING_TO_CANCEL
    assert call(world, "stop_workers", confirm=True)["stopping"] is True


def test_a_swap_is_refused_while_the_journal_cannot_be_written(world):
    world.journal.add_command = full
    candidate = Revision(0, "chat", "b", "s", "b")
    request = events.SwapRequested(2.0, "chat", candidate, None, None, None, "ana")
    with pytest.raises(SwapdError, match="No swap is begun") as caught:
        world.api._begin(request, None, {"service": "chat"})
    assert caught.value.code == errors.JOURNAL_FAILED


@pytest.mark.parametrize(
    "changed",
    [
        {"health_path": "/health"},
        {"hold_timeout_s": 1.0},
        {"queue_limit": 1},
        {"keep_alive_s": 1.0},
        {"trust_forwarded": True},
        {"protocol": "tcp"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_gate_is_another_one_with_any_setting_that_it_is_started_with(changed):
    config = SimpleNamespace(daemon=DaemonConfig(), strategies={})
    service = ServiceConfig(name="chat", listen=("127.0.0.1:8000",), model="a", front="gate")
    gate = service_settings(config, service).gate
    assert service_settings(config, replace(service, model="b", soak_s=1.0)).gate == gate
    assert service_settings(config, replace(service, **changed)).gate != gate
