"""etc/swapd.toml is the reference, and docs/timeouts.md the timeline: both complete, both true."""

import re
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from swapd.core import config_keys
from swapd.core.config import (
    Config,
    DaemonConfig,
    ExpectConfig,
    LivenessConfig,
    ReadyConfig,
    ServiceConfig,
    StrategyConfig,
    WarmupConfig,
)
from swapd.core.config_parse import parse_config, parse_tables
from swapd.core.delivery import Shadow
from swapd.core.units import parse_duration

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "etc/swapd.toml"
TIMEOUTS = ROOT / "docs/timeouts.md"
FILE = "/etc/swapd/swapd.toml"


def _all_settings_on() -> dict:
    """The reference with every commented setting taken in."""
    return tomllib.loads(re.sub(r"^#(?=[a-z\[])", "", REFERENCE.read_text("utf-8"), flags=re.MULTILINE))


def _named(tables: dict, section: str) -> set[str]:
    """The keys of a section that the tables set somewhere."""
    models = list(tables["models"].values())
    probes = [probe for model in models for probe in model.get("probes", ())]
    golden = [each for service in tables["services"].values() for each in service.get("golden", ())]
    places = {
        "daemon": [tables["daemon"]],
        "devices": list(tables["devices"].values()),
        "models": models,
        "services": list(tables["services"].values()),
        "strategies": list(tables["strategies"].values()),
        "shadow": [strategy.get("shadow", {}) for strategy in tables["strategies"].values()],
        "ready": [model.get("ready", {}) for model in models],
        "liveness": [model.get("liveness", {}) for model in models],
        "contract": [model.get("contract", {}) for model in models],
        "warmup": [model.get("warmup", {}) for model in models],
        "probes": probes,
        "notify": list(tables["notify"].values()),
        "golden": golden,
        "request": [probe["request"] for probe in probes],
        "expect": [each.get("expect", {}) for each in [*probes, *golden]],
    }
    return {name for place in places[section] for name in place}


def test_the_reference_is_right_as_it_stands():
    result = parse_config(tomllib.loads(REFERENCE.read_text("utf-8")), file=FILE)
    assert isinstance(result, Config), [str(problem) for problem in result]


@pytest.mark.parametrize("section", config_keys.SECTIONS)
def test_the_reference_has_every_key_that_there_is(section):
    assert _named(_all_settings_on(), section) == {key.name for key in config_keys.SECTIONS[section]}


def test_every_setting_of_the_reference_can_be_taken_in_but_those_of_later_versions():
    _, problems = parse_tables(_all_settings_on(), file=FILE)
    later = {f".{row.key}" for row in config_keys.NOT_YET if not row.honoured}
    for problem in problems:
        assert "not supported yet" in problem.message, str(problem)
        assert problem.key[problem.key.rindex(".") :] in later


def test_what_the_reference_comments_out_is_the_default():
    config, _ = parse_tables(_all_settings_on(), file=FILE)
    sockets = {"control": "ipc:///run/swapd/control.sock", "events": "ipc:///run/swapd/events.sock"}
    assert replace(config.daemon, metrics=None) == DaemonConfig(**sockets, log_dir="/var/lib/swapd/logs")
    chat = config.services["chat"]
    examples = {"session_key": chat.session_key, "rules": chat.rules, "golden": chat.golden}
    assert chat == ServiceConfig(name="chat", listen=chat.listen, model=chat.model, **examples)
    careful = config.strategies["careful"]
    examples = {name: getattr(careful.shadow, name) for name in ("paths", "redact", "ignore", "pointer")}
    assert careful == StrategyConfig(name="careful", match=careful.match, shadow=Shadow(**examples))
    expect = chat.golden[0].expect
    assert (expect.rtol, expect.atol) == (ExpectConfig().rtol, ExpectConfig().atol)
    model = config.models["a"]
    assert model.ready == ReadyConfig(path=model.ready.path)
    assert model.liveness == LivenessConfig()
    assert model.warmup == WarmupConfig(file="/srv/models/warm.jsonl")


def test_the_timeline_has_every_duration_with_its_default():
    text = TIMEOUTS.read_text("utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| `([^`]+)` \|", text, flags=re.MULTILINE))
    owners = {
        "daemon": ("daemon", DaemonConfig),
        "services.*": ("services", ServiceConfig),
        "models.*.ready": ("ready", ReadyConfig),
        "models.*.liveness": ("liveness", LivenessConfig),
        "models.*.warmup": ("warmup", WarmupConfig),
        "models.*.probes[].expect": ("expect", ExpectConfig),
    }
    expected = {}
    for path, (section, owner) in owners.items():
        defaults = {field.name: field.default for field in fields(owner)}
        for key in config_keys.SECTIONS[section]:
            if key.attribute.endswith("_s"):
                expected[f"{path}.{key.name}"] = defaults[key.attribute]
    assert {key: parse_duration(default) for key, default in rows.items()} == expected
