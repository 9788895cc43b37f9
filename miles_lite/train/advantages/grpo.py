"""Group relative advantages: GRPO (arXiv:2402.03300, section 4.1.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from miles_lite.config.training import Algorithm
from miles_lite.sample import Rollout


def grpo(rollouts: Sequence[Rollout], options: Algorithm) -> list[float]:
    """(reward - group mean) / (group std + 1e-6) with the sample standard deviation over the group's *rollouts*.

    Without the division under --disable-grpo-std-normalization (Dr. GRPO, arXiv:2503.20783); the reward itself under
    --disable-rewards-normalization.
    """
    rewards = np.array([rollout.reward for rollout in rollouts], dtype=np.float64)
    if options.disable_rewards_normalization or not len(rewards):
        return [float(reward) for reward in rewards]
    equal = bool(np.all(rewards == rewards[0]))
    spread = 0.0 if equal else rewards.std(ddof=1)
    centred = np.zeros_like(rewards) if equal else rewards - rewards.mean()
    scale = 1.0 if options.disable_grpo_std_normalization else spread + 1e-6
    return [float(value) for value in centred / scale]
