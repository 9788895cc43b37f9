"""Files of JSON objects, one a line, that grow at their end.

Invariant: a file has one writer at a time, and a line is in it as soon as `write` returns, also when the process is
killed. A line that a full disk or a kill cut short is closed before the next, so that it costs only itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import orjson

from miles_lite.process.json_types import JsonObject, parsed


class JsonLines:
    """Writes one file. NaN and infinity become null."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"

    def write(self, *rows: Mapping[str, object]) -> None:
        """Append a line for each, all at once. Raises OSError."""
        lines = b"\n" * self._torn + b"".join(map(_line, rows))
        self._torn = True
        written = os.write(self._file, lines)
        if written < len(lines):
            raise OSError(f"wrote {written} of {len(lines)} bytes: is the disk full?")
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


def append(path: Path, *rows: Mapping[str, object]) -> None:
    """Write rows to a file that is seldom written. Raises OSError."""
    file = JsonLines(path)
    try:
        file.write(*rows)
    finally:
        file.close()


def read(path: Path) -> list[JsonObject]:
    """The rows of a file, in the order written; none where there is no file. What is no row is left out."""
    return _rows(path.read_bytes()) if path.exists() else []


def _rows(lines: bytes) -> list[JsonObject]:
    return [row for line in lines.splitlines() if isinstance(row := parsed(line, orjson.loads), dict)]


def _line(row: Mapping[str, object]) -> bytes:
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except orjson.JSONEncodeError:  # a lone surrogate, which only an escape can spell
        return json.dumps(row).encode() + b"\n"
