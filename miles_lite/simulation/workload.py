"""The rollouts of a simulation: their turns, drawn from the scenario's distributions.

Invariant: a rollout's turns depend on the seed and on who it is (group, member, attempt), never on when it is started,
so that schedules are compared on the same work.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from miles_lite.simulation.scenario import TaskModel

_P99 = 2.3263478740408408
"""The 99th percentile of the normal distribution."""
_AT_ONCE = 256
"""Groups that are drawn together."""


@dataclass(eq=False, slots=True)
class Work:
    """One rollout: what each of its turns decodes and how long the tool after it takes; where it breaks, if it does."""

    decode: list[float]
    tools: list[float]
    tokens: float
    """Decoded in all."""
    fails_after: int | None
    """The turn whose tool never answers: infrastructure ended it."""


class Workload:
    """Draws the rollouts of groups."""

    def __init__(self, task: TaskModel, *, members: int, seed: int) -> None:
        self._task, self._members, self._seed = task, members, seed
        self._drawn: dict[int, list[Work]] = {}

    def of(self, group: int, member: int, attempt: int) -> Work:
        """The rollout of a group's member; a later attempt is as long, and fails by its own luck."""
        block = group // _AT_ONCE
        if block not in self._drawn:
            self._drawn.pop(block - 8, None)
            self._drawn[block] = list(self._draw(block))
        work = self._drawn[block][group % _AT_ONCE * self._members + member]
        if attempt == 0:
            return work
        luck = random.Random(f"{self._seed} {group} {member} {attempt}").random()
        return Work(work.decode, work.tools, work.tokens, 0 if luck < self._task.failures else None)

    def _draw(self, block: int) -> Iterator[Work]:
        task, count = self._task, _AT_ONCE * self._members
        drawn = np.random.default_rng((self._seed, block))
        shared = np.repeat(drawn.standard_normal(_AT_ONCE), self._members)
        own = drawn.standard_normal(count)
        mixed = math.sqrt(task.group_share) * shared + math.sqrt(1.0 - task.group_share) * own
        spread = math.log(task.tokens_p99 / task.tokens_p50) / _P99
        lengths = np.minimum(task.tokens_p50 * np.exp(spread * mixed), task.longest)
        turns = 1 + drawn.poisson(max(0.0, task.turns - 1.0), count)
        spread = math.log(task.tool_p99 / task.tool_p50) / _P99
        tools = task.tool_p50 * np.exp(spread * drawn.standard_normal(int(turns.sum())))
        shares = drawn.exponential(size=int(turns.sum()))
        fails = drawn.random(count) < task.failures
        where = drawn.integers(0, turns)
        ends = turns.cumsum()
        whole = np.add.reduceat(shares, ends - turns)
        decode = np.maximum(1.0, np.repeat(lengths / whole, turns) * shares).tolist()
        waits, first = tools.tolist(), 0
        for end, length, failed, turn in zip(ends.tolist(), lengths.tolist(), fails, where.tolist(), strict=True):
            yield Work(decode[first:end], waits[first:end], length, turn if failed else None)
            first = end
