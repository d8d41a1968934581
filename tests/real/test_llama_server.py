"""Real llama-servers with random models, swapped under clients of the official openai package that never retry."""

import contextlib
import http.client
import importlib
import json
import os
import signal

import psutil
import pytest
from support.daemon_host import Daemon, until


@pytest.fixture
def daemon(llama):
    models = [llama("a", seed=1), llama("b", seed=2), llama("big", seed=2, memory="960MiB")]
    with Daemon(models) as daemon:
        yield daemon


def server_of(daemon, role="stable"):
    """The process of the llama-server itself, which the worker's runner has started."""
    [worker] = [w for w in daemon.call("workers") if w["role"] == role]
    [server] = psutil.Process(worker["pid"]).children()
    return server


def ask(connection):
    """One answer of the model, over a connection that is kept."""
    body = json.dumps({"model": "chat", "prompt": "hi", "max_tokens": 20, "temperature": 0, "ignore_eos": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    document = json.loads(response.read())
    assert response.status == 200, document
    return document["choices"][0]["text"]


@contextlib.contextmanager
def long_chat(port):
    """A stream that goes on for seconds."""
    with importlib.import_module("support.chatters").client_of(port) as client:
        yield client.chat.completions.create(
            model="chat",
            messages=[{"role": "user", "content": "Go on."}],
            max_tokens=3500,
            stream=True,
            extra_body={"ignore_eos": True},
        )


def test_dual_in_place_and_rollback_lose_no_chat(daemon, chatters):
    with chatters(daemon.port) as crowd:
        first = daemon.service()["revision"]
        dual = daemon.swap("b")
        crowd.more(30)
        crowd.mark()
        crowd.more(10)  # of which one at least was begun after the mark: the order of the models is clear
        back = daemon.call("rollback", service="chat")
        daemon.wait(back["id"], ("Canceled",))
        crowd.more(30)
        returned = daemon.service()["revision"]
        crowd.mark()
        in_place = daemon.swap("big")
        crowd.more(30)
    crowd.check()
    assert (dual["strategy"], in_place["strategy"]) == ("dual", "in-place")
    assert in_place["cut_requests"] == in_place["refused_requests"] == 0
    revisions = {first: "a", dual["to"]["revision"]: "b", returned: "a", in_place["to"]["revision"]: "b"}
    crowd.check_texts(revisions)


def test_many_swaps_to_and_fro_lose_no_chat(daemon, chatters):
    with chatters(daemon.port) as crowd:
        for number in range(6):
            crowd.mark()
            daemon.swap("ba"[number % 2], strategy="in-place" if number % 3 == 2 else "dual")
            crowd.more(10)
    crowd.check()


def test_a_server_that_dies_in_the_middle_tells_its_streams_and_the_others_wait(daemon, chatters):
    openai = importlib.import_module("openai")
    waiting = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
    with contextlib.closing(waiting), chatters(daemon.port) as crowd:
        first_try = ask(waiting)
        sock = waiting.sock
        with long_chat(daemon.port) as stream:
            next(stream)
            os.kill(server_of(daemon).pid, signal.SIGKILL)
            assert ask(waiting) == first_try, "the one that was started in its place is the same model"
            with pytest.raises(openai.APIError) as error:
                list(stream)
        assert "The model server ended in the middle of its answer" in str(error.value)
        assert waiting.sock is sock, "a connection whose request waited lives on"
        crowd.more(20)
    told = ("ended in the middle of its answer", "ended before it answered")
    untold = [name for name in crowd.errors if not any(words in name for words in told)]
    assert not untold, "what was under way at the server is lost, and is told why; nothing else is lost"
    assert sum(crowd.errors.values()) <= 6, "one for each of the crowd's clients"
    assert daemon.service()["health"] == "Healthy"


def test_clients_never_see_the_503_of_a_server_that_still_loads(llama, chatters):
    """A third of a gigabyte takes a moment, in which a llama-server answers everything with 503 "Loading model"."""
    heavy = llama("heavy", seed=3, memory="1GiB", context=2048, width=1536, layers=10)
    with Daemon([llama("a", seed=1), heavy], budget="1080MiB") as daemon, chatters(daemon.port) as crowd:
        record = daemon.swap("heavy")
        crowd.more(6)
    crowd.check()
    assert (record["phase"], record["strategy"]) == ("Soaking", "in-place"), record


def test_what_a_killed_swapd_and_its_servers_left_behind_stops_nobody(daemon):
    """Their sockets' files stay, and a llama-server takes a stale one for a live one."""
    stale = list(daemon.dir.glob("r/**/engine/*.sock"))
    assert stale
    server = server_of(daemon)
    family = [psutil.Process(worker["pid"]) for worker in daemon.call("workers")]
    daemon.process.kill()
    daemon.process.wait()
    for process in [*family, server]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: not server.is_running(), what="the server's end")
    (daemon.dir / "r/control.sock").unlink(missing_ok=True)
    daemon.start()
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)) as connection:
        assert ask(connection)


ASKED = {"model": "chat", "prompt": "hi", "max_tokens": 8, "temperature": 0, "ignore_eos": True}


def test_endpoints_models_and_golden_requests_are_asked_of_a_real_server(llama):
    contract = (
        'models = "/v1/models"\nendpoints = ["POST /v1/completions", "POST /v1/chat/completions", "GET /health"{}]'
    )
    tables = {"a": (1, ""), "again": (1, ""), "other": (2, ""), "less": (1, ', "POST /v1/nowhere"')}
    models = [
        llama(name, seed=seed) + f"[models.{name}.contract]\n{contract.format(more)}\n"
        for name, (seed, more) in tables.items()
    ]
    with Daemon(models) as daemon:
        connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(ASKED), {"Content-Type": "application/json"})
        text = json.loads(connection.getresponse().read())["choices"][0]["text"]
        connection.close()
        request = f"request = {{ path = '/v1/completions', body = '{json.dumps(ASKED)}', method = 'POST' }}"
        expect = f"expect = {{ within = '60s', label = '/choices/0/text', is = {json.dumps(text)} }}"
        golden = f"golden_repeat = 3\n[[services.chat.golden]]\n{request}\n{expect}\n"
        daemon.write(models, service=golden)
        daemon.call("reload")
        less = daemon.swap("less")
        assert (less["error"]["code"], len(less["differences"])) == ("CONTRACT_BROKEN", 1)
        assert less["differences"][0].startswith("POST /v1/nowhere is declared, and answered 404")
        other = daemon.swap("other")
        assert (other["error"]["code"], other["golden"]["wrong"]) == ("GOLDEN_FAILED", 3)
        again = daemon.swap("again")
        assert (again["phase"], again["golden"]["right"], again["differences"]) == ("Soaking", 3, [])
