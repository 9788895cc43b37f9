"""Files that are whole, or as they were.

Invariant: what is being written never lies under the name that is read, also where its writer is killed: then one draft
is left, which the next writer replaces. A file has one writer at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """A place beside `path` for the block to write to, which takes its place when the block ends. Where that raises,
    nothing is left of it. Raises OSError."""
    draft = path.with_name(f".{path.name[-50:]}.draft")  # a name may be 255 bytes long
    try:
        yield draft
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
