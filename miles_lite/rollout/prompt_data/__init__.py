"""Rows of prompt files: read one at a time, by number, so that neither start nor memory grows with their texts.

READERS has a reader for each kind of file. A source is a file, a folder of a Hugging Face dataset, or a pattern of
them, with a slice behind it: `FILE`, `FOLDER`, `train-*.parquet`, `FILE@[0:100]`; or a split of the run's environment,
`environment:train`.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np

from miles_lite import hooks
from miles_lite.config.environments import SOURCE, TRAIN, is_source
from miles_lite.errors import UserError, user_error
from miles_lite.process.user_code import users_code
from miles_lite.rollout.prompt_data.arrow_rows import ArrowRows, ParquetRows
from miles_lite.rollout.prompt_data.jsonl_rows import JsonlRows

SLICE = re.compile(r"^(?P<path>.*)@\[(?P<start>-?\d*):(?P<stop>-?\d*)\]$")
STATE = "state.json"
"""What `datasets` writes into a folder, with the names of its Arrow files."""


class Rows(Protocol):
    """Rows of one file or several, numbered from 0."""

    def __len__(self) -> int: ...

    def at(self, place: int) -> tuple[int, str, object]:
        """The row's number in its file, where that is in words, and what it holds. Raises UserError."""


READERS: Mapping[str, Callable[[Path], Rows]] = {
    ".jsonl": JsonlRows,
    ".ndjson": JsonlRows,
    ".parquet": ParquetRows,
    ".arrow": ArrowRows,
}
"""By the end of a file's name; any other is read as JSONL."""


EnvironmentRows = Callable[[str], Rows]
"""The rows of a split of the run's environment."""


def no_environment(split: str) -> Rows:
    """Raises UserError."""
    raise UserError(f"prompt data: {SOURCE}:{split} is of an environment: give --environment")


class Dealt:
    """The rows that an environment makes."""

    def __init__(self, rows: hooks.Rows, where: str) -> None:
        self._rows, self._where = rows, where

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, place: int) -> tuple[int, str, object]:
        where = f"{self._where}, task {place}"
        with users_code(where):
            return place, where, {"label": None, **self._rows[place]}


class Joined:
    """Rows of several files, one behind the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self._parts = parts
        self._ends = np.array(list(accumulate(len(part) for part in parts)), np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, place: int) -> tuple[int, str, object]:
        part = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[part - 1]) if part else 0
        return self._parts[part].at(place - before)


def open_rows(source: str, environment: EnvironmentRows = no_environment) -> tuple[Rows, range]:
    """The rows of a source, and the places among them that its slice leaves. Raises UserError."""
    matched = SLICE.match(source)
    path = matched["path"] if matched else source
    split = path.partition(":")[2] or TRAIN
    if is_source(path) and "@" in split:
        raise UserError(f"prompt data: {source}: expected {SOURCE}:SPLIT@[FROM:TO]")
    with users_code(f"prompt data: {source}"):
        rows = environment(split) if is_source(path) else _read(path)
        places = range(len(rows))
    if matched:
        start, stop = (int(value) if value else None for value in (matched["start"], matched["stop"]))
        places = places[start:stop]
    if not places:
        raise UserError(f"prompt data: {source} holds no prompts")
    return rows, places


def _read(path: str) -> Rows:
    found = [READERS.get(file.suffix, JsonlRows)(file) for file in files_of(path)]
    return found[0] if len(found) == 1 else Joined(found)


def files_of(path: str) -> list[Path]:
    """The files of a path, of a dataset's folder, or of a pattern, in the order of their names. Raises UserError."""
    plain = Path(path).expanduser()
    if plain.is_file():
        return [plain]
    if plain.is_dir() and (inside := _inside(plain)):
        return inside
    matching = sorted(glob.glob(str(plain), recursive=True)) if glob.has_magic(path) else []
    if matching:
        return [file for each in matching for file in files_of(each)]
    flaw = f"no such file: {plain}"
    if plain.exists():
        flaw = f"{plain} is a folder without prompts" if plain.is_dir() else f"{plain} is no regular file"
    raise UserError(
        f"prompt data: {flaw}. Give a JSONL, Parquet or Arrow file, a dataset's folder, or a pattern of them; "
        "FILE@[0:100] takes a slice."
    )


def _inside(folder: Path) -> list[Path]:
    """The files of a dataset: those that its state names, else those of its training split, else all."""
    if (state := folder / STATE).is_file():
        with user_error(f"prompt data: {state} is no dataset's state", ValueError, KeyError, TypeError):
            return [folder / each["filename"] for each in json.loads(state.read_text())["_data_files"]]
    if (folder / "dataset_dict.json").is_file():
        return _inside(folder / "train")
    files = sorted(file for file in folder.rglob("*") if file.suffix in READERS and file.is_file())
    return [file for file in files if file.name.startswith("train")] or files
