"""Every mistake is named with its key and what to write instead, however many there are."""

import pytest
from support.config_tables import FILE, changed, problems_of

CHAT = ("services", "chat")
A = ("models", "a")
PROBE = {"request": {"path": "/x"}}


def _services(**listens):
    return {name: {"listen": listen, "model": "a"} for name, listen in listens.items()}


def _expecting(**expect):
    return {**PROBE, "expect": expect}


def _asked_by(method):
    return {"request": {"path": "/x", "method": method}}


MISTAKES = [
    # --- unknown keys and tables
    (((*CHAT, "hold_timout"), "5s"), "services.chat.hold_timout", 'unknown key: did you mean "hold_timeout"?'),
    (((*CHAT, "ready"), {}), "services.chat.ready", "unknown key: it belongs in [models.NAME]"),
    (((*A, "soak"), "5m"), "models.a.soak", "unknown key: it belongs in [services.NAME]"),
    (((*A, "ready"), {"pth": "/x"}), "models.a.ready.pth", 'did you mean "path"?'),
    (((*A, "ready"), {"zzz": 1}), "models.a.ready.zzz", "known here: path, timeout"),
    ((("deamon",), {}), "deamon", 'unknown table: did you mean "daemon"?'),
    ((("service",), {}), "service", 'unknown table: did you mean "services"?'),
    (((*A, "we ird"), 1), 'models.a."we ird"', "unknown key"),
    # --- wrong types and units
    (((*CHAT, "soak"), "60"), "services.chat.soak", 'write "60s"'),
    (((*CHAT, "soak"), 60), "services.chat.soak", 'write "60s"'),
    (((*CHAT, "soak"), True), "services.chat.soak", "expected a duration"),
    (((*CHAT, "keep_alive"), "10ms"), "services.chat.keep_alive", 'write at least "1s"'),
    ((("daemon", "hand_over_timeout"), "1h"), "daemon.hand_over_timeout", 'write at most "1m"'),
    (((*A, "device_memory"), "6G"), "models.a.device_memory", '"6GiB" (powers of 1024) or "6GB"'),
    (((*A, "device_memory"), 6), "models.a.device_memory", 'write "6GiB" or "6MiB"'),
    (((*A, "device_memory"), "0B"), "models.a.device_memory", "is too small"),
    (((*CHAT, "queue_limit"), "64"), "services.chat.queue_limit", "write 64 without quotes"),
    (((*CHAT, "queue_limit"), 0), "services.chat.queue_limit", "write a number from 1 to"),
    (((*CHAT, "queue_limit"), 1.5), "services.chat.queue_limit", "expected an integer"),
    (((*CHAT, "queue_limit"), True), "services.chat.queue_limit", "not a boolean"),
    (((*CHAT, "model"), 5), "services.chat.model", 'not an integer: write "5"'),
    (((*CHAT, "model"), ""), "services.chat.model", "is empty"),
    ((("daemon", "log_level"), "INFO"), "daemon.log_level", 'did you mean "info"?'),
    ((("daemon", "log_level"), "loud"), "daemon.log_level", 'write one of "debug"'),
    ((("daemon",), 5), "daemon", "expected a table, not an integer"),
    ((("services",), "chat"), "services", "expected tables [services.NAME], not a string"),
    (((*CHAT,), "a"), "services.chat", "expected a table [services.chat]"),
    (((*A, "ready"), "/health"), "models.a.ready", "expected a table, not a string"),
    # --- listen addresses
    (((*CHAT, "listen"), 8000), "services.chat.listen", 'write "127.0.0.1:8000", or "0.0.0.0:8000"'),
    (((*CHAT, "listen"), ":8000"), "services.chat.listen", 'has no host: write "127.0.0.1:8000"'),
    (((*CHAT, "listen"), "localhost:8000"), "services.chat.listen", 'write "127.0.0.1:8000"'),
    (((*CHAT, "listen"), "::1:8000"), "services.chat.listen", 'needs brackets: write "[::1]:8000"'),
    (((*CHAT, "listen"), "127.0.0.1"), "services.chat.listen", "write host:port"),
    (((*CHAT, "listen"), "127.0.0.1:0"), "services.chat.listen", "from 1 to 65535"),
    (((*CHAT, "listen"), "127.0.0.1:70000"), "services.chat.listen", "from 1 to 65535"),
    (((*CHAT, "listen"), "http://127.0.0.1:80"), "services.chat.listen", "is a URL"),
    (((*CHAT, "listen"), "/run/x.sock"), "services.chat.listen", 'write "unix:/run/x.sock"'),
    (((*CHAT, "listen"), "unix:x.sock"), "services.chat.listen", "is relative"),
    (((*CHAT, "listen"), "unix:/" + "x" * 107), "services.chat.listen", "has 108 bytes"),
    (((*CHAT, "listen"), []), "services.chat.listen", "is an empty list"),
    (((*CHAT, "listen"), ["127.0.0.1:1", "oops"]), "services.chat.listen[1]", "is not an address"),
    (((*CHAT, "listen"), None), "services.chat.listen", 'is missing: write listen = "127.0.0.1:8000"'),
    # --- addresses that clash
    (((*CHAT, "listen"), ["127.0.0.1:1", "0.0.0.0:1"]), "services.chat.listen[1]", "leave one of them out"),
    ((("services",), _services(a="127.0.0.1:1", b="127.0.0.1:01")), "services.b.listen", "taken by services.a.listen"),
    ((("services",), _services(a="0.0.0.0:1", b="10.0.0.1:1")), "services.b.listen", 'covered by "0.0.0.0:1"'),
    ((("services",), _services(a="[::1]:1", b="[::]:1")), "services.b.listen", 'covered by "[::1]:1"'),
    ((("services",), _services(a="unix:/x", b="unix:///x")), "services.b.listen", "write another path"),
    (((*CHAT, "listen"), "unix:/run/swapd/control.sock"), "services.chat.listen", "taken by daemon.control"),
    ((("daemon", "events"), "ipc:///run/swapd/control.sock"), "daemon.control", "taken by daemon.events"),
    # --- names and references
    (((*CHAT, "model"), "aa"), "services.chat.model", 'there is no model "aa": did you mean "a"?'),
    (((*CHAT, "model"), "zzz"), "services.chat.model", "known here: a"),
    (((*CHAT, "model"), None), "services.chat.model", "is missing"),
    (((*CHAT, "devices"), ["gpu0"]), "services.chat.devices[0]", "write a table [devices.gpu0]"),
    (((*CHAT, "devices"), ["auto"]), "services.chat.devices[0]", 'write devices = "auto"'),
    (((*CHAT, "devices"), ["x", "x"]), "services.chat.devices", "names a device twice"),
    (((*CHAT, "devices"), []), "services.chat.devices", "is an empty list"),
    ((("models", "Bad Name"), {"app": "m:app"}), 'models."Bad Name"', "is not a usable name"),
    ((("models", "x" * 64), {"app": "m:app"}), "models." + "x" * 64, "is not a usable name"),
    ((("services",), _services(**{"chat-gate": "unix:/x"})), "services.chat-gate", "ends in -gate"),
    ((("devices", "auto"), {"kind": "host"}), "devices.auto", "is taken"),
    ((("services",), {}), "services", "nothing is served"),
    # --- paths
    ((("daemon", "runtime_dir"), "run"), None, None),  # relative to /etc/swapd: allowed
    ((("daemon", "runtime_dir"), "~/run"), "daemon.runtime_dir", "~ is not expanded"),
    ((("daemon", "runtime_dir"), "/" + "r" * 80), "daemon.runtime_dir", "bytes too long for a Unix socket"),
    (
        (("daemon", "state_dir"), "/var/" + "s" * 256),
        "daemon.state_dir",
        "has a name of 256 bytes, and 255 are possible",
    ),
    ((("daemon", "state_dir"), "/var/" + "s" * 255), None, None),
    (((*A, "directory"), "d/" * 2048), "models.a.directory", "bytes, and 4095 are possible"),
    ((("daemon", "control"), "tcp://127.0.0.1:5555"), "daemon.control", "is not an ipc:// endpoint"),
    ((("daemon", "control"), "/run/c.sock"), "daemon.control", 'write "ipc:///run/c.sock"'),
    ((("daemon", "control"), "ipc:///" + "c" * 107), "daemon.control", "has 108 bytes"),
    (((*A, "python"), "python3"), "models.a.python", "is not a path"),
    (((*A, "directory"), "a\0b"), "models.a.directory", "NUL"),
    # --- devices
    ((("devices", "g"), {}), "devices.g.kind", 'write kind = "nvml"'),
    ((("devices", "g"), {"kind": "cuda", "match": 0}), "devices.g.kind", 'write one of "nvml", "host"'),
    ((("devices", "g"), {"kind": "nvml"}), "devices.g.match", "is missing: write the UUID"),
    ((("devices", "g"), {"kind": "nvml", "match": "gpu"}), "devices.g.match", "is not a device"),
    ((("devices", "g"), {"kind": "nvml", "match": 0, "memory": "1GiB"}), None, None),
    ((("devices", "g"), {"kind": "nvml", "match": 0, "memory": "1MiB"}), "devices.g.headroom", "leaves nothing"),
    ((("devices", "g"), {"kind": "host", "match": 0}), "devices.g.match", 'is for kind = "nvml"'),
    (
        (("devices",), {"g": {"kind": "nvml", "match": 0}, "h": {"kind": "nvml", "match": "0"}}),
        "devices.h.match",
        "same",
    ),
    ((("devices",), {"g": {"kind": "host"}, "h": {"kind": "host", "memory": "1GiB"}}), "devices.g.memory", "budget"),
    (
        (("devices", "g"), {"kind": "host", "headroom": "64MiB", "floor": "65MiB"}),
        "devices.g.floor",
        "is more than the headroom (64MiB), so what was rightly planned would be killed",
    ),
    (
        (("devices", "g"), {"kind": "host", "memory": "1GiB", "headroom": "1GiB"}),
        "devices.g.headroom",
        "leaves nothing",
    ),
    # --- models
    (((*A, "app"), None), "models.a.app", 'is missing: write app = "module:attribute"'),
    (((*A, "app"), "my_model"), "models.a.app", 'write "my_model:app"'),
    (((*A, "app"), "src/my_model.py"), "models.a.app", 'write "my_model:app", and its directory'),
    (((*A, "app"), "my_model:make()"), "models.a.app", 'write "my_model:make"'),
    (((*A, "app"), "my-model:app"), "models.a.app", 'is not "module:attribute"'),
    (((*A, "env"), {"A": True}), "models.a.env.A", 'write "true" or "1"'),
    (((*A, "env"), {"A": 1.5}), "models.a.env.A", "put it in quotes"),
    (((*A, "env"), {"A-B": "x"}), "models.a.env.A-B", "is not a variable's name"),
    (((*A, "env"), {"SWAPD_WORKER": "x"}), "models.a.env.SWAPD_WORKER", "is set by swapd itself"),
    (((*A, "env"), {"CUDA_VISIBLE_DEVICES": "0"}), "models.a.env.CUDA_VISIBLE_DEVICES", "devices = "),
    (((*A, "env"), {"CUDA_VISIBLE_DEVICES": ""}), None, None),  # a model for the CPU on a host with GPUs
    (((*A, "env"), "A=b"), "models.a.env", "expected a table"),
    (((*A, "weights"), []), "models.a.weights", "is an empty list"),
    (((*A, "weights"), ["w", 5]), "models.a.weights[1]", 'not an integer: write "5"'),
    (((*A, "warmup"), {}), "models.a.warmup.file", 'is missing: write file = "warm.jsonl"'),
    (((*A, "ready"), {"path": "health"}), "models.a.ready.path", 'write "/health"'),
    # --- the contract
    (((*A, "contract"), {"feature": "v7"}), "models.a.contract.feature", 'did you mean "features"?'),
    (((*A, "contract"), {"features": 7}), "models.a.contract.features", 'write "7"'),
    (((*A, "contract"), {"inputs": [{"type": "FP32"}]}), "models.a.contract.inputs[0].name", "is missing"),
    (((*A, "contract"), {"inputs": [{"name": "x", "shpe": [1]}]}), "models.a.contract.inputs[0].shpe", '"shape"?'),
    (((*A, "contract"), {"inputs": [{"name": "x", "shape": [-2]}]}), "models.a.contract.inputs[0].shape", "-1 for any"),
    (((*A, "contract"), {"inputs": ["x"]}), "models.a.contract.inputs[0]", "expected a table such as"),
    (((*A, "contract"), {"outputs": [{"name": "x"}] * 2}), "models.a.contract.outputs", "a name twice"),
    (((*A, "contract"), {"endpoints": ["/v1/x"]}), "models.a.contract.endpoints[0]", 'such as "POST /v1/completions"'),
    (((*A, "contract"), {"endpoints": ["POTS /x"]}), "models.a.contract.endpoints[0]", 'did you mean "POST"?'),
    (((*A, "contract"), {"v2": "/v2/models/bert"}), "models.a.contract.v2", 'such as "bert"'),
    (((*A, "contract"), {"v2": "bert/versions/3", "inputs": [], "endpoints": "GET /items/{id}"}), None, None),
    # --- golden requests, and what a probe may expect as well
    (((*CHAT, "golden"), PROBE), "services.chat.golden", "write [[services.chat.golden]]"),
    (((*CHAT, "golden"), [{**PROBE, "repeat": 2}]), "services.chat.golden[0].repeat", "unknown key"),
    (((*CHAT, "golden_rate"), 0), "services.chat.golden_rate", "from 0.01 to 1000"),
    (((*CHAT, "golden_rate"), "5"), "services.chat.golden_rate", "expected a number"),
    (((*CHAT, "golden"), [_expecting(label="/x")]), "services.chat.golden[0].expect.is", 'is missing beside "label"'),
    (((*CHAT, "golden"), [_expecting(**{"is": "x"})]), "services.chat.golden[0].expect.label", 'missing beside "is"'),
    (((*CHAT, "golden"), [_expecting(close={"score": 1})]), "services.chat.golden[0].expect.close.score", '"/score"'),
    (((*CHAT, "golden"), [_expecting(close={"/s": "1"})]), 'services.chat.golden[0].expect.close."/s"', "a number"),
    (((*CHAT, "golden"), [_expecting(text=5)]), "services.chat.golden[0].expect.text", 'write "exact"'),
    (((*CHAT, "golden"), [_expecting(exact=[5, None])]), None, None),
    (((*A, "probes"), [_expecting(close={"/v": [1, 2.5]}, text="", label="", **{"is": 3})]), None, None),
    # --- probes
    (((*A, "probes"), PROBE), "models.a.probes", "write [[models.a.probes]]"),
    (((*A, "probes"), [PROBE, {}]), "models.a.probes[1].request", "is missing"),
    (((*A, "probes"), [{"request": {}}]), "models.a.probes[0].request.path", "is missing"),
    (((*A, "probes"), [5]), "models.a.probes[0]", "expected a table"),
    (((*A, "probes"), [{**PROBE, "repeat": 0}]), "models.a.probes[0].repeat", "from 1 to"),
    (((*A, "probes"), [{**PROBE, "expect": {"within": 2}}]), "models.a.probes[0].expect.within", 'write "2s"'),
    (((*A, "probes"), [{**PROBE, "expect": {"status": 99}}]), "models.a.probes[0].expect.status", "from 100 to 599"),
    (((*A, "probes"), [{**PROBE, "expect": {"json": 5}}]), "models.a.probes[0].expect.json", "JSON pointer"),
    (
        ((*A, "probes"), [{**PROBE, "expect": {"json": "$.choices[0].text"}}]),
        "models.a.probes[0].expect.json",
        'write "/choices/0/text"',
    ),
    (((*A, "probes"), [{**PROBE, "expect": {"json": "/a~b"}}]), "models.a.probes[0].expect.json", "~0"),
    (
        ((*A, "probes"), [{"request": {"path": "/x", "json": {}, "body": ""}}]),
        "models.a.probes[0].request.body",
        "one body",
    ),
    (
        ((*A, "probes"), [{"request": {"path": "/x", "json": {"n": [float("nan")]}}}]),
        "models.a.probes[0].request.json.n[0]",
        "inf and nan",
    ),
    (((*A, "probes"), [{"request": {"path": "/a b"}}]), "models.a.probes[0].request.path", "percent-encode"),
    (((*A, "probes"), [_asked_by("POTS")]), "models.a.probes[0].request.method", 'did you mean "POST"?'),
    (((*A, "probes"), [_asked_by("delte")]), "models.a.probes[0].request.method", 'did you mean "DELETE"?'),
    (((*A, "probes"), [*map(_asked_by, ("PROPFIND", "REPORT", "QUERY", "post"))]), None, None),  # any token is legal
    (((*A, "probes"), [{"request": {"path": "/", "method": "GE T"}}]), "models.a.probes[0].request.method", "HTTP"),
    (
        ((*A, "probes"), [{"request": {"path": "/", "headers": {"X": "a\r\nY: b"}}}]),
        "models.a.probes[0].request.headers.X",
        "line break",
    ),
    (
        ((*A, "probes"), [{"request": {"path": "/", "headers": {"Content-Length": 3}}}]),
        "models.a.probes[0].request.headers.Content-Length",
        "is set by swapd itself",
    ),
    # --- what later versions do
    (((*A, "engine"), "asgj"), "models.a.engine", 'did you mean "asgi"?'),
    (((*A, "gpus"), 2), None, None),
    (((*A, "gpus"), 0), "models.a.gpus", "write a number from 1 to 64"),
    (((*A, "user"), "x"), None, None),
    (((*A, "memory_max"), "16GiB"), None, None),
    (((*A, "memory_max"), "16"), "models.a.memory_max", "has no unit"),
    (((*A, "cpu_weight"), 0), "models.a.cpu_weight", "1 to 10000"),
    (((*A, "command"), "x"), "models.a.command", "expected a list"),
    (((*CHAT, "replicas"), 2), "services.chat.replicas", "not supported yet by this version of swapd: write 1"),
    (((*CHAT, "front"), "gate"), None, None),
    (((*CHAT, "front"), "direct"), None, None),
    (((*CHAT, "protocol"), "tcp"), None, None),
    (((*CHAT, "protocol"), "grpc"), "services.chat.protocol", 'write one of "http", "tcp"'),
    (((*CHAT, "trust_forwarded"), "yes"), "services.chat.trust_forwarded", "write true or false"),
    (((*CHAT, "access_log"), True), "services.chat.access_log", 'write front = "gate"'),
    (((*CHAT, "access_log"), "access.log"), "services.chat.access_log", 'write front = "gate"'),
    (((*CHAT, "access_log"), 5), "services.chat.access_log", "write true, false, or the path of a file"),
    (((*CHAT, "access_log"), "~/log"), "services.chat.access_log", "~ is not expanded"),
    (((*CHAT, "front"), "proxy"), "services.chat.front", "direct"),
    (((*CHAT, "strategy"), "canary"), None, None),
    (((*CHAT, "strategy"), "rolling"), "services.chat.strategy", "not supported yet"),
    (((*CHAT, "strategy"), "carful"), "services.chat.strategy", 'there is no strategy "carful"'),
    (((*CHAT, "session_key"), "cookie:sid"), None, None),
    (((*CHAT, "session_key"), "x-user"), "services.chat.session_key", 'write "header:x-user"'),
    (((*CHAT, "rules"), ["error_rate < 1%", "p95 < 1"]), "services.chat.rules[1]", "p95"),
    (((*CHAT, "rules"), "error_rate > 1%"), "services.chat.rules", 'write "error_rate <'),
    ((("strategies",), {"guarded": {}}), "strategies.guarded", "that swapd has already"),
    ((("strategies",), {"slow": {"steps": [25, 5]}}), "strategies.slow.steps", "must grow"),
    ((("strategies",), {"slow": {"steps": ["5%", 101]}}), "strategies.slow.steps[1]", "at most"),
    ((("strategies",), {"slow": {"on_fail": "stop"}}), "strategies.slow.on_fail", 'write one of "promote"'),
    ((("strategies",), {"slow": {"match": "x-canary"}}), "strategies.slow.match", 'write "header:x-canary=always"'),
    ((("strategies",), {"slow": {"shadow": {"shar": 5}}}), "strategies.slow.shadow.shar", 'did you mean "share"?'),
    (
        (("strategies",), {"slow": {"shadow": {"ignore": ["id"]}}}),
        "strategies.slow.shadow.ignore[0]",
        'such as "/id"',
    ),
    (((*CHAT, "strategy"), "in_place"), "services.chat.strategy", 'did you mean "in-place"?'),
    ((("strategies",), {"slow": {}}), None, None),
]


