"""`doctor --bundle`: everything that somebody else needs to understand what happened, without a secret in it.

Duty: one tar.gz for its owner alone (0600), never in place of another file. Every text goes through the redactor of the
configuration; where not all secrets are known, since an env_file cannot be read, no log is taken along.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import swapd
from swapd.cli.facts import Gathering
from swapd.cli.looking import Source
from swapd.cli.offline import Offline
from swapd.core import errors
from swapd.core.config_views import redacted
from swapd.core.errors import SwapdError
from swapd.host.journal_reader import ROW_TABLES, JournalReader

LOG_LINES: Final = 1000
SWAPS: Final = 50
ROWS: Final = 500
PACKAGES: Final = ("pyzmq", "uvicorn", "uvloop", "httptools", "psutil", "nvidia-ml-py", "msgspec")


def write_bundle(path: Path, gathering: Gathering, told: Mapping[str, Any], lines: Sequence[str]) -> None:
    """Raises SwapdError(BAD_REQUEST) when the file is there already or cannot be written."""
    redactor = gathering.redactor
    files = {"doctor.txt": "\n".join(redactor.text(line) for line in lines) + "\n", "doctor.json": _json(told)}
    files["versions.json"] = _json(_versions())
    if gathering.offline is not None:
        files.update(_of_host(gathering.offline))
        files.update(_logs(gathering.offline, gathering.source))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise SwapdError(errors.BAD_REQUEST, f"{path} is there already: name another file.") from None
    except OSError as error:
        raise SwapdError(errors.BAD_REQUEST, f"{path} cannot be written: {error.strerror}.") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(file, files, path.name.partition(".")[0] or "swapd")
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise SwapdError(errors.BAD_REQUEST, f"{path} cannot be written: {error.strerror}.") from None


def _write(file: Any, files: Mapping[str, str], folder: str) -> None:
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content in files.items():
            data = content.encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(time.time())
            archive.addfile(entry, io.BytesIO(data))


def _of_host(offline: Offline) -> Iterator[tuple[str, str]]:
    redactor = offline.redactor
    yield "config.json", _json(redactor.value(redacted(offline.config)))
    if offline.config_problems:
        yield "config-problems.txt", "\n".join(map(redactor.text, offline.config_problems)) + "\n"
    try:
        with offline.journal() as journal:
            yield "journal.json", _json(redactor.value(_journal(journal)))
    except SwapdError as error:
        yield "journal-problem.txt", error.message + "\n"


def _journal(journal: JournalReader) -> dict[str, Any]:
    """Texts that hold JSON are unpacked, so that they are masked as what they are."""
    swaps = journal.swaps(None, SWAPS)
    rows = {table: [_unpacked(row) for row in journal.newest(table, ROWS)] for table in ROW_TABLES}
    transitions = {str(swap["id"]): journal.transitions(swap["id"]) for swap in swaps}
    return {
        "schema": journal.schema,
        "services": journal.services(),
        "swaps": swaps,
        "transitions": transitions,
        **rows,
    }


def _unpacked(row: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(row)
    for name, value in row.items():
        if isinstance(value, str) and value[:1] in ("{", "["):
            with contextlib.suppress(ValueError):
                found[name] = json.loads(value)
    return found


def _logs(offline: Offline, source: Source) -> Iterator[tuple[str, str]]:
    """From the daemon where it answers: it knows the secrets of former configurations as well."""
    if offline.secrets_unknown:
        text = "Not all of the models' settings could be read, so what is secret in the logs is not known.\n"
        yield "logs-left-out.txt", text
        return
    with contextlib.suppress(OSError):
        for path in sorted(offline.log_dir.glob("*.log")):
            with contextlib.suppress(SwapdError):
                lines = source.logs(path.stem, LOG_LINES)["lines"]
                yield f"logs/{path.name}", "".join(f"{offline.redactor.text(line)}\n" for line in lines)


def _versions() -> dict[str, Any]:
    found = {"swapd": swapd.__version__, "python": platform.python_version(), "system": platform.platform()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
