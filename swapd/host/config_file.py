"""The configuration's files: swapd.toml, models.d/*.toml beside it, and each model's env_file.

Duty: read them, and raise everything that is wrong in them as one `ConfigError`. What the tables mean is
`core.config_parse`'s. May not know: what the daemon does with a `Config`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from swapd.core.config import Config, ConfigProblem, ModelConfig, NotifyConfig
from swapd.core.config_notify import header_fault
from swapd.core.config_parse import parse_tables
from swapd.core.config_readers import kind_of, quoted, shown, variable_fault
from swapd.core.engine_flags import LLAMA_SERVER
from swapd.core.errors import CONFIG_INVALID, SwapdError
from swapd.core.presets import has_front, launch_of, names_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES: Final = 4 * 1024 * 1024  # a configuration; more is some other file
MODELS_DIR: Final = "models.d"
WORKER_NEEDS: Final = ("uvicorn", "uvloop", "httptools")  # as in worker.launch, which this layer may not import
HARMLESS_PTH: Final = ("distutils-precedence.pth", "_virtualenv.pth")  # they run code, and add nothing to the path


class ConfigError(SwapdError):
    """Every mistake that was found; `str()` has one a line."""

    def __init__(self, problems: Iterable[ConfigProblem]) -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        details = [{"file": each.file, "key": each.key, "message": each.message} for each in self.problems]
        super().__init__(CONFIG_INVALID, "\n".join(lines), {"problems": details})


def load_config(path: Path) -> Config:
    """The configuration in `path`, its models.d and env_files. Raises ConfigError with everything that is wrong.

    What may come and go while a daemon runs, such as a model's directory, is left to `check_paths`: a model that
    cannot start makes its own service unavailable, not the daemon.
    """
    config, problems = _load(path)
    if problems or config is None:
        raise ConfigError(problems)
    return config


def load_partly(path: Path) -> tuple[Config | None, list[ConfigProblem]]:
    """What could be read, and everything that is wrong. Good for looking at a host, not for running anything: None
    when not even the tables could be read."""
    return _load(path)


def check_paths(config: Config) -> list[ConfigProblem]:
    """What the configuration names and this host does not have. Runs nothing."""
    problems: list[ConfigProblem] = []
    invalidate_caches()
    for model in config.models.values():
        prefix = f"models.{quoted(model.name)}"
        found: list[tuple[str, str]] = []
        directory = Path(model.directory)
        if not directory.is_dir():
            what = "is not a directory" if directory.exists() else "does not exist"
            cure = f"that {model.app} is imported from" if model.app else "that the server is to run in"
            found.append(("directory", f"{shown(model.directory)} {what}: write the one {cure}"))
        elif model.app and (fault := _app_fault(model)):
            found.append(("app", fault))
        if model.python and has_front(model) and (fault := _python_fault(model)):
            found.append(("python", fault))
        if not has_front(model):
            found += _server_faults(model)
        for index, name in enumerate(model.weights):
            if not os.path.exists(name):
                at = f"weights[{index}]" if len(model.weights) > 1 else "weights"
                found.append((at, f"{shown(name)} does not exist: write the weights' file or directory"))
        if model.warmup and model.warmup.file and not os.path.isfile(model.warmup.file):
            found.append(
                ("warmup.file", f"{shown(model.warmup.file)} is not a file: write the path of a JSON lines file")
            )
        problems += [ConfigProblem(config.file, f"{prefix}.{key}", message) for key, message in found]
    return problems


def check(path: Path) -> list[str]:
    """For `swapd --check-config`: one line for each mistake, none when the file can be used as it is."""
    config, problems = _load(path)
    return [str(problem) for problem in [*problems, *(check_paths(config) if config else ())]]


def read_env_file(path: Path) -> dict[str, str]:
    """NAME=value lines; blank lines and those beginning with # are skipped, one pair of quotes is taken off.

    Nothing is expanded and nothing may be exported, as in systemd's EnvironmentFile=. Raises ConfigError. Problems
    name the line, never what is in it.
    """
    problems: list[ConfigProblem] = []
    values = _parse_env_file(path, problems)
    if problems:
        raise ConfigError(problems)
    return values


def _load(path: Path) -> tuple[Config | None, list[ConfigProblem]]:
    """What could be read, and everything that is wrong; the config is good only when nothing is."""
    path = path.absolute()
    problems: list[ConfigProblem] = []
    tables = _read_toml(path, problems)
    if tables is None:
        return None, problems
    model_files = _merge_models(path, tables, problems)
    config, found = parse_tables(tables, file=str(path), model_files=model_files)
    problems += found
    models = {
        name: _with_env_file(model, model_files.get(name, str(path)), problems) for name, model in config.models.items()
    }
    notify = {name: _with_headers(each, str(path), problems) for name, each in config.notify.items()}
    return replace(config, models=models, notify=notify), problems


def _read_toml(path: Path, problems: list[ConfigProblem]) -> dict[str, Any] | None:
    read = _read_text(path, problems, "write one, for instance from the etc/swapd.toml that comes with swapd")
    if read is None:
        return None
    try:
        return tomllib.loads(read[0])
    except tomllib.TOMLDecodeError as error:
        fault = f"is not TOML: {error}"  # the message ends in "(at line 3, column 7)"
    except ValueError:
        fault = "is not usable TOML: it has a number with too many digits"
    except RecursionError:
        fault = "is not usable TOML: it is nested too deep"
    problems.append(ConfigProblem(str(path), "", fault))
    return None


def _read_text(path: Path, problems: list[ConfigProblem], missing: str) -> tuple[str, int] | None:
    """A small text file and its mode, or None and a problem."""
    fault = ""
    try:
        # Without O_NONBLOCK the opening of a FIFO would wait for its writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                fault = "is not a regular file: write the path of one"
            elif len(data := file.read(MAX_FILE_BYTES + 1)) > MAX_FILE_BYTES:
                fault = f"is larger than {MAX_FILE_BYTES // 1024 // 1024} MiB: this is hardly the file that was meant"
            else:
                return data.decode("utf-8-sig"), stat.S_IMODE(mode)
    except FileNotFoundError:
        fault = f"does not exist: {missing}"
    except IsADirectoryError:  # already from open(): Python opens no directory as a file
        fault = "is a directory: write the path of a file"
    except PermissionError:
        fault = f"cannot be read by the user with id {os.geteuid()}: use sudo, or change its owner, group or mode"
    except UnicodeDecodeError as error:
        fault = f"is not UTF-8 at byte {error.start}: save it as UTF-8"
    except OSError as error:
        fault = f"cannot be read: {error.strerror}"
    problems.append(ConfigProblem(str(path), "", fault))
    return None


def _merge_models(path: Path, tables: dict[str, Any], problems: list[ConfigProblem]) -> dict[str, str]:
    """Add the models of models.d to the tables, and tell which file each came from."""
    models = tables.get("models", {})
    if not isinstance(models, Mapping):
        return {}  # the parser says so
    merged, origin = dict(models), dict.fromkeys(models, str(path))
    folder = path.parent / MODELS_DIR
    try:
        extra = sorted(each for each in folder.glob("*.toml") if not each.name.startswith("."))
    except OSError as error:
        problems.append(ConfigProblem(str(folder), "", f"cannot be read: {error.strerror}"))
        extra = []
    for file in extra:
        found = _read_toml(file, problems) or {}
        for name in found:
            if name != "models":
                message = f"only [models.NAME] tables may lie in {MODELS_DIR}: move it to {path}"
                problems.append(ConfigProblem(str(file), quoted(name), message))
        more = found.get("models", {})
        if not isinstance(more, Mapping):
            problems.append(ConfigProblem(str(file), "models", f"expected tables [models.NAME], not {kind_of(more)}"))
            continue
        for name, content in more.items():
            if name in merged:
                message = f"is already in {origin[name]}: give one of them another name, or delete it"
                problems.append(ConfigProblem(str(file), f"models.{quoted(name)}", message))
            else:
                merged[name], origin[name] = content, str(file)
    if merged:
        tables["models"] = merged
    return {name: file for name, file in origin.items() if file != str(path)}


def _with_env_file(model: ModelConfig, file: str, problems: list[ConfigProblem]) -> ModelConfig:
    if model.env_file is None:
        return model
    found: list[ConfigProblem] = []
    values = _parse_env_file(Path(model.env_file), found)
    key = f"models.{quoted(model.name)}.env_file"
    problems += [
        ConfigProblem(file, key, f"{each.file}{each.key and ', ' + each.key}: {each.message}") for each in found
    ]
    return replace(model, env_file_values=values)


def _with_headers(notify: NotifyConfig, file: str, problems: list[ConfigProblem]) -> NotifyConfig:
    """`Name: value` lines; blank lines and those beginning with # are skipped."""
    if notify.headers_file is None:
        return notify
    path, headers, found = Path(notify.headers_file), dict[str, str](), list[ConfigProblem]()
    text, mode = _read_text(path, found, "create it, and chmod 600 it, or leave headers_file out") or ("", 0)
    faults = [f"{each.file}: {each.message}" for each in found]
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        faults.append(f"{path}: can be read or written by every user, and it is for secrets: chmod 600 {path}")
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            name, colon, value = (part.strip() for part in line.partition(":"))
            if fault := header_fault(name if colon else "", value):
                faults.append(f"{path}, line {number}: {fault}")
            headers[name] = value
    problems += [ConfigProblem(file, f"notify.{quoted(notify.name)}.headers_file", fault) for fault in faults]
    return replace(notify, headers_file_values=headers)


