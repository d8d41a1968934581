"""The process of a worker or gate: the uvloop main thread, signals, logging, and the end.

Its parent's death is not its own: it serves on, and a restarted daemon connects again. Called by launch.py.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import resource
import signal
import sys
import threading
import time
from types import FrameType
from typing import Final

import uvloop

from swapd.core.errors import BAD_REQUEST, SwapdError
from swapd.worker.channel import MAX_LINKS, Channel
from swapd.worker.engines.asgi import AsgiEngine
from swapd.worker.engines.command import CommandEngine
from swapd.worker.sockets import allowed_uids, bind_control
from swapd.worker.spec import WorkerSpec, read_spec
from swapd.worker.verbs import Engine, Worker

log = logging.getLogger("swapd.worker")

EX_CONFIG: Final = 78
SIGTERM_DRAIN_S: Final = 5.0
STOP_LIMIT_S: Final = 25.0  # lifespan shutdown and unload may take 10 s each; then the process goes, whatever hangs
ATEXIT_LIMIT_S: Final = 5.0
MAX_OPEN_FILES: Final = 65536


def main(worker_dir: str, *, gate: bool = False) -> int:
    """Run until the end. Returns only when the worker cannot start; otherwise the process exits here."""
    configure_logging()
    try:
        spec = read_spec(worker_dir)
        if spec.is_gate != gate:
            flag = "needs" if spec.is_gate else "must not have"
            raise SwapdError(BAD_REQUEST, f"a worker of kind {spec.kind!r} {flag} --gate")
        listener = bind_control(spec.control_path, MAX_LINKS)
    except (SwapdError, OSError) as error:
        log.error("worker.cannot_start %s", error)
        return EX_CONFIG
    raise_open_files()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    worker = Worker(spec, loop, build_engine(spec))
    channel = Channel(listener, spec.worker_id, allowed_uids(spec.daemon_uid), worker)
    worker.channel = channel
    stop_limit_s = STOP_LIMIT_S + (spec.server.stop_timeout_s if spec.server is not None else 0.0)
    worker.on_stop = lambda: watchdog(stop_limit_s, 0)
    if gate:
        worker.begin_gate()
    install_signals(loop, worker, stop_limit_s)
    channel.start()
    log.info("worker.started worker_id=%s kind=%s pid=%d", spec.worker_id, spec.kind, os.getpid())
    code = run(loop, worker)
    leave(spec, channel, code)
    return code


def build_engine(spec: WorkerSpec) -> Engine | None:
    """What runs the model, in its directory; None: a gate."""
    if spec.is_gate:
        return None
    problem = enter_directory(spec.directory, importable=spec.server is None)
    if spec.server is not None:
        return CommandEngine(spec.server, problem)
    return AsgiEngine(spec.app, spec.directory, problem, gpu_cap_bytes=spec.gpu_cap_bytes)


def run(loop: asyncio.AbstractEventLoop, worker: Worker) -> int:
    """The loop, to its end. A SystemExit that a model's task raises ends the worker, by its own words."""
    try:
        code = loop.run_until_complete(worker.run())
        loop.run_until_complete(worker.end())
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        log.error("worker.model_exit code=%d the model called sys.exit(%r)", code, error.code)
    return code


def leave(spec: WorkerSpec, channel: Channel, code: int) -> None:
    """Exit without waiting for the model's threads: after its atexit functions, both bounded."""
    channel.close()
    watchdog(ATEXIT_LIMIT_S, code)
    log.info("worker.ended worker_id=%s code=%d", spec.worker_id, code)
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()  # multiprocessing ends its children there
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    if code < 0:
        end_by_signal(-code)
    os._exit(code)


def end_by_signal(number: int) -> None:
    """End as the server did, so that whoever looks sees the same. Its core dump is written already."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # SIGKILL has no handler
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def watchdog(limit_s: float, code: int) -> None:
    """Exit with `code` after `limit_s`, whatever the main thread is doing."""

    def bark() -> None:
        os.write(2, b"swapd.worker worker.end_forced the model did not end in time\n")
        os._exit(code if code >= 0 else 128 - code)

    timer = threading.Timer(limit_s, bark)
    timer.daemon = True
    timer.start()


def install_signals(loop: asyncio.AbstractEventLoop, worker: Worker, stop_limit_s: float) -> None:
    """SIGTERM: finish and end; a second one ends at once. SIGINT: the daemon's business, unless run by hand.

    Handlers, not SIG_IGN, which the model's own children would inherit.
    """
    terms = [0]

    def on_term(number: int, frame: FrameType | None) -> None:
        terms[0] += 1
        if terms[0] > 1:
            os._exit(128 + number)
        watchdog(SIGTERM_DRAIN_S + stop_limit_s, 0)
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: loop.create_task(worker.terminate(SIGTERM_DRAIN_S)))

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        if os.getsid(0) != os.getpid():
            on_term(number, frame)

    signal.signal(signal.SIGTERM, on_term)
    signal.signal(signal.SIGINT, on_interrupt)


def enter_directory(directory: str, *, importable: bool) -> str:
    """Make the model's directory the cwd, and first on sys.path. Returns the problem, for the load to tell."""
    if not directory:
        return ""
    try:
        os.chdir(directory)
    except OSError as error:
        return f"directory = {directory!r} cannot be entered: {error.strerror}"
    if importable:
        sys.path[:] = [directory, *(entry for entry in sys.path if entry != directory)]
    return ""


def raise_open_files() -> None:
    """A connection is a descriptor, and the usual soft limit is 1024: take what the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _OneLine(logging.Formatter):
    """`2026-11-21T03:29:00.123Z INFO swapd.worker worker.started …`; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = " ".join(record.message.split())
        record.message = "".join(char if char.isprintable() else "?" for char in text)  # also of what clients wrote
        return super().formatMessage(record)


def configure_logging() -> None:
    """swapd's and uvicorn's loggers to stderr, which is the worker's log. The root logger is the model's."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    for name in ("swapd", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(logging.INFO)
    logging.getLogger("uvicorn.access").disabled = True
