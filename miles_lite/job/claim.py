"""A run folder belongs to one process at a time: two would write one metrics file, one journal, one weight version.

Invariant: nothing is left in the folder, and the claim ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from miles_lite.config.folders import check_folder
from miles_lite.errors import UserError


def in_use(run_dir: Path) -> bool:
    """Whether a run has the folder now; not known, and so False, on a file system without locks."""
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.ExitStack() as end:
        end.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
    return False


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Make the folder and have it alone in this block. Raises UserError when it cannot be made or another has it."""
    check_folder("--run-dir", run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    folder = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.ExitStack() as end:
        end.callback(os.close, folder)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--run-dir {run_dir}: another run is using it: give another folder, or end that run"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
