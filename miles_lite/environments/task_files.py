"""Tasks as rows of JSONL, as the harnesses that play them read them.

A file is the split `train`; of a folder, `SPLIT.jsonl` is the split. Invariant: what is no row is a UserError that
names its file and row, of the first CHECKED and the last, which may be half written, before anything starts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from miles_lite.config.environments import TRAIN
from miles_lite.environments.environment_args import TASKS
from miles_lite.environments.tasks import Task
from miles_lite.errors import UserError, user_error
from miles_lite.process.json_types import JsonMapping, JsonObject


def task_files(args: JsonMapping) -> TaskFiles | None:
    """What --environment-args name."""
    given = TASKS.of(args)
    return None if given is None else TaskFiles(Path(given).expanduser().absolute())


CHECKED = 1000


@dataclass(frozen=True)
class TaskFiles:
    """`path`: a file, or a folder."""

    path: Path

    def size(self, split: str) -> int:
        """Raises UserError where there is no such split, nothing in it, or what is no row."""
        file = self._file(split)
        if (split != TRAIN and file == self.path) or not file.is_file():
            raise UserError(
                f"--environment-args, tasks: {self.path}: no split {split}: there is no {split}.jsonl in it"
            )
        if not _lines(file):
            raise UserError(f"--environment-args, tasks: {file} is empty")
        size = len(_lines(file))
        for place in {*range(min(size, CHECKED)), size - 1}:
            self._row(split, place)
        return size

    def row(self, task: Task) -> JsonObject:
        return self._row(task.split, task.place)

    def _row(self, split: str, place: int) -> JsonObject:
        file = self._file(split)
        where = f"{file}, row {place + 1}"
        with user_error(f"{where}: no JSON", ValueError):
            told = json.loads(_lines(file)[place])
        if not isinstance(told, dict):
            raise UserError(f"{where}: expected an object, found {type(told).__name__}")
        return told

    def _file(self, split: str) -> Path:
        return self.path / f"{split}.jsonl" if self.path.is_dir() else self.path


@lru_cache(maxsize=16)
def _lines(file: Path) -> list[bytes]:
    """Those that say something, held by each process."""
    with user_error(f"--environment-args, tasks: {file}: cannot be read", OSError):
        return [line for line in file.read_bytes().splitlines() if line.strip()]
