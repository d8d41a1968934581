"""protocol = "tcp": bytes are relayed, whatever they mean. Proved with a real gRPC server and client, and raw bytes."""

import socket
import sys
import threading
from pathlib import Path

import grpc
from support.daemon_host import Daemon, until

SERVERS = Path(__file__).parents[1] / "support/servers"


def grpc_model(name):
    return f"""
[models.{name}]
engine = "command"
command = ["{sys.executable}", "{SERVERS}/grpc_server.py", "{{socket}}", "{name}"]
device_memory = "100MiB"
"""


def open_ended(name):
    return f"""
[models.{name}]
engine = "command"
command = ["{sys.executable}", "{SERVERS}/echo_server.py", "{{socket}}"]
device_memory = "100MiB"
"""


class Calls:
    """gRPC clients that call all the time; what fails is kept."""

    def __init__(self, port, count=4):
        self.answers, self.errors = [], []
        self._ending = threading.Event()
        self._channels = [
            grpc.insecure_channel(
                f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
            )
            for _ in range(count)
        ]
        self._threads = [threading.Thread(target=self._call, args=(channel,)) for channel in self._channels]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.answers) > 20, what="the first answers")
        return self

    def __exit__(self, *_):
        self._ending.set()
        for thread in self._threads:
            thread.join(30)
        for channel in self._channels:
            channel.close()

    def _call(self, channel):
        ask, count = channel.unary_unary("/Test/Ask"), channel.unary_stream("/Test/Count")
        while not self._ending.is_set():
            try:
                self.answers.append(ask(b"x", timeout=20))
                names = {part.split()[0] for part in count(b"10", timeout=20)}
                assert len(names) == 1, "a stream is one server's"
            except (grpc.RpcError, AssertionError) as error:
                self.errors.append(repr(error))


def test_grpc_goes_on_through_a_swap_and_new_connections_go_to_the_new_server():
    with Daemon([grpc_model("a"), grpc_model("b")], service='protocol = "tcp"') as daemon:
        with Calls(daemon.port) as calls:
            record = daemon.swap("b")
            seen = len(calls.answers)
            until(lambda: len(calls.answers) > seen + 50, what="more answers")
            until(lambda: set(calls.answers[-20:]) == {b"b x"}, what="the end of old connections, by their age")
        assert calls.errors == []
        assert record["strategy"] == "dual"
        assert daemon.service()["front"] == "gate"


def test_in_place_new_connections_wait_and_are_served_by_the_new_server():
    with Daemon([grpc_model("a"), grpc_model("b")], service='protocol = "tcp"\ndrain_timeout = "5s"') as daemon:
        with Calls(daemon.port) as calls:
            record = daemon.swap("b", strategy="in-place")
            until(lambda: calls.answers[-1] == b"b x", what="answers of the new server")
        assert record["phase"] == "Soaking"
        assert calls.errors == []


def test_a_connection_that_never_ends_is_cut_at_the_drain_timeout():
    service = 'protocol = "tcp"\ndrain_timeout = "1s"'
    with (
        Daemon([open_ended("a"), open_ended("b")], service=service) as daemon,
        socket.create_connection(("127.0.0.1", daemon.port), 30) as client,
    ):
        client.settimeout(30)
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        record = daemon.swap("b", strategy="in-place")
        assert record["phase"] == "Soaking"
        assert client.recv(100) == b"", "it has ended"
        assert record["cut_requests"] == 1
