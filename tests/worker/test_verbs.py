"""A real worker process, spoken to as the daemon does: each verb, each refusal, and a model that blocks its loop.

Hand-overs between workers are in tests/worker/test_handing.py.
"""

import os

import pytest
from support.worker_client import APPS, Client, Refused, UnixHttp, ask, ask_once, blocked_loop, wait_until

from swapd.worker.verbs import start_time


def refused(call):
    with pytest.raises(Refused) as caught:
        call()
    return caught.value


def state_of(client):
    return client.request("stats")["state"]


def test_hello_tells_who_this_is(spawn):
    worker = spawn(worker_id="chat-3", nonce="abc")
    hello = worker.connect().hello("chat-3")
    assert hello["pid"] == worker.process.pid
    assert hello["start_time"] == start_time(worker.process.pid)
    assert (hello["worker_id"], hello["nonce"], hello["kind"]) == ("chat-3", "abc", "asgi")
    assert (hello["protocol"], hello["min_protocol"], hello["state"], hello["epoch"]) == (1, 1, "spawned", 0)
    assert hello["hooks"] == []
    assert hello["version"]


def test_a_loaded_app_answers_on_the_private_socket_with_its_lifespan_state(spawn):
    worker = spawn(revision=7, env={"ECHO_WEIGHTS": "w7"})
    client = worker.greeted()
    assert not worker.http.exists()
    assert client.request("load") == {}
    status, headers, body = ask_once(worker.http, "/x", b"hi")
    assert status == 200
    assert headers["x-swapd-revision"] == "7"
    assert b'"weights": "w7"' in body
    assert b'"body": "hi"' in body
    assert worker.http.stat().st_mode & 0o777 == 0o666  # its directory decides who may pass
    assert state_of(client) == "loaded"


def test_the_models_directory_is_its_cwd_and_first_on_its_path(spawn):
    worker = spawn()
    worker.loaded()
    body = ask_once(worker.http)[2].decode()
    assert f'"cwd": "{APPS}"' in body
    assert f'"first_path": "{APPS}"' in body


def test_an_engines_hooks_run_by_verb_and_report_progress(spawn):
    worker = spawn("engines_app:SyncEngine")
    client = worker.connect()
    assert client.hello(worker.id)["hooks"] == ["stage", "park", "wake"]
    client.request("stage")
    assert state_of(client) == "staged"
    client.request("load")
    assert client.events[-1] == {
        "event": "progress",
        "params": {"step": "stage", "done": 100, "total": 100, "unit": "bytes"},
    }
    assert len(client.events) <= 10, "told at most some ten times a second"
    assert ask_once(worker.http)[2] == b"stage,load"
    client.request("park")
    assert state_of(client) == "parked"
    client.request("wake")
    assert state_of(client) == "loaded"
    assert ask_once(worker.http)[2] == b"stage,load,park,wake"
    assert client.request("stop") == {}
    assert worker.wait() == 0
    assert "unloaded after stage,load,park,wake" in worker.log


def test_async_hooks(spawn):
    worker = spawn("engines_app:AsyncEngine")
    client = worker.loaded()
    client.request("park")
    client.request("wake")
    assert ask_once(worker.http)[2] == b"load,park,wake"


