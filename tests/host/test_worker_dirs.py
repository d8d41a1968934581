"""Workers' directories: who was started, and whether a process is behind the control socket."""

import json
import os
import socket
from pathlib import Path

import pytest

from swapd.host.worker_dirs import listener_pid, worker_dirs

HOST = {"slot": {"device": "gpu0"}, "log_path": "/l/chat-1.log"}


def write_spec(directory, text):
    directory.mkdir(parents=True)
    directory.with_name(f"{directory.name}.json").write_text(text)


def test_what_was_started_is_read_and_what_is_broken_left_out(tmp_path):
    assert worker_dirs(tmp_path) == []
    write_spec(tmp_path / "w/chat-1", json.dumps({"worker_id": "chat-1", "service": "chat", "host": HOST}))
    write_spec(tmp_path / "w/chat-2", '{"worker_id": "cha')
    write_spec(tmp_path / "w/chat-3", "[]")
    (tmp_path / "w/chat-4").mkdir()
    [found] = worker_dirs(tmp_path)
    assert (found.id, found.spec["service"], found.control) == ("chat-1", "chat", tmp_path / "w/chat-1/control.sock")
    assert (found.devices, found.log_path) == (("gpu0",), Path("/l/chat-1.log"))
    write_spec(tmp_path / "w/chat-0", json.dumps({"worker_id": "chat-0", "host": {"slot": None}}))
    older = worker_dirs(tmp_path)[0]
    assert (older.devices, older.log_path) == ((), None)


def test_who_listens_is_known_though_nobody_answers(tmp_path):
    path = tmp_path / "control.sock"
    with pytest.raises(FileNotFoundError):
        listener_pid(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen(1)
        assert listener_pid(path) == os.getpid()
    with pytest.raises(ConnectionRefusedError):
        listener_pid(path)
