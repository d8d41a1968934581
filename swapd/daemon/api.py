"""What the control socket's commands do: each sends one event to the loop, and answers with a record."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import swapd
from swapd.core import errors, strategies
from swapd.core.commands import breaks
from swapd.core.config import Config, ModelConfig, ServiceConfig
from swapd.core.config_views import DIGEST_DIGITS
from swapd.core.contract import declared
from swapd.core.delivery import Delivery
from swapd.core.errors import Problem, SwapdError
from swapd.core.events import PauseRequested, PromoteRequested, Resumed, ReturnRequested, SwapRequested
from swapd.core.foresight import NONE, WayBack, plan_record, way_back
from swapd.core.model import Service, ServiceSettings, Strategy, Swap
from swapd.core.outage import longest_drain_s
from swapd.core.placement import Placement
from swapd.core.presets import shown_flags, smallest_gpu_bytes
from swapd.core.report import rollback_kind, swap_record
from swapd.core.rollout import can_park, plan
from swapd.core.states import Phase
from swapd.daemon.contracts import Contracts
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.loop import Loop
from swapd.daemon.reading import Reading
from swapd.daemon.spec import front_settings
from swapd.host.clock import wall_s as now
from swapd.host.control_socket import Peer
from swapd.host.journal import Journal

if TYPE_CHECKING:
    from swapd.daemon.reload import Reload

log = logging.getLogger("swapd.api")

Params = Mapping[str, Any]


class Api:
    def __init__(
        self,
        loop: Loop,
        reading: Reading,
        knowledge: Knowledge,
        journal: Journal,
        stop: Callable[[], None],
    ) -> None:
        self.reloading: Reload  # set by the daemon: the two know each other
        self.contracts: Contracts  # as well: they are the executor's
        self._loop = loop
        self._reading = reading
        self._knowledge = knowledge
        self._journal = journal
        self._stop = stop  # drains and stops everything; called twice, at once

    async def handle(self, method: str, params: Params, peer: Peer) -> Any:
        """The control socket's handler: raises SwapdError for every refusal."""
        if method in _READINGS:
            return await _READINGS[method](self._reading, params)
        return await _COMMANDS[method](self, params, _actor(peer, params))

    # --- swaps ---------------------------------------------------------------------------------------------------

    async def plan(self, params: Params, actor: str) -> Any:
        service = self._reading.service(params["service"])
        model = self._knowledge.model_named(params["to"])
        request = await self._request(service, model, params, actor)
        placed = plan(self._loop.state, request)
        if isinstance(placed, Problem):
            raise SwapdError.of(placed)
        stats = await self._reading.open_requests(service)
        if placed.is_return and placed.expected_outage_s is None:
            placed = replace(placed, expected_outage_s=self._knowledge.return_s(model, parked=True))
        settings = self._knowledge.config.services[service.name]
        gpu_bytes = smallest_gpu_bytes(r for r in request.measurement.readings if r.name in placed.devices)
        return plan_record(
            self._loop.state,
            service,
            model.name,
            placed,
            request.measurement,
            back=self._way_back(service, placed, request.way_back),
            probes=len(model.probes),
            stats=stats,
            hold_timeout_s=settings.hold_timeout_s,
            flags=shown_flags(model, gpu_bytes),
            breaks=[each.text for each in breaks(request)],
            golden=len(settings.golden) * settings.golden_repeat,
        )

    def _way_back(self, service: Service, placed: Placement, can_load: bool) -> WayBack:
        model = self._knowledge.serving(service)
        if model is None:
            return WayBack(NONE)
        load_s, wake_s = (self._knowledge.return_s(model, parked=parked) for parked in (False, True))
        return way_back(placed, can_load=can_load, load_s=load_s, wake_s=wake_s)

    async def rehearse(self, params: Params, actor: str) -> Any:
        """All of a swap up to where a client would notice."""
        service = self._reading.service(params["service"])
        model = self._knowledge.model_named(params["to"])
        return await self._swap(service, model, params, actor, again=True, rehearsal=True)

    async def swap(self, params: Params, actor: str, *, again: bool = False) -> dict[str, Any]:
        service = self._reading.service(params["service"])
        return await self._swap(service, self._knowledge.model_named(params["to"]), params, actor, again=again)

    async def _swap(
        self,
        service: Service,
        model: ModelConfig,
        params: Params,
        actor: str,
        *,
        again: bool = False,
        goes_back: bool = False,
        rehearsal: bool = False,
    ) -> dict[str, Any]:
        if not goes_back:
            await self.contracts.learn_incumbent(service)
        request = await self._request(
            service, model, params, actor, again=again, goes_back=goes_back, rehearsal=rehearsal
        )
        return self._begin(request, model, params)

    async def restart(self, params: Params, actor: str) -> Any:
        service = self._reading.service(params["service"])
        stable = service.revision(service.stable)
        assert stable is not None
        return await self.swap({**params, "to": stable.model}, actor, again=True)

    async def rollback(self, params: Params, actor: str) -> Any:
        service = self._reading.service(params["service"])
        to = params.get("to")
        swap = service.swap
        if swap is not None and swap.phase is Phase.SOAKING and swap.source is not None:
            back = swap.source
            wanted = to is None or str(to) in (str(back.number), back.model)
            if wanted and rollback_kind(self._loop.state, service) != "cold":
                self.write_command(actor, "rollback", params)
                reason = params.get("reason") or ""
                return _answer(self._loop.take(ReturnRequested(now(), service.name, actor, reason, only_soaking=True)))
            to = back.number if wanted else to
        if to is None and not service.previous:
            text = (
                f"{service.name} has no previous revision to go back to;"
                f" to swap to a model: swapd-cli swap {service.name} --to MODEL."
            )
            raise SwapdError(errors.NOTHING_TO_ROLL_BACK, text)
        to = service.previous if to is None else to
        params = {**params, "to": to}
        if not (str(to).isascii() and str(to).isdigit()):
            model = self._knowledge.model_named(str(to))
        else:
            model = await self._knowledge.model_again(service, int(to))
        return await self._swap(service, model, params, actor, goes_back=True)

    async def cancel(self, params: Params, actor: str) -> Any:
        name = params.get("service")
        if name is None and params.get("id") is None:
            raise SwapdError(errors.BAD_REQUEST, "cancel: give `service` or `id`.")
        if name is None:
            found = [s for s in self._loop.state.services if s.swap is not None and s.swap.id == params["id"]]
            if not found:
                raise SwapdError(errors.NOTHING_TO_CANCEL, f"No swap {params['id']} is under way.")
            name = found[0].name
        self._reading.service(name)
        self.write_command(actor, "cancel", params)
        return _answer(self._loop.take(ReturnRequested(now(), name, actor, params.get("reason") or "")))

    async def resume(self, params: Params, actor: str) -> Any:
        """A paused swap's record; of a service that swapd has paused, the service's."""
        service = self._reading.service(params["service"])
        self.write_command(actor, "resume", params)
        reply = self._loop.take(Resumed(now(), service.name, actor))
        if reply is not None:
            return _answer(reply)
        return (await self._reading.status({"service": service.name}))["services"][0]

    async def pause(self, params: Params, actor: str) -> Any:
        service = self._reading.service(params["service"])
        self.write_command(actor, "pause", params)
        return _answer(self._loop.take(PauseRequested(now(), service.name, actor, params.get("reason") or "")))

    async def promote(self, params: Params, actor: str) -> Any:
        service = self._reading.service(params["service"])
        full = bool(params.get("full"))
        self.write_command(actor, "promote", params)
        return _answer(self._loop.take(PromoteRequested(now(), service.name, actor, full, params.get("reason") or "")))

    def _strategy(
        self, service: Service, params: Params, *, again: bool, goes_back: bool, rehearsal: bool
    ) -> tuple[Strategy | None, Delivery | None]:
        """Where the candidate shall stand, and how it shall prove itself. Raises BAD_REQUEST, SHUTTING_DOWN."""
        config = self._knowledge.config
        settings, asked = self._knowledge.service_config(service.name), params.get("strategy")
        chosen = strategies.block(config, asked or settings.strategy)
        proved = goes_back or (again and not asked and not rehearsal)
        if proved:  # before, and it need not stand beside what serves for that
            return (None if chosen.kind in strategies.PLAIN else Strategy.AUTO), None
        if (steps := params.get("steps")) is not None:
            chosen = strategies.with_steps(chosen, steps)
        delivery = strategies.delivery(settings, chosen, rehearsal=rehearsal)
        if delivery is not None and delivery.shares and settings.protocol == "tcp":
            text = f'{service.name} has protocol = "tcp": there are no requests to be split, and no answers to compare.'
            raise SwapdError(errors.NOT_SUPPORTED, text)
        staged = delivery is not None and delivery.shares
        wish = Strategy.DUAL if rehearsal else strategies.wish(chosen)
        return (wish if asked or staged else None), delivery

    async def _request(
        self,
        service: Service,
        model: ModelConfig,
        params: Params,
        actor: str,
        *,
        again: bool = False,
        goes_back: bool = False,
        rehearsal: bool = False,
    ) -> SwapRequested:
        """Everything measured that the decision needs, right before it."""
        wish, delivery = self._strategy(service, params, again=again, goes_back=goes_back, rehearsal=rehearsal)
        stats = await self._reading.open_requests(service)
        candidate = await self._knowledge.revision(service.name, model)
        old, parks = self._knowledge.serving(service), can_park(self._loop.state, service)
        measurement = await self._knowledge.measure_model(
            service.name,
            model,
            candidate.fingerprint,
            drain_s=longest_drain_s(stats, service.settings.drain_timeout_s),
            release_s=self._knowledge.release_s(old, parked=parks) if old is not None else None,
        )
        return SwapRequested(
            now(),
            service.name,
            candidate,
            measurement,
            wish,
            params.get("max_outage"),
            actor,
            params.get("reason") or "",
            again,
            await self._knowledge.is_intact(service),
            offers=declared(model, model.contract),
            incumbent=await self._knowledge.declared_of_stable(service),
            allow_name_mismatch=bool(params.get("allow_name_mismatch")),
            allow_breaking=bool(params.get("allow_breaking")),
            goes_back=goes_back,
            delivery=delivery,
        )

    def _begin(self, request: SwapRequested, model: ModelConfig, params: Params) -> dict[str, Any]:
        try:  # tried now, not judged by the last write: on an idle daemon that may be long ago
            self._journal.add_command(request.actor, "swap", {"to": request.candidate.model, **params}, now())
        except SwapdError as error:
            text = f"No swap is begun while the journal cannot be written: {error.message}"
            raise SwapdError(error.code, text, error.details) from None
        # The step gives the revision its number and may begin its worker at once, so its settings must be there.
        number = self._reading.service(request.service).last_revision + 1
        self._knowledge.remember(replace(request.candidate, number=number), model)
        return _answer(self._loop.take(request))

    def write_command(self, actor: str, method: str, params: Params) -> None:
        """Who asked for what. A full disk must not keep anybody from a cancel or a return."""
        try:
            self._journal.add_command(actor, method, dict(params), now())
        except SwapdError as error:
            log.warning("api.command_not_written method=%s actor=%s error=%s", method, actor, error.message)

    # --- the daemon itself -----------------------------------------------------------------------------------------

    async def reload(self, params: Params, actor: str) -> Any:
        return await self.reloading.run(params, actor)

    async def follow(self, service: str, actor: str) -> dict[str, Any] | None:
        """Begin the swap to the model that the configuration names. None: it serves already. Raises as `swap`."""
        to = self._knowledge.config.services[service].model
        try:
            return await self.swap({"service": service, "to": to, "reason": "the configuration changed"}, actor)
        except SwapdError as refused:
            if refused.code != errors.ALREADY_SERVING:
                raise
            return None

    async def stop_workers(self, params: Params, actor: str) -> Any:
        if params.get("confirm") is not True:
            raise SwapdError(errors.BAD_REQUEST, "stop_workers: no service answers afterwards; say `confirm`: true.")
        self.write_command(actor, "stop_workers", params)
        if not self._loop.state.stopping:
            self._stop()
        return {"stopping": True, "workers": [w.id for w in self._loop.state.workers]}


