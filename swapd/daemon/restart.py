"""What serves after a restart: the journal's stable revisions, and swaps to what the configuration has changed to."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Final

from swapd.core.config import Config, ModelConfig
from swapd.core.config_views import settings_digest
from swapd.core.errors import SHUTTING_DOWN, SwapdError
from swapd.core.events import ServiceAdded, SettingsChanged
from swapd.core.model import Health, Revision
from swapd.core.report import health
from swapd.core.states import Phase
from swapd.daemon.api import Api, service_settings
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.loop import Loop, revision_from
from swapd.host.clock import wall_s as now
from swapd.host.journal import Journal

log = logging.getLogger("swapd")

UNREADABLE: Final = ""  # in place of a fingerprint: equal to none that was ever taken


class Restart:
    def __init__(self, loop: Loop, knowledge: Knowledge, journal: Journal, api: Api) -> None:
        self._loop = loop
        self._knowledge = knowledge
        self._journal = journal
        self._api = api
        self._changed: dict[str, str] = {}  # services whose `model` was changed meanwhile, and to what
        self.stirred = asyncio.Event()  # set when anything was published: a service may have settled

    def close_unfinished_swaps(self) -> None:
        for record in self._journal.unfinished_swaps():
            soaked = record["phase"] == Phase.SOAKING.value
            failed = Phase.FAILED if record["error"] else Phase.CANCELED
            record["phase"] = (Phase.SUCCEEDED if soaked else failed).value
            record["reason"] = "the daemon ended during the soak" if soaked else "the daemon ended during the swap"
            record["finished_at"] = now()
            self._journal.save_swap(record)

    async def add_services(self, config: Config) -> None:
        """The journal's stable revision wins; where the configuration's own value has changed, a swap to that follows.

        Until it has begun, the journal keeps the old value, so that a daemon that dies before asks for it again.
        """
        stored = self._journal.services()
        for name, service in config.services.items():
            record = stored.get(name, {})
            stable = revision_from(name, record.get("stable"))
            config_model = service.model
            model = config.models[service.model]
            if stable is not None and stable.model in config.models:
                model = config.models[stable.model]
            if model.name != service.model:
                log.info("service.drift service=%s config=%s running=%s", name, service.model, model.name)
                if record["config_model"] != service.model:
                    config_model = record["config_model"]
                    self._changed[name] = service.model
                    log.info("service.swap_follows service=%s to=%s: its model was changed", name, service.model)
            fresh = await self._revision_to_start(name, model)
            last = int(record.get("last_revision", 0))
            revision = stable if stable is not None and stable.same_content(fresh) else replace(fresh, number=last + 1)
            previous = revision_from(name, record.get("previous"))
            if previous is not None and previous.model not in config.models:
                previous = None
            self._knowledge.remember(revision, model)
            epoch = int(record.get("epoch", 0))
            settings = service_settings(config, service)
            self._loop.take(ServiceAdded(now(), name, settings, config_model, revision, previous, last, epoch))

    async def _revision_to_start(self, service: str, model: ModelConfig) -> Revision:
        """A model whose files cannot be read makes its service Unavailable, and keeps neither the others down nor the
        daemon: it is tried again until they are there."""
        try:
            return await self._knowledge.revision(service, model)
        except SwapdError as error:
            log.error("service.model_unreadable service=%s model=%s error=%s", service, model.name, error.message)
            return Revision(0, service, model.name, settings_digest(model), UNREADABLE)

    async def follow_changes(self) -> None:
        """Once a service has settled, begin the swap to what its `model` was changed to."""
        while self._changed:
            await self.stirred.wait()
            self.stirred.clear()
            for name in list(self._changed):
                if self._has_settled(name):
                    await self._follow(name, self._changed.pop(name))

    def _has_settled(self, name: str) -> bool:
        """The old model serves or has failed to start, or an operator's swap came first."""
        service = self._loop.state.service(name)
        assert service is not None
        return service.swap is not None or health(self._loop.state, service) is not Health.DEGRADED

    async def _follow(self, name: str, model: str) -> None:
        service = self._loop.state.service(name)
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
