"""Tasks as rows of JSONL, as the harnesses that play them read them.

A file is the split `train`; of a folder, `SPLIT.jsonl` is the split. Invariant: what is no row is a UserError that
names its file and line.
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


@dataclass(frozen=True)
class TaskFiles:
    """`path`: a file, or a folder."""

    path: Path

    def size(self, split: str) -> int:
        """Raises UserError where there is no such split, or nothing in it."""
        file = self._file(split)
        if (split != TRAIN and file == self.path) or not file.is_file():
            raise UserError(
                f"--environment-args, tasks: {self.path}: no split {split}: there is no {split}.jsonl in it"
            )
        if not _lines(file):
            raise UserError(f"--environment-args, tasks: {file} is empty")
        return len(_lines(file))

    def row(self, task: Task) -> JsonObject:
        file = self._file(task.split)
        where = f"{file}, row {task.place + 1}"
        with user_error(f"{where}: no JSON", ValueError):
            told = json.loads(_lines(file)[task.place])
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
