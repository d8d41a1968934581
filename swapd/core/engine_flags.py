"""What a server's command line says: whether a flag is there, with which value, and under which names it serves.

Duty: reading an argv as the server itself will. `core.presets` goes by it, and the configuration's own values do. May
not know: the configuration. Sources: llama.cpp's tools/server/README.md, vLLM's `vllm serve --help`; vLLM's parser
takes `_` for `-` in a flag, llama.cpp's too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

VLLM: Final = "vllm"
LLAMA_SERVER: Final = "llama-server"

# llama-server without any of the first loads nothing, and swaps by itself among what the last three name.
LLAMA_MODEL: Final = (
    *("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo"),
    *("--models-dir", "--models-preset", "--models-max"),
)
LLAMA_ALIAS: Final = ("-a", "--alias")
VLLM_MODEL: Final = ("--model", "--config")
VLLM_NAMES: Final = ("--served-model-name",)
ADDRESSES: Final = {LLAMA_SERVER: ("--host", "--port"), VLLM: ("--uds", "--host", "--port")}


def has_flag(argv: Sequence[str], *names: str) -> bool:
    return any(_is(word, name) for word in argv for name in names)


def flag_values(argv: Sequence[str], *names: str) -> tuple[str, ...]:
    """What follows the flag, up to the next flag; of a flag that is repeated, the last one's."""
    found: tuple[str, ...] = ()
    for index, word in enumerate(argv):
        for name in names:
            if not _is(word, name):
                continue
            _, equals, value = word.partition("=")
            following = [value] if equals else []
            for after in argv[index + 1 :]:
                if after.startswith("-"):
                    break
                following.append(after)
            found = tuple(following)
    return found


def _is(word: str, name: str) -> bool:
    if not name.startswith("--"):
        return word == name
    return word.partition("=")[0].replace("_", "-") == name


def names_said(engine: str, command: Sequence[str], weights: Sequence[str]) -> tuple[str, ...]:
    """The names that clients may write as "model", by the server's own rules; empty: any, or it cannot be told.

    llama-server takes any name unless it has aliases; vLLM takes the model's path unless it is given names.
    """
    if engine == LLAMA_SERVER:
        values = flag_values(command, *LLAMA_ALIAS)[:1]
        return tuple(name.strip() for value in values for name in value.split(",") if name.strip())
    if engine == VLLM:
        model = served_model(command) or tuple(weights[:1])
        return flag_values(command, *VLLM_NAMES) or model
    return ()


def served_model(command: Sequence[str]) -> tuple[str, ...]:
    """The model that a vLLM command names: after `serve`, or with --model. Empty: none."""
    if "serve" in command:
        after = command[command.index("serve") + 1 :][:1]
        if after and not after[0].startswith("-"):
            return tuple(after)
    return flag_values(command, "--model")[:1]
