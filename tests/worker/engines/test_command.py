"""A server that knows nothing of swapd, in a real runner: started, addressed, watched, ended with all it has."""

import http.client
import json
import os
import pwd
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
from support.worker_client import REPO, Refused, UnixHttp, ask, wait_until

from swapd.core.errors import COMMAND_NOT_FOUND, HOOK_FAILED, LOAD_FAILED, NOT_READY, NOT_SUPPORTED, SPAWN_FAILED
from swapd.worker.engines import ports

STAND_IN = REPO / "tests" / "support" / "servers" / "stand_in.py"
UDS = ("--uds", "{socket}")
PORT = ("--port", "{port}")
SYSTEM_PYTHON = shutil.which("python3", path=os.defpath)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def serve(spawn):
    """A runner of the stand-in, or of another program. Keyword arguments are of the spec's `server`."""

    def start(*arguments, program=(sys.executable, str(STAND_IN)), env=None, directory=STAND_IN.parent, **server):
        body = {
            **{"argv": [*program, *arguments], "stop_timeout_s": 10.0, "ready_timeout_s": 20.0},
            **{"ports_dir": str(spawn.root / "ports"), **server},
        }
        marker = f"w:{len(spawn.workers)}-{os.getpid()}"
        return spawn(
            kind="engine", server=body, app="", directory=directory, env={"SWAPD_WORKER": marker, **(env or {})}
        )

    return start


def connection(address):
    if address.startswith("unix:"):
        return UnixHttp(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return http.client.HTTPConnection(host, int(port), timeout=20)


def get(address, path="/"):
    client = connection(address)
    try:
        return json.loads(ask(client, path)[2])
    finally:
        client.close()


def ask_for_death(address, path):
    client = connection(address)
    try:
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(client, path)
    finally:
        client.close()


def sleepers():
    """Pids of what the stand-in leaves around."""
    found = []
    for name in os.listdir("/proc"):
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"import time; time.sleep(600)" in words:
            found.append(int(name))
    return found


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def refused(client, verb="load"):
    with pytest.raises(Refused) as error:
        client.request(verb)
    return error.value.code, error.value.message


# --- an address of its own -------------------------------------------------------------------------------------------


def test_it_is_started_on_a_socket_in_its_runners_directory(serve):
    worker = serve(*UDS, "slow", env={"TOKEN": "t"}, device="GPU-1")
    client = worker.greeted()
    loaded = client.request("load")
    assert loaded["address"] == f"unix:{worker.dir}/engine/http.sock"
    assert loaded["argv"][1:] == [str(STAND_IN), "--uds", f"{worker.dir}/engine/http.sock", "slow"]
    told = get(loaded["address"])
    assert told["cwd"] == str(STAND_IN.parent)
    assert told["env"]["TOKEN"] == "t"
    assert os.stat(worker.dir / "engine").st_mode & 0o777 == 0o711, "who may pass to the runner's may pass to it"
    assert os.stat(worker.dir / "engine/http.sock").st_mode & 0o777 == 0o666
    stats = client.request("stats")
    assert (stats["state"], stats["owner"], stats["in_flight"]) == ("loaded", False, 0)
    assert client.request("drain", deadline_s=1.0) == {"finished": 0, "cut": 0, "left": 0}
    client.request("stop")
    assert worker.wait() == 0
    assert not is_alive(told["pid"])


def test_placeholders_are_filled_in_and_other_braces_left_alone(serve):
    worker = serve(*UDS, "--json", '{"a": {device}}', "--device={device}", device="GPU-1")
    loaded = worker.greeted().request("load")
    assert loaded["argv"][-3:] == ["--json", '{"a": GPU-1}', "--device=GPU-1"]


def test_it_has_no_verbs_of_a_front_and_nothing_to_stage(serve):
    worker = serve(*UDS)
    client = worker.greeted()
    assert client.hello(worker.id)["kind"] == "engine"
    assert refused(client, "adopt") == (
        "UNKNOWN_METHOD",
        "no verb 'adopt' here; there are drain, hello, load, park, stage, stats, stop, wake",
    )
    assert refused(client, "stage")[0] == NOT_SUPPORTED


def test_a_port_lies_outside_the_range_of_clients_and_is_kept_from_other_workers(serve):
    first, second = serve(*PORT), serve(*PORT)
    addresses = [worker.greeted().request("load")["address"] for worker in (first, second)]
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    numbers = [int(address.removeprefix("127.0.0.1:")) for address in addresses]
    assert len(set(numbers)) == 2
    assert not [number for number in numbers if low <= number <= high]
    assert [get(address)["args"][1] for address in addresses] == [str(number) for number in numbers]


def test_a_port_that_somebody_else_takes_in_between_is_given_up(serve, tmp_path):
    note = tmp_path / "squatted"
    worker = serve(*PORT, "squats", env={"SQUATTED": str(note)})
    client = worker.greeted()
    number = client.send("load")
    wait_until(lambda: note.exists() and note.read_text(), "the stand-in's port")
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", int(note.read_text())))
        squatter.listen()
        note.with_suffix(".done").touch()
        address = client.reply(number)["address"]
    assert address != f"127.0.0.1:{note.read_text()}"
    assert get(address)["args"][:1] == ["--port"]
    assert "worker.port_taken" in worker.log


def test_a_listener_counts_as_ours_only_where_all_of_them_are():
    with socket.socket() as listener:
        listener.bind(("0.0.0.0", 0))
        port = listener.getsockname()[1]
        assert ports.listens_for(port, {os.getpid()}) is None
        listener.listen()
        assert ports.listens_for(port, {os.getpid()}) is True
        assert ports.listens_for(port, {1}) is (os.getpid() == 1)


def test_a_reserved_port_is_free_again_for_others_once_it_is_released(tmp_path, monkeypatch):
    one, two = ports.reserve(str(tmp_path)), ports.reserve(str(tmp_path))
    monkeypatch.setattr(ports, "_candidates", lambda: iter([one.number, two.number]))
    assert ports.reserve(str(tmp_path)) is None
    one.release()
    again = ports.reserve(str(tmp_path))
    assert again.number == one.number
    two.release()
    again.release()


# --- what goes wrong at the start ------------------------------------------------------------------------------------


def test_a_server_that_ends_before_it_listens_is_told_with_its_status(serve):
    code, message = refused(serve(*UDS, "exits").greeted())
    assert (code, "ended before it accepted connections: exit code 7" in message) == (LOAD_FAILED, True)
    code, message = refused(serve(*PORT, "exits").greeted())
    assert (code, "exit code 7" in message) == (LOAD_FAILED, True)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("no-such-server-anywhere", "command 'no-such-server-anywhere' not found in PATH ("),
        ("/no/such/server", "command '/no/such/server' does not exist"),
        (str(REPO / "pyproject.toml"), "is not executable (chmod +x)"),
        ("/etc", "is a directory"),
    ],
)
def test_a_program_that_cannot_be_started_is_told_with_the_reason(serve, program, words):
    code, message = refused(serve(*UDS, program=[program]).greeted())
    assert (code, words in message) == (COMMAND_NOT_FOUND, True), message


