"""Reads metrics.jsonl back.

Invariant: a step that was logged twice, because a resumed run did it again, counts once, with its last value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from miles_lite.errors import user_error

Row = Mapping[str, Any]
LARGEST = 1e100
"""A greater number is no measurement, and its square no number."""
MOST_STEPS = 1 << 31


def read_history(metrics_jsonl: Path) -> list[Row]:
    """The rows of a metrics file, in the order written; a line cut short by a kill or a full disk is left out. Raises
    UserError for what is no file."""
    rows: list[Row] = []
    with user_error(f"{metrics_jsonl} cannot be read", OSError):
        lines = metrics_jsonl.read_bytes().splitlines() if metrics_jsonl.exists() else []
    for line in lines:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def series(rows: Iterable[Row], name: str, *, step_key: str) -> dict[int, float]:
    """The values of `name` by step, steps ascending; rows without both, as numbers, are left out."""
    found = {
        int(row[step_key]): float(row[name])
        for row in rows
        if _number(row.get(step_key), below=MOST_STEPS) and _number(row.get(name), below=LARGEST)
    }
    return {step: found[step] for step in sorted(found)}


def _number(value: object, *, below: float) -> bool:
    return isinstance(value, int | float) and abs(value) < below


def held_out(rows: Iterable[Row]) -> list[str]:
    """Names of the held-out datasets: those with a mean reward, which have a `-none_reward_ratio` beside it."""
    suffix = "-none_reward_ratio"
    found = {name for row in rows for name in row if name.startswith("eval/") and name.endswith(suffix)}
    return sorted(name.removeprefix("eval/").removesuffix(suffix) for name in found)
