"""spec.json: what is taken, what is refused, by name."""

import json
import os

import pytest

from swapd.core.errors import BAD_REQUEST, SwapdError
from swapd.worker.spec import ENGINE_SOCKET, read_spec

WHOLE = {
    **{"protocol": 1, "worker_id": "chat-3", "nonce": "ab", "kind": "asgi", "service": "chat", "revision": 3},
    **{"model": "a", "app": "my_model:app", "directory": "/srv/models", "health_path": "/h", "daemon_uid": 0},
    **{"hold_timeout_s": 120, "queue_limit": 4096, "keep_alive_s": 75.0, "retry_after_s": 5},
}


def read(tmp_path, body):
    (tmp_path / "spec.json").write_text(body if isinstance(body, str) else json.dumps(body))
    return read_spec(str(tmp_path))


def test_a_whole_spec_is_read(tmp_path):
    spec = read(tmp_path, {**WHOLE, "a_newer_daemons_field": 1})
    assert (spec.worker_id, spec.revision, spec.app) == ("chat-3", 3, "my_model:app")
    assert isinstance(spec.hold_timeout_s, float)
    assert spec.control_path == str(tmp_path / "control.sock")
    assert spec.http_path == str(tmp_path / "http.sock")


def test_a_relative_directory_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path.parent)
    (tmp_path / "spec.json").write_text(json.dumps(WHOLE))
    assert os.path.isabs(read_spec(tmp_path.name).control_path)


def test_a_gate_needs_no_model(tmp_path):
    body = {key: WHOLE[key] for key in ("protocol", "worker_id", "nonce", "service", "daemon_uid")}
    spec = read(tmp_path, {**body, "kind": "gate"})
    assert spec.is_gate
    assert spec.queue_limit == 4096


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": 2}, "protocol 2: this worker understands 1"),
        ({"kind": "vllm"}, "kind: expected one of asgi, gate"),
        ({"app": None}, "app: missing"),
        ({"app": 7}, "app: expected a string, not 7"),
        ({"revision": "3"}, "revision: expected an integer, not '3'"),
        ({"revision": True}, "revision: expected an integer"),
        ({"keep_alive_s": "75s"}, "keep_alive_s: expected a number"),
        ({"queue_limit": -1}, "queue_limit: must not be negative"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, change, message):
    with pytest.raises(SwapdError) as caught:
        read(tmp_path, {**WHOLE, **change})
    assert caught.value.code == BAD_REQUEST
    assert str(tmp_path / "spec.json") in caught.value.message
    assert message in caught.value.message


@pytest.mark.parametrize("body", ["", "[]", "{", " " * (1 << 21)])
def test_a_file_that_is_no_spec_is_refused(tmp_path, body):
    with pytest.raises(SwapdError, match=r"spec\.json"):
        read(tmp_path, body)


def test_no_file_is_refused(tmp_path):
    with pytest.raises(SwapdError, match="No such file"):
        read_spec(str(tmp_path))


ENGINE = {
    **{key: WHOLE[key] for key in ("protocol", "worker_id", "nonce", "service", "revision", "model", "daemon_uid")},
    "kind": "engine",
    "server": {"argv": ["srv", "{socket}"], "ports_dir": "/run/swapd/ports"},
}


def test_a_runner_is_told_of_its_server(tmp_path):
    server = read(tmp_path, ENGINE).server
    assert (server.argv, server.stop_signal, server.user, server.hooks) == (("srv", "{socket}"), "SIGTERM", "", {})
    assert server.socket == str(tmp_path / "engine/http.sock")
    assert read(tmp_path, WHOLE).server is None


@pytest.mark.parametrize(
    ("server", "message"),
    [
        (None, "server: missing"),
        ([], "server: expected an object"),
        ({"ports_dir": "/p"}, "argv: missing"),
        ({"argv": [], "ports_dir": "/p"}, "argv: expected a list of strings"),
        ({"argv": ["a", 1], "ports_dir": "/p"}, "argv: expected a list of strings"),
        ({"argv": ["a"], "ports_dir": "/p", "stop_signal": "TERM"}, "stop_signal: 'TERM' is not the name of a signal"),
    ],
)
def test_what_is_wrong_with_a_server_is_named(tmp_path, server, message):
    with pytest.raises(SwapdError) as error:
        read(tmp_path, {**ENGINE, "server": server})
    assert message in error.value.message


def test_a_servers_own_socket_fits_where_the_control_socket_of_a_gate_does():
    """Whose path is the one that `core.config_checks` measures."""
    assert len(f"s-9999999/{ENGINE_SOCKET}") <= len("s-gate-9999999/control.sock")
