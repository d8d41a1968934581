"""What no single key can tell: names, references, clashing addresses, paths that grow too long.

Duty: faults as (key path, message) over a whole `Config`, whose wrong or missing values may still be empty. May
not know: how the file was read, or what the host looks like.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Final

from swapd.core.config import (
    CONTROL_SOCKET,
    MAX_COUNTER_DIGITS,
    MAX_SOCKET_PATH_BYTES,
    Config,
    DeviceConfig,
    ServiceConfig,
)
from swapd.core.config_addresses import clash
from swapd.core.config_engines import check_models
from swapd.core.config_notify import check_notify
from swapd.core.config_readers import NAME, quoted, suggest
from swapd.core.model import DeviceKind
from swapd.core.units import format_size

Fault = tuple[str, str]

BUILT_IN: Final = ("auto", "dual", "in-place", "canary", "shadow", "guarded", "rolling", "rehearsal")


def name_fault(kind: str, name: str) -> str | None:
    """Names become directories, sockets and topics. None when the name can be one."""
    if not NAME.fullmatch(name):
        return "is not a usable name: write at most 63 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
    if kind == "services" and name.endswith("-gate"):
        return "ends in -gate, which is how swapd names its own processes: choose another name"
    if kind == "strategies" and name in BUILT_IN:
        return "is the name of a strategy that swapd has already: choose another name"
    if kind == "devices" and name == "auto":
        return 'is taken, since devices = "auto" means every device: choose another name'
    return None


def check_config(config: Config) -> Iterator[Fault]:
    yield from _devices(config)
    yield from check_models(config.models.values())
    yield from _services(config)
    yield from _listeners(config)
    yield from _socket_paths(config)
    yield from check_notify(config)


def _devices(config: Config) -> Iterator[Fault]:
    hosts = [device for device in config.devices.values() if device.kind is DeviceKind.HOST]
    matches: dict[str, str] = {}
    for device in config.devices.values():
        path = f"devices.{quoted(device.name)}"
        if device.memory_bytes is not None and device.headroom_bytes >= device.memory_bytes:
            yield f"{path}.headroom", "leaves nothing of the budget: write less than its memory"
        yield from _floor(device, path)
        if device.kind is DeviceKind.NVML:
            if device.match is None:
                yield (
                    f"{path}.match",
                    'is missing: write the UUID ("GPU-…" or "MIG-…", see nvidia-smi -L) or index ("0")',
                )
            elif device.match in matches:
                yield f"{path}.match", f"is the same GPU as devices.{matches[device.match]}: leave one of them out"
            else:
                matches[device.match] = quoted(device.name)
            continue
        if device.match is not None:
            yield f"{path}.match", 'is for kind = "nvml" only: leave it out'
        if device.memory_bytes is None and len(hosts) > 1:
            yield f"{path}.memory", 'is missing: with several host devices each needs its own budget, such as "8GiB"'


def _floor(device: DeviceConfig, path: str) -> Iterator[Fault]:
    if device.floor_bytes is not None and device.floor_bytes > device.headroom_bytes:
        most = format_size(device.headroom_bytes)
        yield f"{path}.floor", f"is more than the headroom ({most}), so what was rightly planned would be killed"


def _services(config: Config) -> Iterator[Fault]:
    if not config.services:
        yield "services", 'nothing is served: write at least one [services.NAME] with "listen" and "model"'
    for service in config.services.values():
        path = f"services.{quoted(service.name)}"
        if service.model and service.model not in config.models:
            cure = suggest(service.model, tuple(config.models))
            yield f"{path}.model", f'there is no model "{service.model}": {cure}'
        model = config.models.get(service.model)
        if model is not None and service.devices is not None and len(service.devices) < model.gpus:
            cure = f'name as many, or write devices = "auto" (gpus = {model.gpus} of models.{quoted(model.name)})'
            yield f"{path}.devices", f'are too few for "{model.name}", which spans {model.gpus}: {cure}'
        yield from _strategy(config, service, path)
        yield from _access_log(config, service, path)
        for index, name in enumerate(service.devices or ()):
            if name in config.devices:
                continue
            cure = suggest(name, tuple(config.devices))
            if name == "auto":
                cure = 'write devices = "auto", without brackets'
            elif not config.devices:
                cure = f'write a table [devices.{name}], or devices = "auto"'
            yield f"{path}.devices[{index}]", f'there is no device "{name}": {cure}'


def _strategy(config: Config, service: ServiceConfig, path: str) -> Iterator[Fault]:
    if service.strategy == "rolling":
        yield f"{path}.strategy", '"rolling" is not supported yet by this version of swapd: write another one'
    elif service.strategy not in (*BUILT_IN[:-2], *config.strategies):
        cure = suggest(service.strategy, (*BUILT_IN[:-2], *config.strategies))
        yield f"{path}.strategy", f'there is no strategy "{service.strategy}": {cure}'
    strategy = config.strategies.get(service.strategy)
    staged = (strategy.kind if strategy is not None else service.strategy) in ("canary", "shadow", "guarded")
    if service.protocol == "tcp" and (service.rules or service.session_key or staged):
        key = "rules" if service.rules else "session_key" if service.session_key else "strategy"
        yield f"{path}.{key}", 'needs requests to look at, and protocol = "tcp" has only bytes: leave it out'


def _access_log(config: Config, service: ServiceConfig, path: str) -> Iterator[Fault]:
    model = config.models.get(service.model)
    if service.access_log and service.protocol == "tcp":
        yield f"{path}.access_log", 'needs requests to look at, and protocol = "tcp" has only bytes: leave it out'
    elif service.access_log and service.front == "direct" and model is not None and model.engine == "asgi":
        yield f"{path}.access_log", f'is written by a gate, and "{model.name}" answers itself: write front = "gate"'


def _listeners(config: Config) -> Iterator[Fault]:
    taken = [
        (f"services.{quoted(service.name)}.listen" + (f"[{index}]" if len(service.listen) > 1 else ""), address)
        for service in config.services.values()
        for index, address in enumerate(service.listen)
    ]
    if config.daemon.metrics:
        taken.insert(0, ("daemon.metrics", config.daemon.metrics))
    for name in ("control", "events"):
        taken.insert(0, (f"daemon.{name}", "unix:" + getattr(config.daemon, name).removeprefix("ipc://")))
    for (first, one), (second, other) in combinations(taken, 2):
        if clash(one, other):
            same = f'"{other}" is already taken by {first}'
            detail = same if one == other else f'"{other}" is already covered by "{one}" of {first}'
            cure = "write another path" if other.startswith("unix:") else "write another port"
            if first.partition(".listen[")[0] == second.partition(".listen[")[0]:
                cure = "leave one of them out"
            yield second, f"{detail}: {cure}"


def _socket_paths(config: Config) -> Iterator[Fault]:
    """The longest path that a worker of any service will bind, a gate's with a counter of many digits.

    Longer than the control socket's own default path, and than that of an engine's own socket (`worker.spec`), so those
    need no check here.
    """
    if not config.services:
        return
    longest = max((*config.services,), key=lambda name: len(name.encode("utf-8", "replace")))
    worker_id = f"{longest}-gate-{'9' * MAX_COUNTER_DIGITS}"
    path = f"{config.daemon.worker_dir(worker_id)}/{CONTROL_SOCKET}"
    over = len(path.encode("utf-8", "replace")) - MAX_SOCKET_PATH_BYTES
    if over > 0:
        yield (
            "daemon.runtime_dir",
            f'its workers\' sockets would have paths {over} bytes too long for a Unix socket (such as "{path}"): '
            f"write a shorter directory, or shorten the service's name",
        )
