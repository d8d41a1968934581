"""HAProxy as the other opinion on what is HTTP: `started(upstream)` relays to the kind of engine that a gate gets."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess

from support.front_process import tcp_listener, wait_until

WHY_NOT = None if shutil.which("haproxy") else "haproxy is not installed: nothing to compare the relay with"

CONFIG = """
global
  maxconn 100
  nbthread 1
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
  timeout http-request 5s
frontend clients
  bind fd@{fd}
  default_backend engine
backend engine
  server engine unix@{path}
"""


@contextlib.contextmanager
def started(upstream, folder):
    """Its address."""
    with tcp_listener() as listener:
        config = folder / "haproxy.cfg"
        config.write_text(CONFIG.format(fd=listener.fileno(), path=upstream.address.removeprefix("unix:")))
        process = subprocess.Popen(
            ["haproxy", "-db", "-q", "-f", str(config)],
            pass_fds=[listener.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            address = listener.getsockname()
            wait_until(lambda: answers(address), "haproxy answers")
            yield address
        finally:
            process.kill()
            process.wait(10)


def answers(address):
    with socket.create_connection(address, 5) as sock:
        sock.sendall(b"GET /up HTTP/1.0\r\n\r\n")
        return sock.recv(100).startswith(b"HTTP/1.1 200")
