"""Real sockets on the loopback and in temporary directories."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
from contextlib import closing

import pytest

from swapd.core.errors import LISTEN_FAILED, SwapdError
from swapd.host import listeners

LISTEN_AND_SAY_SO = """
import socket, sys
sock = socket.socket()
sock.bind(("127.0.0.1", 0)); sock.listen()
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


def refused(address: str) -> str:
    with pytest.raises(SwapdError) as caught:
        listeners.bind(address)
    assert caught.value.code == LISTEN_FAILED
    assert caught.value.message.startswith(f"cannot listen on {address}: ")
    return caught.value.message


def connect(listener: socket.socket) -> socket.socket:
    client = socket.socket(listener.family, socket.SOCK_STREAM)
    client.connect(listener.getsockname())
    return client


def accept(listener: socket.socket) -> socket.socket:
    assert select.select([listener], [], [], 10)[0]
    return listener.accept()[0]


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "localhost:0", "0.0.0.0:0", "[::]:0"])
def test_clients_reach_a_tcp_listener(address):
    with closing(listeners.bind(address)) as listener, connect(listener), accept(listener):
        assert listener.getblocking() is False
        assert not os.get_inheritable(listener.fileno())
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) == 0


def test_a_name_means_its_ipv4_address_first():
    with closing(listeners.bind("localhost:0")) as listener:
        assert listener.family == socket.AF_INET


def test_the_same_port_can_be_listed_for_ipv4_and_ipv6():
    with closing(listeners.bind("0.0.0.0:0")) as first:
        port = first.getsockname()[1]
        with closing(listeners.bind(f"[::]:{port}")) as second:
            assert second.getsockname()[1] == port


def test_a_port_in_use_names_its_holder():
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN_AND_SAY_SO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        port = other.stdout.readline().strip()
        message = refused(f"127.0.0.1:{port}")
        other.stdin.close()
    assert "the port is in use by python" in message
    assert f"(pid {other.pid})" in message


def test_an_address_listed_twice_is_told_as_such():
    with closing(listeners.bind("127.0.0.1:0")) as listener:
        assert "by this daemon itself" in refused(f"127.0.0.1:{listener.getsockname()[1]}")


def test_a_restart_is_not_refused_while_old_connections_linger():
    listener = listeners.bind("127.0.0.1:0")
    port = listener.getsockname()[1]
    with connect(listener) as client, accept(listener) as served:
        served.close()  # this side closes first, so its port stays in TIME_WAIT
        assert client.recv(1) == b""
    listener.close()
    listeners.bind(f"127.0.0.1:{port}").close()


@pytest.mark.skipif(os.geteuid() != 0, reason="dropping privileges needs root")
def test_a_privileged_port_says_what_to_do():
    program = (
        # One bind before: the interpreter may lie where another user cannot import anything any more.
        "import os\nfrom swapd.host import listeners\nlisteners.bind('127.0.0.1:0').close()\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "try: listeners.bind('127.0.0.1:81')\nexcept Exception as error: print(error)"
    )
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start") as file:
        if int(file.read()) <= 81:
            pytest.skip("this host lets anybody listen on port 81")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert "port 81 is privileged" in done.stdout, done.stderr
    assert "socket unit" in done.stdout
    assert "CAP_NET_BIND_SERVICE" in done.stdout


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("203.0.113.7:8000", "no network interface of this host has that address"),
        ("no-such-host.invalid:8000", "nor a name that resolves"),
        ("8000", 'expected "host:port"'),
        (":8000", 'expected "host:port"'),
        ("127.0.0.1:", 'expected "host:port"'),
        ("127.0.0.1:http", 'expected "host:port"'),
        ("127.0.0.1:65536", 'expected "host:port"'),
        ("127.0.0.1:٣", 'expected "host:port"'),
        ("::1:8000", 'in brackets: "[::1]:8000"'),
        ("unix:relative.sock", "must be absolute"),
        ("unix:/nonexistent/x.sock", "the directory /nonexistent does not exist"),
        ("unix:/tmp/" + "x" * 200, "too long for a Unix socket"),
        ("a" * 70 + ".example:80", "nor a name that resolves"),
    ],
)
def test_an_unusable_address_says_why(address, words):
    assert words in refused(address)


# --- unix sockets ------------------------------------------------------------------------------------------


def test_any_user_may_connect_to_a_unix_listener(tmp_path):
    path = tmp_path / "chat.sock"
    with closing(listeners.bind(f"unix:{path}")) as listener, connect(listener), accept(listener):
        assert path.stat().st_mode & 0o777 == 0o666


def test_a_stale_unix_socket_is_replaced(tmp_path):
    path = tmp_path / "chat.sock"
    listeners.bind(f"unix:{path}").close()
    assert path.exists()
    with closing(listeners.bind(f"unix:{path}")) as listener, connect(listener):
        pass


def test_a_unix_socket_in_use_is_left_alone(tmp_path):
    path = tmp_path / "chat.sock"
    with closing(listeners.bind(f"unix:{path}")) as listener:
        assert "the socket is in use by this daemon itself" in refused(f"unix:{path}")
        with connect(listener):
            pass


def test_a_unix_socket_with_a_full_queue_is_in_use_too(tmp_path):
    path = tmp_path / "chat.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as client:
        busy.bind(str(path))
        busy.listen(0)
        client.connect(str(path))
        assert "the socket is in use" in refused(f"unix:{path}")


def test_a_file_that_is_no_socket_is_never_removed(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_text("precious")
    assert "is not a socket" in refused(f"unix:{path}")
    assert path.read_text() == "precious"


def test_unbind_removes_the_file_of_a_unix_socket(tmp_path):
    path = tmp_path / "chat.sock"
    listeners.unbind(listeners.bind(f"unix:{path}"))
    assert not path.exists()
    listeners.unbind(listeners.bind("127.0.0.1:0"))


# --- the queue ---------------------------------------------------------------------------------------------


def test_the_queue_holds_thousands(tmp_path):
    with closing(listeners.bind("127.0.0.1:0")) as listener:
        # tcpi_sacked of a listener is its backlog, cut to net.core.somaxconn.
        with open("/proc/sys/net/core/somaxconn") as file:
            most = min(listeners.BACKLOG, int(file.read()))
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert int.from_bytes(info[28:32], sys.byteorder) == most


def test_where_a_listener_is_can_be_told(tmp_path):
    path = tmp_path / "a.sock"
    with listeners.bind("127.0.0.1:0") as tcp, listeners.bind(f"unix:{path}") as unix:
        port = tcp.getsockname()[1]
        assert listeners.is_at(tcp, f"127.0.0.1:{port}")
        assert listeners.is_at(tcp, "127.0.0.1:0")
        assert not listeners.is_at(tcp, f"127.0.0.2:{port}")
        assert not listeners.is_at(tcp, f"[::1]:{port}")
        assert not listeners.is_at(tcp, f"127.0.0.1:{port - 1}")
        assert not listeners.is_at(tcp, f"unix:{path}")
        assert listeners.is_at(unix, f"unix:{path}")
        assert not listeners.is_at(unix, f"unix:{path}2")
        path.unlink()
        assert not listeners.is_at(unix, f"unix:{path}"), "no client finds it any more"
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        assert not listeners.is_at(idle, f"127.0.0.1:{idle.getsockname()[1]}")
