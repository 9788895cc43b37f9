"""The journal of a session server: one SQLite file, written by a thread of its own.

Invariant: what a future of this module says is done is on disk, in the order in which it was asked for. Whatever waits
while the thread commits is committed together with one fsync (group commit).
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import orjson

from miles_lite.errors import UserError, writing
from miles_lite.process.json_types import JsonMapping, JsonObject
from miles_lite.session.journal.row import Entry, from_row, to_row

log = logging.getLogger(__name__)
T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, sampling BLOB, recreated INTEGER, used REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS traced (id TEXT PRIMARY KEY, headers BLOB) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deleted (id TEXT PRIMARY KEY, at REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS turns (
    number INTEGER PRIMARY KEY, session TEXT, at REAL, parent INTEGER, dropped INTEGER, caller BLOB,
    prompt BLOB, output BLOB, logprobs BLOB, experts BLOB, messages BLOB, facts BLOB
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS turns_of_session ON turns (session);
"""
_COLUMNS = "parent, dropped, caller, prompt, output, logprobs, experts, messages, facts"
_ADD_TURN = f"INSERT INTO turns (session, at, {_COLUMNS})"
_ROWS = 64
"""Of one statement, at most."""
_STALE = "max(used, coalesce((SELECT max(at) FROM turns WHERE session = sessions.id), 0)) < ?"


@dataclass(frozen=True, slots=True)
class Stored:
    """A session as the journal holds it; entries in the order of their commits. `traced`: the headers that name its
    span."""

    sampling: JsonObject
    recreated: bool
    traced: Mapping[str, str]
    entries: list[Entry]


class Journal:
    """Opened with `open`, closed with `close`; every other method answers with an awaitable of the running loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._jobs: queue.SimpleQueue[tuple[Work | _Row, asyncio.Future[Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Raises UserError when the file cannot be used."""
        try:
            with writing("the session journal", self.path):
                connection = self._connect()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"the session journal {self.path} cannot be used ({error}): give another folder as "
                "--session-journal-dir, or end the server that has it open"
            ) from error
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, args=(connection,), name="session-journal", daemon=True)
        self._thread.start()

    def _connect(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(mode=0o600)
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1.0)
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise OSError(f"it is of version {version} and this program writes {_VERSION}")
        connection.executescript(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        return connection

    async def close(self) -> None:
        """Commit what was asked for and close the file. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            await asyncio.to_thread(thread.join)

    def create(
        self, session_id: str, sampling: JsonMapping, *, recreated: bool, traced: Mapping[str, str]
    ) -> asyncio.Future[None]:
        row = _Row("INSERT OR REPLACE INTO sessions", (session_id, orjson.dumps(sampling), recreated, time.time()))
        if not traced:
            return self._do(row)
        span = _Row("INSERT OR REPLACE INTO traced", (session_id, orjson.dumps(dict(traced))))

        def work(db: sqlite3.Connection) -> None:
            _done(db, [row, span])

        return self._do(work)

    def append(self, session_id: str, entry: Entry) -> asyncio.Future[None]:
        return self._do(_Row(_ADD_TURN, (session_id, entry.output.finished, *to_row(entry))))

    def touch(self, session_id: str, used: float) -> asyncio.Future[None]:
        """Remember when a session was last asked for, in seconds since the epoch."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE sessions SET used = ? WHERE id = ?", (used, session_id))

        return self._do(work)

    def load(self, session_id: str) -> asyncio.Future[Stored | None]:
        def work(db: sqlite3.Connection) -> Stored | None:
            found = db.execute("SELECT sampling, recreated FROM sessions WHERE id = ?", (session_id,)).fetchone()
            if found is None:
                return None
            headers = db.execute("SELECT headers FROM traced WHERE id = ?", (session_id,)).fetchone()
            rows = db.execute(f"SELECT {_COLUMNS} FROM turns WHERE session = ? ORDER BY number", (session_id,))
            traced = orjson.loads(headers[0]) if headers else {}
            return Stored(orjson.loads(found[0]), bool(found[1]), traced, [from_row(row) for row in rows])

        return self._do(work)

    def delete(self, session_id: str) -> asyncio.Future[None]:
        """Forget a session for good; its id stays known as deleted."""

        def work(db: sqlite3.Connection) -> None:
            _forget(db, [session_id])
            db.execute("INSERT OR REPLACE INTO deleted VALUES (?, ?)", (session_id, time.time()))

        return self._do(work)

    def expire(self, before: float, *, spare: frozenset[str]) -> asyncio.Future[int]:
        """Forget sessions last used before a time, but for those to `spare`; answers how many."""

        def work(db: sqlite3.Connection) -> int:
            stale = [row[0] for row in db.execute(f"SELECT id FROM sessions WHERE {_STALE}", (before,))]
            stale = [session_id for session_id in stale if session_id not in spare]
            _forget(db, stale)
            db.execute("DELETE FROM deleted WHERE at < ?", (before,))
            return len(stale)

        return self._do(work)

    def keep(self, name: str, value: str) -> asyncio.Future[str]:
        """The value kept under a name: this one, when there was none."""

        def work(db: sqlite3.Connection) -> str:
            db.execute("INSERT OR IGNORE INTO facts VALUES (?, ?)", (name, value))
            return str(db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0])

        return self._do(work)

    def known(self) -> asyncio.Future[tuple[int, dict[str, float]]]:
        """(number of sessions, when each deleted one was deleted)."""

        def work(db: sqlite3.Connection) -> tuple[int, dict[str, float]]:
            return db.execute("SELECT count(*) FROM sessions").fetchone()[0], dict(db.execute("SELECT * FROM deleted"))

        return self._do(work)

    def _do(self, work: Callable[[sqlite3.Connection], T] | _Row) -> asyncio.Future[T]:
        if self._thread is None:
            raise RuntimeError("the journal is not open")
        future: asyncio.Future[T] = self._loop.create_future()
        self._jobs.put((work, future))
        return future

    def _work(self, connection: sqlite3.Connection) -> None:
        open_ = True
        while open_:
            batch = [self._jobs.get()]
            while not self._jobs.empty():
                batch.append(self._jobs.get())
            jobs = [job for job in batch if job is not None]
            open_ = len(jobs) == len(batch)
            results: list[object] | Exception
            try:
                connection.execute("BEGIN")
                results = _done(connection, [work for work, _ in jobs])
                connection.execute("COMMIT")
            except (sqlite3.Error, ValueError) as error:
                log.exception("the session journal %s failed", self.path)
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                results = error
            self._loop.call_soon_threadsafe(_resolve, [future for _, future in jobs], results)
        connection.close()


