"""The configuration as values: what the daemon may rely on once `parse_config` has let a file through.

Duty: one frozen dataclass per table of the file, with its defaults. `config_keys` says how each key is written,
`config_parse` reads them, `config_views` digests, redacts and compares them. Sizes are in bytes, times in
seconds, paths as absolute as the file's own path was. May not know: where a file lies, whether a path exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from swapd.core.delivery import Ends, Shadow, Then
from swapd.core.engine_flags import names_said
from swapd.core.model import DeviceKind
from swapd.core.rules import Rule

MAX_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path holds 108 with the closing NUL: unix(7)
HIDDEN_SUFFIX: Final = ".full"  # the daemon's own sockets are moved aside under it while they have too many clients
MAX_COUNTER_DIGITS: Final = 7  # of a worker id: ten million workers of one service before a path grows longer
CONTROL_SOCKET: Final = "control.sock"
HTTP_SOCKET: Final = "http.sock"

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ConfigProblem:
    """One mistake: the file, the key's path in it (empty: the file as a whole), and what would be right."""

    file: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.key}: {self.message}" if self.key else f"{self.file}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonConfig:
    """[daemon]"""

    runtime_dir: str = "/run/swapd"
    state_dir: str = "/var/lib/swapd"
    control: str = ""  # endpoint; empty only before parsing: the default is ipc:// in runtime_dir
    events: str = ""
    metrics: str | None = None
    log_level: str = "info"
    log_dir: str = ""  # of the workers; empty only before parsing: the default is in state_dir
    log_keep: int = 10  # logs of ended workers kept per service
    log_max_bytes: int = 64 * MIB  # of one log, then it is rotated
    log_rotate: int = 1  # former files kept of each log
    history_keep: int = 1000  # finished swaps kept in the journal
    history_max_age_s: float = 0.0  # of those; 0: whatever their age
    shutdown_timeout_s: float = 90.0  # for everything at SIGTERM: drain, stop, then end what is left
    hand_over_timeout_s: float = 2.0  # from quiesce to STARTED; past it the source resumes
    release_timeout_s: float = 10.0  # for device memory to be seen free after its holder has gone or parked
    stop_timeout_s: float = 10.0  # for a worker told to stop to end by itself, before its tree is killed
    restart_backoff_max_s: float = 30.0  # the longest pause before a dead worker is started again
    reload_swaps: str = "model"  # "settings": also where settings of a model that serves have changed
    crash_loop_failures: int = 5  # in a row; from then on clients are turned away at once until it serves

    def worker_dir(self, worker_id: str) -> str:
        return f"{self.runtime_dir}/w/{worker_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceConfig:
    """[devices.NAME]"""

    name: str
    kind: DeviceKind
    match: str | None = None  # nvml: "GPU-…", "MIG-…" or an index in digits; host: None
    headroom_bytes: int = 512 * MIB
    memory_bytes: int | None = None  # host: the budget; None: all that the host has. nvml: where it is not measured
    floor_bytes: int | None = None  # left free by whoever loads beside others, or it is killed; None: half the headroom


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestConfig:
    """One synthetic request, ready to be sent: `json` is encoded, its content-type among the headers."""

    method: str = "GET"
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # may hold a token
    body: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectConfig:
    """What the answer must be, in every way that is set. At most one of `json_pointer` and `json_contains` is."""

    status: int = 200
    within_s: float = 10.0  # also the deadline of the request
    json_pointer: str | None = None  # RFC 6901: must exist in the answer
    json_contains: Mapping[str, Any] | None = None  # must be contained in the answer, objects key by key
    json_exact: str | None = None  # JSON that the answer must be equal to
    text: str | None = None  # the whole body
    close: tuple[tuple[str, float | tuple[float, ...]], ...] = ()  # numbers at pointers, within the two tolerances:
    rtol: float = 1e-3  # of the expected number
    atol: float = 1e-6  # and beside that
    label: str | None = None  # where the answer has a label, or scores of labels: the highest one's must be
    label_is: str | int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """[[models.NAME.probes]]"""

    request: RequestConfig
    expect: ExpectConfig = field(default_factory=ExpectConfig)
    repeat: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenConfig:
    """[[services.NAME.golden]]"""

    request: RequestConfig
    expect: ExpectConfig = field(default_factory=ExpectConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyConfig:
    """[models.NAME.ready]"""

    path: str | None = None  # None: load having returned is enough; the probes still decide
    timeout_s: float = 600.0  # for each of stage, load, ready path and wake


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessConfig:
    """[models.NAME.liveness]: of a worker that answers clients. Two minutes in all, as long as a client is held: a
    server of language models that is saturated may well be silent for a while, and takes minutes to be started again.
    """

    period_s: float = 10.0  # from one question's end to the next
    timeout_s: float = 10.0  # for an answer
    failures: int = 12  # in a row, until it is replaced; 0: never


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConfig:
    """[models.NAME.warmup]"""

    file: str  # JSON lines, each written like a probe's request
    concurrency: int = 4
    timeout_s: float = 300.0  # for all of them together


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorConfig:
    """One of the inputs or outputs of [models.NAME.contract]."""

    name: str
    type: str = ""  # in capitals; "": not told
    shape: tuple[int, ...] | None = None  # -1: any length; None: not told
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractConfig:
    """[models.NAME.contract]: what clients rely on, and where the server tells it. None: it is not said."""

    features: str | None = None
    tokenizer: str | None = None
    preprocessing: str | None = None
    inputs: tuple[TensorConfig, ...] | None = None
    outputs: tuple[TensorConfig, ...] | None = None
    endpoints: tuple[str, ...] | None = None  # "POST /v1/completions"
    openapi: str | None = None  # path of the app's OpenAPI document
    v2: str | None = None  # the model's name in KServe's /v2/models/NAME
    models: str | None = None  # path of an OpenAI-style list of models


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """[models.NAME]"""

    name: str
    engine: str = "asgi"
    app: str | None = None  # "module:attribute"; never None for an asgi engine, always for another
    directory: str = "."  # cwd and import path; default: where the config file lies
    python: str | None = None  # None: the daemon's own interpreter
    device_memory_bytes: int | None = None  # per device; None: learned or estimated
    weights: tuple[str, ...] = ()  # files or directories
    stage: bool = False  # import and the `stage` hook need no device memory: done while the old model serves
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    env_file: str | None = None
    env_file_values: Mapping[str, str] = field(default_factory=dict, repr=False)  # set by host.config_file
    ready: ReadyConfig = field(default_factory=ReadyConfig)
    probes: tuple[ProbeConfig, ...] = ()
    warmup: WarmupConfig | None = None
    gpus: int = 1
    command: tuple[str, ...] = ()
    user: str | None = None
    read_paths: tuple[str, ...] = ()
    write_paths: tuple[str, ...] = ()
    memory_max_bytes: int | None = None  # of host memory, for a worker's whole tree; past it the kernel ends the tree
    cpu_weight: int | None = None  # 1 to 10000, of CPUs and disks; None: 100, as everybody
    served_names: tuple[str, ...] = ()  # what clients may write as "model"
    stop_signal: str | None = None  # None: SIGTERM
    stop_timeout_s: float | None = None  # from the signal until the whole tree is killed; None: by the engine
    liveness: LivenessConfig = field(default_factory=LivenessConfig)
    sleep: bool = False  # vllm: its worker may be parked asleep instead of being stopped
    contract: ContractConfig = field(default_factory=ContractConfig)

    def names(self) -> tuple[str, ...]:
        """What clients may write as "model"; empty: anything, or it is not known."""
        return self.served_names or names_said(self.engine, self.command, self.weights)

    @property
    def environment(self) -> dict[str, str]:
        """What the model adds to a worker's environment; `env` wins over `env_file`. Never to be shown."""
        return {**self.env_file_values, **self.env}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """[services.NAME]"""

    name: str
    listen: tuple[str, ...]  # "127.0.0.1:8000", "[::1]:8000", "unix:/path"
    model: str
    devices: tuple[str, ...] | None = None  # None: auto, every device
    strategy: str = "auto"  # one of `core.strategies`, or the name of a [strategies.NAME]
    replicas: int = 1
    front: str = "direct"
    protocol: str = "http"
    drain_timeout_s: float = 60.0
    hold_timeout_s: float = 120.0
    max_outage_s: float = 120.0  # 0: never in-place
    soak_s: float = 600.0
    health_path: str = "/-/swapd/health"
    keep_alive_s: float = 75.0
    queue_limit: int = 4096
    trust_forwarded: bool = False  # what stands before us may say where requests come from
    session_key: str | None = (
        None  # "header:NAME", "cookie:NAME" or "json:/pointer": requests with the same one stay together
    )
    access_log: bool | str = False  # a line for each request: in `log_dir`, or in this file
    access_log_query: bool = False  # with the query of the request's target
    rules: tuple[Rule, ...] = ()  # what a candidate has to keep, in its stages and in its soak
    golden: tuple[GoldenConfig, ...] = ()  # asked of every candidate before it gets clients
    golden_rate: float = 5.0  # requests a second
    golden_repeat: int = 1  # times each


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyConfig:
    """[strategies.NAME]"""

    name: str
    kind: str = "guarded"  # auto | dual | in-place | canary | shadow | guarded
    steps: tuple[float, ...] = (5.0, 25.0, 50.0)  # percent of the requests
    step_time_s: float = 120.0  # at least
    step_deadline_s: float = 900.0  # then what there is is judged
    min_requests: int = 50  # of each revision, for a verdict on latencies
    ends: Ends = Ends.ANALYSIS
    on_pass: Then = Then.PROMOTE
    on_fail: Then = Then.ABORT
    on_inconclusive: Then = Then.PAUSE
    match: tuple[str, str, str] | None = None  # header or cookie, its name and value: whoever has it gets the candidate
    shadow: Shadow = field(default_factory=Shadow)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyConfig:
    """[notify.NAME]: one of `url` and `command` is set."""

    name: str
    on: tuple[str, ...]  # of `core.notices.NAMES`
    services: tuple[str, ...] | None = None  # None: of all, and what is of none
    url: str | None = field(default=None, repr=False)  # that of a webhook is a secret mostly
    headers_file: str | None = None
    headers_file_values: Mapping[str, str] = field(default_factory=dict, repr=False)  # set by host.config_file
    command: tuple[str, ...] = field(default=(), repr=False)
    timeout_s: float = 10.0  # of one attempt, in all
    attempts: int = 8  # over two minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. Mappings are in the order of the file, keyed by name."""

    file: str
    daemon: DaemonConfig
    devices: Mapping[str, DeviceConfig]  # empty: found at start (every NVIDIA GPU, or the host's memory)
    models: Mapping[str, ModelConfig]
    services: Mapping[str, ServiceConfig]
    strategies: Mapping[str, StrategyConfig] = field(default_factory=dict)
    notify: Mapping[str, NotifyConfig] = field(default_factory=dict)
