"""The rollouts of one run as a table of DuckDB, which follows the run's files.

Invariant: a file is read once while it stays as it is, and of it the columns that a list shows; the table is in memory,
compressed, below MOST_MEMORY. A question that names its steps, or a text that few of them say, or only pages through
the newest, needs no table: it reads the files of those. Nothing is written to the run folder, and nothing is loaded
from a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import duckdb
import pyarrow as pa

from miles_lite.errors import user_error
from miles_lite.report import rollout_table
from miles_lite.report.rollout_table import Row
from miles_lite.report.search import Place, Search

SHOWN = (
    "step",
    "rollout",
    "reward",
    "outcome",
    "status",
    "where",
    "group",
    "prompt_row",
    "turns",
    "trained_tokens",
    "why",
)
"""Columns of a list of rollouts, those that one looks at first."""
MOST_MEMORY = "128MB"
AT_ONCE = 100
"""Files that are held in memory while they go into the table."""
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "memory_limit": MOST_MEMORY,
    "threads": 2,
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
}
_AMONG = "(step, rollout) in (select unnest(?::int[]), unnest(?::bigint[]))"
MOST_ROWS = 10_000
"""Of an answer."""
LARGEST = 2**53
"""A greater number is none of a step, a group or a rollout."""


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Which rollouts, the newest step first; None: whatever it is. `text` stands in its trajectory, which was kept."""

    step: int | None = None
    group: int | None = None
    outcome: str | None = None
    where: str | None = None
    status: str | None = None
    least: float | None = None
    most: float | None = None
    text: str | None = None
    limit: int = 100
    offset: int = 0

    def conditions(self, saying: Sequence[Place] | None) -> Iterator[tuple[str, list[object]]]:
        """Each as SQL, with the values in it; `saying`: the rollouts that say the text, if one is asked for."""
        equal: dict[str, object] = {
            "group": self.group,
            "outcome": self.outcome,
            "where": self.where,
            "status": self.status,
        }
        yield from ((f'"{name}" = ?', [value]) for name, value in equal.items() if value is not None)
        bounds: dict[str, object] = {"reward >= ?": self.least, "reward <= ?": self.most}
        yield from ((bound, [value]) for bound, value in bounds.items() if value is not None)
        if saying is not None:
            yield _AMONG, [[step for step, _ in saying], [rollout for _, rollout in saying]]


class Index:
    """Of the run in `run_dir`; several threads may ask at once."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._search, self._lock = run_dir, Search(run_dir), Lock()
        self._db: duckdb.DuckDBPyConnection | None = None
        self._read: dict[str, tuple[int, int]] = {}
        """Of each file in the table, its time and size."""

    def find(self, wanted: Filter) -> list[Row]:
        """Rows of SHOWN. Raises UserError for a file that cannot be read."""
        damaged = f"{self._run_dir}: rollouts or trajectories cannot be read"
        with user_error(damaged, duckdb.Error, pa.ArrowException, OSError):
            saying = None if wanted.text is None else self._search.containing(wanted.text)
            with self._lock:
                return self._found(wanted, saying)

    def _found(self, wanted: Filter, saying: Sequence[Place] | None) -> list[Row]:
        db, table, before = self._connected(), "run.rollouts", 0
        conditions = list(wanted.conditions(saying))
        named = {step for step, _ in saying} if saying is not None else None
        steps = named if wanted.step is None else {wanted.step}
        if steps is not None and len(steps) <= AT_ONCE:
            table = self._some(db, self._files_of(steps))
        elif not conditions:
            files, before = self._newest(wanted.offset, wanted.limit)
            table = self._some(db, files)
        else:
            self._follow(db)
        where = " and ".join(condition for condition, _ in conditions) or "true"
        values = [value for _, values in conditions for value in values]
        asked = f"select {_COLUMNS} from {table} where {where} order by step desc, place limit ? offset ?"
        found = db.execute(asked, [*values, wanted.limit, wanted.offset - before]).fetchall()
        return [dict(zip(SHOWN, row, strict=True)) for row in found]

    def _connected(self) -> duckdb.DuckDBPyConnection:
        if self._db is None:
            self._db = duckdb.connect(config=_SETTINGS)
            self._db.execute("attach ':memory:' as run (compress)")
            self._db.register("fresh", _table([]))
            self._db.execute("create table run.rollouts as select *, 0::bigint as place from fresh")
        return self._db

    def _files_of(self, steps: Iterable[int]) -> list[Path]:
        return [
            rollout_table.step_path(self._run_dir, step) for step in steps if rollout_table.has(self._run_dir, step)
        ]

    def _newest(self, offset: int, limit: int) -> tuple[list[Path], int]:
        """The files with the `limit` rows after `offset` of the newest, and how many rows are before the first."""
        found, before, count = list[Path](), 0, 0
        for path in rollout_table.files(self._run_dir, newest_first=True):
            if count >= offset + limit:
                break
            rows = rollout_table.count(path)
            if count + rows > offset:
                found.append(path)
            else:
                before += rows
            count += rows
        return found, before

    def _some(self, db: duckdb.DuckDBPyConnection, paths: Sequence[Path]) -> str:
        db.register("fresh", _table(paths))
        return "(select *, row_number() over () as place from fresh)"

    def _follow(self, db: duckdb.DuckDBPyConnection) -> None:
        """Read what is new or was written again."""
        there = {path.name: _state(path) for path in rollout_table.files(self._run_dir)}
        old = [name for name, state in self._read.items() if there.get(name) != state]
        db.execute(
            "delete from run.rollouts where step in (select unnest(?))", [[int(Path(name).stem) for name in old]]
        )
        self._read = {name: state for name, state in self._read.items() if name not in old}
        new = [name for name in there if name not in self._read]
        for at in range(0, len(new), AT_ONCE):
            some = new[at : at + AT_ONCE]
            db.register("fresh", _table([self._run_dir / rollout_table.FOLDER / name for name in some]))
            db.execute("insert into run.rollouts select *, row_number() over () from fresh")
            self._read |= {name: there[name] for name in some}
        db.unregister("fresh")


_COLUMNS = ", ".join(f'"{name}"' for name in SHOWN)


def _table(paths: Sequence[Path]) -> pa.Table:
    return pa.concat_tables([rollout_table.empty(SHOWN), *(rollout_table.table(path, SHOWN) for path in paths)])


def _state(path: Path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size
