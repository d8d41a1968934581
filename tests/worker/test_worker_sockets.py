"""The worker's own sockets: modes, stale names, and descriptors that nobody took."""

import os
import socket
import stat
import tempfile
from array import array
from pathlib import Path

import pytest

from swapd.core.errors import SwapdError
from swapd.worker.sockets import Descriptors, allowed_uids, bind_control, bind_http, peer_of


@pytest.fixture
def short_dir():
    with tempfile.TemporaryDirectory(prefix="ws-", dir="/tmp") as path:
        yield Path(path)


def bind_anyhow(path):
    return bind_control(str(path), 8)


@pytest.mark.parametrize(("bind", "mode"), [(bind_anyhow, 0o600), (lambda path: bind_http(str(path)), 0o666)])
@pytest.mark.parametrize("umask", [0, 0o077])
def test_orders_are_its_owners_alone_and_requests_whosever_may_pass_to_it(short_dir, bind, mode, umask):
    before = os.umask(umask)
    try:
        bind(short_dir / "a.sock").close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((short_dir / "a.sock").stat().st_mode) == mode
    assert os.listdir(short_dir) == ["a.sock"], "nothing is left beside it"


def test_binding_again_replaces_a_stale_socket(short_dir):
    for _ in range(2):
        bind_anyhow(short_dir / "a.sock").close()


def test_a_path_that_cannot_be_bound_is_named():
    with pytest.raises(OSError, match="xxx"):
        bind_anyhow("/tmp/" + "x" * 200 + "/control.sock")
    with pytest.raises(OSError, match=r"/no/such/dir/control\.sock: No such file"):
        bind_anyhow("/no/such/dir/control.sock")


def test_the_peer_is_named_by_the_kernel():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert peer_of(ours) == (os.getpid(), os.geteuid())


def test_who_may_speak():
    assert allowed_uids(1234) == {0, 1234, os.geteuid()}


def rights(*numbers):
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", numbers).tobytes())]


def test_descriptors_are_taken_or_closed():
    ours, theirs = socket.socketpair()
    descriptors = Descriptors(rights(theirs.detach()))
    assert len(descriptors) == 1
    [taken] = descriptors.take_sockets()
    assert len(descriptors) == 0
    descriptors.close()
    taken.send(b"x")
    assert ours.recv(1) == b"x"
    Descriptors(rights(taken.detach())).close()
    assert ours.recv(1) == b"", "closed"
    ours.close()


def test_one_that_is_no_socket_closes_all():
    ours, theirs = socket.socketpair()
    reading, writing = os.pipe()
    with pytest.raises(SwapdError, match="not a socket"):
        Descriptors(rights(theirs.detach(), writing)).take_sockets()
    assert ours.recv(1) == b""
    assert os.read(reading, 1) == b""
    os.close(reading)
    ours.close()
