"""A real llama-server under the units as `make install` puts them there: started, swapped, outliving the daemon."""

import contextlib
import http.client
import importlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support import shipped
from support.daemon_host import free_port, until
from support.systemd_host import PROJECT, SystemdHost, why_not

pytestmark = pytest.mark.systemd

CONFIG = """
[devices.host]
kind = "host"
memory = "2GiB"
{models}
[services.chat]
listen = "127.0.0.1:{port}"
model = "a"
"""
MODEL = """
[models.{name}]
engine = "llama-server"
command = ["{program}", "--ctx-size", "8192", "--parallel", "4", "--threads", "1"]
weights = "{weights}"
read_paths = ["/srv/models"]
served_names = ["chat"]
device_memory = "300MiB"
user = "llm"
"""


@pytest.fixture
def host(tmp_path, tmp_path_factory, llama_server):
    if (reason := why_not()) is not None:
        pytest.skip(reason)
    wheels = tmp_path_factory.mktemp("wheels")
    make = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels), str(PROJECT)]
    subprocess.run(make, check=True)
    models = tmp_path_factory.mktemp("models")
    for name, seed in (("a", 1), ("b", 2)):
        importlib.import_module("support.random_gguf").write(models / f"{name}.gguf", seed=seed)
    with SystemdHost(tmp_path, keep=[wheels, models], prepare="useradd --system llm") as host:
        host.run("mkdir", "-p", "/srv/models", "/opt/llama")
        host.run("sh", "-c", f"cp {models}/*.gguf /srv/models; chmod 644 /srv/models/*")
        host.run("cp", "-rL", str(host.inside(Path(llama_server)).parents[1]), "/opt/llama/")
        (wheel,) = wheels.glob("swapd-*.whl")
        offline = ["PIP_NO_INDEX=1", f"PIP_FIND_LINKS={wheels}"]
        python = f"PYTHON={Path(sys.base_prefix, 'bin', 'python3')}"
        host.run("env", *offline, "make", "-sC", str(PROJECT), "install", python, f"SOURCE={wheel}", timeout_s=120)
        yield host


def ask(port):
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        body = {"model": "chat", "prompt": "hi", "max_tokens": 10, "temperature": 0, "ignore_eos": True}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        document = json.loads(response.read())
        assert response.status == 200, document
        return document["choices"][0]["text"]


class Asking:
    """A client that asks and never retries."""

    def __init__(self, port):
        self.port, self.answers, self.errors, self._end = port, [], [], threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._end.is_set():
            try:
                self.answers.append(ask(self.port))
            except Exception as error:
                self.errors.append(repr(error))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._end.set()
        self._thread.join()

    def more(self, count=5):
        goal = len(self.answers) + count
        until(lambda: len(self.answers) >= goal or self.errors, what="more answers", deadline_s=60)


def test_a_llama_server_starts_swaps_and_outlives_the_daemon_as_installed(host, llama_server):
    port = free_port()
    (program,) = host.path("/opt/llama").glob("*/bin/llama-server")
    inside = "/" + os.path.relpath(program, host.path("/"))
    models = [MODEL.format(name=name, program=inside, weights=f"/srv/models/{name}.gguf") for name in "ab"]
    host.path("/etc/swapd/swapd.toml").write_text(CONFIG.format(models="".join(models), port=port))
    assert host.run("swapd", "--check-config", "/etc/swapd/swapd.toml").strip().endswith(": ok")
    host.systemctl("enable", "--now", shipped.DAEMON)
    host.run("swapd-cli", "wait", "chat", "--healthy", timeout_s=120)
    first = ask(port)
    with Asking(port) as client:
        client.more()
        host.run("swapd-cli", "swap", "chat", "--to", "b", timeout_s=120)
        client.more()
        host.run("kill", "-KILL", str(host.pid(shipped.DAEMON)))
        client.more()
        host.systemctl("restart", shipped.DAEMON)
        client.more()
    assert client.errors == []
    assert ask(port) != first, "another model answers"
    servers = [line for line in host.run("ps", "-eo", "user:12,args").splitlines() if "llama-server" in line]
    assert any(line.startswith("llm ") and "b.gguf" in line for line in servers)
    host.systemctl("stop", shipped.DAEMON)
    host.wait_for(shipped.KEEP, "ActiveState", "inactive")
    assert "llama-server" not in host.run("ps", "-eo", "args")
