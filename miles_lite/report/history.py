"""The values of metrics by step, as metrics.jsonl has them.

Invariant: a step that was logged twice, because a resumed run did it again, counts once, with its last value.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import msgspec
import orjson

from miles_lite.errors import user_error
from miles_lite.process.json_types import JsonMapping, parsed
from miles_lite.report import json_lines
from miles_lite.report import metric_names as names

Row = JsonMapping
LARGEST = 1e100
"""A greater number is no measurement, and its square no number."""
MOST_STEPS = 1 << 31
AXES = (names.ROLLOUT_STEP, names.TRAIN_STEP, names.EVAL_STEP)


class Curves:
    """Of each metric its values by step, kept as they come. A value that is no number below LARGEST is none."""

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
        if (axis := next((name for name in AXES if _number(row.get(name), below=MOST_STEPS)), None)) is not None:
            self.add({name: value for name, value in row.items() if name not in (axis, "time")}, int(row[axis]))

    def add(self, metrics: Mapping[str, object], step: int) -> None:
        """What was logged at a step."""
        for name, value in metrics.items():
            if isinstance(value, int | float) and abs(value) < LARGEST:
                self._points.setdefault(name, {})[step] = float(value)

    def copy(self) -> Curves:
        """One that later values do not change."""
        made = Curves()
        made._points = {name: dict(points) for name, points in self._points.items()}
        return made

    @property
    def names(self) -> Iterable[str]:
        """Of the metrics that have a value."""
        return self._points.keys()

    def last_steps(self) -> dict[str, int]:
        """Of each metric the last step that has a value."""
        return {name: max(points) for name, points in self._points.items()}

    def at(self, step: int) -> dict[str, float]:
        """All metrics of a step."""
        return {name: points[step] for name, points in self._points.items() if step in points}

    def by_step(self, name: str) -> dict[int, float]:
        """The values of a metric, steps ascending."""
        points = self._points.get(name, {})
        return {step: points[step] for step in sorted(points)}


class Headlines:
    """The metrics that this room reads back (`names.READ_BACK`, and those of held-out prompts) of a file that grows:
    others are skipped unread, and a line is read once. Several threads may ask at once."""

    def __init__(self, metrics_jsonl: Path) -> None:
        self._path, self._lock = metrics_jsonl, Lock()
        self._curves, self._file, self._at = Curves(), 0, 0

    def now(self) -> Curves:
        """Of the lines that have come to their end, as they are now; none where there is no file. Raises UserError for
        what is no file."""
        with self._lock:
            if self._path.exists():
                with user_error(f"{self._path} cannot be read", OSError):
                    self._follow()
            return self._curves.copy()

    def _follow(self) -> None:
        with self._path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_ino != self._file or found.st_size < self._at:  # another run has taken the folder
                self._curves, self._file, self._at = Curves(), found.st_ino, 0
            file.seek(self._at)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._at += len(line)
                self._curves.add_row(_pruned(line))


@cache
def _decoder() -> msgspec.json.Decoder[msgspec.Struct]:
    """Of a row's axes and of the metrics that are read back."""
    named = {f"m{at}": name for at, name in enumerate(sorted(names.READ_BACK.union(AXES)))}
    fields = [(field, Any, None) for field in named]
    return msgspec.json.Decoder(msgspec.defstruct("Pruned", fields, rename=named, gc=False))


def _pruned(line: bytes) -> Row:
    """What is read back of a row; all of one of held-out prompts, whose names are the user's."""
    if names.EVAL_STEP.encode() in line:
        found = parsed(line, orjson.loads)
    else:
        decode = _decoder().decode
        found = parsed(line, lambda text: msgspec.to_builtins(decode(text)))
    return found if isinstance(found, dict) else {}


def read_history(metrics_jsonl: Path) -> list[Row]:
    """The rows of a metrics file, in the order written; a line cut short by a kill or a full disk is left out. Raises
    UserError for what is no file."""
    with user_error(f"{metrics_jsonl} cannot be read", OSError):
        return [*json_lines.read(metrics_jsonl)]


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


def held_out(logged: Iterable[str]) -> list[str]:
    """The held-out datasets among names of metrics: those with a mean reward have a `-none_reward_ratio` beside it."""
    suffix = "-none_reward_ratio"
    found = {name for name in logged if name.startswith("eval/") and name.endswith(suffix)}
    return sorted(name.removeprefix("eval/").removesuffix(suffix) for name in found)
