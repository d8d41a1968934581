import pytest
from support.front_process import Client, FrontProcess, tcp_listener


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
