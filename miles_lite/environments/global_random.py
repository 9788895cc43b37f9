"""The process's random numbers, lent to one episode at a time: games draw from `random` and `numpy.random` themselves.

Invariant: what an episode draws depends on its seed and its steps alone, whichever others run beside it.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import numpy as np

P = ParamSpec("P")
R = TypeVar("R")

_LOCK = threading.Lock()


class GlobalRandom:
    """Of one episode."""

    def __init__(self, seed: int) -> None:
        own = random.Random(seed).getstate()
        self._state = own, np.random.RandomState(seed % 2**32).get_state()

    async def run(self, function: Callable[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        """Call it, in a thread, so that a slow one keeps no other conversation waiting."""
        return await asyncio.to_thread(self._run, function, *args, **options)

    def _run(self, function: Callable[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        with _LOCK:
            before = random.getstate(), np.random.get_state()
            random.setstate(self._state[0])
            np.random.set_state(self._state[1])
            try:
                return function(*args, **options)
            finally:
                self._state = random.getstate(), np.random.get_state()
                random.setstate(before[0])
                np.random.set_state(before[1])
