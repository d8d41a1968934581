"""A real vLLM on the CPU with random models, swapped under clients of the official openai package that never retry.

Each start takes some 30 seconds and 2.5 GB; the tests share one daemon, in the order in which they are written."""

import contextlib
import importlib
import signal

import psutil
import pytest
from support.daemon_host import Daemon, until

PATIENCE_S = 300.0


@pytest.fixture(scope="module")
def daemon(vllm):
    models = [vllm("a", seed=1), vllm("b", seed=2)]
    with Daemon(models, budget="8GiB", service='soak = "0s"', patience_s=PATIENCE_S) as daemon:
        yield daemon


def server_of(daemon):
    """The process of the vLLM itself, which the worker's runner has started."""
    [worker] = [w for w in daemon.call("workers") if w["role"] == "stable"]
    [server] = psutil.Process(worker["pid"]).children()
    return server


@contextlib.contextmanager
def crowd_of(chatters, port):
    with chatters(port, streaming=2, whole=1, first_answers=5, pause_s=0.5) as crowd:
        crowd.more(5, deadline_s=PATIENCE_S)
        yield crowd


def test_a_dual_swap_loses_no_chat(daemon, chatters):
    with crowd_of(chatters, daemon.port) as crowd:
        first = daemon.service()["revision"]
        record = daemon.swap("b")
        crowd.more(10)
    crowd.check()
    assert record["strategy"] == "dual"
    crowd.check_texts({first: "a", record["to"]["revision"]: "b"})


def test_an_in_place_swap_holds_the_chats(daemon, chatters):
    with crowd_of(chatters, daemon.port) as crowd:
        record = daemon.swap("a", strategy="in-place")
        crowd.more(10)
    crowd.check()
    assert record["cut_requests"] == record["refused_requests"] == 0


def test_sigterm_to_the_server_itself_ends_its_stream_whole_and_the_next_is_served_again(daemon):
    """Behind our back: it has its --shutdown-timeout, by which it finishes what is in flight and nothing else."""
    chatters = importlib.import_module("support.chatters")
    server = server_of(daemon)
    with chatters.client_of(daemon.port) as client:
        stream = client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": "Go on."}],
            max_tokens=100,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        server.send_signal(signal.SIGTERM)
        *_, last = (choice for part in stream for choice in part.choices)
        assert last.finish_reason == "length"
    until(lambda: not server.is_running(), what="its end")  # until then it answers what comes new with a 500
    with chatters.client_of(daemon.port) as client:
        chatters.chat(client, "Still there?", stream=True)


def test_a_killed_server_with_its_stale_socket_is_started_again_and_nothing_of_it_stays(daemon):
    chatters = importlib.import_module("support.chatters")
    server = server_of(daemon)
    family = [server, *server.children(recursive=True)]
    assert len(family) > 1
    server.kill()
    with chatters.client_of(daemon.port) as client:
        chatters.chat(client, "Still there?", stream=False)
    until(lambda: not any(process.is_running() for process in family), what="the end of all its processes")
