"""GDPO: several rewards, each normalised in its group before they are added (arXiv:2601.05242)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout
from miles_lite.train.advantages.grpo import standardised

KEY = "rewards"
"""Under which an agent function returns its rewards by name; without it the rollout's reward is the only one."""


def gdpo(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """The sum of each reward's (reward - group mean) / group std; their sum is standardised over the batch later.

    A reward that a rollout does not have (None or absent) takes part in no mean and adds nothing to it.
    """
    given = [rollout.metadata.get(KEY) or {"reward": rollout.reward} for rollout in rollouts]
    total = np.zeros(len(given))
    for name in dict.fromkeys(name for each in given for name in each):
        values = [each.get(name) for each in given]
        has = np.array([value is not None for value in values])
        known = np.array([value for value in values if value is not None], dtype=np.float64)
        total[has] += standardised(known, divide=not options.disable_grpo_std_normalization)
    return [float(value) for value in total]
