"""What serves after a restart: what journal and host say, and swaps to what the configuration has changed to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from swapd.core.config import Config, ServiceConfig
from swapd.core.errors import SHUTTING_DOWN, SwapdError
from swapd.core.events import Kept, Observed, Recovered, ServiceAdded, ServiceRemoved, SettingsChanged
from swapd.core.model import Health, Kind, Revision, Service
from swapd.core.report import health
from swapd.core.states import WorkerState
from swapd.daemon.api import Api, service_settings
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.loop import Loop
from swapd.host.clock import wall_s as now

log = logging.getLogger("swapd")

HAS_LOADED: Final = frozenset(
    {*(WorkerState.LOADED, WorkerState.SERVING, WorkerState.HANDING_OVER, WorkerState.QUIESCED, WorkerState.PARKED)}
)


class Restart:
    def __init__(self, loop: Loop, knowledge: Knowledge, api: Api) -> None:
        self._loop = loop
        self._knowledge = knowledge
        self._api = api
        self._changed: dict[str, str] = {}  # services whose `model` was changed meanwhile, and to what
        self.stirred = asyncio.Event()  # set when anything was published: a service may have settled

    async def recover(self, config: Config, observed: Sequence[Observed], *, crashed: bool) -> None:
        """Begin with what the journal says of the configuration's services, and with what is there of them."""
        kept, added = [], []
        self._knowledge.recall(self._loop.state, observed)
        for name, service in config.services.items():
            known = self._loop.state.service(name)
            here = [o for o in observed if o.service == name and o.state is not None]
            if known is not None:
                kept.append(await self._kept(config, service, known, up=any(map(_is_up, here))))
            else:
                added.append(await self._added(config, service, here))
        self._loop.take(Recovered(now(), tuple(kept), tuple(added), tuple(observed), crashed))
        for name in [each.name for each in self._loop.state.services if each.name not in config.services]:
            log.info("service.leaves service=%s: it is gone from the configuration", name)
            self._loop.take(ServiceRemoved(now(), name))

    async def _kept(self, config: Config, service: ServiceConfig, known: Service, *, up: bool) -> Kept:
        """The journal's stable revision wins; where the configuration's own value has changed, a swap to that follows.

        Until it has begun, the journal keeps the old value, so that a daemon that dies before asks for it again.
        """
        name, config_model = service.name, service.model
        stable = known.revision(known.stable)
        running = stable.model if stable is not None else service.model
        if running != service.model:
            log.info("service.drift service=%s config=%s running=%s", name, service.model, running)
        if running != service.model and known.config_model != service.model:
            config_model = known.config_model
            self._changed[name] = service.model
            log.info("service.swap_follows service=%s to=%s: its model was changed", name, service.model)
        fresh = None
        if not up:
            model = config.models.get(running) or config.models[service.model]
            fresh = await self._knowledge.revision_to_start(name, model)
            same = stable is not None and stable.same_content(fresh)
            number = stable.number if same and stable is not None else known.last_revision + 1
            self._knowledge.remember(replace(fresh, number=number), model)
        return Kept(name, service_settings(config, service), config_model, fresh)

    async def _added(self, config: Config, service: ServiceConfig, here: Sequence[Observed]) -> ServiceAdded:
        """A service that the journal does not know: a new one, or one whose journal is lost while it serves."""
        name, model = service.name, config.models[service.model]
        found = _answering(here)
        if found is not None:
            log.warning("recovery.journal_lost service=%s revision=%d model=%s", name, found.number, found.model)
            revision = found
        else:
            revision = replace(await self._knowledge.revision_to_start(name, model), number=1 + _last(here))
            self._knowledge.remember(revision, model)
        settings = service_settings(config, service)
        return ServiceAdded(now(), name, settings, service.model, revision, last_revision=_last(here))

    async def follow_changes(self) -> None:
        """Once a service has settled, begin the swap to what its `model` was changed to."""
        while self._changed:
            await self.stirred.wait()
            self.stirred.clear()
            for name in list(self._changed):
                if self._has_settled(name):
                    await self._follow(name, self._changed.pop(name))

    def _has_settled(self, name: str) -> bool:
        """The old model serves or has failed to start, an operator's swap came first, or the service is gone."""
        service = self._loop.state.service(name)
        if service is None or service.problem is not None or service.swap is not None:
            return True
        return health(self._loop.state, service) is not Health.DEGRADED

    async def _follow(self, name: str, model: str) -> None:
        service = self._loop.state.service(name)
        if name not in self._knowledge.config.services:
            return
        superseded = self._knowledge.config.services[name].model != model  # by a reload, which has begun its own swap
        if superseded or service is None or service.swap is not None:
            log.info("service.swap_superseded service=%s to=%s", name, model)
        else:
            try:
                await self._api.follow(name, "swapd")
            except SwapdError as refused:
                if refused.code == SHUTTING_DOWN:
                    return
                log.error("service.swap_refused service=%s to=%s error=%s", name, model, refused.message)
        # The change is acted upon now, whatever comes of it: it is not tried again at each start.
        config = self._knowledge.config
        service_config = config.services[name]
        self._loop.take(SettingsChanged(now(), name, service_settings(config, service_config), service_config.model))


def _answering(here: Sequence[Observed]) -> Revision | None:
    """What clients are answered by."""
    by_id: Mapping[str, Observed] = {o.worker: o for o in here}
    owner = max((o for o in here if o.owner), key=lambda o: o.epoch, default=None)
    if owner is not None and owner.kind is Kind.GATE:
        owner = by_id.get(owner.points_to or "")
    return owner.revision if owner is not None else None


def _is_up(o: Observed) -> bool:
    return o.kind is not Kind.GATE and o.state in HAS_LOADED


def _last(here: Sequence[Observed]) -> int:
    return max((o.revision.number for o in here if o.revision is not None), default=0)
