"""Who sandboxes belong to: a process, by a folder that is locked as long as it lives (`process/scratch.py`).

Invariant: an owner is gone when its lock is free, however its process ended.
"""

from __future__ import annotations

import fcntl
from functools import cache
from pathlib import Path

from miles_lite.process import scratch


@cache
def home() -> Path:
    """This process's folder; sandboxes on this machine are below it."""
    return Path(scratch.make())


def gone(owner: Path) -> bool:
    """Whether the process whose folder this is has ended."""
    try:
        lock = (owner / scratch.LOCK).open("rb+")
    except OSError:
        return True
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True