@pytest.mark.parametrize(
    ("app", "code", "words"),
    [
        ("no_such_model:app", "IMPORT_FAILED", "there is no module 'no_such_model'"),
        ("engines_app:LoadFails", "LOAD_FAILED", "ValueError: bad weights (engines_app.py:"),
        ("engines_app:CudaOutOfMemory", "OUT_OF_MEMORY", "could not read the weights"),
        ("failing_lifespan_app:raises", "LOAD_FAILED", "weights are corrupt (failing_lifespan_app.py:"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_and_can_only_be_stopped(spawn, app, code, words):
    worker = spawn(app)
    client = worker.greeted()
    error = refused(lambda: client.request("load"))
    assert (error.code, words in error.message) == (code, True), error.message
    assert state_of(client) == "failed"
    again = refused(lambda: client.request("load"))
    assert "load is not possible while the worker is failed" in again.message
    assert not worker.http.exists()
    client.request("stop")
    assert worker.wait() == 0
    if "module" not in words:
        assert "Traceback" in worker.log


def test_a_directory_that_is_not_there_is_told_at_load(spawn):
    worker = spawn(directory="/no/such/directory")
    client = worker.greeted()
    error = refused(lambda: client.request("load"))
    assert (error.code, "'/no/such/directory' cannot be entered" in error.message) == ("IMPORT_FAILED", True)


def test_an_exit_while_loading_is_told_and_ends_the_worker_with_its_status(spawn):
    worker = spawn("engines_app:LoadExits")
    client = worker.greeted()
    error = refused(lambda: client.request("load"))
    assert (error.code, "the model called sys.exit(3) (engines_app.py:" in error.message) == ("LOAD_FAILED", True)
    assert worker.wait() == 3
    assert "worker.model_exit code=3" in worker.log


def test_a_failing_hook_leaves_nothing_but_stop(spawn):
    worker = spawn("engines_app:ParkFails")
    client = worker.loaded()
    error = refused(lambda: client.request("park"))
    assert (error.code, "RuntimeError: the GPU is busy" in error.message) == ("HOOK_FAILED", True)
    assert state_of(client) == "failed"


def test_a_hook_that_is_not_there_is_refused(spawn):
    client = spawn().greeted()
    assert refused(lambda: client.request("stage")).code == "NOT_SUPPORTED"


def test_an_illegal_verb_names_the_legal_ones_and_changes_nothing(spawn):
    client = spawn().greeted()
    error = refused(lambda: client.request("park"))
    assert error.code == "BAD_REQUEST"
    assert error.message == "park is not possible while the worker is spawned; possible now: stage, load, stop"
    assert state_of(client) == "spawned"
    client.request("load")


@pytest.mark.parametrize(
    ("verb", "params", "words"),
    [
        ("adopt", {"epoch": 1}, "listeners must be a list of names"),
        ("adopt", {"epoch": 1, "listeners": ["a"]}, "1 listeners are named, but 0 descriptors"),
        ("adopt", {"epoch": 1, "listeners": ["a", "a"]}, "a name occurs twice"),
        ("adopt", {"epoch": "1", "listeners": []}, "epoch must be an integer"),
        ("receive", {"epoch": 1}, "receive takes 1 descriptor(s), 0 came along"),
        ("hand_over", {"epoch": 1, "deadline_s": -1}, "deadline_s must be a number of seconds"),
        ("hand_over", {"epoch": 1, "deadline_s": float("nan")}, "deadline_s must be a number of seconds"),
        ("drain", {"deadline_s": 1, "and_close": 1}, "and_close must be true or false"),
        ("drain", {}, "deadline_s must be a number of seconds"),
        ("source_dead", {}, "epoch must be an integer"),
        ("hand_over", {"epoch": -1, "deadline_s": 1}, "epoch must be an integer"),
    ],
)
def test_wrong_parameters_are_named(shared_worker, verb, params, words):
    error = refused(lambda: shared_worker.request(verb, **params))
    assert (error.code, words in error.message) == ("BAD_REQUEST", True), error.message
    assert state_of(shared_worker) == "loaded"


@pytest.fixture(scope="module")
def shared_worker():
    from support.worker_client import spawner

    with spawner() as spawn:
        yield spawn().loaded()


def test_an_unknown_verb_is_refused(shared_worker):
    error = refused(lambda: shared_worker.request("fly"))
    assert error.code == "UNKNOWN_METHOD"
    assert "hand_over" in error.message


def test_hello_and_stats_are_answered_while_a_sync_load_blocks_the_loop(spawn):
    worker = spawn("engines_app:BlocksLoad", env={"RELEASE": "/no/such/file"})
    client = worker.greeted()
    client.send("load")
    wait_until(lambda: client.request("stats")["loop_blocked_s"] > 0.3, "the loop is seen blocked")
    assert state_of(client) == "loading"
    assert worker.connect().hello(worker.id)["state"] == "loading"


def test_hello_and_stats_are_answered_while_a_request_blocks_the_loop(spawn):
    worker = spawn()
    client = worker.loaded()
    with blocked_loop(worker, lambda path, body: ask_once(worker.http, path, body)) as answers:
        assert worker.connect().hello(worker.id)["state"] == "loaded"
        assert client.request("stats")["loop_blocked_s"] > 0.3
        assert answers == []
    assert answers[0][0] == 200
    wait_until(lambda: client.request("stats")["loop_blocked_s"] == 0.0, "and free again")


def test_a_restarted_daemon_joins_the_load_under_way(spawn):
    release = spawn.root / "release"
    worker = spawn("engines_app:BlocksLoad", env={"RELEASE": str(release)})
    first = worker.greeted()
    first.send("load")
    wait_until(lambda: state_of(first) == "loading", "loading")
    first.close()  # the daemon dies
    second = worker.connect()
    assert second.hello(worker.id)["state"] == "loading"
    load = second.send("load")
    release.touch()
    assert second.reply(load) == {}
    assert second.hello(worker.id)["state"] == "loaded"


def test_the_worker_serves_on_without_any_daemon(spawn):
    worker = spawn()
    worker.loaded().close()
    assert ask_once(worker.http)[0] == 200
    assert worker.greeted().request("stats")["owner"] is False


def test_malformed_input_harms_neither_the_worker_nor_other_connections(spawn):
    worker = spawn()
    client = worker.loaded()
    for data in (b"{", b"[]", b"\xff" * 1000, b'{"id":1,"verb":"load"}' + b" " * 140_000):
        bad = Client(worker.control)
        bad.send_raw(data)
        assert bad.at_end()
        bad.close()
    assert state_of(client) == "loaded"
    assert ask_once(worker.http)[0] == 200


def test_stop_runs_lifespan_shutdown_and_exits_0(spawn):
    worker = spawn()
    client = worker.loaded()
    assert client.request("stop") == {}
    assert worker.wait() == 0
    assert client.at_end()
    assert "echo_app: lifespan shutdown" in worker.log


def test_stop_before_load_exits_0(spawn):
    worker = spawn()
    worker.greeted().request("stop")
    assert worker.wait() == 0


def test_stop_gives_up_a_load_that_hangs(spawn):
    worker = spawn("engines_app:HangsLoad")
    client = worker.greeted()
    load = client.send("load")
    wait_until(lambda: state_of(client) == "loading", "loading")
    assert client.request("stop") == {}
    assert refused(lambda: client.reply(load)).code == "CANCELED"
    assert worker.wait() == 0


def test_stop_is_over_even_with_threads_that_hang_and_an_unload_that_fails(spawn):
    worker = spawn("engines_app:HangsEnd")
    worker.loaded().request("stop")
    assert worker.wait() == 0
    assert "the unload hook failed: RuntimeError: cannot unload" in worker.log
    assert "end_forced" not in worker.log


def test_a_gate_is_loaded_from_the_start_and_has_nothing_to_load(spawn):
    worker = spawn(kind="gate", worker_id="chat-gate-1")
    client = worker.connect()
    hello = client.hello("chat-gate-1")
    assert (hello["kind"], hello["hooks"]) == ("gate", [])
    assert hello["state"] == "loaded"
    assert refused(lambda: client.request("load")).code == "UNKNOWN_METHOD"
    client.request("stop")
    assert worker.wait() == 0


def test_a_connection_kept_alive_on_the_private_socket_serves_again(spawn):
    worker = spawn()
    worker.loaded()
    connection = UnixHttp(worker.http)
    assert ask(connection, "/a")[0] == ask(connection, "/b")[0] == 200
    connection.close()


def test_a_task_of_the_model_that_exits_ends_the_worker_with_its_words(spawn):
    worker = spawn()
    worker.loaded()
    connection = UnixHttp(worker.http)
    connection.request("POST", "/exit", b"4")
    assert worker.wait() == 4
    connection.close()
    assert "the model called sys.exit(4)" in worker.log


def test_start_time_tells_processes_apart():
    assert start_time(os.getpid()) > start_time(1)