@pytest.mark.parametrize(
    ("change", "key", "words"), MISTAKES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_mistake_is_named_with_its_key_and_its_cure(change, key, words):
    found = problems_of(changed(change))
    if key is None:
        assert found == []
        return
    assert [problem.key for problem in found] == [key], [str(problem) for problem in found]
    assert words in found[0].message
    assert str(found[0]).startswith(f"{FILE}: {key}: ")


def test_all_mistakes_are_named_at_once():
    found = problems_of(
        changed(
            ((*A, "app"), "my_model.py"),
            ((*A, "engin"), "asgi"),
            ((*A, "probes"), [{"request": {"path": "x"}, "expect": {"within": "2"}}]),
            ((*CHAT, "soak"), 60),
            ((*CHAT, "model"), "b"),
            (("devices", "g"), {"kind": "gpu"}),
        )
    )
    assert [problem.key for problem in found] == [
        "devices.g.kind",
        "models.a.engin",
        "models.a.app",
        "models.a.probes[0].request.path",
        "models.a.probes[0].expect.within",
        "services.chat.soak",
        "services.chat.model",
    ]


def test_no_value_of_the_environment_is_shown_in_a_problem():
    secrets = {"A": ["hunter2"], "B-": "hunter2", "SWAPD_X": "hunter2", "CUDA_VISIBLE_DEVICES": "hunter2"}
    probe = {"request": {"path": "/", "headers": {"Authorization": "hunter2\n", "X": ["hunter2"]}}}
    found = problems_of(changed(((*A, "env"), secrets), ((*A, "probes"), [probe])))
    assert len(found) == 6
    assert not [problem for problem in found if "hunter2" in str(problem)]


def test_the_longest_runtime_dir_that_fits_is_accepted():
    """The path that a gate's control socket will have is exactly as long as sun_path holds."""
    service = "s" * 20
    tail = f"/w/{service}-gate-9999999/control.sock"
    listen = {service: {"listen": "127.0.0.1:8000", "model": "a"}}
    fits, over = "/" + "r" * (106 - len(tail)), "/" + "r" * (107 - len(tail))
    assert problems_of(changed((("services",), listen), (("daemon", "runtime_dir"), fits))) == []
    found = problems_of(changed((("services",), listen), (("daemon", "runtime_dir"), over)))
    assert [(problem.key, "1 bytes too long" in problem.message) for problem in found] == [("daemon.runtime_dir", True)]


def test_a_model_that_spans_more_devices_than_its_service_may_use_is_a_mistake():
    gpus = {f"gpu{n}": {"kind": "nvml", "match": str(n)} for n in range(2)}
    spans = (("devices",), gpus), ((*A, "gpus"), 2)
    assert problems_of(changed(*spans, ((*CHAT, "devices"), ["gpu0", "gpu1"]))) == []
    [problem] = problems_of(changed(*spans, ((*CHAT, "devices"), ["gpu1"])))
    assert problem.key == "services.chat.devices"
    assert 'too few for "a", which spans 2: name as many, or write devices = "auto"' in problem.message


@pytest.mark.parametrize(
    ("key", "value"),
    [("rules", ["p95 < 1s"]), ("session_key", "header:x-user"), ("strategy", "canary"), ("strategy", "careful")],
)
def test_what_needs_requests_is_a_mistake_where_there_are_only_bytes(key, value):
    careful = (("strategies",), {"careful": {"kind": "shadow"}})
    [problem] = problems_of(changed(careful, ((*CHAT, "protocol"), "tcp"), ((*CHAT, key), value)))
    assert problem.key == f"services.chat.{key}"
    assert "has only bytes" in problem.message
