"""The configuration seen from outside: a digest of a model's settings, a view without secrets, a comparison.

Duty: what revisions are told apart by, what `show` and the logs may print, and what `reload` may do. Every value
of `env` and `env_file` counts in the digest and is shown nowhere.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from enum import Enum
from typing import Any, Final

from swapd.core.config import Config, ContractConfig, LivenessConfig, ModelConfig
from swapd.core.config_keys import HIDDEN, NEXT_SWAP, NOW, RESTART, SECTIONS, SWAP, Key
from swapd.core.config_readers import quoted

__all__ = ["Change", "NEXT_SWAP", "NOW", "RESTART", "SWAP", "diff_config", "redacted", "settings_digest"]

DIGEST_DIGITS: Final = 16
_Where = tuple[str, str, str]  # table, name, key path


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two configurations. `old` and `new` are redacted; None: the key or table is absent.

    `table` and `name` say where the key lies ("services", "chat"; no name in "daemon"), since a name may have dots.
    """

    table: str
    name: str
    key: str
    old: object
    new: object
    effect: str  # NOW | NEXT_SWAP | SWAP | RESTART

    @property
    def live(self) -> bool:
        """Whether the running daemon can take it over."""
        return self.effect != RESTART

    def __str__(self) -> str:
        if self.old is None:
            return f"{self.key}: added"
        if self.new is None:
            return f"{self.key}: removed"
        return f"{self.key}: {_short(self.old)} -> {_short(self.new)}"


def settings_digest(model: ModelConfig) -> str:
    """16 hex digits over everything that makes a worker of this model what it is, secrets included.

    What the daemon alone goes by, such as probes and a declared footprint, counts as well: a change of it is a
    change to prove again. Liveness does not, which is about workers that are there already, nor the contract, which
    says what is so anyway, nor the model's name: a revision has it beside the digest. Settings at their default are
    left out, so that a later version with more of them still gives the same digest to the same file.
    """
    shorn = replace(model, name="", liveness=LivenessConfig(), contract=ContractConfig())
    text = json.dumps(_set(shorn), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:DIGEST_DIGITS]


def redacted(config: Config) -> dict[str, Any]:
    """The whole configuration with its defaults, spelled as in the file, fit for JSON and for other eyes."""
    shown: dict[str, Any] = {"file": config.file, "daemon": _show("daemon", config.daemon)}
    for kind in ("devices", "models", "services", "strategies", "notify"):
        shown[kind] = {name: _show(kind, each) for name, each in getattr(config, kind).items()}
    return shown


def _set(value: Any) -> Any:
    """As `_plain`, without the fields that have their default."""
    if isinstance(value, tuple):
        return [_set(each) for each in value]
    if not is_dataclass(value) or isinstance(value, type):
        return _plain(value)
    found = {}
    for each in fields(value):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if (content := getattr(value, each.name)) != default:
            found[each.name] = _set(content)
    return found


def diff_config(old: Config, new: Config) -> tuple[Change, ...]:
    """What changed, in the order of the tables. Compared by the real values, shown without secrets."""
    changes = list(_compare("daemon", ("daemon", "", "daemon"), old.daemon, new.daemon))
    for kind in ("devices", "models", "services", "strategies", "notify"):
        before, after = getattr(old, kind), getattr(new, kind)
        whole = NEXT_SWAP if kind == "models" else NOW
        for name in [*before, *(name for name in after if name not in before)]:
            at = (kind, name, f"{kind}.{quoted(name)}")
            if name not in after:
                changes.append(Change(*at, _show(kind, before[name]), None, whole))
            elif name not in before:
                changes.append(Change(*at, None, _show(kind, after[name]), whole))
            else:
                changes += _compare(kind, at, before[name], after[name])
    return tuple(changes)


def _compare(section: str, where: _Where, old: Any, new: Any) -> Iterator[Change]:
    for key in SECTIONS[section]:
        before, after = _value(key, old), _value(key, new)
        at = (*where[:2], f"{where[2]}.{key.name}")
        if before == after:
            continue
        if key.name == "env":
            yield from _compare_env(at, before, after)
        elif (
            key.read is None
            and key.name in ("ready", "warmup", "liveness", "shadow", "contract")
            and before is not None
            and after is not None
        ):
            yield from _compare(key.name, at, before, after)
        else:
            yield Change(*at, _shown(key, before), _shown(key, after), key.effect)
    if section == "notify" and old.headers_file_values != new.headers_file_values:
        yield Change(*where[:2], f"{where[2]}.headers_file", HIDDEN, HIDDEN, NOW)
    if section == "models" and old.env_file_values != new.env_file_values:
        yield Change(*where[:2], f"{where[2]}.env_file", HIDDEN, HIDDEN, NEXT_SWAP)


def _compare_env(where: _Where, old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[Change]:
    for name in [*old, *(name for name in new if name not in old)]:
        if old.get(name) != new.get(name):
            at = (*where[:2], f"{where[2]}.{quoted(name)}")
            yield Change(*at, HIDDEN if name in old else None, HIDDEN if name in new else None, NEXT_SWAP)


def _value(key: Key, owner: Any) -> Any:
    """A key's value; `expect.json` is one key and two fields."""
    value = getattr(owner, key.attribute)
    return owner.json_contains if value is None and key.attribute == "json_pointer" else value


def _show(section: str, owner: Any) -> dict[str, Any]:
    """One table as it could be written, keys that are not set left out."""
    rows = {key.name: _value(key, owner) for key in SECTIONS[section]}
    if section == "request":
        is_json = dict(owner.headers).get("content-type") == "application/json"
        rows.pop("body" if is_json else "json")
    by_name = {key.name: key for key in SECTIONS[section]}
    shown = {name: _shown(by_name[name], value) for name, value in rows.items()}
    return {name: value for name, value in shown.items() if value not in (None, [], {})}


def _shown(key: Key, value: Any) -> Any:
    if value is None:
        return "auto" if key.name == "devices" else None
    if key.name in ("probes", "golden"):
        return [_show(key.name, each) for each in value]
    if key.read is None:
        return _show(key.name, value)
    return _plain(key.show(value))


def _plain(value: Any) -> Any:
    """Dataclasses, enums, tuples and bytes as JSON has them."""
    if is_dataclass(value) and not isinstance(value, type):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(name): _plain(content) for name, content in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(content) for content in value]
    return value.hex() if isinstance(value, bytes) else value


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."
