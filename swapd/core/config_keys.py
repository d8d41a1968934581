"""Every key of the configuration, as tables: its name, what it may be, and when a change of it takes effect.

Duty: the one list that the parser, the redacted view, the comparison at `reload` and the tests of
`etc/swapd.toml` go by. A new key is a row here and a field in `config`. May not know: how a file is read.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from swapd.core import config_addresses as address
from swapd.core import config_contract as contract
from swapd.core import config_notify as notify
from swapd.core import config_proofs as proof
from swapd.core import config_readers as read
from swapd.core import config_requests as request
from swapd.core.config import MIB
from swapd.core.config_readers import Reader
from swapd.core.units import format_duration, format_size

# When a changed value counts, after `reload`.
NOW: Final = "now"  # from the next use on
NEXT_SWAP: Final = "next swap"  # for the workers that the next swap (or restart) starts
SWAP: Final = "swap"  # it asks for one
RESTART: Final = "restart"  # only when the daemon starts again

HIDDEN: Final = "…"


@dataclass(frozen=True, slots=True)
class Key:
    """One key. `read` is None for a table of its own; `cure` is what to write when a required key is missing."""

    name: str
    read: Reader | None
    effect: str = NEXT_SWAP
    field: str = ""  # of the dataclass, where it is not the key's name
    cure: str = ""
    show: Callable[[Any], object] = lambda value: value

    @property
    def attribute(self) -> str:
        return self.field or self.name


def _timeout(name: str, effect: str, low_s: float = 0.0, high_s: float = 30 * 86400.0) -> Key:
    return Key(name, read.duration(low_s, high_s), effect, name + "_s", show=format_duration)


def _hide_values(pairs: Any) -> object:
    return dict.fromkeys(dict(pairs), HIDDEN)


def _show_headers(pairs: Any) -> object:
    harmless = ("content-type", "accept")
    return {name: content if name in harmless else HIDDEN for name, content in pairs}


def _show_tensors(tensors: Any) -> object:
    set_ = (("type", ""), ("shape", None), ("optional", False))
    return [
        {"name": each.name, **{key: getattr(each, key) for key, default in set_ if getattr(each, key) != default}}
        for each in tensors
    ]


DAEMON: Final = (
    Key("runtime_dir", read.absolute_path, RESTART),
    Key("state_dir", read.absolute_path, RESTART),
    Key("control", address.endpoint, RESTART),
    Key("events", address.endpoint, RESTART),
    Key("metrics", address.listen_address, RESTART),
    Key("log_level", read.choice("debug", "info", "warning", "error"), NOW),
    Key("log_dir", read.absolute_path, RESTART),
    Key("log_keep", read.integer(1, 10_000), NOW),
    Key("log_max_size", read.size(MIB), NOW, "log_max_bytes", show=format_size),
    Key("log_rotate", read.integer(0, 100), NOW),
    Key("history_keep", read.integer(1, 1_000_000), NOW),
    _timeout("history_max_age", NOW, high_s=100 * 365 * 86400.0),
    _timeout("shutdown_timeout", NOW, 1.0),
    _timeout("hand_over_timeout", NOW, 0.1, 60.0),
    _timeout("release_timeout", NOW, 0.1, 3600.0),
    _timeout("stop_timeout", NOW, 0.1, 3600.0),
    _timeout("restart_backoff_max", NOW, 1.0, 3600.0),
    Key("reload_swaps", read.choice("model", "settings"), NOW),
    Key("crash_loop_failures", read.integer(1, 1_000_000), NOW),
)
DEVICE: Final = (
    Key("kind", read.choice("nvml", "host"), RESTART, cure='write kind = "nvml" for a GPU, or "host"'),
    Key("match", address.device_match, RESTART),
    Key("headroom", read.size(), NOW, "headroom_bytes", show=format_size),
    Key("floor", read.size(), NOW, "floor_bytes", show=format_size),
    Key("memory", read.size(MIB), NOW, "memory_bytes", show=format_size),
)
MODEL: Final = (
    Key("engine", read.choice("asgi", "command", "vllm", "llama-server")),
    Key("app", read.app),
    Key("directory", read.path),
    Key("python", read.interpreter),
    Key("device_memory", read.size(1), field="device_memory_bytes", show=format_size),
    Key("weights", read.paths, show=list),
    Key("stage", read.flag),
    Key("env", read.environment, show=_hide_values),
    Key("env_file", read.path),
    Key("ready", None),
    Key("probes", None),
    Key("warmup", None),
    Key("liveness", None, NOW),
    Key("gpus", read.integer(1, 64)),
    Key("command", read.command, show=list),
    Key("user", read.text),
    Key("read_paths", read.paths, show=list),
    Key("write_paths", read.paths, show=list),
    Key("memory_max", read.size(MIB), field="memory_max_bytes", show=format_size),
    Key("cpu_weight", read.integer(1, 10_000)),
    Key("served_names", read.served_names, show=list),
    Key("stop_signal", read.choice("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL")),
    _timeout("stop_timeout", NEXT_SWAP, 0.1, 3600.0),
    Key("sleep", read.flag),
    Key("contract", None, NOW),
)
CONTRACT: Final = (
    Key("features", read.text, NOW),
    Key("tokenizer", read.text, NOW),
    Key("preprocessing", read.text, NOW),
    Key("inputs", contract.tensors, NOW, show=_show_tensors),
    Key("outputs", contract.tensors, NOW, show=_show_tensors),
    Key("endpoints", contract.endpoints, NOW, show=list),
    Key("openapi", request.url_path, NOW),
    Key("v2", contract.v2_name, NOW),
    Key("models", request.url_path, NOW),
)
READY: Final = (
    Key("path", request.url_path),
    _timeout("timeout", NEXT_SWAP, 0.1),
)
LIVENESS: Final = (
    _timeout("period", NOW, 0.1, 86400.0),
    _timeout("timeout", NOW, 0.1, 86400.0),
    Key("failures", read.integer(0, 1_000_000), NOW),
)
PROBE: Final = (
    Key("request", None, cure='write request = { path = "/health" }'),
    Key("expect", None),
    Key("repeat", read.integer(1, 1000)),
)
REQUEST: Final = (
    Key("method", request.method),
    Key("path", request.url_path, cure='write path = "/health"'),
    Key("headers", request.headers, show=_show_headers),
    Key("json", request.json_body, field="body", show=lambda body: body.decode("utf-8", "replace")),
    Key("body", request.body, show=lambda body: body.decode("utf-8", "replace")),
)
EXPECT: Final = (
    Key("status", read.integer(100, 599)),
    _timeout("within", NEXT_SWAP, 0.001),
    Key("json", request.expected_json, field="json_pointer"),  # a table goes to json_contains
    Key("exact", request.exact_json, field="json_exact", show=lambda text: None if text is None else json.loads(text)),
    Key("text", request.exact_text),
    Key("close", request.close_numbers, show=dict),
    Key("rtol", read.number(0.0, 1e9)),
    Key("atol", read.number(0.0, 1e300)),
    Key("label", request.pointer),
    Key("is", request.label, field="label_is"),
)
GOLDEN: Final = (
    Key("request", None, NOW, cure='write request = { path = "/health" }'),
    Key("expect", None, NOW),
)
WARMUP: Final = (
    Key("file", read.path, cure='write file = "warm.jsonl"'),
    Key("concurrency", read.integer(1, 1024)),
    _timeout("timeout", NEXT_SWAP, 0.1),
)
SERVICE: Final = (
    Key("listen", address.listen, NOW, cure='write listen = "127.0.0.1:8000"', show=list),
    Key("model", read.text, SWAP, cure='write model = "NAME", the [models.NAME] to serve at first'),
    Key("devices", read.device_names, show=list),
    Key("strategy", read.text, NOW),
    Key("replicas", read.integer(1, 256)),
    Key("front", read.choice("direct", "gate"), NOW),
    Key("protocol", read.choice("http", "tcp"), RESTART),
    _timeout("drain_timeout", NOW),
    _timeout("hold_timeout", NOW, 1.0),
    _timeout("max_outage", NOW),
    _timeout("soak", NOW),
    Key("health_path", request.health_path),
    _timeout("keep_alive", NEXT_SWAP, 1.0, 86400.0),
    Key("queue_limit", read.integer(1, 100_000)),
    Key("trust_forwarded", read.flag, NOW),
    Key("access_log", read.switch_or_path, NOW),
    Key("access_log_query", read.flag, NOW),
    Key("session_key", proof.session_key, NOW),
    Key("rules", proof.rules, NOW, show=proof.show_rules),
    Key("golden", None, NOW),
    Key("golden_rate", read.number(0.01, 1000.0), NOW),
    Key("golden_repeat", read.integer(1, 1000), NOW),
)
STRATEGY: Final = (
    Key("kind", read.choice("auto", "dual", "in-place", "canary", "shadow", "guarded"), NOW),
    Key("steps", proof.percents, NOW, show=list),
    _timeout("step_time", NOW),
    _timeout("step_deadline", NOW),
    Key("min_requests", read.integer(1, 1_000_000), NOW),
    Key("ends", proof.ends, NOW),
    Key("on_pass", proof.then, NOW),
    Key("on_fail", proof.then, NOW),
    Key("on_inconclusive", proof.then, NOW),
    Key("match", proof.match, NOW, show=proof.show_match),
    Key("shadow", None, NOW),
)
SHADOW: Final = (
    Key("share", proof.percent(), NOW),
    _timeout("time", NOW),
    Key("methods", proof.methods, NOW, show=list),
    Key("paths", proof.path_starts, NOW, show=list),
    Key("max_body", proof.body_size, NOW, "max_body_bytes", show=format_size),
    Key("concurrency", read.integer(1, 16), NOW),
    Key("noise", proof.percent(-1.0), NOW),
    Key("keep", read.integer(0, 1000), NOW),
    Key("redact", proof.pointers, NOW, show=list),
    Key("compare", read.choice("exact", "json", "number", "label", "text"), NOW),
    Key("ignore", proof.pointers, NOW, show=list),
    Key("pointer", proof.pointer, NOW),
    Key("rtol", read.number(0.0, 1.0), NOW),
    Key("atol", read.number(0.0, 1e9), NOW),
    Key("similar", read.number(0.0, 1.0), NOW),
)
NOTIFY: Final = (
    Key("on", notify.events, NOW, cure='write on = ["swap.finished", "swap.paused", "service.health"]', show=list),
    Key("services", notify.services, NOW, show=lambda names: None if names is None else list(names)),
    Key("url", notify.url, NOW, show=notify.show_url),
    Key("headers_file", read.path, NOW),
    Key("command", read.command, NOW, show=notify.show_command),
    _timeout("timeout", NOW, 0.1, 600.0),
    Key("attempts", read.integer(1, 100), NOW),
)
SECTIONS: Final[dict[str, tuple[Key, ...]]] = {
    "daemon": DAEMON,
    "devices": DEVICE,
    "models": MODEL,
    "ready": READY,
    "liveness": LIVENESS,
    "contract": CONTRACT,
    "probes": PROBE,
    "request": REQUEST,
    "expect": EXPECT,
    "warmup": WARMUP,
    "golden": GOLDEN,
    "services": SERVICE,
    "strategies": STRATEGY,
    "shadow": SHADOW,
    "notify": NOTIFY,
}
TABLES: Final = ("daemon", "devices", "models", "services", "strategies", "notify")  # at the top of the file


@dataclass(frozen=True, slots=True)
class NotYet:
    """A key that belongs to the design and cannot be honoured yet; values in `honoured` can."""

    section: str
    key: str
    honoured: tuple[object, ...] = ()


# Whoever builds one of these deletes its row, and nothing else here.
NOT_YET: Final = (NotYet("services", "replicas", (1,)),)


def not_yet(section: str, key: str, value: object) -> str | None:
    """Why the value cannot be honoured by this version; None when it can."""
    for row in NOT_YET:
        if (row.section, row.key) == (section, key) and value not in row.honoured:
            if not row.honoured:
                return "is not supported yet by this version of swapd: leave it out"
            options = " or ".join(f'"{word}"' if isinstance(word, str) else str(word) for word in row.honoured)
            word = f'"{value}"' if isinstance(value, str) else value
            return f"{word} is not supported yet by this version of swapd: write {options}"
    return None
