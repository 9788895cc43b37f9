"""Rewards less their group's mean: no standard deviation, no other scale.

Dr. GRPO (arXiv:2503.20783, section 3.2) takes it with a loss of constant length, REINFORCE++-baseline
(arXiv:2501.03262) with a whitening over the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout
from miles_lite.train.advantages.raw_rewards import of_group


def centred(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """reward - group mean; exactly 0 where all rewards are equal."""
    del options
    rewards = of_group(rollouts)
    if not len(rewards) or (rewards == rewards[0]).all():
        return [0.0] * len(rewards)
    return [float(value) for value in rewards - rewards.mean()]
