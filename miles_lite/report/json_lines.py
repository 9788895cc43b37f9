"""Files of JSON lines in a run folder.

Invariant: rows are on disk when a call returns, so that a killed process loses none; a line that a full disk or a kill
cut short is closed before the next, so that it costs only itself; no text keeps a row from being written.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson

from miles_lite.errors import writing
from miles_lite.process.json_types import JsonObject, parsed

log = logging.getLogger(__name__)
Row = Mapping[str, Any]


class JsonLines:
    """One file, which is appended to."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self._torn = self.size > 0 and os.pread(self._file, 1, self.size - 1) != b"\n"

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._file).st_size

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


class LossyLines:
    """A file that no run ends for: what cannot be written is lost, which is said once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: JsonLines | None = None
        self._broken = False

    @property
    def size(self) -> int:
        """Bytes of the file; 0 before the first were written."""
        return 0 if self._lines is None else self._lines.size

    def write(self, rows: Iterable[Row]) -> None:
        """The file is opened with the first."""
        try:
            self._lines = self._lines or JsonLines(self._path)
            self._lines.write(rows)
        except OSError as error:
            if not self._broken:
                log.warning("%s is not written, and the run goes on without: %s", self._path, error)
            self._broken = True

    def close(self) -> None:
        lines, self._lines = self._lines, None
        if lines is not None:
            lines.close()


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


def read(path: Path, *, last: int | None = None) -> list[JsonObject]:
    """The rows of a file, or those that are whole in its `last` bytes, in the order written; none where there is no
    file. What is no row is left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        skipped = 0 if last is None else max(0, os.fstat(file.fileno()).st_size - last)
        file.seek(skipped)
        lines = file.read()
    return _rows(lines if not skipped else lines[lines.find(b"\n") + 1 :])


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
