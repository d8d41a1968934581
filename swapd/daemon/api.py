"""What the control socket's methods do: each reads, or sends one event to the loop, and answers with records."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import swapd
from swapd.core import errors
from swapd.core.config import Config, ServiceConfig
from swapd.core.config_views import SWAP, diff_config
from swapd.core.errors import Problem, SwapdError
from swapd.core.events import ReturnRequested, SettingsChanged, ShutdownRequested, SwapRequested
from swapd.core.model import Kind, Service, ServiceSettings, Strategy, Swap
from swapd.core.report import device_record, plan_record, rollback_kind, service_record, swap_record, worker_record
from swapd.core.rollout import plan
from swapd.core.states import Phase
from swapd.daemon.devices import Devices
from swapd.daemon.executor import Executor
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.loop import Loop
from swapd.daemon.workers import Workers
from swapd.host.clock import wall_s as now
from swapd.host.config_file import load_config
from swapd.host.control_socket import Peer
from swapd.host.journal import Journal
from swapd.host.logs import end_offset, read_from, tail

log = logging.getLogger("swapd.api")

STATS_S: Final = 0.5
STATS_PERIOD_S: Final = 1.0
DEFAULT_HISTORY: Final = 20
DEFAULT_LINES: Final = 100

Params = Mapping[str, Any]


class Api:
    def __init__(
        self,
        loop: Loop,
        executor: Executor,
        workers: Workers,
        devices: Devices,
        knowledge: Knowledge,
        journal: Journal,
        apply: Callable[[Config], None],
    ) -> None:
        self._loop = loop
        self._executor = executor
        self._workers = workers
        self._devices = devices
        self._knowledge = knowledge
        self._journal = journal
        self._apply = apply  # hands a new configuration to every part that goes by it
        self._started_s = time.monotonic()

    async def handle(self, method: str, params: Params, peer: Peer) -> Any:
        """The control socket's handler: raises SwapdError for every refusal."""
        return await _METHODS[method](self, params, _actor(peer, params))

    async def poll_stats(self) -> None:
        """Keep each worker's figures fresh, so that `status` never waits for a worker."""
        while True:
            await asyncio.gather(*(self._fresh_stats(worker_id) for worker_id in list(self._workers.live)))
            await asyncio.sleep(STATS_PERIOD_S)

    async def _fresh_stats(self, worker_id: str | None) -> Mapping[str, Any]:
        live = self._workers.live.get(worker_id or "")
        if live is None or live.channel is None:
            return {}
        with contextlib.suppress(SwapdError):  # the last known figures stand; a dead worker is told as such
            live.stats = await live.request("stats", deadline_s=STATS_S)
        return live.stats

    # --- reading -------------------------------------------------------------------------------------------------

    async def status(self, params: Params, actor: str) -> Any:
        wanted = params.get("service")
        services = [self._service(wanted)] if wanted is not None else self._loop.state.services
        return {
            "daemon": {
                "version": swapd.__version__,
                "pid": os.getpid(),
                "uptime_s": round(time.monotonic() - self._started_s, 1),
                "config": self._executor.config.file,
                "epoch": self._journal.boot,
                "stopping": self._loop.state.stopping,
                "journal": self._loop.journal_problem.message if self._loop.journal_problem else None,
            },
            "services": [self._service_record(s) for s in services],
        }

    def _service_record(self, service: Service) -> dict[str, Any]:
        config = self._config(service.name)
        live = self._workers.live.get(service.owner or "")
        return service_record(
            self._loop.state,
            service,
            listen=config.listen,
            config_model=config.model,
            stats=live.stats if live is not None else None,
        )

    async def devices(self, params: Params, actor: str) -> Any:
        readings = await self._devices.read_all()
        return [device_record(r, self._loop.state) for r in readings]

    async def workers(self, params: Params, actor: str) -> Any:
        readings = await self._devices.read_all()
        used = {worker: size for r in readings for worker, size in r.used_by}
        state = self._loop.state
        reserved = {r.worker_id: r.bytes for r in state.reservations}
        records = []
        for worker in state.workers:
            live = self._workers.live.get(worker.id)
            stats = live.stats if live is not None else {}
            records.append(
                worker_record(state, worker, reserved)
                | {
                    "pid": live.process.pid if live is not None else None,
                    "used_bytes": used.get(worker.id),
                    "uptime_s": round(now() - live.started_at, 1) if live is not None else None,
                    "in_flight": stats.get("in_flight"),
                    "connections": stats.get("connections"),
                    "version": live.hello.get("version") if live is not None else None,
                }
            )
        return records

    async def models(self, params: Params, actor: str) -> Any:
        return [
            {"name": m.name, "engine": m.engine, "app": m.app, "device_memory_bytes": m.device_memory_bytes}
            for m in self._knowledge.config.models.values()
        ]

    async def history(self, params: Params, actor: str) -> Any:
        service = params.get("service")
        if service is not None:
            self._service(service)
        return self._journal.swaps(service, int(params.get("limit") or DEFAULT_HISTORY))

    async def show(self, params: Params, actor: str) -> Any:
        record = self._journal.swap(int(params["id"]))
        if record is None:
            last = self._journal.last_swap_id()
            text = f"There is no swap {params['id']}; the newest is {last}." if last else "There has been no swap yet."
            raise SwapdError(errors.UNKNOWN_SWAP, text)
        return {**record, "transitions": self._journal.transitions(record["id"])}

    async def logs(self, params: Params, actor: str) -> Any:
        worker_id = self._log_target(params["target"])
        path = self._workers.log_path(worker_id)
        offset = params.get("offset")
        lines = int(params.get("lines") or DEFAULT_LINES)
        return {"worker": worker_id, **await asyncio.to_thread(_read_log, path, lines, offset)}

    def _log_target(self, target: str) -> str:
        service = self._loop.state.service(target)
        if service is not None:
            workers = [w for w in self._loop.state.workers_of(target) if w.kind is Kind.DIRECT]
            newest = max(workers, key=lambda w: int(w.id.rpartition("-")[2]), default=None)
            if newest is not None:
                return newest.id
            found = _newest_log(self._workers.log_path("x").parent, target)
            if found is not None:
                return found
            raise SwapdError(errors.UNKNOWN_WORKER, f"{target} has had no worker yet.")
        if "/" not in target and self._workers.log_path(target).exists():
            return target
        names = ", ".join(s.name for s in self._loop.state.services)
        raise SwapdError(errors.UNKNOWN_WORKER, f"There is no service or worker {target!r}; services: {names}.")

    # --- swaps ---------------------------------------------------------------------------------------------------

    async def plan(self, params: Params, actor: str) -> Any:
        service = self._service(params["service"])
        request = await self._request(service, params["to"], params, actor)
        placed = plan(self._loop.state, request)
        if isinstance(placed, Problem):
            raise SwapdError.of(placed)
        stats = await self._fresh_stats(service.owner)
        rollback, rollback_s = self._rollback_after(service, placed.parks, placed.strategy.value)
        return plan_record(service, params["to"], placed, rollback=rollback, rollback_s=rollback_s, stats=stats)

    def _rollback_after(self, service: Service, parks: tuple[str, ...], strategy: str) -> tuple[str, float | None]:
        """How one would get back once the planned swap is done."""
        if strategy == "dual":
            return "instant", 0.0
        stable = service.revision(service.stable)
        if stable is None or strategy == "start":
            return "none", None
        model = self._knowledge.model_of(service.name, stable.number)
        if parks:
            return "parked", self._knowledge.wake_seconds(model)
        return "cold", self._knowledge.load_seconds(model)

    async def swap(self, params: Params, actor: str, *, again: bool = False) -> Any:
        service = self._service(params["service"])
        request = await self._request(service, params["to"], params, actor, again=again)
        return self._begin(request, params)

    async def restart(self, params: Params, actor: str) -> Any:
        service = self._service(params["service"])
        stable = service.revision(service.stable)
        assert stable is not None
        return await self.swap({**params, "to": stable.model}, actor, again=True)

    async def rollback(self, params: Params, actor: str) -> Any:
        service = self._service(params["service"])
        to = params.get("to")
        swap = service.swap
        if swap is not None and swap.phase is Phase.SOAKING and swap.source is not None:
            back = swap.source
            wanted = to is None or str(to) in (str(back.number), back.model)
            if wanted and rollback_kind(self._loop.state, service) != "cold":
                self._write_command(actor, "rollback", params)
                reason = params.get("reason") or ""
                return _answer(self._loop.take(ReturnRequested(now(), service.name, actor, reason, only_soaking=True)))
            to = back.model if wanted else to
        if to is None:
            previous = service.revision(service.previous)
            if previous is None:
                text = (
                    f"{service.name} has no previous revision to go back to;"
                    f" to swap to a model: swapd-cli swap {service.name} --to MODEL."
                )
                raise SwapdError(errors.NOTHING_TO_ROLL_BACK, text)
            to = previous.model
        elif str(to).isdigit():
            revision = service.revision(int(to))
            if revision is None:
                known = ", ".join(f"{r.number} ({r.model})" for r in service.revisions)
                raise SwapdError(errors.UNKNOWN_REVISION, f"{service.name} has no revision {to}; known: {known}.")
            to = revision.model
        return await self.swap({**params, "to": to}, actor)

    async def cancel(self, params: Params, actor: str) -> Any:
        name = params.get("service")
        if name is None and params.get("id") is None:
            raise SwapdError(errors.BAD_REQUEST, "cancel: give `service` or `id`.")
        if name is None:
            found = [s for s in self._loop.state.services if s.swap is not None and s.swap.id == params["id"]]
            if not found:
                raise SwapdError(errors.NOTHING_TO_CANCEL, f"No swap {params['id']} is under way.")
            name = found[0].name
        self._service(name)
        self._write_command(actor, "cancel", params)
        return _answer(self._loop.take(ReturnRequested(now(), name, actor, params.get("reason") or "")))

    async def _request(
        self, service: Service, to: str, params: Params, actor: str, *, again: bool = False
    ) -> SwapRequested:
        """Everything measured that the decision needs, right before it."""
        model = self._knowledge.model_named(to)
        stats = await self._fresh_stats(service.owner)
        candidate = await self._knowledge.revision(service.name, model)
        measurement = await self._knowledge.measure_model(service.name, model, stats.get("expected_drain_s"))
        self._knowledge.remember(candidate, model)  # under number 0, until the step has given it its own
        return SwapRequested(
            now(),
            service.name,
            candidate,
            measurement,
            _strategy(params.get("strategy")),
            params.get("max_outage"),
            actor,
            params.get("reason") or "",
            again,
        )

    def _begin(self, request: SwapRequested, params: Params) -> Any:
        try:  # tried now, not judged by the last write: on an idle daemon that may be long ago
            self._journal.add_command(request.actor, "swap", {"to": request.candidate.model, **params}, now())
        except SwapdError as error:
            text = f"No swap is begun while the journal cannot be written: {error.message}"
            raise SwapdError(error.code, text, error.details) from None
        model = self._knowledge.model_of(request.service, 0)
        # The step gives the revision its number and may begin its worker at once, so its settings must be there.
        service = self._service(request.service)
        number = service.last_revision + 1
        self._knowledge.remember(replace(request.candidate, number=number), model)
        return _answer(self._loop.take(request))

    def _write_command(self, actor: str, method: str, params: Params) -> None:
        """Who asked for what. A full disk must not keep anybody from a cancel or a return."""
        try:
            self._journal.add_command(actor, method, dict(params), now())
        except SwapdError as error:
            log.warning("api.command_not_written method=%s actor=%s error=%s", method, actor, error.message)

    # --- the daemon itself -----------------------------------------------------------------------------------------

    async def reload(self, params: Params, actor: str) -> Any:
        """Take over what can be taken over live; refuse the whole file otherwise, naming what cannot."""
        new = await asyncio.to_thread(load_config, Path(self._executor.config.file))
        old = self._executor.config  # after the wait: another reload may have been applied meanwhile
        changes = diff_config(old, new)
        record = {"changes": [{"key": c.key, "effect": c.effect, "text": str(c)} for c in changes], "applied": False}
        stuck = [c.key for c in changes if not c.live]
        if params.get("dry_run"):
            return {**record, "refused": stuck}
        if stuck:
            text = f"Not applied: {', '.join(stuck)} can only be changed by restarting swapd (systemctl restart swapd)."
            raise SwapdError(errors.NOT_SUPPORTED, text, {"keys": stuck})
        self._write_command(actor, "reload", params)
        self._apply(new)
        for name, config in new.services.items():
            self._loop.take(SettingsChanged(now(), name, service_settings(new, config), config.model))
        swaps, refused = [], []
        for change in changes:
            if change.effect == SWAP:
                swap = {
                    "service": change.name,
                    "to": new.services[change.name].model,
                    "reason": "the configuration changed",
                }
                try:
                    swaps.append(await self.swap(swap, actor))
                except SwapdError as error:  # the others' are begun all the same
                    refused.append(error.problem)
        if refused:
            text = "The configuration is applied, but not every swap that it asks for was begun: "
            raise SwapdError(refused[0].code, text + " ".join(p.message for p in refused), refused[0].details)
        return {**record, "applied": True, "swaps": swaps}

    async def stop_workers(self, params: Params, actor: str) -> Any:
        if params.get("confirm") is not True:
            raise SwapdError(errors.BAD_REQUEST, "stop_workers: no service answers afterwards; say `confirm`: true.")
        self._write_command(actor, "stop_workers", params)
        self._loop.take(ShutdownRequested(now()))
        return {"stopping": True, "workers": [w.id for w in self._loop.state.workers]}

    # --- within --------------------------------------------------------------------------------------------------

    def _service(self, name: str) -> Service:
        service = self._loop.state.service(name)
        if service is None:
            known = ", ".join(s.name for s in self._loop.state.services)
            raise SwapdError(errors.UNKNOWN_SERVICE, f"There is no service {name!r}; there are: {known}.")
        return service

    def _config(self, name: str) -> ServiceConfig:
        return self._executor.config.services[name]


