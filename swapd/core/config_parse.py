"""The configuration file's tables to a `Config`, or everything that is wrong with them.

Duty: read each table by the rows of `config_keys` and go on after a mistake, so that one run names them all.
Total: whatever the tables hold, nothing is raised. May not know: the disk; `host.config_file` reads the files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, TypeVar

from swapd.core import config_keys as keys
from swapd.core.config import (
    MIB,
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
from swapd.core.config_checks import check_config, name_fault
from swapd.core.config_keys import Key
from swapd.core.config_readers import Wrong, kind_of, printable, quoted, suggest
from swapd.core.delivery import Shadow
from swapd.core.model import DeviceKind

T = TypeVar("T")


def parse_config(
    tables: Mapping[str, Any], *, file: str, model_files: Mapping[str, str] | None = None
) -> Config | list[ConfigProblem]:
    """`file` is named in problems, and relative paths start from its directory. `model_files` tells which model
    was read from another file (models.d), so that its mistakes are looked for there."""
    config, problems = parse_tables(tables, file=file, model_files=model_files)
    return problems or config


def parse_tables(
    tables: Mapping[str, Any], *, file: str, model_files: Mapping[str, str] | None = None
) -> tuple[Config, list[ConfigProblem]]:
    """As `parse_config`, with what could be read although there are problems: good only for looking for more."""
    report = _Report(file, str(PurePosixPath(file).parent), dict(model_files or {}))
    config = Config(
        file=file,
        daemon=_daemon(report, tables.get("daemon", {})),
        devices=_named(report, tables, "devices", _device),
        models=_named(report, tables, "models", _model),
        services=_named(report, tables, "services", _service),
        strategies=_named(report, tables, "strategies", _strategy),
        notify=_named(report, tables, "notify", _notify),
    )
    for name, content in tables.items():
        if name not in keys.TABLES:
            report.unknown("", str(name), keys.TABLES, "table")
        elif refusal := keys.not_yet("", name, content):
            report.add(quoted(name), refusal)
    for key, message in check_config(config):
        if not report.names(key):  # a wrong value looks missing from here, and is already named
            report.add(key, message)
    return config, report.problems


@dataclass(slots=True)
class _Report:
    """Collects problems, each under the file that its model came from."""

    file: str
    base: str
    model_files: dict[str, str]
    problems: list[ConfigProblem] = field(default_factory=list)

    def add(self, key: str, message: str) -> None:
        file = self.file
        for model, other in self.model_files.items():
            prefix = f"models.{quoted(model)}"
            if key == prefix or key.startswith((prefix + ".", prefix + "[")):
                file = other
        problem = ConfigProblem(file, printable(key), printable(message))
        if problem not in self.problems:
            self.problems.append(problem)

    def names(self, key: str) -> bool:
        """Whether a problem is already at the key, or below it."""
        return any(problem.key == key or problem.key.startswith((f"{key}.", f"{key}[")) for problem in self.problems)

    def unknown(self, path: str, name: str, known: tuple[str, ...], what: str = "key") -> None:
        """A key that nothing reads: where it belongs, when another table has it; else what is like it."""
        homes = {"daemon": "[daemon]", "devices": "[devices.NAME]", "models": "[models.NAME]"}
        homes |= {"ready": "[models.NAME.ready]", "services": "[services.NAME]"}
        elsewhere = [home for section, home in homes.items() if name in {key.name for key in keys.SECTIONS[section]}]
        cure = suggest(name, known)
        if elsewhere and not cure.startswith("did you mean"):
            cure = f"it belongs in {' or '.join(elsewhere)}"
        self.add(f"{path}.{quoted(name)}" if path else quoted(name), f"unknown {what}: {cure}")


def _named(report: _Report, tables: Mapping[str, Any], kind: str, read: Any) -> dict[str, Any]:
    """[kind.NAME] for every name."""
    found = tables.get(kind, {})
    if not isinstance(found, Mapping):
        report.add(kind, f"expected tables [{kind}.NAME], not {kind_of(found)}")
        return {}
    result = {}
    for name, content in found.items():
        path = f"{kind}.{quoted(str(name))}"
        if fault := name_fault(kind, str(name)):
            report.add(path, fault)
        if not isinstance(content, Mapping):
            report.add(path, f"expected a table [{path}], not {kind_of(content)}")
        else:
            result[str(name)] = read(report, str(name), path, content)
    return result


def _read(report: _Report, section: str, path: str, content: object) -> dict[str, Any]:
    """The fields that the table sets rightly. Tables within it are left to the caller, which finds them here."""
    rows = {key.name: key for key in keys.SECTIONS[section]}
    values: dict[str, Any] = {}
    if not isinstance(content, Mapping):
        report.add(path, f"expected a table, not {kind_of(content)}")
        return values
    for name in content:
        if name not in rows:
            report.unknown(path, str(name), tuple(rows))
    for name, key in rows.items():
        if name not in content:
            if key.cure:
                report.add(f"{path}.{name}", f"is missing: {key.cure}")
        elif key.read is None:
            values[key.attribute] = content[name]
        else:
            _read_one(report, section, key, f"{path}.{name}", content[name], values)
    return values


def _read_one(report: _Report, section: str, key: Key, path: str, raw: object, values: dict[str, Any]) -> None:
    assert key.read is not None
    try:
        value = key.read(raw, report.base)
    except Wrong as wrong:
        for at, message in wrong.faults:
            report.add(path + at, message)
        return
    except ValueError:  # Python's limit on the digits of an integer, which TOML has not
        report.add(path, "is a number with too many digits: write a smaller one")
        return
    if refusal := keys.not_yet(section, key.name, value):
        report.add(path, refusal)
    values[key.attribute] = value


def _make(cls: type[T], values: Mapping[str, Any], **given: Any) -> T:
    """The dataclass of the values; `given` stands in for what is missing or wrong (a problem by now)."""
    known = {each.name for each in fields(cls)}  # type: ignore[arg-type]
    return cls(**{**given, **{name: value for name, value in values.items() if name in known}})


def _daemon(report: _Report, content: object) -> DaemonConfig:
    values = _read(report, "daemon", "daemon", content)
    runtime_dir = values.get("runtime_dir", DaemonConfig.__dataclass_fields__["runtime_dir"].default)
    state_dir = values.get("state_dir", DaemonConfig.__dataclass_fields__["state_dir"].default)
    sockets = {"control": f"ipc://{runtime_dir}/control.sock", "events": f"ipc://{runtime_dir}/events.sock"}
    return _make(DaemonConfig, values, log_dir=f"{state_dir}/logs", **sockets)


def _device(report: _Report, name: str, path: str, content: object) -> DeviceConfig:
    values = _read(report, "devices", path, content)
    kind = DeviceKind(values.pop("kind", "nvml" if "match" in values else "host"))
    # A GPU needs room for the driver's own and for fragmentation. A host budget is what the operator has already
    # set aside, so it is planned in full; without a budget, the out-of-memory killer waits at the end of the memory.
    headroom_bytes = 0 if kind is DeviceKind.HOST and "memory_bytes" in values else 512 * MIB
    return _make(DeviceConfig, values, name=name, kind=kind, headroom_bytes=headroom_bytes)


def _model(report: _Report, name: str, path: str, content: object) -> ModelConfig:
    values = _read(report, "models", path, content)
    values["ready"] = _make(ReadyConfig, _read(report, "ready", f"{path}.ready", values.get("ready", {})))
    liveness = _read(report, "liveness", f"{path}.liveness", values.get("liveness", {}))
    values["liveness"] = _make(LivenessConfig, liveness)
    contract = _read(report, "contract", f"{path}.contract", values.get("contract", {}))
    values["contract"] = _make(ContractConfig, contract)
    values["probes"] = _each(report, f"{path}.probes", values.get("probes", []), _probe)
    if "warmup" in values:
        warmup = _read(report, "warmup", f"{path}.warmup", values["warmup"])
        values["warmup"] = _make(WarmupConfig, warmup, file="")
    if "app" not in values and values.get("engine", "asgi") == "asgi" and not _has(content, "app"):
        report.add(f"{path}.app", 'is missing: write app = "module:attribute", such as "my_model:app"')
    return _make(ModelConfig, values, name=name, directory=report.base)


def _each(report: _Report, path: str, content: object, read: Callable[[_Report, str, object], T]) -> tuple[T, ...]:
    if not isinstance(content, list | tuple):
        report.add(path, f"expected a list of tables: write [[{path}]], not {kind_of(content)}")
        return ()
    return tuple(read(report, f"{path}[{index}]", each) for index, each in enumerate(content))


def _probe(report: _Report, path: str, content: object) -> ProbeConfig:
    return _make(ProbeConfig, _asked(report, "probes", path, content), request=RequestConfig())


def _golden(report: _Report, path: str, content: object) -> GoldenConfig:
    return _make(GoldenConfig, _asked(report, "golden", path, content), request=RequestConfig())


def _asked(report: _Report, section: str, path: str, content: object) -> dict[str, Any]:
    """A request, and what its answer must be."""
    values = _read(report, section, path, content)
    if "request" in values:
        values["request"] = _request(report, f"{path}.request", values["request"])
    if "expect" in values:
        expect = _read(report, "expect", f"{path}.expect", values["expect"])
        if isinstance(expect.get("json_pointer"), Mapping):
            expect["json_contains"] = expect.pop("json_pointer")
        for key, other in (("label", "is"), ("is", "label")):
            if _has(values["expect"], key) and not _has(values["expect"], other):
                report.add(f"{path}.expect.{other}", f'is missing beside "{key}": write label = "/label", is = "cat"')
        values["expect"] = _make(ExpectConfig, expect)
    return values


def _request(report: _Report, path: str, content: object) -> RequestConfig:
    values = _read(report, "request", path, content)
    if _has(content, "json") and _has(content, "body"):
        report.add(f"{path}.body", 'stands beside "json", and a request has one body: leave one of them out')
    headers = dict(values.get("headers", ()))
    if _has(content, "json"):
        headers.setdefault("content-type", "application/json")
    values["headers"] = tuple(headers.items())
    return _make(RequestConfig, values, method="POST" if "body" in values else "GET")


def _service(report: _Report, name: str, path: str, content: object) -> ServiceConfig:
    values = _read(report, "services", path, content)
    values["golden"] = _each(report, f"{path}.golden", values.get("golden", []), _golden)
    return _make(ServiceConfig, values, name=name, listen=(), model="")


def _strategy(report: _Report, name: str, path: str, content: object) -> StrategyConfig:
    values = _read(report, "strategies", path, content)
    if "shadow" in values:
        values["shadow"] = _make(Shadow, _read(report, "shadow", f"{path}.shadow", values["shadow"]))
    return _make(StrategyConfig, values, name=name)


def _notify(report: _Report, name: str, path: str, content: object) -> NotifyConfig:
    return _make(NotifyConfig, _read(report, "notify", path, content), name=name, on=())


def _has(content: object, name: str) -> bool:
    return isinstance(content, Mapping) and name in content
