"""What a right configuration becomes, and that none can make the parser fall over."""

import datetime

from hypothesis import given, settings
from hypothesis import strategies as st
from support.config_tables import FILE, SMALL, changed, parsed, parsed_toml

from swapd.core import config_keys
from swapd.core.config import (
    Config,
    ConfigProblem,
    ContractConfig,
    DaemonConfig,
    DeviceConfig,
    ExpectConfig,
    GoldenConfig,
    LivenessConfig,
    ModelConfig,
    NotifyConfig,
    ProbeConfig,
    ReadyConfig,
    RequestConfig,
    ServiceConfig,
    StrategyConfig,
    WarmupConfig,
)
from swapd.core.config_parse import parse_config
from swapd.core.config_views import redacted
from swapd.core.delivery import Shadow
from swapd.core.model import DeviceKind

FULL = """
[daemon]
runtime_dir = "/run/other/"
log_level = "debug"
shutdown_timeout = "3m"

[devices.gpu0]
kind = "nvml"
match = 0
headroom = "1GiB"
[devices.ram]
kind = "host"
memory = "8GB"

[models.a]
app = "pkg.my_model:make.app"
directory = "code"
python = "venv/bin/python"
device_memory = "6GiB"
weights = "/srv/a.safetensors"
env = { MODEL_PATH = "/srv/a", THREADS = 4 }
env_file = "a.env"
[models.a.ready]
path = "/health?deep=1"
timeout = "1m"
[models.a.warmup]
file = "warm.jsonl"
[[models.a.probes]]
request = { path = "/v1/completions", json = { prompt = "hé", n = 1 }, headers = { X-Token = "t" } }
expect = { within = "500ms", json = "/choices/0/text" }
repeat = 3
[[models.a.probes]]
request = { method = "put", path = "/x", body = "raw" }
expect = { status = 204, json = { a = [1, { b = "c" }] } }
[[models.a.probes]]
request = { path = "/y" }

[services.chat]
listen = ["127.0.0.1:08000", "[0::1]:8000", "unix:/run/chat//x.sock"]
model = "a"
devices = ["gpu0"]
strategy = "in-place"
soak = "0s"
"""


def test_a_full_configuration_becomes_values():
    config = parsed_toml(FULL)
    assert config.daemon == DaemonConfig(
        runtime_dir="/run/other",
        control="ipc:///run/other/control.sock",
        events="ipc:///run/other/events.sock",
        log_dir="/var/lib/swapd/logs",
        log_level="debug",
        shutdown_timeout_s=180.0,
    )
    assert config.devices == {
        "gpu0": DeviceConfig(name="gpu0", kind=DeviceKind.NVML, match="0", headroom_bytes=2**30),
        "ram": DeviceConfig(name="ram", kind=DeviceKind.HOST, memory_bytes=8 * 10**9, headroom_bytes=0),
    }
    json_headers = (("x-token", "t"), ("content-type", "application/json"))
    assert config.models["a"] == ModelConfig(
        name="a",
        app="pkg.my_model:make.app",
        directory="/etc/swapd/code",
        python="/etc/swapd/venv/bin/python",
        device_memory_bytes=6 * 2**30,
        weights=("/srv/a.safetensors",),
        env={"MODEL_PATH": "/srv/a", "THREADS": "4"},
        env_file="/etc/swapd/a.env",
        ready=ReadyConfig(path="/health?deep=1", timeout_s=60.0),
        warmup=WarmupConfig(file="/etc/swapd/warm.jsonl"),
        probes=(
            ProbeConfig(
                request=RequestConfig(
                    method="POST",
                    path="/v1/completions",
                    headers=json_headers,
                    body='{"prompt":"hé","n":1}'.encode(),
                ),
                expect=ExpectConfig(within_s=0.5, json_pointer="/choices/0/text"),
                repeat=3,
            ),
            ProbeConfig(
                request=RequestConfig(method="PUT", path="/x", body=b"raw"),
                expect=ExpectConfig(status=204, json_contains={"a": [1, {"b": "c"}]}),
            ),
            ProbeConfig(request=RequestConfig(method="GET", path="/y")),
        ),
    )
    assert config.services["chat"] == ServiceConfig(
        name="chat",
        listen=("127.0.0.1:8000", "[::1]:8000", "unix:/run/chat/x.sock"),
        model="a",
        devices=("gpu0",),
        strategy="in-place",
        soak_s=0.0,
    )


def test_what_is_left_out_has_the_defaults_of_the_dataclasses():
    config = parsed(SMALL)
    assert config.file == FILE
    assert config.devices == {}
    assert config.models["a"] == ModelConfig(name="a", app="my_model:app", directory="/etc/swapd")
    assert config.services["chat"] == ServiceConfig(name="chat", listen=("127.0.0.1:8000",), model="a")
    assert config.daemon.control == "ipc:///run/swapd/control.sock"


