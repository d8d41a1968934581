"""The script of the tutorials (deploy.sh), gunicorn's reload and circus's: one unmodified app, replaced by restarts."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from bench.harness import free_port
from bench.peers.contender import KEEP_ALIVE_S, PATIENCE_S, Contender, Site, reap, until
from bench.swaps import APPS

SCRIPT = Path(__file__).with_name("deploy.sh")
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
NGINX = """
worker_processes 1;
daemon off;
pid nginx.pid;
error_log nginx.error.log;
events { worker_connections 4096; }
http {
    access_log off;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    keepalive_requests 1000000;
    upstream model {
        include upstream.conf;
        keepalive 32;
    }
    server {
        listen 127.0.0.1:PORT backlog=2048;
        location / {
            proxy_pass http://model;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_buffering off;
            proxy_read_timeout 300s;
        }
    }
}
"""


class Script(Contender):
    """nginx before one server, and deploy.sh."""

    strategy: str

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.ports = (free_port(), free_port())
        self.environment = {**os.environ, "PATH": SBIN, "SITE": str(site.folder), "PORTS": "{} {}".format(*self.ports)}

    @classmethod
    def missing(cls) -> str:
        absent = [tool for tool in ("nginx", "curl", "bash") if shutil.which(tool, path=SBIN) is None]
        return f"{', '.join(absent)} not found in PATH" if absent else ""

    def start(self) -> None:
        folder, first = self.site.folder, self.ports[0]
        (folder / "nginx.conf").write_text(NGINX.replace("PORT", str(self.site.port)))
        (folder / "upstream.conf").write_text(f"server 127.0.0.1:{first};\n")
        (folder / "live").write_text(f"{first}\n")
        words = " ".join(f"'{word}'" for word in self.site.uvicorn)
        serve = folder / "serve"
        serve.write_text(f"#!/bin/sh\nMODEL=$1 WEIGHTS='{self.site.weights}' exec {words} --port $2\n")
        serve.chmod(0o755)
        server = self.spawn("serve", ["./serve", "a", str(first)], cwd=folder)
        (folder / f"{first}.pid").write_text(f"{server.pid}\n")
        nginx = ["nginx", "-p", str(folder), "-c", "nginx.conf"]
        self.spawn("nginx", nginx, env=self.environment, cwd=folder)
        self.until_answers("a")

    def change(self, to: str) -> dict[str, float]:
        begun = time.time()
        script = subprocess.Popen(
            [str(SCRIPT), self.strategy, to], env=self.environment, stdout=subprocess.PIPE, start_new_session=True
        )
        until(lambda: script.poll() is not None or reap(self.servers()), "deploy.sh ends", 2 * PATIENCE_S)
        assert script.stdout is not None
        told = script.stdout.read().decode()
        script.stdout.close()
        if script.returncode:
            raise RuntimeError(f"deploy.sh ended with status {script.returncode}")
        steps, last = {}, begun
        for line in told.splitlines():
            name, _, at = line.partition(" ")
            steps[name], last = float(at) - last, float(at)
        return steps

    def servers(self) -> list[int]:
        """The process ids that the script has written down."""
        texts = [path.read_text().strip() for path in self.site.folder.glob("[0-9]*.pid")]
        return [int(text) for text in texts if text]

    def stop(self) -> None:
        super().stop()
        for pid in self.servers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        until(lambda: reap(self.servers()) or not any(map(psutil.pid_exists, self.servers())), "the servers end")


class BlueGreen(Script):
    name = "script-blue-green"
    title = "nginx + curl + kill, blue-green"
    strategy = "blue-green"


class InPlace(Script):
    name = "script-in-place"
    title = "nginx + curl + kill, in place"
    strategy = "in-place"
    in_place = True


class Gunicorn(Contender):
    """One uvicorn worker; HUP makes the arbiter start a new one and end the old one."""

    name = "gunicorn"
    title = "gunicorn, HUP"

    @classmethod
    def missing(cls) -> str:
        return need("gunicorn", "uvicorn_worker")

    def start(self) -> None:
        self.site.current.write_text("a\n")
        options = ["--workers", "1", "--worker-class", "uvicorn_worker.UvicornWorker", "--bind", self.site.address]
        more = ["--graceful-timeout", "30", "--timeout", "120", "--keep-alive", KEEP_ALIVE_S, "--chdir", str(APPS)]
        environment = self.site.environment(MODEL_FILE=str(self.site.current))
        command = [sys.executable, "-m", "gunicorn", *options, *more, "--no-control-socket", "weighty:app"]
        self.spawn("gunicorn", command, env=environment, cwd=self.site.folder)
        self.until_answers("a")

    def change(self, to: str) -> dict[str, float]:
        self.site.current.write_text(f"{to}\n")
        self.processes[0].send_signal(signal.SIGHUP)
        return {}


CIRCUS = """
[circus]
endpoint = ipc://{folder}/endpoint
pubsub_endpoint = ipc://{folder}/pubsub
check_delay = 1

[socket:web]
host = 127.0.0.1
port = {port}
backlog = 2048

[watcher:web]
cmd = {command} --fd $(circus.sockets.web)
use_sockets = True
copy_env = True
numprocesses = 1
graceful_timeout = 30
"""


class Circus(Contender):
    """uvicorn on circus's socket; `reload` starts a new process and ends the old one."""

    name = "circus"
    title = "circus, reload"

    @classmethod
    def missing(cls) -> str:
        return need("circus")

    def start(self) -> None:
        folder = self.site.folder
        self.site.current.write_text("a\n")
        command = " ".join(self.site.uvicorn)
        (folder / "circus.ini").write_text(CIRCUS.format(folder=folder, port=self.site.port, command=command))
        environment = self.site.environment(MODEL_FILE=str(self.site.current))
        circus = [sys.executable, "-m", "circus.circusd", "circus.ini"]
        self.spawn("circus", circus, env=environment, cwd=folder)
        self.until_answers("a")

    def change(self, to: str) -> dict[str, float]:
        self.site.current.write_text(f"{to}\n")
        control = [sys.executable, "-m", "circus.circusctl", "--endpoint", f"ipc://{self.site.folder}/endpoint"]
        begun = time.monotonic()
        subprocess.run([*control, "reload", "web"], check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE_S)
        return {"circusctl": time.monotonic() - begun}


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def need(*modules: str) -> str:
    absent = [module for module in modules if not _installed(module)]
    return f"not installed: {', '.join(absent)} (pip install --group bench)" if absent else ""
