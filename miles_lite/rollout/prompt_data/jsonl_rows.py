"""JSONL: one object per line. Held are the places of lines, 8 bytes each, and none of their text."""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path

import numpy as np

from miles_lite.errors import UserError

DEEPEST = 100
"""Levels of nesting in a row: more than a prompt has, less than what carries it on the way can take."""
CHUNK = 1 << 22
"""Bytes that are searched for line ends at once."""
_SPACE = np.isin(np.arange(256), list(b" \t\v\f\x1c\x1d\x1e\x1f\x85")) | (np.arange(256) < 33)


class JsonlRows:
    """The lines of a file that are not blank; a line ends as `bytes.splitlines` says."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._size = path.stat().st_size
        begins, doubtful = self._scanned()
        self._begins = begins
        blank = [line for line in doubtful if not self.line(int(line)).strip()]
        self._lines = np.delete(np.arange(len(begins), dtype=np.int64), blank) if blank else None

    def __len__(self) -> int:
        return len(self._begins) if self._lines is None else len(self._lines)

    def at(self, place: int) -> tuple[int, str, object]:
        number = self.number(place)
        where = f"{self._path}, line {number}"
        return number, where, read_json(self.line(number - 1), where)

    def number(self, place: int) -> int:
        """The line of a row, from 1."""
        return (place if self._lines is None else int(self._lines[place])) + 1

    def line(self, line: int) -> bytes:
        """A line, from 0, without its end."""
        begin = int(self._begins[line])
        end = int(self._begins[line + 1]) if line + 1 < len(self._begins) else self._size
        return os.pread(self._file.fileno(), end - begin, begin).rstrip(b"\r\n")

    def _scanned(self) -> tuple[np.ndarray, np.ndarray]:
        """Where lines begin; and which begin with white space, and so may be blank. The file is read once, by parts."""
        begins, doubtful = array("q"), array("q")  # they grow in place: two of them would be too many
        begun = True
        for at in range(0, self._size, CHUNK):
            read = os.pread(self._file.fileno(), CHUNK + 1, at)
            here = np.frombuffer(read, np.uint8, min(CHUNK, len(read)))
            ended = here == 10
            if b"\r" in read:
                after = np.frombuffer(read[1:] + b"\0", np.uint8, len(here))
                ended |= (here == 13) & (after != 10)
            ends = np.flatnonzero(ended)
            starts = np.concatenate([[0] if begun else [], ends[ends + 1 < len(here)] + 1]).astype(np.int64)
            begun = bool(len(ends)) and int(ends[-1]) == len(here) - 1
            doubtful.frombytes((np.flatnonzero(_SPACE[here[starts]]) + len(begins)).tobytes())
            begins.frombytes((starts + at).tobytes())
        return np.frombuffer(begins, np.int64), np.frombuffer(doubtful, np.int64)


OTHERS = {
    b"\xff\xfe": "UTF-16: save it as UTF-8",
    b"\xfe\xff": "UTF-16: save it as UTF-8",
    b"\x1f\x8b": "gzip: unpack it first, as by gunzip",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it first, as by unzstd",
    b"\xfd7zXZ": "xz: unpack it first, as by unxz",
    b"BZh": "bzip2: unpack it first, as by bunzip2",
    b"PK": "zip: unpack it first, as by unzip",
}
"""What a file that is no JSONL begins with, and what to do."""


def read_json(line: bytes, where: str) -> object:
    """The JSON of a line of UTF-8. Raises UserError for anything else, and for what no tokenizer or file could hold."""
    try:
        text = line.decode("utf-8-sig")
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        told = next((what for begin, what in OTHERS.items() if line.startswith(begin)), f"byte {error.start}")
        raise UserError(f"{where}: not UTF-8 ({told}). Prompts are JSONL: one object per line, as text.") from error
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: holds a lone surrogate ({error.object[error.start]!a}), which is no text") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}): {text[:80]!r}") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{where}: {str(error).partition(':')[0]}: write it as text") from error
    except RecursionError:
        raise UserError(f"{where}: nested deeper than {DEEPEST} levels: flatten it") from None
    if _depth(value) > DEEPEST:
        raise UserError(f"{where}: nested deeper than {DEEPEST} levels: flatten it")
    return value


def _depth(value: object) -> int:
    """How many lists and objects are inside one another."""
    depth, layer = 0, [value]
    while layer := [each for each in layer if isinstance(each, dict | list)]:
        depth += 1
        layer = [inner for each in layer for inner in (each.values() if isinstance(each, dict) else each)]
    return depth
