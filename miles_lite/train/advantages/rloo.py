"""REINFORCE leave-one-out (arXiv:2402.14740, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout
from miles_lite.train.advantages.raw_rewards import of_group


def rloo(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """reward - mean of the group's other rewards; 0 for a rollout that is alone, and exactly 0 where all are equal."""
    del options
    rewards = of_group(rollouts)
    if (rewards == rewards[:1]).all():
        return [0.0] * len(rewards)
    baselines = (rewards.sum() - rewards) / (len(rewards) - 1)
    return [float(value) for value in rewards - baselines]
