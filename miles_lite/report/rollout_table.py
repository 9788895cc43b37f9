"""One row per rollout, one Parquet file per step: `rollouts/NNNNNN.parquet` in the run folder.

Invariant: a file is whole or not there; a step that a resumed run did again has the rows of the last time. Every
rollout that ended is in the file of the step that it ended for, also those that no trainer saw. pandas, DuckDB and
`datasets` read the folder as one table.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import compute, json, parquet

from miles_lite.errors import UserError, user_error
from miles_lite.process.drafted import drafted
from miles_lite.report.json_lines import encoded
from miles_lite.report.visible import moment

FOLDER = "rollouts"
TRAJECTORIES = "trajectories"
"""Some of them whole, `NNNNNN-ROLLOUT.atraj`: NNNNNN the step."""
TRAINED = "trained"

COLUMNS: Mapping[str, tuple[str, str]] = {
    "step": ("int32", "index of the training rollout (`rollout/step`)"),
    "rollout": ("int64", "number of the rollout in the run"),
    "group": ("int64", "number of its prompt's group"),
    "prompt_row": ("string", "the prompt's line in its file"),
    "outcome": (
        "string",
        "`trained`, `retried` (it failed, and another ran in its place), `unused`, or why its group was dropped: the "
        "filter's reason, `failed_<where>`",
    ),
    "status": ("string", "`completed`, `truncated`, `aborted`, `failed`"),
    "where": ("string", "where it broke ([boundaries](training.md#failures)); null for one that ended by itself"),
    "why": ("string", "in words; null likewise"),
    "reward": ("double", "null where nobody gave one, or it failed"),
    "rewards": ("string", "JSON: each of several rewards by name; null without"),
    "zero_std": ("bool", "whether the rewards of its group are all equal, and carry no gradient"),
    "advantage": (
        "double",
        "what the group estimator credits it with, of several turns the mean; null until it is trained",
    ),
    "samples": ("int32", "training sequences: above 1 where agents fork"),
    "forks": (
        "string",
        "JSON: how often its history [forked](sessions.md#forks), by why; null where it did not, or has no samples",
    ),
    "tokens": ("int64", "of all of them"),
    "prompt_tokens": ("int64", "before the first sampled one, of all of them"),
    "trained_tokens": ("int64", "the sum of the loss masks"),
    "truncated": ("bool", "whether a sample was cut, and its agent did not go on"),
    "min_version": ("int32", "oldest weight version that sampled one of its tokens"),
    "max_version": ("int32", "newest"),
    "ended_version": ("int32", "the engines' when it ended"),
    "turns": ("double", "as the agent reports them"),
    "tool_calls": ("double", "likewise"),
    "started_at": ("double", "seconds since the epoch"),
    "finished_at": ("double", "likewise"),
    "queue": ("double", "seconds until an agent worker took it"),
    "model": ("double", "seconds of the agent's requests"),
    "prefill": (
        "double",
        "of that, until engines had the first tokens; null where they do not say (`--sglang-enable-metrics`)",
    ),
    "decode": ("double", "of that, the rest; null likewise"),
    "tool": ("double", "seconds of what it ran"),
    "tools": ("string", "JSON: seconds of each tool that replies called, by name; null without"),
    "reward_time": ("double", "seconds of judging it"),
    "idle": ("double", "seconds from start to end of which none of these took part"),
}
"""Of each column its Arrow type, and what it says."""

ALWAYS = frozenset({"step", "rollout", "outcome", "status", "trained_tokens", "started_at", "finished_at"})
"""Columns that have a value in every row."""

SCHEMA = pa.schema([(name, pa.type_for_alias(kind)) for name, (kind, _) in COLUMNS.items()])
_TRAJECTORY = re.compile(r"([0-9]{6,18})-([0-9]{8,18})\.atraj")
Row = dict[str, Any]
"""By the name of the column."""


def write(run_dir: Path, step: int, rows: Iterable[Row]) -> None:
    """Write the file of a step. Raises OSError."""
    path = step_path(run_dir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafted(path) as draft:
        parquet.write_table(_table(list(rows)), draft, compression="zstd")


def credit(run_dir: Path, step: int, advantages: Mapping[int, float]) -> None:
    """Give the rollouts of a step, by number, the advantage that they were trained with. Raises OSError,
    pyarrow.ArrowException."""
    rows = [{**row, "advantage": advantages.get(row["rollout"])} for row in read_step(run_dir, step)]
    write(run_dir, step, rows)


def _table(rows: list[Row]) -> pa.Table:
    """Read as JSON: what Arrow makes of Python's own objects imports pandas, which weighs 50 MB. NaN becomes null."""
    if not rows:
        return empty(tuple(COLUMNS))
    text = encoded(rows)
    options = json.ParseOptions(explicit_schema=SCHEMA, unexpected_field_behavior="error")
    return json.read_json(pa.BufferReader(text), json.ReadOptions(use_threads=False, block_size=len(text) + 1), options)


