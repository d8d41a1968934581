"""One real gate and one scripted engine for a whole module: a conformance case costs a connection, not a process."""

import pytest
from support.front_process import Client, FrontProcess, tcp_listener
from support.raw_upstream import RawUpstream


@pytest.fixture(scope="module")
def shared_gate(tmp_path_factory):
    upstream = RawUpstream(str(tmp_path_factory.mktemp("engine") / "http.sock"))
    front = FrontProcess(kind="gate", stall_s=2.0)
    with tcp_listener() as listener:
        front.request("point", epoch=1, routes=[upstream.route()])
        front.adopt(1, main=listener)
        front.address = listener.getsockname()
        yield front, upstream
    front.close()
    upstream.close()


@pytest.fixture
def upstream(shared_gate):
    """The engine. Whatever it got must have been whole, well-formed requests."""
    engine = shared_gate[1]
    engine.forget()
    yield engine
    assert engine.faults == []


@pytest.fixture
def gate(shared_gate, upstream):
    front = shared_gate[0]
    yield front
    assert front.process.poll() is None
    front.wait_stats(in_flight=0, upgraded=0)


@pytest.fixture
def connect(gate):
    clients = []

    def open_client(**kwargs):
        clients.append(Client(gate.address, **kwargs))
        return clients[-1]

    yield open_client
    for client in clients:
        client.close()