def _parse_env_file(path: Path, problems: list[ConfigProblem]) -> dict[str, str]:
    def wrong(line: str, message: str) -> None:
        problems.append(ConfigProblem(str(path), line, message))

    values: dict[str, str] = {}
    read = _read_text(path, problems, "create it, and chmod 600 it, or leave env_file out")
    if read is None:
        return values
    text, mode = read
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        wrong("", f"can be read or written by every user (mode {mode:04o}), and it is for secrets: chmod 600 {path}")
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith(("#", ";")):
            continue
        name, equals, value = line.partition("=")
        name, value = name.strip(), value.strip()
        if name.startswith("export "):
            wrong(f"line {number}", "no shell reads this file: leave out the word export")
        elif not equals:
            wrong(f"line {number}", "is not NAME=value")
        elif value[:1] in ("'", '"') and (len(value) < 2 or value[-1] != value[0]):
            wrong(f"line {number}", "a quote is opened and not closed on the line")
        else:
            value = value[1:-1] if value[:1] in ("'", '"') else value
            if fault := variable_fault(name, value):
                wrong(f"line {number}", f"the name {fault}" if fault.startswith("is not") else f"{name} {fault}")
            elif name in values:
                wrong(f"line {number}", f"{name} is set twice: leave one of them out")
            values[name] = value
    return values


