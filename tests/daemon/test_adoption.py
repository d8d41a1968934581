"""What a worker says to a daemon that has not started it, when it is not what it should be."""

import asyncio
import os
import socket
import types

import pytest

from swapd.core.errors import TIMEOUT, SwapdError
from swapd.core.model import Kind
from swapd.core.states import WorkerState
from swapd.daemon.adoption import _end_leftovers, _observed, borrow_listeners
from swapd.daemon.live import Live
from swapd.daemon.spec import Facts
from swapd.host import listeners


def live(tmp_path, **hello):
    facts = Facts(service="chat", kind=Kind.DIRECT, revision=None, nonce="n", started_at=1.0, log_path="x")
    return Live("chat-1", tmp_path, process=None, facts=facts, address="", hello=hello)


def test_what_hello_tells_is_what_is_seen(tmp_path):
    told = {"state": "serving", "owner": True, "epoch": 3, "last_epoch": 4, "listeners": ["a:1"], "hooks": ["park"]}
    seen = _observed(live(tmp_path, **told, started_at=7, pid=1, capabilities=[]))
    assert (seen.state, seen.owner, seen.epoch) == (WorkerState.SERVING, True, 4)
    assert (seen.listeners, seen.hooks, seen.started_at) == (("a:1",), frozenset({"park"}), 7.0)


def test_an_owner_without_listeners_owns_nothing_yet(tmp_path):
    assert not _observed(live(tmp_path, state="serving", owner=True, listeners=[])).owner


@pytest.mark.parametrize(
    "nonsense",
    [{"state": 7}, {"epoch": "last"}, {"listeners": 5}, {"listeners": [None]}, {"hooks": {}}, {"points_to": [1]}],
)
def test_a_hello_that_makes_no_sense_is_that_of_a_worker_that_has_failed(tmp_path, nonsense):
    seen = _observed(live(tmp_path, **{"state": "serving", "owner": True, **nonsense}))
    assert (seen.state, seen.owner) == (WorkerState.FAILED, False)


def lender(tmp_path, data, fds):
    """A worker that answers `lend` with this."""
    found = live(tmp_path)

    async def request(self, verb, params=None, *, fds=(), deadline_s):
        with socket.socket(fileno=os.dup(fds[0])) as theirs:
            if sent is not None:
                socket.send_fds(theirs, [data], sent)
        return {}

    sent = fds
    found.channel = types.SimpleNamespace(request=types.MethodType(request, found))
    return types.SimpleNamespace(live={"chat-1": found})


async def borrow(tmp_path, data, fds):
    open_before = os.listdir("/proc/self/fd")
    found = await borrow_listeners(lender(tmp_path, data, fds), {"a:1"})
    if not found:
        assert os.listdir("/proc/self/fd") == open_before
    return found


@pytest.fixture
def bound():
    with listeners.bind("127.0.0.1:0") as sock:
        yield sock


def test_listeners_come_by_their_names(tmp_path, bound):
    found = asyncio.run(borrow(tmp_path, b'["a:1"]', [bound.fileno()]))
    with found["a:1"] as sock:
        assert sock.getsockname() == bound.getsockname()
        assert not sock.get_inheritable()


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'["a", "b"]', b"[1]", b'{"a": 1}', b'["b:2"]', b"\xff"])
def test_names_that_do_not_fit_are_no_listeners_and_no_reason_not_to_start(tmp_path, bound, data):
    assert asyncio.run(borrow(tmp_path, data, [bound.fileno()])) == {}


def test_what_is_no_socket_is_closed(tmp_path):
    with (tmp_path / "file").open("w") as file:
        assert asyncio.run(borrow(tmp_path, b'["a:1"]', [file.fileno()])) == {}


def test_a_worker_that_sends_nothing_lends_nothing(tmp_path):
    assert asyncio.run(borrow(tmp_path, b"", None)) == {}


def test_leftovers_that_do_not_end_are_told(tmp_path, caplog):
    async def kill_tree(grace_s):
        raise SwapdError(TIMEOUT, "still alive 10 s after SIGKILL")

    asyncio.run(_end_leftovers("chat-1", types.SimpleNamespace(kill_tree=kill_tree)))
    assert "recovery.will_not_end worker=chat-1" in caplog.text
