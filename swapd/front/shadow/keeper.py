"""In the gate: the shadow's process, as long as the table names a shadow.

What goes to it is written without waiting, and dropped where it does not take it. It is not told to end: the end of the
socket pair tells it. One that has ended, or has not reported for too long, is replaced, later each time; its figures go
on in the next. Clients notice neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import swapd
from swapd.front.shadow.frames import BadReport, Report, ReportReader, pieces_of
from swapd.front.shadow.settings import Shadow
from swapd.front.shadow.tee import Tee

log = logging.getLogger("swapd.shadow")

LAUNCHER: Final = str(Path(swapd.__file__).parent / "worker" / "launch.py")
QUEUE_BYTES: Final = 4 * 1024 * 1024  # written and not taken; one frame is always taken, however large
HANG_S: Final = 15.0  # without a report
FIRST_BACKOFF_S: Final = 0.5
LAST_BACKOFF_S: Final = 30.0
GOOD_S: Final = 60.0  # a process that has lived so long has not failed at once


class Keeper:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.tee: Tee | None = None
        self._loop = loop
        self._epoch = 0
        self._process: Process | None = None
        self._ending: list[Process] = []
        self._backoff_s = FIRST_BACKOFF_S
        self._start_at: float | None = None
        self._restarts = 0
        self._problem = ""
        self._report: Report | None = None

    def point(self, epoch: int, shadow: Shadow | None) -> Tee | None:
        """What the next table says. The same as before: it goes on."""
        if self.tee is not None and shadow == self.tee.shadow:
            return self.tee
        self._let_go()
        self.tee = None if shadow is None else Tee(shadow, self._send)
        self._epoch, self._report, self._restarts, self._problem = epoch, None, 0, ""
        self._backoff_s, self._start_at = FIRST_BACKOFF_S, None
        if self.tee is not None:
            self._start()
        return self.tee

    def _start(self) -> None:
        assert self.tee is not None
        self._start_at = None
        figures = None if self._report is None else self._report.read()
        start = {"kind": "start", "shadow": dict(self.tee.shadow.params), "figures": figures, "share": self.tee.share}
        try:
            self._process = Process(self._loop, self, pieces_of(start, b"", (), ()))
        except OSError as error:
            self._failed(f"it cannot be started: {error.strerror}")

    def _send(self, pieces: list[bytes], size: int) -> str:
        return self._process.send(pieces, size) if self._process is not None else "down"

    def _let_go(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()
            self._ending.append(process)

    def _failed(self, why: str) -> None:
        if self._process is not None and not self._process.reported:
            self._report = None  # it may be the figures that it cannot go on from
        self._let_go()
        self._restarts += 1
        self._problem = why
        log.warning("shadow.ended epoch=%d retry_s=%.1f why=%s", self._epoch, self._backoff_s, why)
        self._start_at = self._loop.time() + self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)

    def reported(self, process: Process, report: Report) -> None:
        process.reported = True
        if process is self._process and self.tee is not None:
            self._report = report
            self.tee.share = min(report.share, self.tee.shadow.share)

    def lost(self, process: Process, why: str) -> None:
        if process is self._process:
            self._failed(why)

    def beat(self) -> None:
        """Every 100 ms or so."""
        self._ending = [process for process in self._ending if not process.reaped()]
        process, now = self._process, self._loop.time()
        if process is not None and now - process.heard_at > HANG_S:
            self._failed(f"it said nothing for {HANG_S:g} s")
        elif process is not None and now - process.began_at > GOOD_S:
            self._backoff_s = FIRST_BACKOFF_S
        elif self._start_at is not None and now >= self._start_at:
            self._start()

    def stats(self) -> dict[str, Any] | None:
        """[any thread] None: the table names no shadow."""
        tee, report, process = self.tee, self._report, self._process
        if tee is None:
            return None
        told = (report.read() if report is not None else None) or {"dropped_for": {}}
        for why, count in dict(tee.dropped).items():
            told["dropped_for"][why] = told["dropped_for"].get(why, 0) + count
        methods = ", ".join(sorted(method.decode() for method in tuple(tee.with_effects)))
        warning = f"{methods}: copies of such requests may change things a second time" if methods else ""
        shadow = tee.shadow
        return {
            **told,
            "epoch": self._epoch,
            "worker": shadow.worker,
            "revision": shadow.revision,
            "share": shadow.share,
            "throttled": tee.share,
            "dropped": sum(told["dropped_for"].values()),
            "warning": warning,
            "running": process is not None and report is not None,
            "restarts": self._restarts,
            "problem": self._problem,
        }

    async def close(self) -> None:
        """The gate ends."""
        self.tee, self._start_at = None, None
        self._let_go()
        for process in self._ending:
            process.wait()
        self._ending.clear()


class Process(asyncio.Protocol):
    """One, from its start to its end. Raises OSError."""

    def __init__(self, loop: asyncio.AbstractEventLoop, keeper: Keeper, start: list[bytes]) -> None:
        self.began_at = self.heard_at = loop.time()
        self.reported = False
        self._keeper = keeper
        self._start = start
        self._ended = False
        self._reports = ReportReader()
        self._transport: asyncio.Transport | None = None
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, LAUNCHER, "--shadow", str(theirs.fileno())]
            try:
                self._popen = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),))
            except OSError:
                ours.close()
                raise
        self._connecting = loop.create_task(loop.create_unix_connection(lambda: self, sock=ours))
        self._loop = loop

    def send(self, pieces: list[bytes], size: int) -> str:
        transport = self._transport
        if transport is None or transport.is_closing():
            return "down"
        waiting = transport.get_write_buffer_size()
        if waiting and waiting + size > QUEUE_BYTES:
            return "queue"
        transport.writelines(pieces)
        return ""

    def end(self) -> None:
        """It has nothing to finish."""
        self._popen.kill()
        self._ended = True
        if self._transport is not None:
            self._transport.abort()

    def reaped(self) -> bool:
        return self._popen.poll() is not None

    def wait(self) -> None:
        """After `end`: for as long as a kill takes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(1.0)

    # --- the transport's calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        if self._ended:
            transport.abort()
        else:
            transport.writelines(self._start)

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        try:
            report = self._reports.feed(data)
        except BadReport:
            self._keeper.lost(self, "it does not report as it should")
            return
        if report is not None:
            self._keeper.reported(self, report)

    def connection_lost(self, exc: Exception | None) -> None:
        code = self._popen.poll()
        self._keeper.lost(self, f"it ended with status {code}" if code is not None else "it ended")
