"""Files of JSON lines in a run folder.

Invariant: rows are on disk when a call returns, so that a killed process loses none; a line that a full disk or a kill
cut short is closed before the next, so that it costs only itself; no text keeps a row from being written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from miles_lite.errors import writing
from miles_lite.process.json_types import JsonObject, parsed

Row = Mapping[str, Any]


class JsonLines:
    """One file, which is appended to."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def write(self, rows: Iterable[Row]) -> None:
        """Raises OSError, and for a line of which the disk took only a part, too."""
        lines = b"\n" * self._torn + encoded(rows)
        self._torn = True
        written = os.write(self._file, lines)
        if written < len(lines):
            raise OSError(f"wrote {written} of {len(lines)} bytes: No space left on device?")
        self._torn = False

    def close(self) -> None:
        os.close(self._file)


class Growing:
    """Reads a file while another process writes it."""

    def __init__(self, path: Path) -> None:
        self._path, self._at = path, 0

    def rows(self) -> list[JsonObject]:
        """Those whose line has come to its end since the last time; all, where another file has taken its place."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            self._at = self._at if os.fstat(file.fileno()).st_size >= self._at else 0
            file.seek(self._at)
            whole = file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self._at += len(whole)
        return _rows(whole)


def read(path: Path) -> list[JsonObject]:
    """The rows of a file, in the order written; none where there is no file. What is no row is left out."""
    return _rows(path.read_bytes()) if path.exists() else []


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to the file at `path`. Raises UserError when the disk is full."""
    with writing("what became of the run", path), closing(JsonLines(path)) as lines:
        lines.write(rows)


def encoded(rows: Iterable[Row]) -> bytes:
    """A line for each. NaN and infinity are null; what is no Unicode, a lone surrogate, is a question mark."""
    return b"".join(
        orjson.dumps({_plain(name): _plain(value) for name, value in row.items()}, option=orjson.OPT_APPEND_NEWLINE)
        for row in rows
    )


def _rows(lines: bytes) -> list[JsonObject]:
    return [row for line in lines.splitlines() if isinstance(row := parsed(line, orjson.loads), dict)]


def _plain(value: object) -> object:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
