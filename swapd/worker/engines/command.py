"""The engine that is another program: a server that knows nothing of swapd, started, watched and ended here.

Duty: give it an address of its own, start it, wait until it accepts connections there, POST to it what puts it to
sleep and wakes it, and end it with all its processes. The runner ends as its server ends. Belongs to the loop's thread;
raises only SwapdError. Knows nothing of particular servers (`core.presets` does, in the daemon), nor of clients: a gate
asks the server itself. Its output goes where the runner's goes, a file, so nothing here can be filled up by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import logging
import os
import pwd
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from swapd.core.errors import (
    COMMAND_NOT_FOUND,
    HOOK_FAILED,
    LOAD_FAILED,
    NOT_READY,
    NOT_SUPPORTED,
    SPAWN_FAILED,
    SwapdError,
)
from swapd.core.process_tree import describe_exit
from swapd.worker.engines import ports, tree
from swapd.worker.progress import Progress
from swapd.worker.sockets import HTTP_MODE
from swapd.worker.spec import ServerSpec

log = logging.getLogger("swapd.worker.engine")

ENTER: Final = str(Path(__file__).parent / "enter.py")
PORT_TRIES: Final = 3
MAX_PROBLEM_BYTES: Final = 4096  # what a pipe takes at once: it arrives whole
_POLL_FIRST_S: Final = 0.01
_POLL_MAX_S: Final = 0.25


class Child:
    """The server's first process. Its exit status stays to be taken until `forget`, so that its pid is not used again
    while what it has left behind is looked for by it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self.ended: asyncio.Future[int] = loop.create_future()  # the exit code, negative for a signal
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)
        self._loop = loop
        loop.add_reader(self._pidfd, self._on_end)

    def signal(self, number: int) -> None:
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def forget(self) -> None:
        """After its end."""
        self._popen.wait()
        os.close(self._pidfd)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert status is not None
        self.ended.set_result(status.si_status if status.si_code == os.CLD_EXITED else -status.si_status)


