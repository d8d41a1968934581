import pytest
from support.front_process import Client, FrontProcess, tcp_listener
from support.raw_upstream import RawUpstream


@pytest.fixture
def spawn():
    """Starts fronts, and ends them with the test."""
    started = []

    def start(*args, **kwargs):
        front = FrontProcess(*args, **kwargs)
        started.append(front)
        return front

    yield start
    for front in started:
        front.close()


@pytest.fixture
def listener():
    with tcp_listener() as sock:
        yield sock


@pytest.fixture
def connect(listener):
    """Opens clients of the listener, and closes them with the test."""
    clients = []

    def open_client(address=None, **kwargs):
        client = Client(address if address is not None else listener.getsockname(), **kwargs)
        clients.append(client)
        return client

    yield open_client
    for client in clients:
        client.close()


@pytest.fixture
def pair(spawn, listener):
    """Revision 1, which owns the listener, and revision 2, which is to take over."""
    old, new = spawn(1), spawn(2)
    old.adopt(1, main=listener)
    return old, new


@pytest.fixture
def engine(tmp_path):
    """Starts scripted engines. Whatever they got must have been whole, well-formed requests."""
    started = []

    def start(address=None):
        started.append(RawUpstream(address or str(tmp_path / f"engine-{len(started)}.sock")))
        return started[-1]

    yield start
    for upstream in started:
        upstream.close()
        assert upstream.faults == []


@pytest.fixture
def relaying(spawn, listener):
    """A gate that relays to the engines given, named chat-1, chat-2 and so on."""

    def start(*engines, **settings):
        front = spawn(kind="gate", **settings)
        front.request("point", epoch=1, routes=routes(*engines))
        front.adopt(1, main=listener)
        return front

    return start


def routes(*engines):
    return [upstream.route(f"chat-{number}", number) for number, upstream in enumerate(engines, 1)]
