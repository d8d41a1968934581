"""A tcp service: whole connections go to an engine as bytes, whoever speaks first, and wait while there is none."""

import contextlib
import hashlib
import socket
import struct
import threading

import pytest
from support.front_process import hand_over, wait_until

MIB = 1 << 20


class TcpEngine:
    """Gives every connection to `serve(socket)` on a thread of its own."""

    def __init__(self, address, serve):
        self.listener = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.listener.bind(address)
        self.listener.listen(1024)
        name = self.listener.getsockname()
        self.address = f"unix:{name}" if isinstance(name, str) else f"{name[0]}:{name[1]}"
        self.serve = serve
        self.count = 0
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                self.count += 1
                threading.Thread(target=self.one, args=(sock,), daemon=True).start()

    def one(self, sock):
        with sock, contextlib.suppress(OSError):
            self.serve(sock)

    def route(self, worker="chat-1", revision=1):
        return {"worker": worker, "revision": revision, "address": self.address}

    def close(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


def echo(sock):
    while data := sock.recv(65536):
        sock.sendall(data)
    sock.sendall(b"bye")


def say(text):
    def serve(sock):
        sock.sendall(text)
        echo(sock)

    return serve


@pytest.fixture
def tcp_engine(tmp_path):
    started = []

    def start(serve, address=None):
        started.append(TcpEngine(address or str(tmp_path / f"tcp-{len(started)}.sock"), serve))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture
def gate(spawn, listener):
    front = spawn(kind="gate", tcp=True, hold_timeout_s=20.0)
    front.adopt(1, main=listener)
    return front


def point(gate, epoch, *engines, hold=False):
    routes = [engine.route(f"chat-{number}", number) for number, engine in enumerate(engines, 1)]
    return gate.request("point", epoch=epoch, routes=routes, hold=hold)


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0)], ids=["unix", "tcp"])
def test_bytes_go_both_ways_and_so_does_a_half_close(gate, tcp_engine, connect, address):
    point(gate, 1, tcp_engine(echo, address))
    client = connect()
    client.send(b"\0\xffno http\r\n\r\n")
    assert client.take(13) == b"\0\xffno http\r\n\r\n"
    client.sock.shutdown(socket.SHUT_WR)
    assert client.rest() == b"bye"
    gate.wait_stats(upgraded=0, connections=0)


def test_the_engine_may_speak_first_and_end_first(gate, tcp_engine, connect):
    ended = []

    def greet(sock):
        sock.sendall(b"220 hello")
        sock.shutdown(socket.SHUT_WR)
        data = b""
        while more := sock.recv(65536):
            data += more
        ended.append(data)

    point(gate, 1, tcp_engine(greet))
    client = connect()
    assert client.rest() == b"220 hello"
    client.send(b"still writing")
    client.sock.shutdown(socket.SHUT_WR)
    wait_until(lambda: ended == [b"still writing"], "what came after the engine's end")


def test_much_passes_at_the_slower_sides_pace(gate, tcp_engine, connect):
    sums = []

    def digest(sock):
        total = hashlib.sha256()
        while data := sock.recv(65536):
            total.update(data)
        sums.append(total.hexdigest())
        for _ in range(50):
            sock.sendall(b"z" * MIB)

    point(gate, 1, tcp_engine(digest))
    client = connect()
    for _ in range(50):
        client.send(b"y" * MIB)
    client.sock.shutdown(socket.SHUT_WR)
    assert sum(map(len, iter(lambda: client.sock.recv(65536), b""))) == 50 * MIB
    assert sums == [hashlib.sha256(b"y" * 50 * MIB).hexdigest()]


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_is_gone_for_its_engine(gate, tcp_engine, connect, how):
    gone = threading.Event()

    def watch(sock):
        sock.sendall(b"hello")
        with contextlib.suppress(OSError):
            sock.recv(1)
        gone.set()

    point(gate, 1, tcp_engine(watch))
    client = connect()
    assert client.take(5) == b"hello"
    getattr(client, how)()
    assert gone.wait(10)
    gate.wait_stats(connections=0)


def test_new_connections_go_to_the_new_engine_and_old_ones_drain(gate, tcp_engine, connect):
    old, new = tcp_engine(say(b"old")), tcp_engine(say(b"new"))
    point(gate, 1, old)
    staying, leaving = connect(), connect()
    assert (staying.take(3), leaving.take(3)) == (b"old", b"old")
    gate.request("point", epoch=2, routes=[new.route("chat-2", 2)])
    fresh = connect()
    assert fresh.take(3) == b"new"
    staying.send(b"x")
    assert staying.take(1) == b"x"
    leaving.close()
    gate.wait_stats(upgraded=2)
    assert gate.request("drain", deadline_s=0.2, upstream="chat-1")["cut"] == 1
    assert staying.rest() == b""
    fresh.send(b"x")
    assert fresh.take(1) == b"x"


def test_connections_wait_and_go_to_whoever_comes(gate, tcp_engine, connect, spawn, listener):
    silent, speaking, leaving, resetting, done = (connect() for _ in range(5))
    for client in (speaking, resetting, done):
        client.send(b"early")
    gate.wait_stats(held=5)  # a wait begins with the connection: nobody knows who speaks first
    leaving.close()
    resetting.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    resetting.close()
    done.sock.shutdown(socket.SHUT_WR)  # it has asked, and waits for the answer
    gate.wait_stats(held=3)
    second = spawn(kind="gate", tcp=True)
    hand_over(gate, second, 2)
    second.wait_stats(held=3)
    engine = tcp_engine(say(b"hi "))
    point(second, 1, engine)
    assert silent.take(3) == b"hi "
    assert speaking.take(8) == b"hi early"
    assert done.rest() == b"hi earlybye"
    assert engine.count == 3


def test_a_wait_that_is_too_long_ends_with_the_connection(spawn, listener, connect, tmp_path):
    gate = spawn(kind="gate", tcp=True, hold_timeout_s=0.5)
    gate.adopt(1, main=listener)
    held = connect()
    assert held.rest() == b""
    route = {"worker": "chat-1", "revision": 1, "address": f"unix:{tmp_path}/nowhere.sock"}
    gate.request("point", epoch=1, routes=[route])
    hopeless = connect()
    assert hopeless.rest() == b""
    gate.wait_stats(held=0, connections=0)
