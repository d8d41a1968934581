"""Gathers what `doctor` judges: from the daemon where it answers, else as `--offline` does; and from the machine.

Duty: ask everything with a deadline, and go on with what could be had. Decides nothing (`core.diagnosis`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from swapd.cli.looking import Source
from swapd.cli.offline import Offline, config_path
from swapd.client import Client
from swapd.core import errors
from swapd.core.diagnosis import WELL, Facts, Host
from swapd.core.errors import SwapdError
from swapd.core.redact import Redactor
from swapd.host.clock import wall_s as now
from swapd.host.machine import look_at_host

ANSWER_S: Final = 5.0  # the daemon answers in milliseconds; a driver that hangs holds `devices` for two seconds
LOG_LINES: Final = 12  # of a worker: a service is to be told in a screenful
DAEMON_LOG_LINES: Final = 10
ABSENT: Final = (errors.DAEMON_UNREACHABLE, errors.TIMEOUT)

Record = Mapping[str, Any]


class Asked(Client):
    """The daemon, for which `doctor` does not wait long."""

    def _ask(self, method: str, deadline_s: float, **params: Any) -> Any:
        return super()._ask(method, min(deadline_s, ANSWER_S), **params)


class Gathering:
    """Where facts come from. `offline` is None where the configuration is not to be read."""

    def __init__(self, connect: str | None, config: str | None) -> None:
        self.offline: Offline | None = None
        self.config_problem: SwapdError | None = None
        self._config = config_path(config)
        self._look_offline()
        endpoint = connect or os.environ.get("SWAPD_CONTROL")
        if endpoint is None and self.offline is not None:
            endpoint = self.offline.config.daemon.control
        self.client = Asked(endpoint)
        self.reached = False

    def __enter__(self) -> Gathering:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    @property
    def source(self) -> Source:
        if self.reached:
            return self.client
        if self.offline is None:
            assert self.config_problem is not None
            raise self.config_problem
        return self.offline

    @property
    def redactor(self) -> Redactor:
        return self.offline.redactor if self.offline is not None else Redactor()

    def facts(self, service: str | None) -> Facts:
        """Raises SwapdError: UNKNOWN_SERVICE, or what keeps both ways from being gone."""
        try:
            status: dict[str, Any] = self.client.status(service)
            self.reached, unreachable = True, None
        except SwapdError as error:
            if error.code not in ABSENT:
                raise
            unreachable = error.message
            status = self.source.status(service)
        self._find_config(status)
        names = [each["name"] for each in status["services"]]
        devices, devices_problem = self._devices()
        swaps = {name: found[0] for name in names if (found := self._try(lambda n=name: self.source.history(n, 1), []))}
        pid = status["daemon"]["pid"]
        workers = self._try(self.source.workers, [])
        return Facts(
            at=now(),
            status=status,
            unreachable=unreachable,
            workers=[each for each in workers if each["service"] in names],
            devices=devices,
            devices_problem=devices_problem,
            swaps=swaps,
            logs=self._logs(status),
            host=self._host(pid, unreachable is not None),
        )

    def _find_config(self, status: dict[str, Any]) -> None:
        """The daemon says which file it goes by. What is wrong with it now is not the daemon's to know."""
        if self.offline is None and self.reached:
            self._config = Path(status["daemon"]["config"])
            self._look_offline()
        if self.offline is not None:
            status["daemon"]["config_problems"] = self.offline.config_problems

    def _look_offline(self) -> None:
        try:
            self.offline = Offline(self._config)
        except SwapdError as error:
            self.config_problem = error

    def _devices(self) -> tuple[list[Record] | None, str | None]:
        try:
            found: list[Record] | None = None
            if self.reached:
                found = self.client.devices()
            elif self.offline is not None:
                found = list(asyncio.run(self.offline.devices()))
        except SwapdError as error:
            return None, error.message
        return found, None

    def _logs(self, status: Record) -> dict[str, tuple[str, list[str]]]:
        """Of each service that is not well: the worker that its problem names, for the newest may have just begun, else
        the newest. The record of a swap has its candidate's last lines."""
        found = {}
        for service in status["services"]:
            name, problem = service["name"], service.get("problem")
            if service["health"] in WELL and not problem:
                continue
            named = re.search(rf"(?<![\w.-]){re.escape(name)}-\d+\b", (problem or {}).get("message", ""))
            for target in filter(None, (named and named[0], name)):
                if told := self._try(lambda t=target: self.source.logs(t, LOG_LINES), None):
                    found[name] = (told["worker"], told["lines"])
                    break
        return found

    def _host(self, pid: int | None, absent: bool) -> Host:
        paths = []
        if self.offline is not None:
            daemon = self.offline.config.daemon
            paths = [Path(daemon.state_dir), self.offline.log_dir, Path(daemon.runtime_dir)]
        return look_at_host(paths, pid, log_lines=DAEMON_LOG_LINES if absent else 0)

    @staticmethod
    def _try(ask: Any, otherwise: Any) -> Any:
        """One that cannot be had hides no other: a journal that fails is told by the status."""
        with contextlib.suppress(SwapdError):
            return ask()
        return otherwise