_METHODS: Final[Mapping[str, Callable[[Api, Params, str], Awaitable[Any]]]] = {
    "status": Api.status,
    "devices": Api.devices,
    "workers": Api.workers,
    "models": Api.models,
    "history": Api.history,
    "show": Api.show,
    "logs": Api.logs,
    "plan": Api.plan,
    "swap": Api.swap,
    "restart": Api.restart,
    "rollback": Api.rollback,
    "cancel": Api.cancel,
    "reload": Api.reload,
    "stop_workers": Api.stop_workers,
}


def service_settings(config: Config, service: ServiceConfig) -> ServiceSettings:
    return ServiceSettings(
        Strategy(service.strategy),
        service.max_outage_s,
        service.drain_timeout_s,
        service.soak_s,
        config.daemon.restart_backoff_max_s,
    )


def _actor(peer: Peer, params: Params) -> str:
    """The peer's user, by the kernel's word, and whom it says it acts for."""
    user = peer.user or "unknown"
    extra = params.get("actor")
    return f"{user} ({extra})" if extra else user


def _strategy(name: Any) -> Strategy | None:
    if name is None:
        return None
    if name not in (Strategy.AUTO.value, Strategy.DUAL.value, Strategy.IN_PLACE.value):
        raise SwapdError(errors.BAD_REQUEST, f"strategy: expected auto, dual or in-place, not {name!r}.")
    return Strategy(name)


def _answer(reply: Swap | Problem | None) -> dict[str, Any]:
    if isinstance(reply, Problem):
        raise SwapdError.of(reply)
    assert reply is not None
    return swap_record(reply)


def _newest_log(directory: Path, service: str) -> str | None:
    logs = [p for p in directory.glob(f"{service}-*.log") if p.stem.removeprefix(f"{service}-").isdigit()]
    return max(logs, key=lambda p: p.stat().st_mtime).stem if logs else None


def _read_log(path: Path, lines: int, offset: int | None) -> dict[str, Any]:
    if offset is None:
        end = end_offset(path)
        return {"lines": tail(path, lines), "offset": end}
    chunk = read_from(path, int(offset))
    return {"lines": chunk.text.splitlines(), "offset": chunk.offset, "restarted": chunk.restarted}
