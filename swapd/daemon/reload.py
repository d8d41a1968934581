"""`reload`: the file is read again, and what has changed in it comes about, as far as it can while swapd runs.

Duty: either all of a file is taken over or, with every reason told, nothing of it. Addresses are bound before anything
is changed. What becomes of a service that is added, changed or removed is the core's affair; the others' processes hear
nothing of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swapd.core import errors
from swapd.core.commands import leaving
from swapd.core.config import Config, DeviceConfig
from swapd.core.config_views import NEXT_SWAP, SWAP, Change, diff_config
from swapd.core.errors import Problem, SwapdError
from swapd.core.events import ServiceAdded, ServiceRemoved, SettingsChanged
from swapd.core.model import Revision
from swapd.daemon.api import service_settings
from swapd.daemon.closing import Closing
from swapd.daemon.devices import Devices
from swapd.daemon.knowledge import Knowledge
from swapd.daemon.loop import Loop
from swapd.host import listeners as listening
from swapd.host.clock import wall_s as now
from swapd.host.config_file import load_config
from swapd.host.journal import Journal

if TYPE_CHECKING:
    from swapd.daemon.api import Api, Params

Bound = dict[str, dict[str, socket.socket]]

FOLLOWED = "the configuration changed"


class Reload:
    def __init__(
        self,
        api: Api,
        loop: Loop,
        knowledge: Knowledge,
        devices: Devices,
        journal: Journal,
        listeners: Bound,
        closing: Closing,
        apply: Callable[[Config], None],
    ) -> None:
        self._api = api
        self._loop = loop
        self._knowledge = knowledge
        self._devices = devices
        self._journal = journal
        self._listeners = listeners
        self._closing = closing
        self._apply = apply  # hands a new configuration to every part that goes by it
        self._one_at_a_time = asyncio.Lock()

    async def run(self, params: Params, actor: str) -> Any:
        """Raises SwapdError: CONFIG_INVALID, NOT_SUPPORTED, LISTEN_FAILED, with nothing changed; or, with the file
        taken over, why a swap that it asks for was not begun."""
        async with self._one_at_a_time:
            return await self._run(params, actor)

    async def _run(self, params: Params, actor: str) -> Any:
        old = self._knowledge.config
        new = await asyncio.to_thread(load_config, Path(old.file))
        changes = self._effective(diff_config(old, new), new)
        devices = await self._devices.found(new.devices)
        stuck = {c.key: "can only be changed by restarting swapd" for c in changes if not c.live}
        stuck |= self._in_the_way(old, new, devices)
        record = {"changes": [{"key": c.key, "effect": c.effect, "text": str(c)} for c in changes], "applied": False}
        if params.get("dry_run"):
            _unbind(_bind(self._new_addresses(new)))
            return {**record, "refused": list(stuck)}
        if stuck:
            raise SwapdError(errors.NOT_SUPPORTED, _refusal(stuck), {"keys": list(stuck)})
        added = [await self._added(new, name) for name in new.services if name not in old.services]
        bound = _bind(self._new_addresses(new))
        if self._loop.state.stopping:
            _unbind(bound)
            raise SwapdError(errors.SHUTTING_DOWN, "swapd is shutting down; its configuration stays as it is.")
        self._api.write_command(actor, "reload", params)
        self._devices.configure(devices)
        self._take_over(old, new, added, bound)
        return {**record, "applied": True, "swaps": await self._swap(changes, actor)}

    # --- what the file means -------------------------------------------------------------------------------------

    def _effective(self, changes: tuple[Change, ...], new: Config) -> list[Change]:
        """A changed model is swapped to at once where it does not come up; with reload_swaps = "settings", wherever it
        is."""
        serving = {revision.model for _, revision in self._at_once(new)} & new.models.keys()
        swaps = {c.name for c in changes if c.table == "models" and c.effect == NEXT_SWAP and c.name in serving}
        return [replace(c, effect=SWAP) if c.table == "models" and c.name in swaps else c for c in changes]

    def _at_once(self, new: Config) -> list[tuple[str, Revision]]:
        """Of the services that follow a change of their model's settings without being told."""
        whatever, state = new.daemon.reload_swaps == "settings", self._loop.state
        return [each for each in self._serving() if whatever or state.server_of(each[0]) is None]

    def _serving(self) -> list[tuple[str, Revision]]:
        """The stable revisions, by service."""
        found = ((s.name, s.revision(s.stable)) for s in self._loop.state.services if not s.leaving)
        return [(name, revision) for name, revision in found if revision is not None]

    def _in_the_way(self, old: Config, new: Config, devices: Mapping[str, DeviceConfig]) -> dict[str, str]:
        """Keys that can be taken over live, but not now."""
        state = self._loop.state
        stuck = {}
        stands = {device: r.service for r in state.reservations for device in r.devices}
        for service in state.services:
            slot = service.slot(service.stable)
            stands |= dict.fromkeys(slot.devices, service.name) if slot is not None else {}
        for device in stands.keys() - devices.keys():
            stuck[f"devices.{device}"] = f"is in use by {stands[device]}: bring that to another device first"
        for name in new.services.keys() - old.services.keys():
            if state.service(name) is not None:
                stuck[f"services.{name}"] = leaving(name).message
        taken = {address: name for name, socks in self._listeners.items() for address in socks}
        for name, config in new.services.items():
            for address in set(config.listen) - set(self._listeners.get(name, ())):
                if address in taken:
                    stuck[f"services.{name}.listen"] = (
                        f"{address} is still that of {taken[address]}: take it from there with a reload of its own,"
                        f" or restart swapd if {taken[address]} only gets another name"
                    )
        return stuck

    def _new_addresses(self, new: Config) -> dict[str, list[str]]:
        """Those that the daemon has not bound, by service."""
        wanted = {name: (config.listen, self._listeners.get(name, {})) for name, config in new.services.items()}
        return {name: [each for each in listen if each not in bound] for name, (listen, bound) in wanted.items()}

    async def _added(self, new: Config, name: str) -> ServiceAdded:
        config = new.services[name]
        model = new.models[config.model]
        fresh = await self._knowledge.revision_to_start(name, model)
        last = 0
        with contextlib.suppress(SwapdError):  # it may have been there before: no number is given twice
            last = max((record["to"]["revision"] for record in self._journal.swaps(name, 1)), default=0)
        revision = replace(fresh, number=last + 1)
        self._knowledge.remember(revision, model)
        return ServiceAdded(now(), name, service_settings(new, config), config.model, revision, last_revision=last)

    # --- what is done about it -----------------------------------------------------------------------------------

    def _take_over(self, old: Config, new: Config, added: list[ServiceAdded], bound: Bound) -> None:
        """Without a pause: nothing else happens in between."""
        self._apply(new)
        gone = self._replace_listeners(new, bound)
        for name in old.services.keys() - new.services.keys():
            self._closing.leaves(name)
            self._loop.take(ServiceRemoved(now(), name))
        for name in old.services.keys() & new.services.keys():
            config = new.services[name]
            self._loop.take(SettingsChanged(now(), name, service_settings(new, config), config.model))
        for event in added:
            self._loop.take(replace(event, at=now()))
        self._closing.look(self._loop.state)
        for sock in gone:  # the owner has its own copies, and lets in who waits there
            listening.unbind(sock)

    def _replace_listeners(self, new: Config, bound: Bound) -> list[socket.socket]:
        """Returns those of addresses that their services have no more."""
        gone: list[socket.socket] = []
        for name, config in new.services.items():
            had = {**self._listeners.get(name, {}), **bound[name]}
            self._listeners[name] = {address: had.pop(address) for address in config.listen}
            gone += had.values()
        return gone

    async def _swap(self, changes: list[Change], actor: str) -> list[dict[str, Any]]:
        """To the models that services have now, and to the settings that models have."""
        wanted: dict[str, str] = {}
        models = {c.name for c in changes if c.effect == SWAP and c.table == "models"}
        following = self._at_once(self._knowledge.config)
        wanted |= {name: revision.model for name, revision in following if revision.model in models}
        services = self._knowledge.config.services
        wanted |= {c.name: services[c.name].model for c in changes if c.effect == SWAP and c.table == "services"}
        swaps: list[dict[str, Any]] = []
        refused: list[Problem] = []
        for service, model in wanted.items():
            try:
                swap = await self._api.swap({"service": service, "to": model, "reason": FOLLOWED}, actor)
                swaps.append(swap)
            except SwapdError as error:  # the others' are begun all the same
                if error.code != errors.ALREADY_SERVING:
                    refused.append(error.problem)
        if refused:
            text = "The configuration is applied, but not every swap that it asks for was begun: "
            raise SwapdError(refused[0].code, text + " ".join(p.message for p in refused), refused[0].details)
        return swaps


def _refusal(stuck: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for key, why in stuck.items():
        by_reason.setdefault(why, []).append(key)
    told = "; ".join(f"{', '.join(keys)} {why}" for why, keys in by_reason.items())
    return f"Not applied: {told.rstrip('.')}."


def _bind(wanted: Mapping[str, Sequence[str]]) -> Bound:
    """All of them or, with every reason told, none. Raises SwapdError(LISTEN_FAILED)."""
    bound: Bound = {}
    problems: list[Problem] = []
    for service, addresses in wanted.items():
        bound[service] = {}
        for address in addresses:
            try:
                bound[service][address] = listening.bind(address)
            except SwapdError as error:
                problems.append(error.problem)
    if problems:
        _unbind(bound)
        text = "Not applied: " + "; ".join(problem.message for problem in problems)
        raise SwapdError(errors.LISTEN_FAILED, text, problems[0].details)
    return bound


def _unbind(bound: Bound) -> None:
    for socks in bound.values():
        for sock in socks.values():
            listening.unbind(sock)
