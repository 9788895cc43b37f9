"""How the engines of a run stood, one JSON object a line for each at each look: `fleet.jsonl` in the run folder.

Invariant: a row has every column; where an engine did not say what it bears, or none served in its place, what it would
have said is null.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from miles_lite.process.json_types import JsonMapping
from miles_lite.report import json_lines

FILE = "fleet.jsonl"

COLUMNS: Mapping[str, tuple[str, str]] = {
    "time": ("double", "seconds since the epoch"),
    "step": ("int64", "index of the training rollout (`rollout/step`) that was begun last"),
    "engine": ("int64", "index of the engine; one that takes its place has the same"),
    "version": ("int64", "weight version that it serves"),
    "running": ("int64", "requests that it decodes or prefills"),
    "queued": ("int64", "requests that wait in it"),
    "kv_use": ("double", "share of its KV cache that requests hold"),
    "preempted": ("int64", "requests that lately had to give their place back; 0 where it keeps no such count"),
    "tokens_per_second": ("double", "that it samples, as it last counted"),
}
"""Of each column its type, and what it says."""
LARGEST = 1e12
"""A greater number is no measurement."""


def read(run_dir: Path, *, last: int | None = None) -> list[JsonMapping]:
    """The rows, in the order written; of the `last` bytes alone, if so many are asked for."""
    return [whole(row) for row in json_lines.read(run_dir / FILE, last=last)]


def whole(found: JsonMapping) -> JsonMapping:
    """A line of the file with every column: null where it lacks one, or has no number there."""
    numbers = {name: value for name, value in found.items() if isinstance(value, int | float) and abs(value) < LARGEST}
    return {name: numbers.get(name) for name in COLUMNS}
