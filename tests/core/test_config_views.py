"""Digest, view without secrets, comparison."""

import json
from dataclasses import replace

import pytest
from support.config_tables import FILE, changed, parsed

from swapd.core.config import Config, DaemonConfig, ModelConfig, ProbeConfig, ReadyConfig, RequestConfig, WarmupConfig
from swapd.core.config_parse import parse_config
from swapd.core.config_views import NEXT_SWAP, NOW, RESTART, SWAP, diff_config, redacted, settings_digest

A = ("models", "a")
CHAT = ("services", "chat")
SECRET = changed(
    ((*A, "env"), {"TOKEN": "hunter2"}),
    ((*A, "env_file"), "a.env"),
    ((*A, "probes"), [{"request": {"path": "/", "headers": {"Authorization": "hunter2", "Accept": "text/plain"}}}]),
)


def _with_file(config: Config, **values: str) -> Config:
    return replace(config, models={"a": replace(config.models["a"], env_file_values=values)})


def test_a_digest_is_16_hex_digits_and_the_same_every_time():
    digest = settings_digest(parsed(SECRET).models["a"])
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    assert digest == settings_digest(parsed(SECRET).models["a"])


@pytest.mark.parametrize(
    "change",
    [
        {"app": "other:app"},
        {"directory": "/srv"},
        {"python": "/srv/python"},
        {"device_memory_bytes": 1},
        {"weights": ("/w",)},
        {"env": {"A": "2"}},
        {"env": {"B": "1"}},
        {"env_file_values": {"K": "2"}},
        {"ready": ReadyConfig(path="/x")},
        {"probes": (ProbeConfig(request=RequestConfig(path="/x", body=b"y")),)},
        {"warmup": WarmupConfig(file="/w")},
        {"user": "x"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_changes_the_digest(change):
    model = ModelConfig(name="a", app="m:app", env={"A": "1"}, env_file_values={"K": "1"})
    assert settings_digest(replace(model, **change)) != settings_digest(model)


def test_what_clients_rely_on_is_no_setting_of_a_worker_and_counts_at_once():
    contract = {"features": "v7", "inputs": [{"name": "x", "type": "float32", "shape": [-1]}], "v2": "a"}
    old, new = parsed(changed()), parsed(changed(((*A, "contract"), contract)))
    assert settings_digest(old.models["a"]) == settings_digest(new.models["a"])
    assert {change.effect for change in diff_config(old, new)} == {NOW}
    shown = redacted(new)["models"]["a"]["contract"]
    assert shown == {**contract, "inputs": [{"name": "x", "type": "FP32", "shape": [-1]}]}


def test_neither_the_name_nor_the_order_of_variables_changes_the_digest():
    one = ModelConfig(name="a", app="m:app", env={"A": "1", "B": "2"})
    other = ModelConfig(name="b", app="m:app", env={"B": "2", "A": "1"})
    assert settings_digest(one) == settings_digest(other)


def test_a_setting_written_at_its_default_does_not_change_the_digest():
    """Nor does a key that a later version adds, until somebody sets it."""
    plain = parsed(changed())
    written = parsed(changed(((*A, "engine"), "asgi"), ((*A, "gpus"), 1), ((*A, "ready"), {"timeout": "600s"})))
    assert settings_digest(plain.models["a"]) == settings_digest(written.models["a"])


def test_the_redacted_view_is_json_without_secrets():
    view = json.dumps(redacted(_with_file(parsed(SECRET), KEY="hunter3")))
    assert "hunter" not in view
    model = redacted(parsed(SECRET))["models"]["a"]
    assert model["env"] == {"TOKEN": "…"}
    assert model["env_file"] == "/etc/swapd/a.env"
    assert model["probes"][0]["request"]["headers"] == {"authorization": "…", "accept": "text/plain"}


def test_the_redacted_view_spells_values_as_the_file_does():
    view = redacted(parsed(changed((("devices", "g"), {"kind": "nvml", "match": 0}), ((*CHAT, "soak"), "90s"))))
    assert view["devices"]["g"] == {"kind": "nvml", "match": "0", "headroom": "512MiB"}
    assert view["services"]["chat"]["soak"] == "90s"
    assert view["services"]["chat"]["devices"] == "auto"


def test_the_redacted_view_of_a_file_without_secrets_is_a_file_with_the_same_meaning():
    tables = changed(
        (("devices", "ram"), {"kind": "host", "memory": "8GiB"}),
        ((*A, "weights"), ["w"]),
        ((*A, "warmup"), {"file": "w.jsonl"}),
        ((*A, "probes"), [{"request": {"path": "/", "body": "x"}, "expect": {"json": {"a": 1}}}]),
        ((*CHAT, "devices"), ["ram"]),
    )
    view = redacted(parsed(tables))
    assert parsed({name: table for name, table in view.items() if name != "file"}) == parsed(tables)


@pytest.mark.parametrize(
    ("change", "key", "effect"),
    [
        (((*CHAT, "strategy"), "dual"), "services.chat.strategy", NOW),
        (((*CHAT, "soak"), "1m"), "services.chat.soak", NOW),
        (((*CHAT, "hold_timeout"), "1m"), "services.chat.hold_timeout", NOW),
        (((*CHAT, "drain_timeout"), "1m"), "services.chat.drain_timeout", None),  # the default, written otherwise
        (((*CHAT, "drain_timeout"), "2m"), "services.chat.drain_timeout", NOW),
        (((*CHAT, "max_outage"), "0s"), "services.chat.max_outage", NOW),
        (((*CHAT, "front"), "gate"), "services.chat.front", NOW),
        (((*CHAT, "trust_forwarded"), True), "services.chat.trust_forwarded", NOW),
        (((*CHAT, "access_log_query"), True), "services.chat.access_log_query", NOW),
        (((*CHAT, "keep_alive"), "5s"), "services.chat.keep_alive", NEXT_SWAP),
        (((*CHAT, "listen"), "127.0.0.1:9000"), "services.chat.listen", NOW),
        ((("daemon", "log_level"), "debug"), "daemon.log_level", NOW),
        ((("daemon", "log_dir"), "/x"), "daemon.log_dir", RESTART),
        ((("daemon", "control"), "ipc:///x"), "daemon.control", RESTART),
        ((("devices", "ram"), {"kind": "host"}), "devices.ram", NOW),
        ((("models", "b"), {"app": "b:app"}), "models.b", NEXT_SWAP),
        (((*A, "app"), "b:app"), "models.a.app", NEXT_SWAP),
        (((*A, "ready"), {"path": "/x"}), "models.a.ready.path", NEXT_SWAP),
        (((*A, "warmup"), {"file": "/x"}), "models.a.warmup", NEXT_SWAP),
        (((*A, "probes"), [{"request": {"path": "/"}}]), "models.a.probes", NEXT_SWAP),
        ((("services", "b"), {"listen": "unix:/x", "model": "a"}), "services.b", NOW),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_is_named_with_its_key_and_when_it_counts(change, key, effect):
    old, new = parsed(changed()), parsed(changed(change))
    found = diff_config(old, new)
    if effect is None:
        assert found == ()
        return
    assert [(each.key, each.effect, each.live) for each in found] == [(key, effect, effect != RESTART)]
    assert [each.key for each in diff_config(new, old)] == [key]
    assert str(found[0]).startswith(key + ": ")


def test_another_model_of_a_service_is_a_swap_of_it():
    both = (("models", "b"), {"app": "b:app"})
    (change,) = diff_config(parsed(changed(both)), parsed(changed(both, ((*CHAT, "model"), "b"))))
    assert (change.table, change.name, change.effect) == ("services", "chat", SWAP)
    assert str(change) == 'services.chat.model: "a" -> "b"'


def test_a_name_with_dots_is_told_apart_from_its_key():
    dotted = {"a.b": {"listen": "127.0.0.1:1", "model": "a"}}
    (change,) = diff_config(
        parsed(changed((("services",), dotted))),
        parsed(changed((("services",), {"a.b": {**dotted["a.b"], "soak": "1m"}}))),
    )
    assert (change.table, change.name, change.key) == ("services", "a.b", 'services."a.b".soak')


def test_changed_secrets_are_seen_and_not_shown():
    old = _with_file(parsed(SECRET), KEY="hunter3")
    other = changed(((*A, "env"), {"TOKEN": "hunter4", "MORE": "hunter5"}), ((*A, "env_file"), "a.env"))
    new = _with_file(parsed(other), KEY="hunter6")
    found = diff_config(old, new)
    assert {each.key for each in found} == {
        "models.a.env.TOKEN",
        "models.a.env.MORE",
        "models.a.env_file",
        "models.a.probes",
    }
    assert "hunter" not in repr(found)
    assert "hunter" not in "".join(map(str, found))


def test_nothing_changed_is_no_change():
    assert diff_config(parsed(SECRET), parsed(SECRET)) == ()


def test_a_worker_s_directory_lies_below_runtime_dir():
    assert DaemonConfig(runtime_dir="/run/x").worker_dir("chat-3") == "/run/x/w/chat-3"
    assert isinstance(parse_config({}, file=FILE), list)
