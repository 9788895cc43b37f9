"""Memory that sessions leave behind, given back to the operating system: a C library keeps it for its next user.

Invariant: what is left behind is given back within PAUSE seconds, unless that would take more than SHARE of the time.
"""

from __future__ import annotations

import asyncio
import ctypes
import time

PAUSE = 0.1
SHARE = 0.02


class Heap:
    """Of one event loop, which stands still for the milliseconds that giving back takes."""

    def __init__(self) -> None:
        self._pause, self._due = PAUSE, False

    def left(self) -> None:
        """A session is not needed any longer."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(self._pause, self._give_back)

    def _give_back(self) -> None:
        began = time.perf_counter()
        give_back()
        self._pause, self._due = max(PAUSE, (time.perf_counter() - began) / SHARE), False


def give_back() -> None:
    """All that is free. Only glibc needs to be told."""
    if _malloc_trim is not None:
        _malloc_trim(0)


_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
