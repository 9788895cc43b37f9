"""One row per rollout, one Parquet file per step: `rollouts/NNNNNN.parquet` in the run folder.

Invariant: a file is whole or not there; a step that a resumed run did again has the rows of the last time. Every
rollout that ended is in the file of the step that it ended for, also those that no trainer saw. pandas, DuckDB and
`datasets` read the folder as one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import compute, json, parquet

from miles_lite.report.json_lines import encoded

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
    "samples": ("int32", "training sequences: above 1 where agents fork"),
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
    "tool": ("double", "seconds of what it ran"),
    "reward_time": ("double", "seconds of judging it"),
}
"""Of each column its Arrow type, and what it says."""

ALWAYS = frozenset({"step", "outcome", "status", "trained_tokens", "started_at", "finished_at"})
"""Columns that have a value in every row."""

Row = dict[str, Any]
"""By the name of the column."""


def write(run_dir: Path, step: int, rows: Iterable[Row]) -> None:
    """Write the file of a step. Raises OSError."""
    path = _path(run_dir, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    parquet.write_table(_table(list(rows), _schema()), partial, compression="zstd")
    partial.replace(path)


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    """Read as JSON: what Arrow makes of Python's own objects imports pandas, which weighs 50 MB. NaN becomes null."""
    if not rows:
        return schema.empty_table()
    text = encoded(rows)
    options = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    return json.read_json(pa.BufferReader(text), json.ReadOptions(block_size=len(text) + 1), options)


def read(run_dir: Path, *, steps: int | None = None) -> list[Row]:
    """The rows of all steps, in their order, or of the last so many; a number that is not finite is null, and so is a
    column that a file of another version lacks. Raises OSError, pyarrow.ArrowException for what is no such table."""
    files = sorted((run_dir / FOLDER).glob("[0-9]*.parquet"))
    files = files if steps is None else files[len(files) - min(steps, len(files)) :]
    return [row for path in files for row in read_file(path)]


def read_step(run_dir: Path, step: int) -> list[Row]:
    """The rows of one. Raises as `read` does."""
    return read_file(_path(run_dir, step))


def read_file(path: Path, wanted: compute.Expression | None = None) -> list[Row]:
    """The rows of one file, those that are `wanted`. Raises as `read` does."""
    rows: list[Row] = _conformed(parquet.read_table(path, filters=wanted), path).to_pylist()
    return rows


def has(run_dir: Path, step: int) -> bool:
    """Whether it is there."""
    return _path(run_dir, step).is_file()


def trajectory_path(run_dir: Path, step: int, rollout: int) -> Path:
    """Where a rollout is whole, if it was kept."""
    return run_dir / TRAJECTORIES / f"{step:06d}-{rollout:08d}.atraj"


def _path(run_dir: Path, step: int) -> Path:
    return run_dir / FOLDER / f"{step:06d}.parquet"


def _conformed(table: pa.Table, path: Path) -> pa.Table:
    """With our columns, of their types."""
    columns = []
    for name, (kind, _) in COLUMNS.items():
        wanted = pa.type_for_alias(kind)
        column = table[name].cast(wanted) if name in table.column_names else pa.nulls(table.num_rows, wanted)
        if pa.types.is_floating(wanted):
            column = compute.if_else(compute.is_finite(column), column, None)
        if name in ALWAYS and column.null_count:
            raise pa.ArrowInvalid(f"{path.name} has rows without {name}")
        columns.append(column)
    return pa.table(columns, schema=_schema())


def _schema() -> pa.Schema:
    return pa.schema([(name, pa.type_for_alias(kind)) for name, (kind, _) in COLUMNS.items()])
