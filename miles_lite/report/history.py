"""The values of metrics by step, as metrics.jsonl has them.

Invariant: a step that was logged twice, because a resumed run did it again, counts once, with its last value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from miles_lite.process.json_types import JsonMapping
from miles_lite.report import json_lines
from miles_lite.report import metric_names as names

Row = JsonMapping
AXES = (names.ROLLOUT_STEP, names.TRAIN_STEP, names.EVAL_STEP)


class Curves:
    """Of each metric its values by step, kept as they come. A value that is no finite number is none."""

    def __init__(self) -> None:
        self._points: dict[str, dict[int, float]] = {}

    @classmethod
    def of_rows(cls, rows: Iterable[Row]) -> Curves:
        """Of the rows of a metrics file, each of which is on one axis."""
        curves = cls()
        for row in rows:
            curves.add_row(row)
        return curves

    def add_row(self, row: Row) -> None:
        """What a row says."""
        if (axis := next((name for name in AXES if name in row), None)) is not None:
            self.add({name: value for name, value in row.items() if name not in (axis, "time")}, int(row[axis]))

    def add(self, metrics: Mapping[str, object], step: int) -> None:
        """What was logged at a step."""
        for name, value in metrics.items():
            if isinstance(value, int | float) and math.isfinite(value):
                self._points.setdefault(name, {})[step] = float(value)

    @property
    def names(self) -> Iterable[str]:
        """Of the metrics that have a value."""
        return self._points.keys()

    def at(self, step: int) -> dict[str, float]:
        """All metrics of a step."""
        return {name: points[step] for name, points in self._points.items() if step in points}

    def by_step(self, name: str) -> dict[int, float]:
        """The values of a metric, steps ascending."""
        points = self._points.get(name, {})
        return {step: points[step] for step in sorted(points)}


def read_history(metrics_jsonl: Path) -> list[Row]:
    """The rows of a metrics file, in the order written; a line cut short by a kill or a full disk is left out."""
    return [*json_lines.read(metrics_jsonl)]


def series(rows: Iterable[Row], name: str, *, step_key: str) -> dict[int, float]:
    """The values of `name` by step, steps ascending; rows without the value, or with null for it, are left out."""
    found = {int(row[step_key]): row[name] for row in rows if step_key in row and row.get(name) is not None}
    return {step: float(found[step]) for step in sorted(found)}


def held_out(logged: Iterable[str]) -> list[str]:
    """The held-out datasets among names of metrics: those with a mean reward have a `-none_reward_ratio` beside it."""
    suffix = "-none_reward_ratio"
    found = {name for name in logged if name.startswith("eval/") and name.endswith(suffix)}
    return sorted(name.removeprefix("eval/").removesuffix(suffix) for name in found)
