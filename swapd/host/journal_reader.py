"""The journal read without its daemon: while one has it open, hangs, or is gone; also from a disk that takes no writes.

Duty: open the file for reading and hand out its rows, whatever version of swapd wrote them. Never writes, takes no lock
that a daemon waits for, and trusts nothing: a row that it cannot read is left out. May not know: what records mean.

Source: https://www.sqlite.org/wal.html, "Read-Only Databases": a reader of a WAL file needs its -shm, or a directory in
which that can be made. Where neither is to be had nobody writes either, so a copy of the two files tells the same.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from swapd.core.errors import JOURNAL_FAILED, SwapdError

BUSY_TIMEOUT_S: Final = 2.0
ROW_TABLES: Final = ("op", "command")


class JournalReader:
    """One journal, open for reading. Every method raises SwapdError(JOURNAL_FAILED) when the file does not let it."""

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._copy: tempfile.TemporaryDirectory[str] | None = None
        with _explained(path):
            path.stat()
            try:
                self._db = _connect(path)
            except sqlite3.OperationalError:
                self._copy = _copied(path)
                self._db = _connect(Path(self._copy.name) / path.name)
            self.schema: Final = int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def close(self) -> None:
        self._db.close()
        if self._copy is not None:
            self._copy.cleanup()

    def __enter__(self) -> JournalReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def services(self) -> dict[str, dict[str, Any]]:
        """What each service's row holds. Its keys are those of the version that wrote it."""
        found = ((name, _load(body)) for name, body in self._run("SELECT name, body FROM service"))
        return {name: body for name, body in found if body is not None}

    def swap(self, swap_id: int) -> dict[str, Any] | None:
        rows = self._run("SELECT body FROM swap WHERE id = ?", (swap_id,))
        return _load(rows[0][0]) if rows else None

    def swaps(self, service: str | None, limit: int) -> list[dict[str, Any]]:
        """Newest first."""
        where, values = ("WHERE service = ?", [service]) if service is not None else ("", [])
        rows = self._run(f"SELECT body FROM swap {where} ORDER BY id DESC LIMIT ?", (*values, limit))
        return [record for (body,) in rows if (record := _load(body)) is not None]

    def last_swap_id(self) -> int:
        return int(self._run("SELECT COALESCE(MAX(id), 0) FROM swap")[0][0])

    def transitions(self, swap: int) -> list[dict[str, Any]]:
        rows = self._run("SELECT at, event, body FROM transition WHERE swap = ? ORDER BY id", (swap,))
        return [{"at": at, "event": event, **(_load(body) or {})} for at, event, body in rows]

    def newest(self, table: str, limit: int) -> list[dict[str, Any]]:
        """The newest rows of one of ROW_TABLES as they are, by column, oldest first."""
        assert table in ROW_TABLES
        with _explained(self.path):
            cursor = self._db.execute(f'SELECT * FROM "{table}" ORDER BY id DESC LIMIT ?', (limit,))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()][::-1]

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with _explained(self.path):
            return self._db.execute(statement, values).fetchall()


def _connect(path: Path) -> sqlite3.Connection:
    """Raises sqlite3.Error: the first statement tells whether the file can be read at all."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        db.close()
        raise
    return db


def _copied(path: Path) -> tempfile.TemporaryDirectory[str]:
    """The file and its -wal, in a directory that only we can look into."""
    directory = tempfile.TemporaryDirectory(prefix="swapd-journal-")
    try:
        shutil.copyfile(path, Path(directory.name) / path.name)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{path}-wal", Path(directory.name) / f"{path.name}-wal")
    except BaseException:
        directory.cleanup()
        raise
    return directory


def _load(body: Any) -> dict[str, Any] | None:
    """A row's JSON object; None where it is none."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        found = json.loads(body)
        return found if isinstance(found, dict) else None
    return None


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        text = f"There is no journal {path}: swapd has never run with this state_dir, or the file was moved away."
        raise SwapdError(JOURNAL_FAILED, text, {"path": str(path)}) from None
    except PermissionError:
        text = f"The journal {path} is for the daemon's user and root alone: use sudo."
        raise SwapdError(JOURNAL_FAILED, text, {"path": str(path)}) from None
    except (sqlite3.Error, OSError) as error:
        raise SwapdError(JOURNAL_FAILED, f"The journal {path} cannot be read: {error}.", {"path": str(path)}) from error