# --- what a worker will import, seen from file names alone: nothing is started or imported ---------------------------


def _app_fault(model: ModelConfig) -> str | None:
    """Whether the app's module can be found; None also when it cannot be told."""
    assert model.app is not None
    module = model.app.partition(":")[0]
    packages = _packages(model)
    places = _import_path(model) + (packages or [])
    searched = " or ".join([model.directory, *(packages or [])[:1]])
    for depth, name in enumerate(module.split(".")):
        found = _find(name, places)
        if found is None:
            if depth == 0 and (name in sys.stdlib_module_names or packages is None or _installed_here(model, name)):
                return None
            missing = ".".join(module.split(".")[: depth + 1])
            return f'there is no module "{missing}" in {searched}: write the module\'s name, or its "directory"'
        places = found
    return None


def _server_faults(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """What a server of another make will lack when it is started."""
    name = launch_of(model).argv[0]
    key = "command" if model.command else "python" if model.python else "engine"
    path = os.path.join(model.directory, name)
    if "/" in name and not (os.path.isfile(path) and os.access(path, os.X_OK)):
        yield key, f"{shown(name)} is not a program: write the path of one, or its name where PATH has it"
    searched = model.environment.get("PATH", os.environ.get("PATH", os.defpath))
    if "/" not in name and shutil.which(name, path=searched) is None:
        yield key, f'there is no program {shown(name)} in PATH ({searched}): write "command" with its full path'
    if model.engine == LLAMA_SERVER and not names_model(model) and os.path.isdir(model.weights[0]):
        yield "weights", f"{shown(model.weights[0])} is a directory: write the path of a GGUF file"
    if model.user is not None:
        try:
            pwd.getpwnam(model.user)
        except KeyError:
            yield "user", f"there is no user {shown(model.user)} on this host: create it, or write another"


def _python_fault(model: ModelConfig) -> str | None:
    """Whether the model's own interpreter can run a worker; None also when it cannot be told."""
    assert model.python is not None
    if not (os.path.isfile(model.python) and os.access(model.python, os.X_OK)):
        return f"{shown(model.python)} is not a program: write the path of an interpreter"
    packages = _packages(model)
    if packages is None:
        return None
    lacking = [name for name in WORKER_NEEDS if _find(name, _import_path(model) + packages) is None]
    if not lacking:
        return None
    cure = f"install with '{model.python} -m pip install {' '.join(WORKER_NEEDS)}'"
    return f"{model.python} lacks {', '.join(lacking)}: {cure}"


def _import_path(model: ModelConfig) -> list[str]:
    """What comes before the interpreter's own packages."""
    named = filter(None, model.environment.get("PYTHONPATH", "").split(os.pathsep))
    return [model.directory, *(os.path.join(model.directory, each) for each in named)]


def _packages(model: ModelConfig) -> list[str] | None:
    """Where the model's own interpreter has its packages. None where that cannot be told: of an interpreter outside
    a virtual environment, of one that sees the system's packages too, and where a .pth file runs code.

    Source: the documentation of Python's site module. Without `python` it is empty: see `_installed_here`.
    """
    if model.python is None:
        return []
    prefix = Path(model.python).parent.parent  # not resolved: that is how Python itself finds its pyvenv.cfg
    try:
        lines = (prefix / "pyvenv.cfg").read_text().splitlines()
        settings = {key.strip().lower(): value.strip().lower() for key, _, value in (x.partition("=") for x in lines)}
        if settings.get("include-system-site-packages") == "true":
            return None
        found = [str(each) for each in prefix.glob("lib/python3*/site-packages")]
        for extra in [each for place in found for each in Path(place).glob("*.pth")]:
            for line in extra.read_text(errors="replace").splitlines():
                if line.startswith(("import ", "import\t")) and extra.name not in HARMLESS_PTH:
                    return None
                if line.strip() and not line.startswith(("import ", "import\t", "#")):
                    found.append(str(extra.parent / line.strip()))
    except (OSError, ValueError):
        return None
    return found or None


def _find(name: str, places: Iterable[str]) -> list[str] | None:
    """The directories in which the module's submodules lie (none: it is a file); None when it is nowhere."""
    packages = [path for path in (os.path.join(each, name) for each in places) if os.path.isdir(path)]
    # An extension's suffix tells the Python that it was built for, which need not be ours.
    files = (
        file
        for each in places
        for pattern in (".py", ".pyc", ".so", ".*.so")
        for file in Path(each).glob(name + pattern)
    )
    return packages if packages or any(files) else None


def _installed_here(model: ModelConfig, name: str) -> bool:
    """For a model that runs in the daemon's own interpreter."""
    try:
        return model.python is None and find_spec(name) is not None
    except (ImportError, ValueError):  # ValueError: __main__ and the like have no spec
        return False
