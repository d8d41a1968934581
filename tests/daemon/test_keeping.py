"""What the service manager keeps: told to a real notify socket, given back by the numbers that systemd would pass."""

from __future__ import annotations

import os
import socket

import pytest
from support.config_tables import parsed

from swapd.core.errors import LISTEN_FAILED, SwapdError
from swapd.daemon.keeping import CONTROL, Keeper
from swapd.daemon.start import bind_all
from swapd.host import listeners
from swapd.host.service_manager import Inherited, ServiceManager


@pytest.fixture
def notify(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)
        yield sock


@pytest.fixture
def bound():
    made = []

    def bind(address="127.0.0.1:0"):
        made.append(listeners.bind(address))
        return made[-1]

    yield bind
    for sock in made:
        sock.close()


def keeper(notify, **passed):
    manager = ServiceManager({"NOTIFY_SOCKET": notify.getsockname()})
    manager.inherited = lambda: Inherited(sockets={name.replace("_", "+"): sock for name, sock in passed.items()})
    made = Keeper(manager)
    manager_of[made] = manager
    return made


manager_of = {}


@pytest.fixture(autouse=True)
def close_managers():
    yield
    for manager in manager_of.values():
        manager.close()
    manager_of.clear()


def told(notify):
    """(what was asked, of which name), and how many descriptors came with it."""
    found = []
    while True:
        try:
            data, fds, _, _ = socket.recv_fds(notify, 4096, 4)
        except BlockingIOError:
            return found
        lines = data.decode().split("\n")
        for fd in fds:
            os.close(fd)
        found.append((lines[0].partition("=")[0], lines[1].partition("=")[2], len(fds)))


def test_what_is_ours_is_kept_once_and_let_go_when_it_is_gone(notify, bound):
    ours = keeper(notify)
    chat, control = bound(), bound()
    for _ in range(2):
        ours.keep({"chat": chat, CONTROL: control})
    assert told(notify) == [("FDSTORE", "+chat", 1), ("FDSTORE", "+@control", 1)]
    other = bound()
    ours.keep({"chat": other})
    assert told(notify) == [
        ("FDSTOREREMOVE", "+chat", 0),
        ("FDSTOREREMOVE", "+@control", 0),
        ("FDSTORE", "+chat", 1),
    ]


def test_a_socket_units_listener_is_not_kept_and_an_earlier_daemons_not_again(notify, bound):
    given, kept = bound(), bound()
    ours = keeper(notify, chat=given, _embed=kept)
    assert (ours.given, ours.kept) == ({"chat": given}, {"embed": kept})
    ours.keep({"chat": given, "embed": kept})
    assert told(notify) == []
    ours.keep({})
    assert told(notify) == [("FDSTOREREMOVE", "+embed", 0)]


def test_what_the_manager_could_not_be_told_is_told_again(notify, bound, monkeypatch):
    ours, chat, other = keeper(notify), bound(), bound()
    sendings = ServiceManager._send
    with monkeypatch.context() as deaf:
        deaf.setattr(ServiceManager, "_send", lambda *_, **__: False)
        ours.keep({"chat": chat})
    ours.keep({"chat": chat})
    assert told(notify) == [("FDSTORE", "+chat", 1)]
    with monkeypatch.context() as deaf:
        deaf.setattr(
            ServiceManager, "_send", lambda self, *lines, **how: "FDSTORE=1" in lines and sendings(self, *lines, **how)
        )
        ours.keep({"chat": other})
    assert told(notify) == [], "two of one name would be two for the next daemon"
    ours.keep({"chat": other})
    assert told(notify) == [("FDSTOREREMOVE", "+chat", 0), ("FDSTORE", "+chat", 1)]


def config(address):
    return parsed({"models": {"a": {"app": "m:app"}}, "services": {"chat": {"listen": address, "model": "a"}}})


def address_of(sock):
    return f"127.0.0.1:{sock.getsockname()[1]}"


def test_a_kept_listener_is_taken_if_it_is_where_the_configuration_wants_one(bound):
    kept = bound()
    address = address_of(kept)
    assert bind_all(config(address), {}, {"chat": kept}, {}) == {"chat": {address: kept}}
    assert bind_all(config(address), {}, {"old-name": kept}, {}) == {"chat": {address: kept}}
    free = bound()
    elsewhere = address_of(free)
    free.close()
    taken = bind_all(config(elsewhere), {}, {"chat": kept}, {})["chat"][elsewhere]
    assert address_of(taken) == elsewhere
    assert kept.fileno() == -1, "nobody's address any more"
    taken.close()


def test_a_lent_duplicate_of_a_kept_one_is_closed_and_its_file_stays(tmp_path, bound):
    address = f"unix:{tmp_path}/chat.sock"
    kept = bound(address)
    lent = kept.dup()
    assert bind_all(config(address), {}, {"chat": kept}, {address: lent}) == {"chat": {address: kept}}
    assert lent.fileno() == -1
    assert (tmp_path / "chat.sock").exists()


def test_a_lent_listener_is_taken_if_it_is_where_its_worker_says(bound):
    lent, strange = bound(), bound()
    free = bound()
    address, elsewhere = address_of(lent), address_of(free)
    free.close()
    assert bind_all(config(address), {}, {}, {address: lent}) == {"chat": {address: lent}}
    taken = bind_all(config(elsewhere), {}, {}, {elsewhere: strange})["chat"][elsewhere]
    assert address_of(taken) == elsewhere
    taken.close()


def test_a_socket_unit_at_another_address_is_refused(bound):
    given = bound()
    with pytest.raises(SwapdError, match="socket unit with FileDescriptorName=chat listens on") as refused:
        bind_all(config("127.0.0.1:8000"), {"chat": given}, {}, {})
    assert refused.value.code == LISTEN_FAILED


def test_a_manager_that_does_not_read_is_asked_once_a_round(notify, bound):
    """Each message that it does not take holds up the loop, which a watchdog waits for."""
    made, asked = keeper(notify), []
    manager_of[made].store_fd = lambda name, sock, *, poll: asked.append(name) or False
    made.keep({f"s{number}": bound() for number in range(5)})
    assert len(asked) == 1
