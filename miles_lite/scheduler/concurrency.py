"""How many rollouts run at once, found instead of guessed: additive increase, multiplicative decrease, as TCP finds its
window (Jacobson, SIGCOMM 1988; slow start until the first congestion).

Invariant: pure; what it is told are looks at the engines, what it tells is a number from one for each engine to `most`.
"""

from __future__ import annotations

from dataclasses import dataclass

SOFT, HARD = 0.8, 0.9
"""KV use below which there is room for more, and above which there are too many."""
PREEMPTED = 0.005
"""Of the rollouts at once, since the last look: a few are the price of a full cache."""
DECREASE = 0.9
LOOK_SECONDS = 5.0
"""Between two looks."""
SLOW_START = 1.25
SETTLING = 6
"""Looks after a decrease during which there is no other: what was started before still grows."""


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """The engines at a moment: the share of all KV caches in use, requests that wait, those preempted since the last
    look."""

    kv_use: float
    queued: int
    preempted: int
    running: int
    """Rollouts at once."""


class Concurrency:
    """`rollouts` may run at once. For a fleet of `engines`."""

    def __init__(self, *, engines: int, most: int) -> None:
        self._engines, self._most = engines, most
        self._starting = True
        self._settling = 0
        self.rollouts = min(most, 8 * engines)

    def update(self, look: EngineLoad) -> int:
        """Take a look into account; the number from now on."""
        self._settling = max(0, self._settling - 1)
        if look.kv_use > HARD or look.preempted > PREEMPTED * look.running or look.queued > look.running:
            self._starting = False
            if not self._settling:
                self._settling = SETTLING
                self.rollouts = max(self._engines, int(DECREASE * min(self.rollouts, look.running)))
        elif look.kv_use < SOFT and not look.queued and look.running >= self.rollouts and not self._settling:
            grown = int(SLOW_START * self.rollouts) if self._starting else self.rollouts + self._engines
            self.rollouts = min(self._most, max(grown, self.rollouts + 1))
        return self.rollouts
