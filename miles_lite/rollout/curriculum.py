"""Prompts by how hard they turned out: of those that are nearly always or hardly ever solved only a share comes again
(the easy and hard pools of PrimeIntellect's prime-rl, whose names the options have).

Invariant: deterministic, and what `restore` is given goes on as what `state` was taken of; every prompt comes once
before it can be left out, and dealing never stands still.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from miles_lite.config.rollouts import Data
from miles_lite.rollout.prompts import Prompt, Source


def curriculum_of(source: Source, options: Data) -> Curriculum | None:
    """Where there is to be one."""
    if options.easy_threshold is None and options.hard_threshold is None:
        return None
    return Curriculum(source, options)


class Curriculum:
    """Deals what `source` deals, but for a share of what was easy or hard when it was judged last."""

    def __init__(self, source: Source, options: Data) -> None:
        self._source, self._options = source, options
        self._rewards: dict[int, float] = {}
        self._looked = 0
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._source)

    @property
    def prompts(self) -> Sequence[Prompt]:
        return self._source.prompts

    @property
    def skipped(self) -> int:
        return self._source.skipped

    def take(self) -> int:
        """The number of the next of `prompts`: after an epoch of which none is to come, whichever is next. Raises
        UserError."""
        for _ in range(len(self)):
            number = self._source.take()
            self._looked += 1
            chance = random.Random(f"{self._options.rollout_seed}-{self._looked}").random()
            if chance < self._share(number):
                return number
            self.left_out += 1
        return self._source.take()

    def judged(self, number: int, reward: float) -> None:
        """The mean reward of a group of prompt `number`."""
        self._rewards[number] = reward

    def metrics(self) -> dict[str, float]:
        """How many prompts are easy and hard, and how often one was left out, so far."""
        pools = [self._pool(reward) for reward in self._rewards.values()]
        return {
            "rollout/prompts_easy": float(pools.count("easy")),
            "rollout/prompts_hard": float(pools.count("hard")),
            "rollout/prompts_left_out": float(self.left_out),
        }

    def state(self) -> dict[str, Any]:
        """The source's, and what was seen beside it."""
        rewards = list(self._rewards.items())
        return self._source.state() | {"curriculum": [rewards, self._looked, self.left_out]}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`, or from that of the source alone. Raises UserError."""
        self._source.restore(state)
        rewards, self._looked, self.left_out = state.get("curriculum", ([], 0, 0))
        self._rewards = dict(map(tuple, rewards))

    def _share(self, number: int) -> float:
        """Of the times that it is its turn, how often it comes."""
        shares = {"easy": self._options.easy_fraction, "hard": self._options.hard_fraction, "": 1.0}
        return shares[self._pool(self._rewards[number])] if number in self._rewards else 1.0

    def _pool(self, reward: float) -> str:
        easy, hard = self._options.easy_threshold, self._options.hard_threshold
        if easy is not None and reward >= easy:
            return "easy"
        return "hard" if hard is not None and reward <= hard else ""
