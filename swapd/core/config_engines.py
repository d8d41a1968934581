"""What a model's engine needs of its table, and what is for other engines only.

Duty: faults as (key path, message), as in `config_checks`. May not know: whether programs and files are there
(`host.config_file`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from swapd.core.config import ModelConfig
from swapd.core.config_readers import quoted
from swapd.core.engine_flags import LLAMA_ALIAS, LLAMA_SERVER, VLLM, VLLM_NAMES, has_flag
from swapd.core.presets import COMMAND, PLACEHOLDERS, PORT, SOCKET, fixed_address, has_front, names_model

# A placeholder that is misspelt goes to the server as it stands. Not "{{…}}" of templates, nor "${…}" of shells.
_BRACED: Final = re.compile(r"(?<![{$])\{[a-z_]+\}(?!\})")


def check_models(models: Iterable[ModelConfig]) -> Iterator[tuple[str, str]]:
    for model in models:
        path = f"models.{quoted(model.name)}"
        faults = _asgi(model) if has_front(model) else _server(model)
        yield from ((f"{path}.{key}", message) for key, message in faults)


def _asgi(model: ModelConfig) -> Iterator[tuple[str, str]]:
    servers = {"command": model.command, "stop_signal": model.stop_signal, "stop_timeout": model.stop_timeout_s}
    for key, value in servers.items():
        if value:
            yield key, 'is for engine = "command", "llama-server" or "vllm": write that engine, or leave it out'
    if model.sleep:
        yield "sleep", 'is for engine = "vllm": leave it out (an Engine class has park and wake hooks)'


def _server(model: ModelConfig) -> Iterator[tuple[str, str]]:
    if model.app is not None:
        yield "app", f'is for engine = "asgi", and this is "{model.engine}": leave one of them out'
    if model.stage:
        yield "stage", 'is for engine = "asgi": leave it out (no other can be half started)'
    if model.python is not None and model.engine != VLLM:
        yield "python", 'is for engine = "asgi" and "vllm": write the interpreter as the first word of "command"'
    if model.sleep and model.engine != VLLM:
        yield "sleep", 'is for engine = "vllm", the only server that can be parked asleep: leave it out'
    yield from _command(model)
    if model.engine == LLAMA_SERVER and model.served_names and has_flag(model.command, *LLAMA_ALIAS):
        yield "served_names", "stands beside --alias in the command: leave one of them out"
    if model.engine == VLLM and model.served_names and has_flag(model.command, *VLLM_NAMES):
        yield "served_names", "stands beside --served-model-name in the command: leave one of them out"


def _command(model: ModelConfig) -> Iterator[tuple[str, str]]:
    said = [word for word in (SOCKET, PORT) if any(word in argument for argument in model.command)]
    if model.engine == COMMAND and not model.command:
        yield "command", 'is missing: write the server\'s command line, such as ["my-server", "--socket", "{socket}"]'
    elif model.engine == COMMAND and not said:
        yield (
            "command",
            "has neither {socket} nor {port}: write one of them where the server's own address belongs, a Unix socket "
            'or a port of 127.0.0.1 that swapd chooses, such as ["my-server", "--port", "{port}"]',
        )
    elif len(said) == 2:
        yield "command", "has {socket} and {port}, and clients are served at one of them: leave the other out"
    elif model.engine != COMMAND and (address := fixed_address(model)):
        yield "command", f"has an address of its own, {address}: leave it out, or write {{port}} for the port"
    unknown = sorted({word for argument in model.command for word in _BRACED.findall(argument)} - {*PLACEHOLDERS})
    if unknown:
        yield "command", f"has {', '.join(unknown)}, which is no placeholder: there are {', '.join(PLACEHOLDERS)}"
    if not model.weights and not names_model(model):
        what = "a GGUF file" if model.engine == LLAMA_SERVER else "the model's directory"
        yield "weights", f"is missing: write the path of {what}, or name the model in the command"
