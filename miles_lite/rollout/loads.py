"""Who has how many rollouts, and when there was any.

Invariant: a second in which some rollout ran is told once, to the first that asks after it.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T", bound=Hashable)


class Loads:
    """Of those who run one manager's rollouts."""

    def __init__(self) -> None:
        self._of: Counter[Hashable] = Counter()
        self._running, self._began = 0, 0.0
        self._told: list[tuple[float, float]] = []

    def least(self, among: Sequence[T]) -> T:
        """Who has fewest."""
        return min(among, key=self._of.__getitem__)

    @contextmanager
    def on(self, used: Collection[Hashable]) -> Iterator[None]:
        """A rollout runs on all of those in the block."""
        if not self._running:
            self._began = time.time()
        self._running += 1
        self._of.update([*used])  # of a mapping it would count the values
        try:
            yield
        finally:
            self._of.subtract([*used])
            self._running -= 1
            if not self._running:
                self._told.append((self._began, time.time()))

    def busy(self) -> list[tuple[float, float]]:
        """From when until when some ran since this was asked last; seconds since the epoch."""
        told, self._told, now = self._told, [], time.time()
        if self._running:
            told.append((self._began, now))
            self._began = now
        return told
