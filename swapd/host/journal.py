"""The journal: what swapd decided and did, in SQLite (WAL), and what it knows again after a restart.

Duty: the only writer of the file (`journal_reader` reads it without a daemon). An operation's intent is written, with
the state it belongs to, in one transaction before the operation begins; its result after. May not know: what the
records mean (bodies are JSON).

`synchronous=NORMAL`: a commit survives the death of the daemon at any instant. After a power cut the last few may
be missing, which costs nothing: the workers that they speak of are gone as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from swapd.core.errors import JOURNAL_FAILED, JOURNAL_NEWER, Problem, SwapdError

SCHEMA_VERSION: Final = 3
BUSY_TIMEOUT_MS: Final = 2000  # the daemon is the only writer; somebody with sqlite3 in hand may hold a lock
# SQLITE_CORRUPT and SQLITE_NOTADB, whose numbers Python tells from 3.11 on.
DAMAGED: Final = ("database disk image is malformed", "file is not a database")
KEPT_ROWS: Final = 10_000  # of what belongs to no swap: weeks of a busy host, about 2 MB
KEPT_FOOTPRINTS: Final = 1000
PRUNED_AT_ONCE: Final = 100  # swaps, some 3,000 rows with theirs: 10 ms, in which the loop waits

_FOOTPRINT: Final = """CREATE TABLE footprint (
    content TEXT NOT NULL, settings TEXT NOT NULL, device TEXT NOT NULL, body TEXT NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (content, settings, device));"""
_SCHEMA: Final = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE service (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE worker (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE reservation (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE swap (
    id INTEGER PRIMARY KEY, service TEXT NOT NULL, phase TEXT NOT NULL, source INTEGER, target INTEGER,
    from_model TEXT, to_model TEXT NOT NULL, actor TEXT NOT NULL,
    created_at REAL NOT NULL, finished_at REAL, body TEXT NOT NULL);
CREATE INDEX swap_by_service ON swap (service, id);
CREATE INDEX swap_under_way ON swap (id) WHERE finished_at IS NULL;
CREATE TABLE op (
    id INTEGER PRIMARY KEY, boot INTEGER NOT NULL, op INTEGER NOT NULL, swap INTEGER, service TEXT NOT NULL,
    worker TEXT NOT NULL, kind TEXT NOT NULL, args TEXT NOT NULL,
    intent_at REAL NOT NULL, done_at REAL, result TEXT);
CREATE UNIQUE INDEX op_by_number ON op (boot, op);
CREATE INDEX op_by_swap ON op (swap, id);
CREATE TABLE transition (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, swap INTEGER, event TEXT NOT NULL, body TEXT NOT NULL);
CREATE INDEX transition_by_swap ON transition (swap, id);
CREATE TABLE command (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, actor TEXT NOT NULL, method TEXT NOT NULL, params TEXT NOT NULL);
{_FOOTPRINT}
CREATE TABLE timing (
    model TEXT NOT NULL, settings TEXT NOT NULL, step TEXT NOT NULL, seconds REAL NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (model, settings, step));
"""