@dataclass(frozen=True, slots=True)
class _Row:
    """A row to add; `insert` says where, without values."""

    insert: str
    values: tuple[Any, ...]


def _done(db: sqlite3.Connection, works: Sequence[Work | _Row]) -> list[object]:
    """What all of them answer, done in their order.

    Neighbouring rows of one table are one statement: with each one this thread waits to have the interpreter again.
    """
    results: list[object] = []
    for _, group in groupby(works, key=lambda work: work.insert if isinstance(work, _Row) else None):
        neighbours = list(group)
        results += [work(db) for work in neighbours if not isinstance(work, _Row)]
        results += _add(db, [work for work in neighbours if isinstance(work, _Row)])
    return results


def _add(db: sqlite3.Connection, rows: list[_Row]) -> list[None]:
    """Rows of one table; an answer for each."""
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        marks = ", ".join([f"({', '.join('?' * len(part[0].values))})"] * len(part))
        db.execute(f"{part[0].insert} VALUES {marks}", [value for row in part for value in row.values])
    return [None] * len(rows)


def _forget(db: sqlite3.Connection, session_ids: list[str]) -> None:
    for table, column in (("turns", "session"), ("traced", "id"), ("sessions", "id")):
        db.executemany(f"DELETE FROM {table} WHERE {column} = ?", [(session_id,) for session_id in session_ids])


def _resolve(futures: list[asyncio.Future[Any]], results: list[object] | Exception) -> None:
    """In the order of the jobs, so that whoever waits goes on in that order."""
    for index, future in enumerate(futures):
        if not future.done():
            if isinstance(results, Exception):
                future.set_exception(results)
            else:
                future.set_result(results[index])
