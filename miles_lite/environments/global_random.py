"""The process's random numbers, lent to one episode at a time: games draw from `random` and `numpy.random` themselves.

Invariant: what an episode draws depends on its seed and its steps alone, whichever others run beside it. A call that
takes too long fails alone: its thread is told to end, and the others go on in a new one.
"""

from __future__ import annotations

import asyncio
import math
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

import numpy as np

from miles_lite.process.interrupting import Interrupted, interrupt

P = ParamSpec("P")
R = TypeVar("R")

LOOK_SECONDS = 0.25


class _Turns:
    """A thread in which calls take turns."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1, "games")
        self._thread, self._since = 0, math.inf

    def begin(self) -> None:
        self._thread, self._since = threading.get_ident(), time.monotonic()

    def end(self) -> None:
        self._since = math.inf

    def overrun(self, seconds: float) -> bool:
        """Whether a call takes longer than that."""
        return time.monotonic() - self._since > seconds

    def give_up(self) -> None:
        """Tell its call to end; those that wait for it are cancelled."""
        interrupt(self._thread)
        self.pool.shutdown(wait=False, cancel_futures=True)


_turns = _Turns()


class GlobalRandom:
    """Of one episode, whose calls may take so many seconds."""

    def __init__(self, seed: int, seconds: float) -> None:
        own = random.Random(seed).getstate()
        self._state = own, np.random.RandomState(seed % 2**32).get_state()
        self._seconds = seconds

    async def run(self, function: Callable[P, R], /, *args: P.args, **options: P.kwargs) -> R:
        """Call it, in a thread, so that a slow one keeps no other conversation waiting. Raises TimeoutError."""
        global _turns
        while True:
            turns = _turns
            call = turns.pool.submit(self._run, turns, partial(function, *args, **options))
            waited = asyncio.wrap_future(call)
            while not call.done() and turns is _turns:
                await asyncio.wait({waited}, timeout=LOOK_SECONDS)
                if turns is _turns and turns.overrun(self._seconds):
                    _turns = _Turns()
                    turns.give_up()
            if call.cancelled():
                continue
            if call.done() and not isinstance(call.exception(), Interrupted):
                return call.result()
            waited.cancel()
            raise TimeoutError(f"the game took longer than {self._seconds:g} s (step_timeout)")

    def _run(self, turns: _Turns, call: Callable[[], R]) -> R:
        turns.begin()
        before = random.getstate(), np.random.get_state()
        random.setstate(self._state[0])
        np.random.set_state(self._state[1])
        try:
            return call()
        finally:
            turns.end()
            if turns is _turns:
                self._state = random.getstate(), np.random.get_state()
                random.setstate(before[0])
                np.random.set_state(before[1])