class Journal:
    """One journal. Every method raises SwapdError(JOURNAL_FAILED) when the file does not let it.

    A file that cannot be opened (locked, damaged, on a full disk) leaves a journal that fails until `reopen` succeeds.
    One found damaged, be it in a page that few statements touch, is used no more until another file is in its place.
    Only one of a newer schema is refused outright: JOURNAL_NEWER.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self.boot = int(time.time())  # of a daemon whose starts cannot be counted
        self._db: sqlite3.Connection | None = None
        self._why = Problem(JOURNAL_FAILED, f"The journal {path} is closed.")
        self._file: tuple[int, int] | None = None  # the one that is open, or was
        self._damaged = False
        self.reopen()

    def reopen(self) -> Problem | None:
        """Open the file if it is not open, or if another one is there by now. Returns why it cannot be; raises
        SwapdError(JOURNAL_NEWER)."""
        if self.is_current():
            return None
        if self._damaged and _identity(self.path) == self._file:
            return self._why
        self.close()
        try:
            with self._explained():
                self._db = self._open()
        except SwapdError as error:
            if error.code == JOURNAL_NEWER:
                raise
            self._why = error.problem
            return error.problem
        return None

    def is_current(self) -> bool:
        """Whether it is open, sound, and the file that lies at its path."""
        return self._db is not None and not self._damaged and _identity(self.path) == self._file

    def _open(self) -> sqlite3.Connection:
        self._damaged = False
        self.path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        old_umask = os.umask(0o077)
        try:
            db = sqlite3.connect(self.path, isolation_level=None)
        finally:
            os.umask(old_umask)
        self._file = _identity(self.path)
        try:
            db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            _migrate(db, self.path)
            self.boot = _count_boot(db)
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All writes within become durable together, or none does."""
        db = self._usable()
        with self._explained():
            self._begin(db)
            try:
                yield
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:  # a full disk has SQLite roll back by itself, or fails the commit alone
                    db.execute("ROLLBACK")
                raise

    def _begin(self, db: sqlite3.Connection) -> None:
        """The daemon's loop waits for a lock of somebody else's, so once in a row: many events would have it hang."""
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            db.execute("PRAGMA busy_timeout = 0")
            raise
        db.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")

    def number(self, name: str) -> int:
        """A counter that outlives the daemon; 1 to begin with."""
        rows = self._run("SELECT value FROM meta WHERE key = ?", (name,))
        return int(rows[0][0]) if rows else 1

    def save_number(self, name: str, value: int) -> None:
        self._run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, str(value)))

    # --- the state: rows of JSON by kind ("service", "worker", "reservation") and name ---------------------------

    def save_row(self, kind: str, name: str, body: str) -> None:
        self._run(f'INSERT OR REPLACE INTO "{kind}" VALUES (?, ?)', (name, body))

    def delete_row(self, kind: str, name: str) -> None:
        self._run(f'DELETE FROM "{kind}" WHERE name = ?', (name,))

    def rows(self, kind: str) -> dict[str, str]:
        return dict(self._run(f'SELECT name, body FROM "{kind}"'))

    # --- swaps -------------------------------------------------------------------------------------------------

    def save_swap(self, record: Mapping[str, Any]) -> None:
        """Insert or update by `id`; `record` is what `show` answers."""
        source, target = record["from"], record["to"]
        row = (
            record["id"],
            record["service"],
            record["phase"],
            source and source["revision"],
            target["revision"],
            source and source["model"],
            target["model"],
            record["actor"],
            record["created_at"],
            record["finished_at"],
            _dump(record),
        )
        self._run(f"INSERT OR REPLACE INTO swap VALUES ({', '.join('?' * len(row))})", row)

    def swap(self, swap_id: int) -> dict[str, Any] | None:
        rows = self._run("SELECT body FROM swap WHERE id = ?", (swap_id,))
        return json.loads(rows[0][0]) if rows else None

    def swaps(self, service: str | None, limit: int) -> list[dict[str, Any]]:
        """Newest first."""
        where, values = ("WHERE service = ?", [service]) if service is not None else ("", [])
        rows = self._run(f"SELECT body FROM swap {where} ORDER BY id DESC LIMIT ?", (*values, limit))
        return [json.loads(body) for (body,) in rows]

    def unfinished_swaps(self) -> list[dict[str, Any]]:
        return [json.loads(b) for (b,) in self._run("SELECT body FROM swap WHERE finished_at IS NULL ORDER BY id")]

    def last_swap_from(self, service: str, revision: int) -> dict[str, Any] | None:
        """The newest swap of the service that left this revision."""
        rows = self._run(
            "SELECT body FROM swap WHERE service = ? AND (source = ? OR target = ?) ORDER BY id DESC LIMIT 1",
            (service, revision, revision),
        )
        return json.loads(rows[0][0]) if rows else None

    def last_swap_to(self, service: str, revision: int, phases: Sequence[str]) -> dict[str, Any] | None:
        """The newest swap of the service to this revision that is in one of the phases."""
        rows = self._run(
            f"SELECT body FROM swap WHERE service = ? AND target = ? AND phase IN ({', '.join('?' * len(phases))})"
            " ORDER BY id DESC LIMIT 1",
            (service, revision, *phases),
        )
        return json.loads(rows[0][0]) if rows else None

    def last_swap_id(self) -> int:
        rows = self._run("SELECT COALESCE(MAX(id), 0) FROM swap")
        return int(rows[0][0])

    def prune(self, keep_swaps: int, ended_before: float = 0.0, *, at_most: int = PRUNED_AT_ONCE) -> bool:
        """Forget the oldest finished swaps, and what belonged to them: those beyond `keep_swaps`, and those that had
        ended before that time. So many at once, since whoever writes waits. Returns whether there may be more."""
        with self.transaction():
            excess = self._count("TRUE") - self._count("finished_at IS NULL") - keep_swaps
            oldest = self._run(
                "SELECT id, finished_at FROM swap WHERE finished_at IS NOT NULL ORDER BY id LIMIT ?", (at_most,)
            )
            swaps = [swap for number, (swap, at) in enumerate(oldest) if number < excess or at < ended_before]
            marks = ", ".join("?" * len(swaps))
            for table, column in (("swap", "id"), ("transition", "swap"), ("op", "swap")):
                self._run(f'DELETE FROM "{table}" WHERE {column} IN ({marks})', swaps)
            self._run("DELETE FROM op WHERE swap IS NULL AND boot < ?", (self.boot,))
            for table, condition in (("op", "swap IS NULL"), ("transition", "swap IS NULL"), ("command", "TRUE")):
                last = f'(SELECT MAX(id) - {KEPT_ROWS} FROM "{table}")'
                self._run(f'DELETE FROM "{table}" WHERE {condition} AND id < {last}')
        return len(swaps) == at_most

    def _count(self, condition: str) -> int:
        return int(self._run(f"SELECT COUNT(*) FROM swap WHERE {condition}")[0][0])

    # --- operations, transitions, commands -----------------------------------------------------------------------

    def intend(self, op: int, swap: int | None, service: str, worker: str, kind: str, args: Any, at: float) -> None:
        self._run(
            "INSERT INTO op (boot, op, swap, service, worker, kind, args, intent_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (self.boot, op, swap, service, worker, kind, _dump(args), at),
        )

    def conclude(self, op: int, result: Any, at: float) -> None:
        self._run("UPDATE op SET done_at = ?, result = ? WHERE boot = ? AND op = ?", (at, _dump(result), self.boot, op))

    def interrupt_ops(self, at: float) -> None:
        """The operations that an earlier daemon has begun, and did not live to hear the end of."""
        result = _dump({"interrupted": "the daemon ended"})
        self._run("UPDATE op SET done_at = ?, result = ? WHERE done_at IS NULL AND boot < ?", (at, result, self.boot))

    def add_transition(self, swap: int | None, event: str, body: Mapping[str, Any], at: float) -> None:
        self._run("INSERT INTO transition (at, swap, event, body) VALUES (?, ?, ?, ?)", (at, swap, event, _dump(body)))

    def transitions(self, swap: int) -> list[dict[str, Any]]:
        rows = self._run("SELECT at, event, body FROM transition WHERE swap = ? ORDER BY id", (swap,))
        return [{"at": at, "event": event, **json.loads(body)} for at, event, body in rows]

    def add_command(self, actor: str, method: str, params: Mapping[str, Any], at: float) -> None:
        self._run(
            "INSERT INTO command (at, actor, method, params) VALUES (?, ?, ?, ?)", (at, actor, method, _dump(params))
        )

    # --- what was learned ------------------------------------------------------------------------------------------

    def footprint(self, content: str, settings: str, device: str) -> str | None:
        """The JSON that was saved under a content's fingerprint, a digest of settings and a type of device."""
        key = (content, settings, device)
        rows = self._run("SELECT body FROM footprint WHERE content = ? AND settings = ? AND device = ?", key)
        return rows[0][0] if rows else None

    def save_footprint(self, content: str, settings: str, device: str, body: str, at: float) -> None:
        """Those of the contents that were served last are kept. Within a transaction, so that somebody's lock is waited
        for once: a model that grows is told of many times a second, and the guard's looks would wait with it."""
        with self.transaction():
            self._run("INSERT OR REPLACE INTO footprint VALUES (?, ?, ?, ?, ?)", (content, settings, device, body, at))
            self._run(
                "DELETE FROM footprint WHERE rowid IN (SELECT rowid FROM footprint ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (KEPT_FOOTPRINTS,),
            )

    def timing(self, model: str, settings: str) -> dict[str, float]:
        rows = self._run("SELECT step, seconds FROM timing WHERE model = ? AND settings = ?", (model, settings))
        return dict(rows)

    def save_timing(self, model: str, settings: str, step: str, seconds: float, at: float) -> None:
        self._run("INSERT OR REPLACE INTO timing VALUES (?, ?, ?, ?, ?)", (model, settings, step, seconds, at))

    # --- within ------------------------------------------------------------------------------------------------

    def _run(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        db = self._usable()
        with self._explained():
            return db.execute(statement, values).fetchall()

    def _usable(self) -> sqlite3.Connection:
        if self._db is None or self._damaged:
            raise SwapdError.of(self._why)
        return self._db

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            text = f"The journal {self.path} cannot be used: {error}."
            if isinstance(error, sqlite3.DatabaseError) and str(error) in DAMAGED:
                self._damaged = True
                text += f" Move {self.path}* away; the history goes with it."
            self._why = Problem(JOURNAL_FAILED, text, {"path": str(self.path)})
            raise SwapdError.of(self._why) from error


def know_schema(version: int, path: Path) -> None:
    """Raises SwapdError(JOURNAL_NEWER) for one that only a later swapd can read."""
    if version > SCHEMA_VERSION:
        raise SwapdError(
            JOURNAL_NEWER,
            f"{path} was written by a newer swapd (schema {version}, this one knows {SCHEMA_VERSION});"
            " start that version, or move the file away (the history goes with it).",
        )


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring the file to SCHEMA_VERSION, a version at a time, each in one transaction."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    know_schema(version, path)
    if version == 0:
        db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        return
    while version < SCHEMA_VERSION:
        db.execute("BEGIN IMMEDIATE")
        try:
            _MIGRATIONS[version](db)
            version += 1
            db.execute(f"PRAGMA user_version = {version}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _state_of_1(db: sqlite3.Connection) -> None:
    """Schema 1 knew of a service what had to serve, and of workers nothing: they ended with their daemon."""
    for kind in ("worker", "reservation"):
        db.execute(f'CREATE TABLE "{kind}" (name TEXT PRIMARY KEY, body TEXT NOT NULL)')
    db.execute("CREATE INDEX swap_under_way ON swap (id) WHERE finished_at IS NULL")
    db.execute("CREATE INDEX op_by_swap ON op (swap, id)")
    for name, text in db.execute("SELECT name, body FROM service").fetchall():
        old = json.loads(text)
        revisions = [{**old[key], "service": name} for key in ("previous", "stable") if old.get(key) is not None]
        body = {
            "name": name,
            "settings": {},
            "config_model": old["config_model"],
            "revisions": revisions,
            "stable": (old.get("stable") or {}).get("number", 0),
            "previous": (old.get("previous") or {}).get("number", 0),
            "last_revision": old["last_revision"],
            "epoch": old["epoch"],
        }
        db.execute("UPDATE service SET body = ? WHERE name = ?", (_dump(body), name))


def _footprints_of_2(db: sqlite3.Connection) -> None:
    """Schema 2 kept footprints by the model's name, over whatever its files held: they are learned anew."""
    db.execute("DROP TABLE footprint")
    db.execute(_FOOTPRINT)


_MIGRATIONS: Final[Mapping[int, Callable[[sqlite3.Connection], None]]] = {1: _state_of_1, 2: _footprints_of_2}


def _count_boot(db: sqlite3.Connection) -> int:
    """Counts the daemon's starts: operations and events are numbered within one."""
    row = db.execute("SELECT value FROM meta WHERE key = 'next_boot'").fetchone()
    boot = int(row[0]) if row else 1
    db.execute("INSERT OR REPLACE INTO meta VALUES ('next_boot', ?)", (str(boot + 1),))
    return boot


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), default=str)
