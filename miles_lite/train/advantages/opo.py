"""On-policy RL with the optimal reward baseline (arXiv:2505.23585)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout
from miles_lite.train.advantages.raw_rewards import of_group


def opo(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """reward - mean of the group's rewards weighted by trained tokens, which makes the gradient's variance least."""
    del options
    rewards = of_group(rollouts)
    if not len(rewards) or (rewards == rewards[0]).all():
        return [0.0] * len(rewards)
    lengths = np.array([rollout.trained_tokens for rollout in rollouts], dtype=np.float64)
    return [float(value) for value in rewards - (lengths * rewards).sum() / max(lengths.sum(), 1.0)]
