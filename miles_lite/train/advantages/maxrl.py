"""MaxRL: maximum likelihood reinforcement learning (arXiv:2602.02710)."""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.config.training import Algorithm
from miles_lite.errors import UserError
from miles_lite.sample import Rollout
from miles_lite.train.advantages.raw_rewards import of_group


def maxrl(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """(reward - group mean) / group mean: prompts that are rarely solved weigh more. 0 where all rewards are equal.

    Rewards are likelihoods of success: raises UserError for a negative one.
    """
    del options
    rewards = of_group(rollouts)
    if len(rewards) and rewards.min() < 0:
        raise UserError(f"--advantage-estimator maxrl: a reward is {rewards.min():g}, and must not be negative")
    if not len(rewards) or (rewards == rewards[0]).all():
        return [0.0] * len(rewards)
    return [float(value) for value in rewards / rewards.mean() - 1.0]