def test_a_directory_that_is_not_there_is_told(serve):
    code, message = refused(serve(*UDS, directory="/no/such/place").greeted())
    assert (code, "cannot be entered" in message) == (COMMAND_NOT_FOUND, True)


def test_a_server_that_never_listens_is_given_up_and_ended(serve):
    worker = serve(program=("sh", "-c", "sleep 600; : {socket}"), ready_timeout_s=0.3)
    client = worker.greeted()
    code, message = refused(client)
    assert (code, "accepts no connection at unix:" in message, "after 0.3 s" in message) == (NOT_READY, True, True)
    wait_until(lambda: not children_of(worker.process.pid), "its end")


def children_of(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# --- its end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("path", "status"), [("/exit", 9), ("/die", -signal.SIGSEGV)])
def test_the_runner_ends_as_its_server_ended(serve, path, status):
    worker = serve(*UDS, "forks")
    address = worker.greeted().request("load")["address"]
    ask_for_death(address, path)
    assert worker.wait() == status
    assert "worker.server_ended" in worker.log


def test_no_server_outlives_a_runner_that_is_killed(serve):
    worker = serve(*UDS, "deaf")
    pid = get(worker.greeted().request("load")["address"])["pid"]
    worker.process.kill()
    worker.wait()
    wait_until(lambda: not is_alive(pid), "the server's end")


def test_it_is_stopped_by_the_signal_that_it_wants(serve, tmp_path):
    note = tmp_path / "goodbye"
    worker = serve(*UDS, "goodbye", env={"GOODBYE": str(note)}, stop_signal="SIGINT")
    client = worker.loaded()
    client.request("stop")
    assert worker.wait() == 0
    assert note.read_text() == "SIGINT"


def test_one_that_ignores_the_signal_is_killed_after_its_time(serve):
    worker = serve(*UDS, "deaf", stop_timeout_s=0.2)
    client = worker.greeted()
    pid = get(client.request("load")["address"])["pid"]
    client.request("stop")
    assert worker.wait() == 0
    assert not is_alive(pid)
    assert "worker.server_stop_timeout" in worker.log


def test_its_children_go_with_it_wherever_they_went(serve):
    before = set(sleepers())
    worker = serve(*UDS, "forks", "strays")
    client = worker.loaded()
    left = wait_until(lambda: len(set(sleepers()) - before) == 2 and set(sleepers()) - before, "its two children")
    client.request("stop")
    assert worker.wait() == 0
    assert not [pid for pid in left if is_alive(pid)]


def test_a_stop_while_it_loads_ends_it(serve):
    worker = serve(program=("sh", "-c", "sleep 600; : {socket}"))
    client = worker.greeted()
    client.send("load")
    wait_until(lambda: children_of(worker.process.pid), "its start")
    client.request("stop")
    assert worker.wait() == 0


def test_sigterm_to_the_runner_ends_the_server_its_own_way(serve, tmp_path):
    note = tmp_path / "goodbye"
    worker = serve(*UDS, "goodbye", env={"GOODBYE": str(note)})
    worker.loaded()
    worker.process.terminate()
    assert worker.wait() == 0
    assert note.read_text() == "SIGTERM"


def test_a_hundred_megabytes_of_output_stop_nobody(serve):
    worker = serve(*UDS, "logs")
    told = get(worker.greeted().request("load")["address"])
    assert told["args"][-1] == "logs"
    assert (worker.dir / "log").stat().st_size > 100_000_000


# --- sleep -----------------------------------------------------------------------------------------------------------


def test_it_is_put_to_sleep_and_woken_by_its_own_routes(serve):
    worker = serve(*UDS, hooks={"park": "/sleep?level=1", "wake": "/wake_up"})
    client = worker.greeted()
    address = client.request("load")["address"]
    assert client.hello(worker.id)["hooks"] == ["park", "wake"]
    client.request("park")
    assert client.request("stats")["state"] == "parked"
    assert get(address)["sleeping"] is True
    client.request("wake")
    assert get(address)["sleeping"] is False


def test_a_server_that_refuses_to_sleep_says_why(serve):
    client = serve(*PORT, hooks={"park": "/nap"}).loaded()
    assert refused(client, "park") == (HOOK_FAILED, 'park: POST /nap answered 500: {"error": "no"}')
    client = serve(*UDS).loaded()
    assert refused(client, "park") == (NOT_SUPPORTED, "this server has no way to park")


# --- users -----------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.skipif(SYSTEM_PYTHON is None, reason="needs a Python that every user may run")
def test_it_runs_as_its_user_with_that_users_home(serve, spawn):
    spawn.root.chmod(0o711)
    program = spawn.root / "stand_in.py"
    shutil.copy(STAND_IN, program)
    program.chmod(0o644)
    worker = serve(*UDS, program=(SYSTEM_PYTHON, str(program)), user="nobody", directory="/")
    worker.dir.chmod(0o711)
    client = worker.greeted()
    told = get(client.request("load")["address"])
    nobody = pwd.getpwnam("nobody")
    assert (told["uid"], told["env"]["HOME"], told["env"]["USER"]) == (nobody.pw_uid, nobody.pw_dir, "nobody")
    assert os.stat(worker.dir / "engine").st_uid == nobody.pw_uid
    worker.process.kill()
    worker.wait()
    wait_until(lambda: not is_alive(told["pid"]), "the server's end, for all its change of user")


@needs_root
def test_a_user_without_a_way_to_its_socket_is_told_what_is_closed(serve):
    code, message = refused(serve(*UDS, user="nobody", directory="/").greeted())
    assert (code, "has no way into" in message, "chmod o+x" in message) == (SPAWN_FAILED, True, True)


def test_an_unknown_user_is_told(serve):
    code, message = refused(serve(*UDS, user="no-such-user").greeted())
    assert (code, 'there is no user "no-such-user"' in message) == (SPAWN_FAILED, True)
