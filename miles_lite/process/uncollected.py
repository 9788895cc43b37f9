"""Imports without the garbage collector.

Invariant: what an import makes is there to stay, and walking over it again and again, while it grows, is a fifth of
what importing torch or litellm takes: in the block nothing is collected, and after it as before.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """For a block that imports, and does little else."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
