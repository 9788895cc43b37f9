"""What a run writes into belongs to one process at a time: two would write one metrics file, one journal, one
checkpoint.

Invariant: nothing is left in the folder, and the claim ends with its process, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from miles_lite.config.folders import check_folder
from miles_lite.errors import UserError, user_error


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
def claimed(folders: Mapping[str, Path]) -> Iterator[None]:
    """Make the folders, each by the flag that names it, and have them alone in this block. Raises UserError when one
    cannot be made or another process has it."""
    with contextlib.ExitStack() as end:
        for path, flag in {path.resolve(): flag for flag, path in folders.items()}.items():
            check_folder(flag, path)
            with user_error(f"{flag} {path}: cannot be made", OSError):
                path.mkdir(parents=True, exist_ok=True)
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            end.callback(os.close, folder)
            _lock(folder, f"{flag} {path}")
        yield


def _lock(folder: int, what: str) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{what}: another run is using it: give another folder, or end that run") from None
    except OSError:  # a file system without locks
        pass
