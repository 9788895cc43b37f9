"""Reads metrics.jsonl back.

Invariant: a step that was logged twice, because a resumed run did it again, counts once, with its last value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

Row = Mapping[str, Any]


def read_history(metrics_jsonl: Path) -> list[Row]:
    """The rows of a metrics file, in the order written; a line cut short by a kill or a full disk is left out."""
    rows: list[Row] = []
    for line in metrics_jsonl.read_bytes().splitlines() if metrics_jsonl.exists() else []:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def series(rows: Iterable[Row], name: str, *, step_key: str) -> dict[int, float]:
    """The values of `name` by step, steps ascending; rows without the value, or with null for it, are left out."""
    found = {int(row[step_key]): row[name] for row in rows if step_key in row and row.get(name) is not None}
    return {step: float(found[step]) for step in sorted(found)}


def held_out(rows: Iterable[Row]) -> list[str]:
    """Names of the held-out datasets: those with a mean reward, which have a `-none_reward_ratio` beside it."""
    suffix = "-none_reward_ratio"
    found = {name for row in rows for name in row if name.startswith("eval/") and name.endswith(suffix)}
    return sorted(name.removeprefix("eval/").removesuffix(suffix) for name in found)
