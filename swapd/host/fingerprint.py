"""What a model is made of, as 16 hex digits: its code, and the files that its weights lie in.

Duty: tell a retrained or edited model from the same one, so that a swap to it is a swap. Deterministic: no order of
a directory and no `touch` of a small file changes it. Bounded in files and bytes read, since the daemon waits for
it: past the bounds size and time stand for content, and past those of the walk nothing is looked at any more.
May not know: what a weight file means (`host.weights`). Blocks on the disk: call it from a thread.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swapd.core.config import ModelConfig
from swapd.core.config_views import DIGEST_DIGITS
from swapd.core.errors import CONFIG_INVALID, SwapdError
from swapd.core.presets import has_front, launch_of

MAX_ENTRIES: Final = 50_000  # of directories, looked at per model
MAX_FILES: Final = 5_000  # that count
SMALL_BYTES: Final = 2 << 20  # read whole; of a larger file the first and the last MiB, its size and its time
EDGE_BYTES: Final = 1 << 20
READ_BUDGET_BYTES: Final = 256 << 20  # a tenth of a second from the page cache, two from a disk of 2020

# Beside the code, these are taken for weights without being named: forgetting to name a file must not make a
# retrained model look unchanged.
_WEIGHT_SUFFIXES: Final = frozenset(
    {".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".tflite", ".h5", ".keras"}
    | {".npz", ".npy", ".pkl", ".joblib", ".model"}
)
_SKIPPED: Final = frozenset({"__pycache__", "site-packages", "node_modules", "venv"})  # and hidden ones, and any venv
# Variables that name a place where things come and go, not what the model is made of.
_PLACES: Final = frozenset({"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "PWD", "SHELL"})
_PLACE_WORDS: Final = ("CACHE", "LOG", "TMP", "TEMP", "HOME", "OUTPUT")


def fingerprint(model: ModelConfig) -> str:
    """16 hex digits of SHA-256. Raises SwapdError(CONFIG_INVALID) naming a file that is missing or unreadable."""
    reader = _Reader(model.name)
    root = Path(model.directory)
    if has_front(model):
        for path in reader.walk(root):
            if path.suffix == ".py" or path.suffix.lower() in _WEIGHT_SUFFIXES:
                reader.add("code", os.path.relpath(path, root), path)
    elif (program := program_of(model)) is not None:
        reader.add("program", program.name, program, lenient=True)
    for source, top, path in _named_weights(model, reader):
        # What a variable or an argument names may be anything: it counts as far as it can be read.
        reader.add(source, os.path.relpath(path, top), path, lenient=source != "weights")
    return reader.digest()


def program_of(model: ModelConfig) -> Path | None:
    """The file that a server's command names, looked for as the server's start will; None: there is none."""
    name = launch_of(model).argv[0]
    if "/" in name:
        path = Path(model.directory, name)
        return path if path.is_file() else None
    found = shutil.which(name, path=model.environment.get("PATH", os.environ.get("PATH", os.defpath)))
    return Path(found) if found is not None else None


def weight_files(model: ModelConfig) -> tuple[Path, ...]:
    """The regular files of `weights`, and of every variable of `env` and argument of `command` that names a file or
    directory that exists.

    Each once, however many links lead to it. Raises SwapdError(CONFIG_INVALID) when `weights` names nothing.
    """
    chosen: dict[tuple[int, int], Path] = {}
    for _, _, path in _named_weights(model, _Reader(model.name)):
        try:
            status = path.stat()
        except OSError as error:
            raise _unusable(model.name, path, error) from None
        identity = (status.st_dev, status.st_ino)
        # Hugging Face's cache has each file as a blob without suffix and a link with its name: the name tells more.
        if identity not in chosen or (path.suffix and not chosen[identity].suffix):
            chosen[identity] = path
    return tuple(chosen.values())


def _named_weights(model: ModelConfig, reader: _Reader) -> Iterator[tuple[str, Path, Path]]:
    """("weights" or the variable's name, the path given, file), in the configuration's order and sorted below each."""
    for name in model.weights:
        top = Path(name)
        if not top.exists():
            raise SwapdError(
                CONFIG_INVALID,
                f"The weights of model {model.name} are not there: {top} does not exist. "
                f"Put them there, or correct models.{model.name}.weights.",
                {"path": name, "model": model.name},
            )
        yield from (("weights", top, path) for path in reader.walk(top))
    for name, value in [*sorted(_path_variables(model)), *_path_arguments(model)]:
        top = Path(model.directory, value)
        yield from ((name, top, path) for path in reader.walk(top, lenient=True))


def _path_variables(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Variables whose value is the path of something that exists, relative to the worker's directory or not."""
    for name, value in model.environment.items():
        place = name in _PLACES or any(word in name.upper() for word in _PLACE_WORDS)
        if not place and _is_path(model, value):
            yield name, value


def _path_arguments(model: ModelConfig) -> Iterator[tuple[str, str]]:
    """Arguments of a server's command, and values of its flags, that are such paths; not those of `weights` again."""
    for word in model.command[1:]:
        _, _, value = word.partition("=") if word.startswith("-") else ("", "", word)
        if value not in model.weights and _is_path(model, value):
            yield "command", value


def _is_path(model: ModelConfig, value: str) -> bool:
    if not value or len(value) > 4096 or "\n" in value or "://" in value:
        return False
    # "info" may be a level as well as a file's name: a bare word counts only with a suffix.
    if "/" not in value and "." not in value.strip("."):
        return False
    path = Path(model.directory, value)
    try:
        return path.exists() and len(path.resolve().parts) > 2  # never all of / or of /srv
    except (OSError, RuntimeError):  # a loop of links, a path too long: not something that exists
        return False


@dataclass(slots=True)
class _Budget:
    entries: int
    files: int
    bytes: int


class _Reader:
    """Walks and hashes within one model's bounds."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._hash = hashlib.sha256()
        self._left = _Budget(MAX_ENTRIES, MAX_FILES, READ_BUDGET_BYTES)

    def walk(self, top: Path, lenient: bool = False) -> Iterator[Path]:
        """The regular files at or below `top`, sorted; links are followed, a directory is entered once.

        `top` itself must be readable unless `lenient`. Below it an unreadable directory is passed over: lost+found
        is one on every mount point, and the worker cannot read it either.
        """
        entered: set[tuple[int, int]] = set()
        waiting = [top]
        while waiting:
            path = waiting.pop()
            try:
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    yield path
                if not stat.S_ISDIR(status.st_mode) or (status.st_dev, status.st_ino) in entered:
                    continue
                entered.add((status.st_dev, status.st_ino))
                names = sorted(os.listdir(path), key=os.fsencode)
            except OSError as error:  # below `top` also a dangling link, or what is gone since it was listed
                if path == top and not lenient:
                    raise _unusable(self._model, path, error) from None
                continue
            if "pyvenv.cfg" in names:
                continue
            kept = [name for name in names if not name.startswith(".") and name not in _SKIPPED]
            self._left.entries -= len(kept)
            if self._left.entries < 0:
                return
            waiting += [path / name for name in reversed(kept)]

    def add(self, kind: str, name: str, path: Path, lenient: bool = False) -> None:
        """One file into the digest, under a name that does not change when the whole tree is moved."""
        self._left.files -= 1
        if self._left.files < 0:
            return
        try:
            # O_NONBLOCK: what was a file a moment ago may be a FIFO by now, and must not stop the daemon.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                content = self._content(file.fileno())
        except OSError as error:
            if not lenient:
                raise _unusable(self._model, path, error) from None
            content = b"unreadable"
        for part in (kind.encode(), os.fsencode(name), content):
            self._hash.update(len(part).to_bytes(8, "big") + part)

    def _content(self, fd: int) -> bytes:
        status = os.fstat(fd)
        whole = status.st_size <= SMALL_BYTES
        cost = status.st_size if whole else 2 * EDGE_BYTES
        marks = f"{status.st_size}:{status.st_mtime_ns}:".encode()
        if cost > self._left.bytes:
            return marks
        self._left.bytes -= cost
        if whole:
            return hashlib.sha256(_read(fd, status.st_size, 0)).digest()
        edges = _read(fd, EDGE_BYTES, 0) + _read(fd, EDGE_BYTES, status.st_size - EDGE_BYTES)
        return marks + hashlib.sha256(edges).digest()

    def digest(self) -> str:
        return self._hash.hexdigest()[:DIGEST_DIGITS]


def _read(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes; pread may give fewer at a time."""
    parts: list[bytes] = []
    while length > 0 and (part := os.pread(fd, length, offset)):
        parts.append(part)
        length -= len(part)
        offset += len(part)
    return b"".join(parts)


def _unusable(model: str, path: Path, error: OSError) -> SwapdError:
    return SwapdError(
        CONFIG_INVALID,
        f"Model {model} has a file that cannot be read: {path}: {error.strerror}. "
        f"Let the daemon's user (id {os.geteuid()}) read it, or take it out of the model's directory and weights.",
        {"path": str(path), "model": model},
    )