_READINGS: Final[Mapping[str, Callable[[Reading, Params], Awaitable[Any]]]] = {
    "status": Reading.status,
    "devices": Reading.devices,
    "workers": Reading.workers,
    "models": Reading.models,
    "history": Reading.history,
    "show": Reading.show,
    "logs": Reading.logs,
}
_COMMANDS: Final[Mapping[str, Callable[[Api, Params, str], Awaitable[Any]]]] = {
    "plan": Api.plan,
    "swap": Api.swap,
    "restart": Api.restart,
    "rollback": Api.rollback,
    "cancel": Api.cancel,
    "resume": Api.resume,
    "rehearse": Api.rehearse,
    "pause": Api.pause,
    "promote": Api.promote,
    "reload": Api.reload,
    "stop_workers": Api.stop_workers,
}


def service_settings(config: Config, service: ServiceConfig) -> ServiceSettings:
    return ServiceSettings(
        strategies.wish(strategies.block(config, service.strategy)),
        service.max_outage_s,
        service.drain_timeout_s,
        service.soak_s,
        config.daemon.restart_backoff_max_s,
        config.daemon.crash_loop_failures,
        gated=service.front == "gate" or service.protocol == "tcp",
        gate=_gate_digest(service),
        listen=service.listen,
    )


def _gate_digest(service: ServiceConfig) -> str:
    """Of all that a gate is started with: one of another digest is replaced. Its code counts by its version."""
    made_of = json.dumps([swapd.__version__, front_settings(service)], sort_keys=True)
    return hashlib.sha256(made_of.encode()).hexdigest()[:DIGEST_DIGITS]


def _actor(peer: Peer, params: Params) -> str:
    """The peer's user, by the kernel's word, and whom it says it acts for."""
    user = peer.user or "unknown"
    extra = params.get("actor")
    return f"{user} ({extra})" if extra else user


def _answer(reply: Swap | Problem | None) -> dict[str, Any]:
    if isinstance(reply, Problem):
        raise SwapdError.of(reply)
    assert reply is not None
    return swap_record(reply)