def test_host_memory_without_a_budget_keeps_headroom_and_a_budget_does_not():
    assert parsed(changed((("devices", "ram", "kind"), "host"))).devices["ram"].headroom_bytes == 512 * 2**20
    budget = changed((("devices", "ram"), {"kind": "host", "memory": "8GiB"}))
    assert parsed(budget).devices["ram"].headroom_bytes == 0


def test_wildcards_of_the_two_families_share_a_port():
    """They are bound with IPV6_V6ONLY."""
    tables = changed((("services", "chat", "listen"), ["0.0.0.0:8000", "[::]:8000"]))
    assert parsed(tables).services["chat"].listen == ("0.0.0.0:8000", "[::]:8000")


def test_a_model_read_from_another_file_has_its_mistakes_there():
    tables = changed((("models", "b"), {"app": "b"}), (("models", "bb"), {}))
    found = parse_config(tables, file=FILE, model_files={"b": "/etc/swapd/models.d/b.toml"})
    assert isinstance(found, list)
    assert [(p.file, p.key) for p in found] == [
        ("/etc/swapd/models.d/b.toml", "models.b.app"),
        (FILE, "models.bb.app"),
    ]


def test_values_of_a_model_s_environment_are_in_no_repr():
    model = ModelConfig(name="a", env={"TOKEN": "hunter2"}, env_file_values={"KEY": "hunter3"})
    assert "hunter" not in repr(model)
    assert model.environment == {"KEY": "hunter3", "TOKEN": "hunter2"}


def test_env_wins_over_env_file():
    model = ModelConfig(name="a", env={"TOKEN": "mine"}, env_file_values={"TOKEN": "the file's"})
    assert model.environment == {"TOKEN": "mine"}


def test_every_field_has_a_key_and_every_key_a_field():
    owners = {
        "daemon": DaemonConfig,
        "devices": DeviceConfig,
        "models": ModelConfig,
        "ready": ReadyConfig,
        "probes": ProbeConfig,
        "request": RequestConfig,
        "expect": ExpectConfig,
        "warmup": WarmupConfig,
        "golden": GoldenConfig,
        "liveness": LivenessConfig,
        "contract": ContractConfig,
        "services": ServiceConfig,
        "strategies": StrategyConfig,
        "shadow": Shadow,
        "notify": NotifyConfig,
    }
    assert owners.keys() == config_keys.SECTIONS.keys()
    # From the table's name, the file, and the key json.
    made = {"name", "env_file_values", "headers_file_values", "json_contains"}
    for section, owner in owners.items():
        attributes = {key.attribute for key in config_keys.SECTIONS[section]}
        assert attributes == set(owner.__dataclass_fields__) - made, section


# --- whatever the tables hold ------------------------------------------------------------------------------------

_WORDS = sorted({key.name for rows in config_keys.SECTIONS.values() for key in rows} | {"a", "b", "chat", "gpu0"})
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["127.0.0.1:8000", "unix:/x", "60s", "6GiB", "a", "auto", "host", "nvml", "my_model:app", "/"])
    | st.dates()
    | st.times()
    | st.datetimes(timezones=st.just(datetime.timezone.utc))
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS) | st.text(), inner, max_size=4),
    max_leaves=12,
)


def _tables(section: str) -> st.SearchStrategy:
    names = [key.name for key in config_keys.SECTIONS[section]]
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=3), _VALUES, max_size=6)


_NAMES = st.sampled_from(["a", "b", "chat"]) | st.text(max_size=4)
_FILES = st.fixed_dictionaries(
    {},
    optional={
        "daemon": _tables("daemon") | _VALUES,
        "devices": st.dictionaries(_NAMES, _tables("devices") | _VALUES, max_size=3) | _VALUES,
        "models": st.dictionaries(_NAMES, _tables("models") | _VALUES, max_size=3) | _VALUES,
        "services": st.dictionaries(_NAMES, _tables("services") | _VALUES, max_size=3) | _VALUES,
        "strategies": _VALUES,
        "other": _VALUES,
    },
)


@settings(max_examples=400, deadline=None)
@given(_FILES)
def test_whatever_the_tables_hold_the_parser_answers(tables):
    result = parse_config(tables, file=FILE)
    if isinstance(result, Config):
        redacted(result)
        return
    assert result
    for problem in result:
        assert isinstance(problem, ConfigProblem)
        assert problem.key
        assert problem.message
        assert str(problem).isprintable()


def test_a_number_of_thousands_of_digits_is_named_for_every_key():
    """TOML has no limit in hexadecimal; Python has one for writing the number out."""
    huge = 16**5000
    for section in ("daemon", "devices", "models", "services"):
        for key in config_keys.SECTIONS[section]:
            table = {key.name: huge}
            found = parse_config({section: table if section == "daemon" else {"a": table}}, file=FILE)
            assert isinstance(found, list)
            assert [problem for problem in found if f".{key.name}" in problem.key], key.name
    found = parse_config(changed((("models", "a", "env"), {"N": huge})), file=FILE)
    assert [problem.key for problem in found] == ["models.a.env"]
