"""MaxRL: maximum likelihood reinforcement learning (arXiv:2602.02710)."""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout
from miles_lite.train.advantages.raw_rewards import of_group


def maxrl(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """(reward - group mean) / group mean: prompts that are rarely solved weigh more. 0 where all rewards are equal.

    Rewards are likelihoods of success: none is negative (`Estimator.least_reward`).
    """
    del options
    rewards = of_group(rollouts)
    if not len(rewards) or (rewards == rewards[0]).all():
        return [0.0] * len(rewards)
    return [float(value) for value in rewards / rewards.mean() - 1.0]
