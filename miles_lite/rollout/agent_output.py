"""Bounds what one agent may print: a flood would fill the disk that all of them log to.

Invariant: what the worker itself prints, and what an agent prints up to LIMIT, passes unchanged.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Iterator
from typing import Any, TextIO

from miles_lite.rollout.agent_loop import CALLER, Caller

LIMIT = 16 << 20
"""Characters that one agent may print."""


class OutputError(OSError):
    """An agent printed more than it may."""


class _Bounded:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._printed: weakref.WeakKeyDictionary[Caller, int] = weakref.WeakKeyDictionary()

    def write(self, text: str) -> int:
        caller = CALLER.get()
        if caller is not None:
            printed = self._printed[caller] = self._printed.get(caller, 0) + len(text)
            if printed > LIMIT:
                raise OutputError(f"it printed more than {LIMIT >> 20} MB: the agents' log is for a few lines of each")
        return self._stream.write(text)

    def close(self) -> None:
        """Stays open: all agents print here."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def bounded_output() -> Iterator[None]:
    """Bound stdout and stderr while the context lasts."""
    old = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = bounded = _Bounded(old[0]), _Bounded(old[1])
    try:
        yield
    finally:
        for name, mine, before in zip(("stdout", "stderr"), bounded, old, strict=True):
            if getattr(sys, name) is mine:
                setattr(sys, name, before)