class CommandEngine:
    """One server, from nothing started to loaded and back."""

    def __init__(self, server: ServerSpec, directory_problem: str = "") -> None:
        self.exit_code: int | None = None
        self.on_exit: Callable[[int], None] = lambda code: None  # the server has ended by itself, once it was loaded
        self._server = server
        self._directory_problem = directory_problem
        self._child: Child | None = None
        self._port: ports.Port | None = None
        self._address = ""
        self._ending = False

    @property
    def hooks(self) -> list[str]:
        return list(self._server.hooks)

    @property
    def address(self) -> str:
        """Where it accepts connections; empty before it is loaded."""
        return self._address

    async def stage(self, progress: Progress) -> None:
        raise SwapdError(NOT_SUPPORTED, "a server of its own cannot be staged: it is started as a whole")

    async def load(self, progress: Progress) -> dict[str, Any]:
        """Where it accepts connections, and the command line it was started with."""
        if self._directory_problem:
            raise SwapdError(COMMAND_NOT_FOUND, self._directory_problem)
        name, limit_s = self._server.argv[0], self._server.ready_timeout_s
        try:
            argv = await asyncio.wait_for(self._start_at_own_address(), limit_s)
        except asyncio.TimeoutError:
            await self._end(0.0)
            raise SwapdError(
                NOT_READY, f"{name} accepts no connection at {self._address} after {limit_s:g} s"
            ) from None
        except BaseException:
            await self._end(0.0)
            raise
        assert self._child is not None
        self._child.ended.add_done_callback(self._ended_by_itself)
        log.info("worker.server_listens pid=%d address=%s", self._child.pid, self._address)
        return {"address": self._address, "argv": argv}

    async def park(self, progress: Progress) -> None:
        await self._post("park")

    async def wake(self, progress: Progress) -> None:
        await self._post("wake")

    async def unload(self) -> None:
        """Its own way to stop, then the whole tree. Never raises: it is the last thing that a worker does."""
        self._ending = True
        try:
            await self._end(self._server.stop_timeout_s)
        except Exception as error:
            log.warning("worker.server_end_failed error=%r", error)

    # --- start ---

    async def _start_at_own_address(self) -> list[str]:
        if not any("{port}" in word for word in self._server.argv):
            self._address = f"unix:{self._server.socket}"
            argv = self._filled()
            await self._start(argv)
            await self._accepts()
            return argv
        for _ in range(PORT_TRIES):
            self._port = await asyncio.to_thread(ports.reserve, self._server.ports_dir)
            if self._port is None:
                raise SwapdError(LOAD_FAILED, f"every port from {ports.FIRST} to {ports.LAST} is taken on this host")
            self._address = f"127.0.0.1:{self._port.number}"
            argv = self._filled()
            await self._start(argv)
            if await self._has_port(self._port.number):
                return argv
            log.warning("worker.port_taken port=%d by another process", self._port.number)
            await self._end(0.0)
        raise SwapdError(LOAD_FAILED, f"other processes of this host took the port of {argv[0]}, {PORT_TRIES} times")

    def _filled(self) -> list[str]:
        values = {"{socket}": self._server.socket, "{device}": self._server.device}
        if self._port is not None:
            values["{port}"] = str(self._port.number)
        argv = list(self._server.argv)
        for placeholder, value in values.items():
            argv = [word.replace(placeholder, value) for word in argv]
        return argv

    async def _start(self, argv: list[str]) -> None:
        """Raises SwapdError: COMMAND_NOT_FOUND, SPAWN_FAILED."""
        self._make_socket_directory()
        loop = asyncio.get_running_loop()
        popen, told = self._enter(argv)
        self._child = Child(loop, popen)
        readable = asyncio.Event()
        loop.add_reader(told, readable.set)
        try:
            await readable.wait()
            problem = os.read(told, MAX_PROBLEM_BYTES).decode("utf-8", "replace")  # nothing: closed by the exec
        finally:
            loop.remove_reader(told)
            os.close(told)
        if problem:
            code, _, message = problem.partition(" ")
            raise SwapdError(code, message, {"command": argv[0]})

    def _enter(self, argv: list[str]) -> tuple[subprocess.Popen[bytes], int]:
        """The process that is about to become the server, and where it says why it cannot.

        To be called on the main thread: the kernel ends the server with the thread that forked it.
        """
        told, report = os.pipe()
        directory = os.path.dirname(self._server.socket)
        how = [sys.executable, "-I", "-S", ENTER, str(report), str(os.getpid()), self._server.user, directory]
        try:
            popen = subprocess.Popen(
                [*how, *argv], stdin=subprocess.DEVNULL, pass_fds=(report,), start_new_session=True
            )
        except OSError as error:
            os.close(told)
            raise SwapdError(SPAWN_FAILED, f"the host cannot start {argv[0]!r}: {error.strerror}") from None
        finally:
            os.close(report)
        return popen, told

    def _make_socket_directory(self) -> None:
        """Empty. Whoever may pass to the runner's directory, as a gate, may pass to a server's that runs as it does;
        nobody to one's with a user of its own."""
        directory = os.path.dirname(self._server.socket)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if not self._server.user:
            os.chmod(directory, 0o711)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._server.socket)  # of an earlier try: many servers take a stale one for a live one
        if self._server.user and os.geteuid() == 0:
            with contextlib.suppress(KeyError):  # enter.py says so
                account = pwd.getpwnam(self._server.user)
                os.chown(directory, account.pw_uid, account.pw_gid)

    async def _has_port(self, port: int) -> bool:
        """It accepts connections there. False: it is somebody else who does."""
        assert self._child is not None
        try:
            await self._accepts()
        except SwapdError:  # it ended: because it could not bind, or for a reason of its own
            if ports.listens_for(port, ()) is None:
                raise
            return False
        return await asyncio.to_thread(lambda pid: ports.listens_for(port, tree.members(pid)), self._child.pid) is True

    async def _accepts(self) -> None:
        """Until it accepts connections at its address. Raises SwapdError(LOAD_FAILED) when it ends before."""
        assert self._child is not None
        pause_s = _POLL_FIRST_S
        while not self._child.ended.done():
            if _connects(self._address):
                if not self._server.user and self._address.startswith("unix:"):
                    os.chmod(self._server.socket, HTTP_MODE)
                return
            await asyncio.wait({self._child.ended}, timeout=pause_s)
            pause_s = min(pause_s * 1.5, _POLL_MAX_S)
        code = self._child.ended.result()
        text = f"{self._server.argv[0]} ended before it accepted connections: {describe_exit(code)}"
        raise SwapdError(LOAD_FAILED, text, {"exit_code": code})

    # --- end ---

    def _ended_by_itself(self, ended: asyncio.Future[int]) -> None:
        if not self._ending:
            log.error("worker.server_ended %s", describe_exit(ended.result()))
            self.on_exit(ended.result())

    async def _end(self, patience_s: float) -> None:
        """What is there of the server goes, its port is free again."""
        child, self._child = self._child, None
        if child is not None:
            seen = await asyncio.to_thread(tree.members, child.pid)
            if patience_s > 0:
                child.signal(getattr(signal, self._server.stop_signal))
                await asyncio.wait({child.ended}, timeout=patience_s)
                if not child.ended.done():
                    log.warning("worker.server_stop_timeout limit_s=%g", patience_s)
            await asyncio.to_thread(tree.kill, child.pid, seen)
            await asyncio.wait({child.ended}, timeout=tree.KILL_LIMIT_S)
            if child.ended.done():
                child.forget()
        if self._port is not None:
            self._port.release()
            self._port = None

    # --- sleep ---

    async def _post(self, verb: str) -> None:
        if verb not in self._server.hooks:
            raise SwapdError(NOT_SUPPORTED, f"this server has no way to {verb}")
        target, limit_s = self._server.hooks[verb], self._server.ready_timeout_s
        try:
            status, said = await asyncio.to_thread(_post, self._address, target, limit_s)
        except (OSError, http.client.HTTPException) as error:
            raise SwapdError(HOOK_FAILED, f"{verb}: POST {target} failed: {error or type(error).__name__}") from None
        if not 200 <= status < 300:
            raise SwapdError(HOOK_FAILED, f"{verb}: POST {target} answered {status}: {said}")


def _open(address: str, timeout_s: float | None) -> socket.socket:
    """Raises OSError."""
    is_unix = address.startswith("unix:")
    sock = socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET)
    try:
        sock.settimeout(timeout_s)
        host, _, port = address.rpartition(":")
        sock.connect(address.removeprefix("unix:") if is_unix else (host, int(port)))
    except BaseException:
        sock.close()
        raise
    return sock


def _connects(address: str) -> bool:
    try:
        _open(address, _POLL_MAX_S).close()
    except OSError:
        return False
    return True


def _post(address: str, target: str, limit_s: float) -> tuple[int, str]:
    """Status and the beginning of the body. Blocks."""
    connection = http.client.HTTPConnection("localhost", timeout=limit_s)
    connection.sock = _open(address, limit_s)
    try:
        connection.request("POST", target, headers={"Content-Length": "0"})
        answer = connection.getresponse()
        return answer.status, answer.read(500).decode("utf-8", "replace")
    finally:
        connection.close()