def read_step(run_dir: Path, step: int) -> list[Row]:
    """The rows of one. Raises OSError, pyarrow.ArrowException for what is no such table."""
    rows: list[Row] = table(step_path(run_dir, step)).to_pylist()
    return rows


def find(run_dir: Path, rollout: int) -> Row | None:
    """The row of a rollout, of the newest step that has it; None where none has. Of other steps the numbers alone are
    read. Raises as `read_step` does."""
    for path in files(run_dir, newest_first=True):
        numbers = table(path, ("rollout",))["rollout"].to_numpy()
        if rollout in numbers:
            return next(row for row in read_step(run_dir, int(path.stem)) if row["rollout"] == rollout)
    return None


def table(path: Path, columns: Sequence[str] = tuple(COLUMNS)) -> pa.Table:
    """Of one file those `columns`, which alone are read. Raises as `read_step` does."""
    with path.open("rb") as opened, parquet.ParquetFile(opened) as file:  # Arrow takes no name that is no Unicode
        there = set(file.schema_arrow.names)
        found = file.read([name for name in columns if name in there], use_threads=False)  # it is too small for them
        return _conformed(found, path, columns)


def readable(path: Path, columns: Sequence[str] = tuple(COLUMNS)) -> pa.Table:
    """The same. Raises UserError."""
    with user_error(f"{path} cannot be read (the rest can, without it)", pa.ArrowException, OSError):
        return table(path, columns)


def empty(columns: Sequence[str]) -> pa.Table:
    """No row of those columns."""
    fields = [SCHEMA.field(name) for name in columns]
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in fields], schema=pa.schema(fields))


def count(path: Path) -> int:
    """The rows of one file. Raises as `read_step` does."""
    with path.open("rb") as opened:
        rows: int = parquet.read_metadata(opened).num_rows
    return rows


def files(run_dir: Path, *, newest_first: bool = False) -> Iterator[Path]:
    """Those of all steps, in their order or in the reverse one."""
    names = _names(run_dir)
    return (run_dir / FOLDER / name for name in (reversed(names) if newest_first else names))


def _names(run_dir: Path) -> list[str]:
    folder = run_dir / FOLDER
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(name for name in names if name[0].isdigit() and name.endswith(".parquet"))


def format_value(name: str, value: object) -> str:
    """A value of that column for a reader: moments by the clock of this machine, other fractions with four digits."""
    if name in ("started_at", "finished_at") and isinstance(value, float):
        return moment(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def has(run_dir: Path, step: int) -> bool:
    """Whether it is there."""
    return step_path(run_dir, step).is_file()


def trajectory_path(run_dir: Path, step: int, rollout: int) -> Path:
    """Where a rollout is whole, if it was kept."""
    return run_dir / TRAJECTORIES / f"{step:06d}-{rollout:08d}.atraj"


def kept_trajectory(run_dir: Path, rollout: int) -> Path:
    """The one of that number, whatever its step. Raises UserError where it was not kept."""
    kept = sorted(trajectories(run_dir))
    found = [step for step, number in kept if number == rollout]
    if not found:
        last = f"; the last that was is of rollout {kept[-1][1]}" if kept else ""
        raise UserError(f"{run_dir} kept no trajectory of rollout {rollout} (--keep-trajectories){last}")
    return trajectory_path(run_dir, found[-1], rollout)


def kept_trajectories(run_dir: Path) -> dict[int, set[int]]:
    """The rollouts that were kept, by step, the newest first, of steps whose rows are there."""
    there: dict[int, set[int]] = {}
    for step, rollout in trajectories(run_dir):
        there.setdefault(step, set()).add(rollout)
    return {step: there[step] for step in sorted(there, reverse=True) if has(run_dir, step)}


def trajectories(run_dir: Path) -> Iterator[tuple[int, int]]:
    """Step and number of each rollout of which there is one."""
    folder = run_dir / TRAJECTORIES
    for name in os.listdir(folder) if folder.is_dir() else ():
        if (found := _TRAJECTORY.fullmatch(name)) is not None:
            yield int(found[1]), int(found[2])


def step_path(run_dir: Path, step: int) -> Path:
    """The file of a step."""
    return run_dir / FOLDER / f"{step:06d}.parquet"


def _conformed(found: pa.Table, path: Path, names: Sequence[str]) -> pa.Table:
    """With the columns of those names, of their types; nothing of Python's own is given to Arrow, as in `_table`."""
    columns, there = [], dict(zip(found.column_names, found.columns, strict=True))
    for name in names:
        wanted = SCHEMA.field(name).type
        column = there[name] if name in there else pa.nulls(found.num_rows, wanted)
        column = column if column.type == wanted else column.cast(wanted)
        if pa.types.is_floating(wanted):
            column = compute.if_else(compute.is_finite(column), column, pa.nulls(1, wanted)[0])
        if name in ALWAYS and column.null_count:
            raise pa.ArrowInvalid(f"{path.name} has rows without {name}")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=pa.schema([SCHEMA.field(name) for name in names]))
