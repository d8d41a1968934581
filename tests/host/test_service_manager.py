"""Against a real notify socket; a real systemd is in tests/systemd."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from swapd.host.service_manager import ServiceManager


class Manager:
    """The other end: what systemd would receive."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.sock.settimeout(10)

    def receive(self) -> list[str]:
        data, fds, _flags, _address = socket.recv_fds(self.sock, 65536, 4)
        self.fds = fds
        return data.decode().split("\n")


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    address = f"{tmp_path}/notify" if request.param == "path" else f"@swapd-test-{tmp_path}"
    manager = Manager(address)
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    manager.service = ServiceManager(environ)
    manager.environ = environ
    yield manager
    manager.service.close()
    manager.sock.close()


def test_messages_are_as_the_protocol_has_them(manager):
    service = manager.service
    assert service.present
    assert service.ready("chat: a")
    assert manager.receive() == ["READY=1", "STATUS=chat: a"]
    assert service.ready()
    assert manager.receive() == ["READY=1"]
    assert service.stopping("drains")
    assert manager.receive() == ["STOPPING=1", "STATUS=drains"]
    assert service.watchdog()
    assert manager.receive() == ["WATCHDOG=1"]
    assert service.extend_timeout(12.5)
    assert manager.receive() == ["EXTEND_TIMEOUT_USEC=12500000"]
    assert service.reloading()
    first, second = manager.receive()
    assert first == "RELOADING=1"
    assert second.startswith("MONOTONIC_USEC=")


def test_a_status_is_utf_8_one_line_and_bounded(manager):
    manager.service.status("modèle 模型 → b\nREADY=1")
    assert manager.receive() == ["STATUS=modèle 模型 → b READY=1"]
    manager.service.status("€" * 10_000)
    (line,) = manager.receive()
    assert set(line.removeprefix("STATUS=")) == {"€"}
    assert len(line.encode()) < 4096


def test_a_descriptor_is_stored_by_name(manager):
    with socket.socket() as listener:
        assert manager.service.store_fd("front-chat", listener)
        assert manager.receive() == ["FDSTORE=1", "FDNAME=front-chat"]
        (fd,) = manager.fds
        assert os.fstat(fd).st_ino == os.fstat(listener.fileno()).st_ino
        os.close(fd)
        manager.service.store_fd("state", listener.fileno(), poll=False)
        assert manager.receive() == ["FDSTORE=1", "FDNAME=state", "FDPOLL=0"]
        os.close(manager.fds[0])
    manager.service.remove_fd("state")
    assert manager.receive() == ["FDSTOREREMOVE=1", "FDNAME=state"]


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "é", "x" * 256])
def test_a_name_that_systemd_would_silently_refuse_is_an_error(manager, name):
    with pytest.raises(ValueError, match="cannot name a descriptor"):
        manager.service.store_fd(name, 0)


def test_children_do_not_inherit_the_link(manager):
    assert manager.environ == {"HOME": "/"}
    assert "NOTIFY_SOCKET" not in os.environ
    assert not os.get_inheritable(manager.service._notifier.socket.fileno())


def test_the_watchdog_is_fed_twice_in_its_time(manager):
    assert manager.service.watchdog_interval_s == 15.0


def test_a_manager_that_is_gone_does_not_disturb(manager, caplog):
    manager.sock.close()
    assert not manager.service.ready()
    assert "not_sent message='READY=1'" in caplog.text


@pytest.mark.parametrize(
    "environ",
    [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/nonexistent/notify"}],
)
def test_without_a_manager_everything_does_nothing(environ):
    service = ServiceManager({**environ, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1", "LISTEN_FDS": "x"})
    assert not service.present
    assert service.watchdog_interval_s is None
    assert not any([service.ready(), service.status("x"), service.stopping(), service.watchdog()])
    assert not any([service.reloading(), service.extend_timeout(1), service.store_fd("a", 0), service.remove_fd("a")])
    assert service.listen_fds() == {}
    service.close()


INHERIT = """
import json, os, sys
from swapd.host.service_manager import ServiceManager
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
service = ServiceManager()
found = service.inherited()
print(json.dumps({
    "sockets": {name: [s.fileno(), s.getblocking(), s.get_inheritable()] for name, s in found.sockets.items()},
    "others": {name: [fd, os.get_inheritable(fd)] for name, fd in found.others.items()},
    "again": list(service.inherited().sockets),
    "environ": [name for name in os.environ if name.startswith("LISTEN_")],
}))
found.close()
"""


def inherit(fds: list[int], environ: dict[str, str], wrong_pid: int = 0) -> dict:
    """Runs a process that finds `fds` at 3, 4, …, as systemd leaves them."""
    program = (
        "import os, sys\n"
        f"for index, fd in enumerate({fds!r}): os.dup2(fd, 100 + index)\n"
        f"for index in range({len(fds)}): os.dup2(100 + index, 3 + index, inheritable=True)\n"
        f"os.execv(sys.executable, [sys.executable, '-c', {INHERIT!r}, '{wrong_pid}'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environ},
        pass_fds=fds,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_descriptors_come_back_by_name(tmp_path):
    with socket.socket() as front, socket.socket(socket.AF_UNIX) as control, Path("/dev/null").open() as file:
        fds = [front.fileno(), control.fileno(), file.fileno(), front.fileno()]
        found = inherit(fds, {"LISTEN_FDS": "4", "LISTEN_FDNAMES": "web:control:state:web"})
    assert found["sockets"] == {"web": [3, False, False], "control": [4, False, False], "web#2": [6, False, False]}
    assert found["others"] == {"state": [5, False]}
    assert found["again"] == []
    assert found["environ"] == []


def test_descriptors_without_names_and_missing_ones_are_survived():
    with socket.socket() as front:
        found = inherit([front.fileno()], {"LISTEN_FDS": "2"})
    assert found["sockets"]["unknown"] == [3, False, False]


def test_descriptors_meant_for_another_process_are_left_alone():
    with socket.socket() as front:
        found = inherit([front.fileno()], {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"}, wrong_pid=1)
    assert found["sockets"] == {}
    assert found["environ"] == []
