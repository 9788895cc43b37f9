"""Credit by turn: rewards of single turns, each compared with the same turn of the group's other rollouts.

Turn-level credit assignment (MT-GRPO, arXiv:2505.11821, section 4): with one rewarded turn of two it is the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.hooks import Advantage
from miles_lite.sample import Rollout
from miles_lite.train.advantages.grpo import grpo, standardised

KEY = "turn_rewards"
"""Under which an agent function returns a number (or None) for each turn of its session, in order."""


def per_turn(rollouts: Sequence[Rollout], options: Algorithm) -> list[Advantage]:
    """Of turn t: Σ over s >= t of gamma^(s-t) Â(s), and GRPO's advantage of the rollout.

    Â(s) is the reward of turn s, standardised over the rollouts that have one there. A rollout without turn rewards has
    GRPO's for all its tokens. Raises UserError for what is no list of numbers.
    """
    outcomes = grpo(rollouts, options)
    given = [_turns(rollout) for rollout in rollouts]
    longest = max(map(len, given), default=0)
    table = np.full((len(given), longest), np.nan)
    for row, turns in zip(table, given, strict=True):
        row[: len(turns)] = turns
    credit = np.zeros_like(table)
    for turn in range(longest):
        has = ~np.isnan(table[:, turn])
        credit[has, turn] = standardised(table[has, turn], divide=not options.disable_grpo_std_normalization)
    for turn in reversed(range(longest - 1)):
        credit[:, turn] += options.gamma * credit[:, turn + 1]
    return [
        tuple(float(outcome + value) for value in row[: len(turns)]) if turns else outcome
        for outcome, row, turns in zip(outcomes, credit, given, strict=True)
    ]


def _turns(rollout: Rollout) -> list[float]:
    """NaN where a turn has no reward."""
    given = rollout.metadata.get(KEY) or []
    if not isinstance(given, list | tuple) or not all(isinstance(one, int | float | None) for one in given):
        raise UserError(f"--advantage-estimator per_turn: {KEY} of rollout {rollout.index} is no list of numbers")
    return [float("nan") if one is None else float(one) for one in given]
