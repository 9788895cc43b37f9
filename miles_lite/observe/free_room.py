"""The room that is left where a run writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def free_gb(folders: Iterable[Path]) -> float | None:
    """10^9 bytes that can be written yet, of the fullest disk; None where no folder is there."""
    free = []
    for folder in folders:
        with suppress(OSError):
            free.append(shutil.disk_usage(folder).free / 1e9)
    return min(free, default=None)
