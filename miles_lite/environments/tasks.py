"""The tasks of an environment: rows of prompts that a seed makes, and what a rollout says of its task.

Invariant: a task is its split, its place and the run's seed; so it is the same in each process and after a restart, and
no two splits share a seed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from miles_lite.errors import RolloutError, Where
from miles_lite.hooks import Rows
from miles_lite.process.json_types import Json, JsonMapping, JsonObject

REPORT = "environment"
"""In a row's metadata, its task; in a rollout's, what it says of it."""


@dataclass(frozen=True, slots=True)
class Task:
    """`seed`: 31 bits of it are the same for the same split, place and seed of the run."""

    label: str
    split: str
    place: int
    seed: int


@dataclass(frozen=True)
class Tasks:
    """`label`: the environment's in metrics, of a task by its place where it is a function; `size`: tasks of a split;
    `prompt`: what a row says, where that is known before it begins."""

    label: str | Callable[[int], str]
    size: Callable[[str], int]
    seed: int
    prompt: Callable[[Task], str | list[JsonObject]] | None = None

    def rows(self, split: str) -> Rows:
        """As a file of prompts would hold them. Raises UserError for a split that has none."""
        return _Rows(self, split, self.size(split))

    def task(self, split: str, place: int) -> Task:
        told = self.label if isinstance(self.label, str) else self.label(place)
        digest = hashlib.blake2b(f"{self.seed}/{split}/{place}".encode(), digest_size=4).digest()
        return Task(re.sub(r"[^\w.]+", "_", told), split, place, int.from_bytes(digest, "little") >> 1)

    def of(self, metadata: JsonMapping) -> Task:
        """The task of a row. Raises RolloutError for one of another source."""
        told = metadata.get(REPORT)
        if not isinstance(told, Mapping) or not {"split", "place"} <= told.keys():
            raise RolloutError(Where.AGENT, "the prompt is none of --environment's: its metadata has no task")
        return self.task(str(told["split"]), int(told["place"]))


class _Rows:
    def __init__(self, tasks: Tasks, split: str, size: int) -> None:
        self._tasks, self._split, self._size = tasks, split, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, place: int) -> JsonMapping:
        if not 0 <= place < self._size:
            raise IndexError(place)
        task = self._tasks.task(self._split, place)
        said = self._tasks.prompt(task) if self._tasks.prompt else f"{task.label}, {self._split}, task {place}"
        return {"prompt": said, "metadata": {REPORT: {"split": self._split, "place": place}}}


def report(task: Task, *, numbers: Mapping[str, float], **told: Json) -> JsonObject:
    """What an agent function returns: `told`, and of its environment what is logged (docs/metrics.md)."""
    return {**told, REPORT: {"label": task.label, "split": task.split, "place": task.place, "numbers": dict(numbers)}}
