"""Columns on disk: Parquet, of which a few row groups are held, and Arrow, which is mapped into memory."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from miles_lite.errors import user_error

if TYPE_CHECKING:
    import pyarrow

HELD = 64 << 20
"""Bytes of a Parquet file's row groups that are held at once, beside the last one."""


class ParquetRows:
    """The rows of a Parquet file."""

    def __init__(self, path: Path) -> None:
        _need_pyarrow(path)
        import pyarrow
        from pyarrow import parquet

        self._path = path
        with user_error(f"prompt data: {path} is no Parquet file", pyarrow.ArrowException, OSError):
            self._file = parquet.ParquetFile(path)
        self._damaged: type[Exception] = pyarrow.ArrowException
        told = self._file.metadata
        sizes = [told.row_group(group).num_rows for group in range(told.num_row_groups)]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._held: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def at(self, place: int) -> tuple[int, str, object]:
        group = int(np.searchsorted(self._ends, place, side="right"))
        before = int(self._ends[group - 1]) if group else 0
        (record,) = self._group(group).slice(place - before, 1).to_pylist()
        return place + 1, f"{self._path}, row {place + 1}", without_nothing(record)

    def _group(self, group: int) -> Any:
        if group not in self._held:
            while self._held and sum(each.nbytes for each in self._held.values()) > HELD:
                self._held.popitem(last=False)
            with user_error(f"prompt data: {self._path}, row group {group}: damaged", self._damaged, OSError):
                self._held[group] = self._file.read_row_group(group)
        self._held.move_to_end(group)
        return self._held[group]


class ArrowRows:
    """The rows of an Arrow file, or of the stream that `datasets` writes."""

    def __init__(self, path: Path) -> None:
        _need_pyarrow(path)
        import pyarrow

        self._path = path
        with user_error(f"prompt data: {path} is no Arrow file", pyarrow.ArrowException, OSError):
            self._table = _table(path)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def at(self, place: int) -> tuple[int, str, object]:
        (record,) = self._table.slice(place, 1).to_pylist()
        return place + 1, f"{self._path}, row {place + 1}", without_nothing(record)


def _table(path: Path) -> pyarrow.Table:
    import pyarrow

    with path.open("rb") as file:
        is_file = file.read(6) == b"ARROW1"
    source = pyarrow.memory_map(str(path))
    return (pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)).read_all()


def without_nothing(value: object) -> object:
    """Without the nulls that a column has for each key that any of its rows' messages has."""
    if isinstance(value, list):
        return [without_nothing(each) for each in value]
    if isinstance(value, dict):
        return {key: without_nothing(each) for key, each in value.items() if each is not None}
    return value


def _need_pyarrow(path: Path) -> None:
    with user_error(f"prompt data: {path} needs pyarrow: pip install pyarrow", ImportError):
        import pyarrow  # noqa: F401
